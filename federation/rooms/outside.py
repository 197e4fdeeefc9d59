"""Rooms that this server is not in, as its users know them: who is invited, who knocks, and what was told of the room."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from federation.identity import ServerIdentity
from federation.protocol.errors import BadState
from federation.protocol.events import Event, encode_pdu, load_event
from federation.protocol.ids import EventID, RoomID, ServerName, UserID
from federation.protocol.room_versions import ROOM_VERSIONS
from federation.protocol.stripped_state import StrippedEvent
from federation.rooms.effects import state_effect
from federation.rooms.room_events import StoredEvent
from storage.events import EventFlag, EventRow
from storage.memberships import MembershipRow
from storage.outside_memberships import OUTSIDE, OutsideMembershipStore, OutsideRow
from storage.rooms import RoomRow

MAX_STATE_BYTES: Final = 1 << 18
"""Of what is kept of another server's words about a room."""


class Told(msgspec.Struct, frozen=True):
    """What a server told of a room when our user was invited or knocked."""

    server: ServerName
    state: tuple[StrippedEvent, ...]


class OutsideMemberships:
    """Keeps memberships of rooms that this server is not in. For the reactor thread."""

    def __init__(self, store: OutsideMembershipStore, identity: ServerIdentity, now_ms: Callable[[], int]) -> None:
        self._store = store
        self._identity = identity
        self._now_ms = now_ms

    async def keep(self, event: Event, server: ServerName, state: Iterable[Mapping[str, Any]]) -> bool:
        """Keep our user's new membership and what the server says of the room; False if they are in it by now.

        Raises BadState when the room is known to have another version.
        """
        member = state_effect(event, self._identity).membership
        assert member is not None, "it is a membership of one of the five kinds"
        room = await self._store.get_room(event.room_id, event.version.identifier, self._now_ms())
        if room.version != event.version.identifier:
            raise BadState(f"The room is known to have version {room.version}")
        row = OutsideRow(
            room.room_nid, member.user_id, event.event_id, server, encode_pdu(event), _encode_bounded(state)
        )
        return await self._store.set_outside(row, member)

    async def find(self, room_nid: int, user_id: UserID) -> Told | None:
        """What was last told about the room to this user."""
        row = (await self._store.get_outside(room_nid, [user_id])).get(user_id)
        if row is None:
            return None
        state = msgspec.json.decode(row.stripped_state, type=tuple[StrippedEvent, ...])
        return Told(ServerName(row.server), state)

    async def find_event(self, room: RoomRow, row: MembershipRow) -> StoredEvent | None:
        """The event of a membership that is kept here, for who is told of it: it has no place in the room."""
        told = (await self._store.get_outside(row.room_nid, [row.user_id])).get(row.user_id)
        if told is None:
            return None
        event = load_event(ROOM_VERSIONS[room.version], EventID(told.event_id), RoomID(room.room_id), told.pdu)
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
