"""Serves the make_* and send_* endpoints: remote users join, leave and knock through this server.

Laws:
- A server may act for its own users only. Its signature is checked before the event is used.
- The event is received like any other, so the room's rules decide whether it is accepted.
- For rate limits, a join of a remote user through us counts as a join of the room, like a join of a
  local user. Refused joins and joins of existing members do not count. Otherwise any server could
  block the joins of a room.

spec: server-server-api#joining-rooms, server-server-api#leaving-rooms-rejecting-invites,
server-server-api#knocking-rooms
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

import msgspec

from federation.api.responses import Response
from federation.peers.identity import ServerIdentity
from federation.protocol.errors import BadEvent, Forbidden, IncompatibleRoomVersion, InvalidParam
from federation.protocol.event_signing import is_content_hash_valid, required_signers, sign_event
from federation.protocol.events import Event, StateKey, parse_event
from federation.protocol.ids import EventID, RoomID, ServerName, UserID, domain_of
from federation.protocol.stripped_state import federation_form, stripped_state_keys
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.joins.restricted_joins import RestrictedJoins
from federation.rooms.joins.send_join_response import JoinResponses
from federation.rooms.membership_templates import AUTHORISER, MEMBER, make_template
from federation.rooms.receipt_checks import SHOWN
from federation.rooms.receive.check_sources import GetSigners
from federation.rooms.receive.receiver import Receiver
from federation.rooms.server_in_room import ServerInRoom
from federation.rooms.snapshot import RoomSnapshot

CheckJoin = Callable[[RoomID], None]
"""Checks the rate limit of joins into a room. Raises LimitExceeded."""
CountJoin = Callable[[RoomID], None]
"""Counts a join into a room."""
JOINED_OR_INVITED: Final = frozenset({"join", "invite"})
"""Memberships with which a user joins a restricted room without an authorising user."""


class MembershipHandshakes:
    """Serves make_join, send_join and the other endpoints. Use this class only on the reactor
    thread."""

    def __init__(
        self,
        *,
        events: RoomEvents,
        server_in_room: ServerInRoom,
        receiver: Receiver,
        restricted: RestrictedJoins,
        join_responses: JoinResponses,
        get_signers: GetSigners,
        check_join: CheckJoin,
        count_join: CountJoin,
        identity: ServerIdentity,
        now_ms: Callable[[], int],
    ) -> None:
        self._events = events
        self._server_in_room = server_in_room
        self._receiver = receiver
        self._restricted = restricted
        self._answers = join_responses
        self._get_signers = get_signers
        self._check_join = check_join
        self._count_join = count_join
        self._identity = identity
        self._now_ms = now_ms

    async def make_join(
        self, origin: ServerName, room_id: RoomID, user_id: UserID, versions: Collection[str]
    ) -> dict[str, Any]:
        """Make a template for a join.

        Raises NotFound, IncompatibleRoomVersion, Forbidden, UnableToAuthoriseJoin,
        UnableToGrantJoin.
        """
        snapshot = await self._find_room(origin, room_id, user_id, versions)
        content = {"membership": "join"}
        if await self._get_membership(snapshot, user_id) not in JOINED_OR_INVITED:
            authoriser = await self._restricted.get_authoriser(snapshot, user_id)
            if authoriser is not None:
                content[AUTHORISER] = authoriser
        return await self._make_template(snapshot, user_id, content)

    async def make_leave(
        self, origin: ServerName, room_id: RoomID, user_id: UserID
    ) -> dict[str, Any]:
        """Make a template for leaving, or for declining an invite. Raises NotFound, Forbidden."""
        snapshot = await self._find_room(origin, room_id, user_id, None)
        return await self._make_template(snapshot, user_id, {"membership": "leave"})

    async def make_knock(
        self, origin: ServerName, room_id: RoomID, user_id: UserID, versions: Collection[str]
    ) -> dict[str, Any]:
        """Make a template for a knock. Raises NotFound, IncompatibleRoomVersion, Forbidden."""
        snapshot = await self._find_room(origin, room_id, user_id, versions)
        return await self._make_template(snapshot, user_id, {"membership": "knock"})

    async def do_join(
        self,
        origin: ServerName,
        room_id: RoomID,
        event_id: EventID,
        pdu: Mapping[str, Any],
        *,
        omit_members: bool,
        is_v1: bool,
    ) -> Response:
        """Receive a join; return the state of the room before it.

        `omit_members`: leave out most memberships. `is_v1`: answer in the form of version 1 of
        the endpoint. Raises NotFound, Forbidden, InvalidParam, BadEvent, LimitExceeded.
        """
        snapshot = await self._server_in_room.get_for(origin, room_id)
        event = await self._parse(snapshot, origin, event_id, pdu, "join")
        membership = await self._get_membership(snapshot, event.sender)
        if membership != "join":
            self._check_join(room_id)
        authoriser = event.content.get(AUTHORISER)
        if (
            snapshot.version.restricted_joins
            and isinstance(authoriser, str)
            and domain_of(authoriser) == self._identity.server_name
        ):
            if membership not in JOINED_OR_INVITED and not await self._restricted.allows_join(
                snapshot, event.sender
            ):
                raise Forbidden(
                    "Only invited users and members of certain other rooms may join this room"
                )
            signed = sign_event(
                snapshot.version, event.pdu, self._identity.server_name, self._identity.key
            )
            event = parse_event(snapshot.version, signed, event_id=event.event_id)
        join, is_new = await self._receive(snapshot, event)
        if is_new and membership != "join":
            self._count_join(room_id)
        return await self._answers.build(snapshot, join, omit_members=omit_members, is_v1=is_v1)

    async def do_leave(
        self, origin: ServerName, room_id: RoomID, event_id: EventID, pdu: Mapping[str, Any]
    ) -> None:
        """Receive a leave. Raises NotFound, Forbidden, InvalidParam, BadEvent."""
        snapshot = await self._server_in_room.get_for(origin, room_id)
        await self._receive(snapshot, await self._parse(snapshot, origin, event_id, pdu, "leave"))

    async def do_knock(
        self, origin: ServerName, room_id: RoomID, event_id: EventID, pdu: Mapping[str, Any]
    ) -> list[msgspec.Raw]:
        """Receive a knock; return the stripped state of the room.

        Raises NotFound, Forbidden, InvalidParam, BadEvent.
        """
        snapshot = await self._server_in_room.get_for(origin, room_id)
        await self._receive(snapshot, await self._parse(snapshot, origin, event_id, pdu, "knock"))
        keys = stripped_state_keys()
        state = await snapshot.state.load(keys)
        return federation_form(state[key].event for key in keys if key in state)

    async def _find_room(
        self, origin: ServerName, room_id: RoomID, user_id: UserID, versions: Collection[str] | None
    ) -> RoomSnapshot:
        if domain_of(user_id) != origin:
            raise Forbidden(f"{user_id} is not a user of {origin}")
        snapshot = await self._server_in_room.get_for(origin, room_id)
        if versions is not None and snapshot.version.identifier not in versions:
            raise IncompatibleRoomVersion(
                f"This room has version {snapshot.version.identifier}, "
                "which your server does not support",
                room_version=snapshot.version.identifier,
            )
        return snapshot

    async def _make_template(
        self, snapshot: RoomSnapshot, user_id: UserID, content: Mapping[str, Any]
    ) -> dict[str, Any]:
        event = await make_template(
            snapshot, self._events, self._identity, user_id, content, self._now_ms()
        )
        return {"room_version": snapshot.version.identifier, "event": event}

    async def _get_membership(self, snapshot: RoomSnapshot, user_id: UserID) -> str | None:
        own = await snapshot.state.get(StateKey(MEMBER, user_id))
        return None if own is None else own.event.membership

    async def _parse(
        self,
        snapshot: RoomSnapshot,
        origin: ServerName,
        event_id: EventID,
        pdu: Mapping[str, Any],
        membership: str,
    ) -> Event:
        event = parse_event(snapshot.version, pdu)
        if event.event_id != event_id:
            raise InvalidParam("The event has another id than the path")
        check_membership_event(event, snapshot.room_id, membership)
        if event.state_key != event.sender or domain_of(event.sender) != origin:
            raise InvalidParam(f"The event does not change the membership of a user of {origin}")
        await check_origin_signed(event, self._get_signers, {self._identity.server_name})
        return event

    async def _receive(self, snapshot: RoomSnapshot, event: Event) -> tuple[StoredEvent, bool]:
        """Receive the event. Return it as stored, and whether it is new.

        Raises Forbidden, InvalidParam.
        """
        (outcome,) = await self._receiver.receive(snapshot.room_id, [event.pdu], broadcast=True)
        if outcome.is_waiting:
            raise InvalidParam("The event refers to events that this server does not have")
        stored = await self._events.get_event(snapshot.room.room_nid, event.event_id)
        if outcome.verdict is not None and outcome.verdict not in SHOWN:
            raise outcome.error or Forbidden("The room does not allow this")
        if stored is None or not stored.in_timeline:
            raise Forbidden("The room does not allow this")
        return stored, not outcome.was_known


def check_membership_event(event: Event, room_id: RoomID, membership: str) -> None:
    """Check the kind and the room of an event. Raises InvalidParam."""
    if event.type != MEMBER or event.membership != membership:
        raise InvalidParam(f"The event is not an m.room.member event of membership {membership}")
    if event.room_id != room_id:
        raise InvalidParam("The event is of another room")


async def check_origin_signed(
    event: Event, get_signers: GetSigners, exempt: Collection[ServerName] = ()
) -> None:
    """Check the content hash and the signatures of an event. Raises InvalidParam."""
    try:
        missing = required_signers(event).difference(await get_signers(event), exempt)
    except BadEvent as error:
        raise InvalidParam(error.text) from error
    if missing:
        raise InvalidParam(f"The event lacks a valid signature of {min(missing)}")
    if not is_content_hash_valid(event):
        raise InvalidParam("The content of the event does not match its hash")
