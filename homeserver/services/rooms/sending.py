"""Sends events: messages, state and redactions. A request that repeats a transaction ID sends no
second event.

A request of a shadow-banned user is checked and answered as usual, but no event is sent. The
exceptions are changes of the user's own membership (join, knock, leave): they are sent without
their `reason` field.

spec: client-server-api#sending-events-to-a-room
"""

from base64 import urlsafe_b64encode
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import nullcontext
from hashlib import sha256
from typing import Any, Final

import msgspec

from federation.peers.identity import ServerIdentity
from federation.protocol.errors import (
    BadAlias,
    BadJson,
    DuplicateAnnotation,
    Forbidden,
    InvalidParam,
    MatrixError,
    NotFound,
    UserSuspended,
)
from federation.protocol.events import Event, StateKey
from federation.protocol.ids import EventID, RoomAlias, RoomID, UserID, is_event_id, is_room_alias
from federation.rooms.concurrency import map_concurrently
from federation.rooms.engine import RoomEngine
from federation.rooms.event_drafts import Draft
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.membership_checks import check_still
from federation.rooms.relations import parse_relation, read_relation
from homeserver.api.requester import Requester
from homeserver.services.directory.shadow_ban import HiddenRoomChanges
from homeserver.services.rooms.guest_access import GUEST_ACCESS, GuestAccess
from homeserver.services.rooms.membership import RoomMemberships
from homeserver.services.rooms.reading import RoomReading
from homeserver.services.rooms.related_redactions import RelatedRedactions
from storage.events.relations import ANNOTATION, THREAD, Relation, RelationStore
from storage.rooms.sent_transactions import AlreadySent, SentTransaction, SentTransactionStore

MAX_TXN_ID: Final = 255
MAX_REMOTE_ALIASES: Final = 10
"""The maximum number of aliases of other servers that are resolved for one event."""
CANONICAL_ALIAS: Final = StateKey("m.room.canonical_alias", "")
SERVER_ONLY_TYPES: Final = frozenset({"m.room.create"})


class NoLongerInRoom(Forbidden):
    default_text = "You are no longer in this room"


class RoomSending:
    """Sends the events of clients to rooms."""

    def __init__(
        self,
        *,
        engine: RoomEngine,
        events: RoomEvents,
        hidden_changes: HiddenRoomChanges,
        memberships: RoomMemberships,
        reading: RoomReading,
        guest_access: GuestAccess,
        relations: RelationStore,
        sent_transactions: SentTransactionStore,
        related_redactions: RelatedRedactions,
        identity: ServerIdentity,
    ) -> None:
        self._engine = engine
        self._identity = identity
        self._events = events
        self._hidden_changes = hidden_changes
        self._memberships = memberships
        self._reading = reading
        self._guests = guest_access
        self._relations = relations
        self._sent = sent_transactions
        self._related = related_redactions

    async def do_send(
        self,
        caller: Requester,
        room_id: RoomID,
        type: str,
        content: Mapping[str, Any],
        txn_id: str,
        origin_server_ts: int | None,
        *,
        sticky_ms: int | None = None,
        sent: SentTransaction | None = None,
    ) -> msgspec.Raw:
        """Send an event that is not state. Return the response, the same for a repeated request.
        `sent` names the request if it is not this one.

        Raises Forbidden, NotFound, DuplicateAnnotation; UserSuspended and ConsentNotGiven except
        for redactions of one's own events; MatrixError for a thread whose root has a parent.
        """
        redacts = None
        if type != "m.room.redaction":
            caller.check_may_write()
        else:
            target = content.get("redacts")
            if not isinstance(target, str) or not is_event_id(target):
                raise BadJson("A redaction names its target in content.redacts")
            redacts = EventID(target)
            await self._check_suspended_redacts_own(caller, room_id, redacts)
            # room versions that have `redacts` outside the content do not have it inside
            content = {name: value for name, value in content.items() if name != "redacts"}
        sent = sent or identify_request(caller, f"send/{room_id}/{type}", txn_id)
        relation = parse_relation(content)
        draft = Draft(
            type,
            caller.user_id,
            content,
            None,
            redacts,
            check_timestamp(caller, origin_server_ts),
            sent,
            sticky_ms,
            self._check_annotation(caller.user_id, room_id, type, relation),
        )
        if relation is not None and relation.rel_type == THREAD:
            refusal = await self._refuse_thread(caller, room_id, relation)
            if refusal is not None:
                earlier = await self._sent.get_response(sent)  # a repeated request
                if earlier is None:
                    raise refusal
                return msgspec.Raw(earlier)
        return await self._send(caller, room_id, draft, sent)

    async def do_redact(
        self,
        caller: Requester,
        room_id: RoomID,
        target: EventID,
        reason: str | None,
        txn_id: str,
        with_rel_types: Sequence[str] = (),
    ) -> msgspec.Raw:
        """Redact an event, and its children with these relation types. Raises Forbidden, NotFound,
        UserSuspended, ConsentNotGiven."""
        await self._check_suspended_redacts_own(caller, room_id, target)
        content: dict[str, Any] = {} if reason is None else {"reason": reason}
        sent = identify_request(caller, f"redact/{room_id}/{target}", txn_id)
        related = self._related.make_request(
            caller.user_id, target, with_rel_types, reason, only_own=caller.may_only_read
        )
        extra_write = self._related.store_tasks(related)
        draft = Draft(
            "m.room.redaction",
            caller.user_id,
            content,
            None,
            target,
            None,
            sent,
            extra_write=extra_write,
        )
        response = await self._send(caller, room_id, draft, sent)
        if with_rel_types and not caller.is_shadow_banned:
            await self._related.do_redact(room_id, related)
        return response

    async def do_set_state(
        self,
        caller: Requester,
        room_id: RoomID,
        type: str,
        state_key: str,
        content: Mapping[str, Any],
        origin_server_ts: int | None,
        *,
        sticky_ms: int | None = None,
        sent: SentTransaction | None = None,
    ) -> EventID:
        """Set a state entry and return its event ID, that of the existing event if nothing changes.
        `sent` names the request.

        Raises Forbidden, NotFound, AlreadySent; UserSuspended and ConsentNotGiven except for
        leaving a room.

        spec: client-server-api#account-suspension
        """
        if caller.may_only_read:
            if (type, state_key) != ("m.room.member", caller.user_id) or content.get(
                "membership"
            ) != "leave":
                caller.check_may_write()
            # only what the endpoint for leaving a room allows
            content = {name: content[name] for name in ("membership", "reason") if name in content}
        if type in SERVER_ONLY_TYPES:
            raise Forbidden(f"{type} cannot be sent into an existing room")
        is_hidden = caller.is_shadow_banned
        if is_hidden and (type, state_key) == ("m.room.member", caller.user_id):
            visible = await self._memberships.find_visible_change(caller.user_id, room_id, content)
            is_hidden, content = visible is None, content if visible is None else visible
        if type == "m.room.member":
            content = await self._memberships.check_member_state(
                caller, room_id, state_key, content
            )
            if self._memberships.needs_remote_server(state_key, content) and not is_hidden:
                return await self._memberships.do_invite_remote(
                    caller, room_id, UserID(state_key), content
                )
        if type == "m.room.canonical_alias":
            await self._check_aliases(caller, room_id, content)
        is_join = type == "m.room.member" and await self._memberships.is_join(
            caller, room_id, state_key, content
        )
        check = None
        if type == "m.room.member" and content.get("membership") == "join" and not is_join:
            # a change of name in the room: a user who is removed meanwhile must not rejoin by it
            check = check_still(self._engine, room_id, caller.user_id, {"join"}, NoLongerInRoom)
        draft = Draft(
            type,
            caller.user_id,
            content,
            state_key,
            origin_server_ts=check_timestamp(caller, origin_server_ts),
            sent=sent,
            sticky_ms=sticky_ms,
            check=check,
            unless_same=sticky_ms is None,
        )
        if is_hidden:
            (checked,) = await self._engine.check(room_id, [draft])
            if isinstance(checked, StoredEvent):  # the state is unchanged
                return checked.event.event_id
            return make_hidden_event_id(
                caller.user_id, room_id, type, state_key, msgspec.json.encode(content).decode()
            )
        with self._memberships.counting_join(caller, room_id) if is_join else nullcontext():
            event = (await self._engine.send(room_id, [draft]))[0].event
        if event.key == GUEST_ACCESS:
            await self._guests.do_remove_from_room(
                (await self._engine.get_snapshot(room_id)).room.room_nid
            )
        elif type == "m.room.member" and event.membership == "join":
            await self._memberships.complete_join(caller.user_id, room_id)
        return event.event_id

    async def _send(
        self, caller: Requester, room_id: RoomID, draft: Draft, sent: SentTransaction
    ) -> msgspec.Raw:
        if caller.is_shadow_banned:
            await self._engine.check(room_id, [draft])
            return _response(
                make_hidden_event_id(sent.user_id, sent.device_id, sent.scope, sent.txn_id)
            )
        try:
            (event,) = await self._engine.send(room_id, [draft])
        except AlreadySent as earlier:
            return msgspec.Raw(earlier.response)
        return _response(event.event.event_id)

    async def _refuse_thread(
        self, caller: Requester, room_id: RoomID, relation: Relation
    ) -> MatrixError | None:
        """Return the error if an event may not be sent into this thread.

        spec: client-server-api#validation-of-mthread-relationships
        """
        snapshot = await self._engine.get_snapshot(room_id)
        member = await snapshot.state.get(StateKey("m.room.member", caller.user_id))
        if member is None or member.event.membership != "join":
            return None  # authorization will refuse, without revealing the room's events
        root = await self._events.get_event(snapshot.room.room_nid, EventID(relation.target))
        if root is None or read_relation(root.event) is None:
            return None
        try:
            await self._reading.get_for_member(caller.user_id, room_id, [root.event.event_id])
        except (Forbidden, NotFound):
            return None  # as for an unknown event, so that the error does not reveal it
        return MatrixError("The root of a thread cannot itself relate to another event")

    def _check_annotation(
        self, user_id: UserID, room_id: RoomID, type: str, relation: Relation | None
    ) -> Callable[[Sequence[Event]], Awaitable[None]] | None:
        """Return the check that the user has not annotated the event in the same way already. It
        also sees events that are about to be written.

        spec: client-server-api#avoiding-duplicate-annotations
        """
        if relation is None or relation.rel_type != ANNOTATION or relation.annotation is None:
            return None
        target, annotation = relation.target, relation.annotation

        async def check(pending: Sequence[Event]) -> None:
            if any(
                event.sender == user_id and event.type == type and read_relation(event) == relation
                for event in pending
            ):
                raise DuplicateAnnotation
            room_nid = (await self._engine.get_snapshot(room_id)).room.room_nid
            if await self._relations.has_annotation(room_nid, target, type, user_id, annotation):
                raise DuplicateAnnotation

        return check

    async def _check_suspended_redacts_own(
        self, caller: Requester, room_id: RoomID, target: EventID
    ) -> None:
        if not caller.may_only_read:
            return
        snapshot = await self._engine.get_snapshot(room_id)
        event = await self._events.get_event(snapshot.room.room_nid, target)
        if event is None or event.event.sender != caller.user_id:
            if caller.is_suspended:
                raise UserSuspended(
                    "While your account is suspended you may only redact your own events"
                )
            caller.check_may_write()

    async def _check_aliases(
        self, caller: Requester, room_id: RoomID, content: Mapping[str, Any]
    ) -> None:
        """Check that aliases that are new in the event point to the room. Aliases of other servers
        are resolved there.

        Raises BadJson, InvalidParam, BadAlias, Forbidden (the policy, or that server),
        OtherServerFailed. spec:
        client-server-api#put_matrixclientv3roomsroomidstateeventtypestatekey
        """
        alias, alt_aliases = content.get("alias"), content.get("alt_aliases") or []
        if not isinstance(alt_aliases, list) or not all(
            isinstance(name, str) for name in (*alt_aliases, alias or "")
        ):
            raise BadJson("alias must be an alias, alt_aliases a list of aliases")
        requested = {name for name in (*alt_aliases, alias) if name}
        for name in requested:
            if not is_room_alias(name):
                raise InvalidParam(f"{name!r} is not a room alias")
        snapshot = await self._engine.get_snapshot(room_id)
        present = await snapshot.state.get(CANONICAL_ALIAS)
        before = set() if present is None else _aliases_in(present.event.content)
        new = [RoomAlias(name) for name in sorted(requested - before)]
        local = [name for name in new if self._identity.is_local(name)]
        remote = [name for name in new if not self._identity.is_local(name)]
        if len(remote) > MAX_REMOTE_ALIASES:
            raise InvalidParam(
                f"At most {MAX_REMOTE_ALIASES} aliases of other servers can be added at a time"
            )
        rows = await self._hidden_changes.get_aliases(caller, local)
        _check_none_invalid(
            [
                name
                for name in local
                if name not in rows or rows[name].room_nid != snapshot.room.room_nid
            ]
        )

        async def find(name: RoomAlias) -> RoomID | None:
            try:
                return (await self._memberships.resolve(caller, name, None))[0]
            except NotFound:
                return None

        found = await map_concurrently(find, remote, MAX_REMOTE_ALIASES)
        _check_none_invalid(
            [name for name, room in zip(remote, found, strict=True) if room != room_id]
        )


def _check_none_invalid(invalid: Sequence[RoomAlias]) -> None:
    """Raises BadAlias for aliases that do not point to the room."""
    if invalid:
        raise BadAlias(f"These aliases do not point to this room: {', '.join(invalid)}")


def _response(event_id: EventID) -> msgspec.Raw:
    return msgspec.Raw(b'{"event_id":"%s"}' % event_id.encode())


def make_hidden_event_id(*what: str) -> EventID:
    """Return the ID for an event that is not sent, the same for a repeated request."""
    digest = sha256("\0".join(what).encode("utf-8", "surrogatepass")).digest()
    return EventID(f"${urlsafe_b64encode(digest).decode().rstrip('=')}")


def _aliases_in(content: Mapping[str, Any]) -> set[str]:
    alt_aliases = content.get("alt_aliases")
    names = [content.get("alias"), *(alt_aliases if isinstance(alt_aliases, list) else [])]
    return {name for name in names if isinstance(name, str)}


def identify_request(caller: Requester, scope: str, txn_id: str) -> SentTransaction:
    """Return the identity of a request that may be repeated. Raises InvalidParam."""
    if len(txn_id) > MAX_TXN_ID:
        raise InvalidParam(f"A transaction ID has at most {MAX_TXN_ID} characters")
    return SentTransaction(
        caller.user_id, caller.device_id or "", scope, txn_id, caller.device_created_ts
    )


def check_timestamp(caller: Requester, ts: int | None) -> int | None:
    """Return the timestamp that an application service sets for an event. Raises Forbidden for
    others, InvalidParam."""
    if ts is None:
        return None
    if caller.appservice_id is None:
        raise Forbidden("Only application services may set the timestamp of an event")
    if not 0 <= ts < 2**53:
        raise InvalidParam("ts must be a time in milliseconds since 1970")
    return ts
