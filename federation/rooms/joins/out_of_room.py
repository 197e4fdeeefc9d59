"""Rooms that this server is not in, as its users know them: who is invited, who knocks, and what
was told of the room.

Nothing that strangers say of such a room can be proved. So the first word stands: an invite is
ended by its user, by the server that it came from, or by an event that rests upon it, whose id only
servers in the room know. An invite of another server waits beside it, and is shown when the first
was ended by others; who accepts one has the servers of all of them asked. A knock may be answered
by an invite of any server that does not refer to it; but then the server that was knocked at may
still invite. And each is of the version of the room that its server names, whatever others name.

spec: server-server-api#inviting-to-a-room
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

import msgspec

from federation.peers.identity import ServerIdentity
from federation.protocol.errors import BadState, Forbidden
from federation.protocol.events import Event, encode_pdu, load_event
from federation.protocol.ids import EventID, RoomID, ServerName, UserID, domain_of
from federation.protocol.room_versions import ROOM_VERSIONS, RoomVersion
from federation.protocol.stripped_state import StrippedEvent
from federation.rooms.effects import state_effect
from federation.rooms.events import StoredEvent
from storage.events.events import EventFlag, EventRow
from storage.rooms.memberships import MembershipRow
from storage.rooms.out_of_room_memberships import (
    OUTSIDE,
    OutsideMembershipStore,
    OutsideRow,
    Untouchable,
)
from storage.rooms.rooms import RoomRow

OPEN: Final = frozenset({"invite", "knock"})
"""Memberships that wait for something to follow."""
MAX_STATE_BYTES: Final = 1 << 18
"""Of what is kept of another server's words about a room."""


class Told(msgspec.Struct, frozen=True):
    """What a server told of a room when our user was invited or knocked."""

    server: ServerName
    state: tuple[StrippedEvent, ...]


class OutsideMemberships:
    """Keeps memberships of rooms that this server is not in. For the reactor thread."""

    def __init__(
        self, store: OutsideMembershipStore, identity: ServerIdentity, now_ms: Callable[[], int]
    ) -> None:
        self._store = store
        self._identity = identity
        self._now_ms = now_ms

    async def keep(
        self,
        event: Event,
        server: ServerName,
        state: Iterable[Mapping[str, Any]],
        untold: Mapping[str, str] | None = None,
    ) -> bool:
        """Keep our user's new membership and what the server says of the room; False if they are in
        it by now. `untold`: servers that have yet to hear of it, each with the id of what it told
        that this ends (empty: not known).

        Raises BadState when the room is known to have another version; Forbidden when they have an
        invite to it or knock there, and the event may not end that.
        """
        member = state_effect(event, self._identity).membership
        assert member is not None, "it is a membership of one of the five kinds"
        room = await self._store.get_room(event.room_id, event.version.identifier, self._now_ms())
        if room.version != event.version.identifier:
            raise BadState(f"The room is known to have version {room.version}")
        row = OutsideRow(
            room.room_nid,
            member.user_id,
            event.event_id,
            await self._find_counterpart(room, event, server),
            event.version.identifier,
            encode_pdu(event),
            _encode_bounded(state),
        )

        def may_end(kept: OutsideRow, present: MembershipRow) -> bool:
            return _may_end(event, kept, present)

        try:
            return await self._store.set_outside(row, member, may_end, untold, self._now_ms())
        except Untouchable as error:
            raise Forbidden(
                f"{member.user_id} has other invites to this room already, or knocks there"
            ) from error

    async def _find_counterpart(
        self, room: RoomRow, event: Event, server: ServerName
    ) -> ServerName:
        """Which server may replace the membership: that at which the user knocked, if this is an
        invite that may be its answer."""
        kept = None
        if event.membership == "invite" and event.state_key is not None:
            kept = (await self._store.get_outside(room.room_nid, [event.state_key])).get(
                event.state_key
            )
        if kept is None or kept.event_id in event.auth_events:
            return server
        known = load_event(
            ROOM_VERSIONS[kept.version], EventID(kept.event_id), event.room_id, kept.pdu
        )
        return ServerName(kept.server) if known.membership == "knock" else server

    async def find(self, room_nid: int, user_id: UserID) -> Told | None:
        """What was last told about the room to this user."""
        row = (await self._store.get_outside(room_nid, [user_id])).get(user_id)
        if row is None:
            return None
        state = msgspec.json.decode(row.stripped_state, type=tuple[StrippedEvent, ...])
        return Told(ServerName(row.server), state)

    async def find_last(self, room: RoomRow, user_id: UserID, event_id: EventID) -> Event | None:
        """The membership of that id, if none was kept of this user since."""
        row = (await self._store.get_outside(room.room_nid, [user_id])).get(user_id)
        if row is None or row.event_id != event_id:
            return None
        return load_event(ROOM_VERSIONS[row.version], event_id, RoomID(room.room_id), row.pdu)

    async def find_version(
        self, room: RoomRow, user_id: UserID, cited: Collection[str] = ()
    ) -> RoomVersion:
        """The version of the room, as whoever told this user of it says: first, or by an invite
        that is cited."""
        row = (await self._store.get_outside(room.room_nid, [user_id])).get(user_id)
        if row is None:
            return ROOM_VERSIONS[room.version]
        if cited and row.event_id not in cited:
            waiting = await self._store.get_waiting(room.room_nid, user_id)
            row = next((each for each in waiting if each.event_id in cited), row)
        return ROOM_VERSIONS[row.version]

    async def find_servers(self, room_nid: int, user_id: UserID) -> Mapping[ServerName, EventID]:
        """The servers that told this user of the room, each with the event that it told."""
        first = (await self._store.get_outside(room_nid, [user_id])).values()
        rows = (*first, *await self._store.get_waiting(room_nid, user_id))
        return {ServerName(row.server): EventID(row.event_id) for row in rows}

    async def is_upon_waiting(self, room: RoomRow, user_id: UserID, event: Event) -> bool:
        """Whether an event rests upon an invite that waits beside another."""
        return any(
            row.event_id in event.auth_events
            for row in await self._store.get_waiting(room.room_nid, user_id)
        )

    async def take_back(self, room: RoomRow, user_id: UserID, event: Event) -> bool:
        """An invite that waits beside another is ended by an event that rests upon it; False: there
        was none such."""
        return await self._store.remove_waiting(room.room_nid, user_id, event.auth_events)

    async def find_event(self, room: RoomRow, row: MembershipRow) -> StoredEvent | None:
        """The event of a membership that is kept here, for who is told of it: it has no place in
        the room."""
        told = (await self._store.get_outside(row.room_nid, [row.user_id])).get(row.user_id)
        return None if told is None else _event_of(room, row, told)

    async def find_events(
        self, user_id: UserID, rooms: Mapping[int, RoomRow], rows: Iterable[MembershipRow]
    ) -> Mapping[int, StoredEvent]:
        """The same for memberships of one user, by room; one query."""
        told = await self._store.get_outside_of(user_id, rooms)
        return {
            row.room_nid: _event_of(rooms[row.room_nid], row, told[row.room_nid])
            for row in rows
            if row.room_nid in told
        }


def _event_of(room: RoomRow, row: MembershipRow, told: OutsideRow) -> StoredEvent:
    event = load_event(
        ROOM_VERSIONS[told.version], EventID(told.event_id), RoomID(room.room_id), told.pdu
    )
    return StoredEvent(
        event,
        EventRow(
            OUTSIDE,
            told.event_id,
            row.room_nid,
            row.position,
            event.depth,
            event.type,
            event.state_key,
            event.sender,
            event.origin_server_ts,
            int(EventFlag.TIMELINE),
            None,
            None,
            None,
            told.pdu,
            None,
        ),
    )


def _may_end(event: Event, kept: OutsideRow, present: MembershipRow) -> bool:
    """Whether an event may come in the place of a membership that is kept here."""
    if (
        present.membership not in OPEN
        or event.sender == present.user_id
        or kept.event_id in event.auth_events
    ):
        return True
    if present.membership == "knock" and event.membership == "invite":
        return True
    return domain_of(event.sender) in (kept.server, domain_of(UserID(present.sender)))


def is_outside(row: MembershipRow) -> bool:
    """Whether the event of a membership is kept outside its room."""
    return row.event_nid == OUTSIDE


def _encode_bounded(state: Iterable[Mapping[str, Any]]) -> bytes:
    """As much of the state as there is room for."""
    kept: list[bytes] = []
    left = MAX_STATE_BYTES
    for event in state:
        encoded = msgspec.json.encode(event)
        if len(encoded) <= left:
            kept.append(encoded)
            left -= len(encoded) + 1
    return b"[" + b",".join(kept) + b"]"
