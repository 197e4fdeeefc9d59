"""Makes the membership events that two servers create together (make_join and send_join, for
example).

A server in the room makes a template, with the prev_events and auth events of the new event. The
user's server fills in the template and signs it. This module does both.

spec: server-server-api#joining-rooms, server-server-api#leaving-rooms-rejecting-invites,
server-server-api#knocking-rooms
"""

from collections.abc import Callable, Mapping
from secrets import token_urlsafe
from typing import Any, Final

from federation.peers.identity import ServerIdentity
from federation.protocol.errors import BadEvent
from federation.protocol.event_auth import auth_keys, check_auth
from federation.protocol.event_signing import build_event, hash_and_sign_event
from federation.protocol.events import Event, compute_reference_hash, parse_event
from federation.protocol.ids import EventID, RoomID, ServerName, UserID
from federation.protocol.room_versions import EventFormat, RoomVersion
from federation.protocol.signing import encode_base64
from federation.remote.membership import Action, MembershipClient
from federation.rooms.build import MAX_DEPTH, MAX_PREV_EVENTS
from federation.rooms.events import RoomEvents
from federation.rooms.snapshot import CREATE, POWER_LEVELS, RoomSnapshot

AUTHORISER: Final = "join_authorised_via_users_server"
"""A property of joins. Only the server that authorises the join may add it."""
MEMBER: Final = "m.room.member"
_NOT_IN_TEMPLATES: Final = frozenset({"hashes", "signatures", "event_id"})


async def make_template(
    snapshot: RoomSnapshot,
    events: RoomEvents,
    identity: ServerIdentity,
    user_id: UserID,
    content: Mapping[str, Any],
    now_ms: int,
) -> dict[str, Any]:
    """Build an unsigned membership event of the user at the room's head. Raises Forbidden when it
    would not be allowed."""
    version = snapshot.version
    keys = auth_keys(version, MEMBER, user_id, user_id, content)
    stored = await snapshot.state.load({*keys, CREATE, POWER_LEVELS})
    state = {key: found.event for key, found in stored.items()}
    auth = [state[key] for key in sorted(keys) if key in state]
    extremities = snapshot.head.extremities[:MAX_PREV_EVENTS]
    names: dict[str, Any] = {}
    if version.event_format is EventFormat.V1:
        prev = [
            found.event
            for found in (await events.get_events(nid for nid, _ in extremities)).values()
        ]
        names = {
            "event_id": EventID(f"$template:{identity.server_name}"),
            "reference_hashes": {
                event.event_id: encode_base64(compute_reference_hash(version, event.pdu))
                for event in (*auth, *prev)
            },
        }
    event = build_event(
        version,
        identity.server_name,
        identity.key,
        room_id=snapshot.room_id,
        type=MEMBER,
        sender=user_id,
        state_key=user_id,
        content=content,
        origin_server_ts=now_ms,
        prev_events=[EventID(event_id) for _, event_id in extremities],
        auth_events=[other.event_id for other in auth],
        depth=min(snapshot.head.depth + 1, MAX_DEPTH),
        **names,
    )
    check_auth(event, state, create=state[CREATE])
    template = {name: value for name, value in event.pdu.items() if name not in _NOT_IN_TEMPLATES}
    template["origin"] = identity.server_name
    return template


def fill_template(
    version: RoomVersion,
    template: Mapping[str, Any],
    identity: ServerIdentity,
    room_id: RoomID,
    user_id: UserID,
    content: Mapping[str, Any],
    now_ms: int,
) -> Event:
    """Build our user's event; only its place in the room comes from the template.

    The authorising user of a join must be of another server: our signature on the event would also
    count as that of an authorising local user. Raises BadEvent for an invalid template.
    """
    pdu: dict[str, Any] = {
        name: template[name] for name in ("auth_events", "prev_events", "depth") if name in template
    }
    authoriser = template["content"].get(AUTHORISER)
    if isinstance(authoriser, str) and identity.is_local(authoriser):
        raise BadEvent(
            f"The template names {authoriser} as authorising user, who has not been asked"
        )
    if (
        version.restricted_joins
        and content.get("membership") == "join"
        and isinstance(authoriser, str)
    ):
        content = {**content, AUTHORISER: authoriser}
    pdu |= {
        "type": MEMBER,
        "room_id": room_id,
        "sender": user_id,
        "state_key": user_id,
        "content": dict(content),
        "origin_server_ts": now_ms,
    }
    return sign(version, identity, pdu)


class TemplateRequests:
    """Makes membership events of our users from the templates of other servers."""

    def __init__(
        self, *, remote: MembershipClient, identity: ServerIdentity, now_ms: Callable[[], int]
    ) -> None:
        self._remote = remote
        self._identity = identity
        self._now_ms = now_ms

    async def make(
        self,
        server: ServerName,
        action: Action,
        room_id: RoomID,
        user_id: UserID,
        content: Mapping[str, Any],
    ) -> Event:
        """Request a template, and return the user's event signed by us.

        Raises RemoteError, BadEvent, Forbidden (by our policy), UnknownRoomVersion.
        """
        template = await self._remote.make(server, action, room_id, user_id)
        return fill_template(
            template.version,
            template.event,
            self._identity,
            room_id,
            user_id,
            content,
            self._now_ms(),
        )


def make_local_leave(
    version: RoomVersion,
    identity: ServerIdentity,
    room_id: RoomID,
    user_id: UserID,
    content: Mapping[str, Any],
    now_ms: int,
) -> Event:
    """Build our user's leave for this server alone. It follows no events, and is not sent to other
    servers."""
    return sign(
        version,
        identity,
        {
            "type": MEMBER,
            "room_id": room_id,
            "sender": user_id,
            "state_key": user_id,
            "content": dict(content),
            "origin_server_ts": now_ms,
            "auth_events": [],
            "prev_events": [],
            "depth": 1,
        },
    )


def sign(version: RoomVersion, identity: ServerIdentity, pdu: Mapping[str, Any]) -> Event:
    """Return a signed event of ours. Raises BadEvent."""
    if version.event_format is EventFormat.V1:
        pdu = {
            **pdu,
            "event_id": f"${token_urlsafe(18)}:{identity.server_name}",
            "origin": identity.server_name,
        }
    return parse_event(
        version, hash_and_sign_event(version, pdu, identity.server_name, identity.key)
    )


def with_signature_of(event: Event, server: ServerName, other: Mapping[str, Any]) -> Event:
    """Return our event with the signatures that a server added to its copy; the rest stays ours.

    Raises BadEvent.
    """
    signatures_of_copy = other.get("signatures")
    added = signatures_of_copy.get(server) if isinstance(signatures_of_copy, Mapping) else None
    if not isinstance(added, Mapping):
        return event
    signatures = {**event.pdu["signatures"], server: dict(added)}
    return parse_event(
        event.version, {**event.pdu, "signatures": signatures}, event_id=event.event_id
    )
