"""Memberships of local users in rooms that this server is not in: invites, knocks, and the leaves
that follow.

They are rows of `memberships` like all others, with `OUT_OF_ROOM` as their `event_nid`. The event
itself is stored in a table of its own, not among the room's events. Its auth events and state are
unknown, so no event can be built on it or authorized by it.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

import msgspec
from msgspec import structs

from storage.engine.database import Database
from storage.engine.interface import Row
from storage.engine.streams import Change, Topic
from storage.engine.transaction import Transaction, WriteTransaction
from storage.federation.pending_leaves import set_pending_leaves
from storage.rooms.memberships import (
    MembershipRow,
    NewMembership,
    put_memberships,
    select_memberships,
)
from storage.rooms.rooms import RoomRow, get_or_add_room

OUT_OF_ROOM: Final = 0
"""`event_nid` of memberships whose event is stored here."""
MAX_QUEUED_INVITES: Final = 5
"""Queued invites of one user to one room, beyond the one that clients see."""


class OutOfRoomRow(msgspec.Struct, frozen=True):
    """A membership event of a room that this server is not in, with the stripped state of the
    room."""

    room_nid: int
    user_id: str
    event_id: str
    server: str
    """A server that is in the room."""
    version: str
    """The room version that this server claims."""
    pdu: bytes
    stripped_state: bytes
    """A JSON array."""


MayReplace = Callable[[OutOfRoomRow, MembershipRow], bool]
"""Decides whether a new membership may replace the stored one."""


class MayNotReplace(Exception):
    """The new membership may not replace the stored one."""


_COLUMNS = "room_nid, user_id, event_id, server, version, pdu, stripped_state"


class OutOfRoomMembershipStore:
    """Reads and writes the table `out_of_room_memberships`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_out_of_room(
        self, room_nid: int, user_ids: Iterable[str]
    ) -> Mapping[str, OutOfRoomRow]:
        """Return the last out-of-room event of each of these users in a room. It counts while the
        membership's event is `OUT_OF_ROOM`."""
        return await self._database.read_quickly(
            "get_out_of_room_memberships", _select, room_nid, list(user_ids)
        )

    async def get_out_of_room_of_user(
        self, user_id: str, room_nids: Iterable[int]
    ) -> Mapping[int, OutOfRoomRow]:
        """Return the same for one user, by room. One query."""
        return await self._database.read_quickly(
            "get_out_of_room_of_user", _select_of_user, user_id, list(room_nids)
        )

    async def get_queued_invites(self, room_nid: int, user_id: str) -> Sequence[OutOfRoomRow]:
        """Return the user's queued invites to the room, beyond the one that clients see, in order
        of arrival."""
        return await self._database.read_quickly(
            "get_queued_invites", _select_queued, room_nid, user_id
        )

    async def remove_queued_invites(
        self, room_nid: int, user_id: str, event_ids: Collection[str]
    ) -> bool:
        """Remove queued invites that were rescinded. Return whether there were any."""
        return await self._database.write(
            "remove_queued_invites", _remove_queued, room_nid, user_id, event_ids
        )

    async def get_room(self, room_id: str, version: str, now_ms: int) -> RoomRow:
        """Return the room; add it if it is unknown. If we have been in it, its version may differ
        from the one given."""
        return await self._database.write(
            "get_or_add_room", get_or_add_room, room_id, version, now_ms
        )

    async def set_out_of_room(
        self,
        row: OutOfRoomRow,
        new: NewMembership,
        may_end: MayReplace,
        pending_servers: Mapping[str, str] | None = None,
        now: int = 0,
    ) -> bool:
        """Store a membership and announce it. Return False, and change nothing, if the user has
        joined the room meanwhile.

        An invite that may not replace the stored membership is queued. Raises MayNotReplace if any
        other membership may not replace it, or if the queue is full.

        `may_end` runs in a database thread. `pending_servers`: those that still have to receive the
        leave since `now` (ms), each with the ID of the event from it that this leave ends.
        """
        return await self._database.write(
            "set_out_of_room_membership", _set, row, new, may_end, pending_servers or {}, now
        )


def _select(txn: Transaction, room_nid: int, user_ids: list[str]) -> dict[str, OutOfRoomRow]:
    rows = txn.query_in(
        f"SELECT {_COLUMNS} FROM out_of_room_memberships WHERE room_nid = ?"
        f" AND user_id IN {{keys}}",
        user_ids,
        before=(room_nid,),
    )
    return {row[1]: _row(row) for row in rows}


def _select_of_user(
    txn: Transaction, user_id: str, room_nids: list[int]
) -> dict[int, OutOfRoomRow]:
    rows = txn.query_in(
        f"SELECT {_COLUMNS} FROM out_of_room_memberships WHERE user_id = ?"
        f" AND room_nid IN {{keys}}",
        room_nids,
        before=(user_id,),
    )
    return {row[0]: _row(row) for row in rows}


def _row(row: Row) -> OutOfRoomRow:
    nid, user_id, event_id, server, version, pdu, state = row
    return OutOfRoomRow(nid, user_id, event_id, server, version, bytes(pdu), bytes(state))


def _set(
    txn: WriteTransaction,
    row: OutOfRoomRow,
    new: NewMembership,
    may_end: MayReplace,
    pending_servers: Mapping[str, str],
    now: int,
) -> bool:
    present = select_memberships(txn, row.room_nid, [row.user_id]).get(row.user_id)
    if present is not None and present.membership == "join":
        return False
    stored = _select(txn, row.room_nid, [row.user_id]).get(row.user_id)
    if (
        present is not None
        and present.event_nid == OUT_OF_ROOM
        and stored is not None
        and not may_end(stored, present)
    ):
        _queue_invite(txn, row, new)
        return True
    is_new = (
        present is None
        or present.event_nid != OUT_OF_ROOM
        or present.membership not in ("invite", "knock")
    )
    queued = _select_queued(txn, row.room_nid, row.user_id)
    if is_new or new.sender == row.user_id:
        _remove_queued(txn, row.room_nid, row.user_id, [each.event_id for each in queued])
        queued = []
    _put(txn, row, new, present)
    set_pending_leaves(txn, row.room_nid, row.user_id, row.event_id, pending_servers, now)
    if queued and new.membership != "invite":
        _promote_first(txn, queued[0])
    return True


def _select_queued(txn: Transaction, room_nid: int, user_id: str) -> list[OutOfRoomRow]:
    rows = txn.query(
        f"SELECT {_COLUMNS} FROM queued_invites WHERE room_nid = ? AND user_id = ?"
        " ORDER BY ordinal",
        (room_nid, user_id),
    )
    return [_row(row) for row in rows]


def _remove_queued(
    txn: WriteTransaction, room_nid: int, user_id: str, event_ids: Collection[str]
) -> bool:
    sql = "DELETE FROM queued_invites WHERE room_nid = ? AND user_id = ? AND event_id = ?"
    return sum(txn.execute(sql, (room_nid, user_id, event_id)) for event_id in event_ids) > 0


def _queue_invite(txn: WriteTransaction, row: OutOfRoomRow, new: NewMembership) -> None:
    queued = _select_queued(txn, row.room_nid, row.user_id)
    if (
        new.membership != "invite"
        or len([each for each in queued if each.server != row.server]) >= MAX_QUEUED_INVITES
    ):
        raise MayNotReplace
    _remove_queued(
        txn,
        row.room_nid,
        row.user_id,
        [each.event_id for each in queued if each.server == row.server],
    )
    number = txn.allocate("queued_invite")
    txn.execute(
        f"INSERT INTO queued_invites ({_COLUMNS}, ordinal, membership)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*structs.astuple(row), number, msgspec.json.encode(new)),
    )


def _promote_first(txn: WriteTransaction, row: OutOfRoomRow) -> None:
    """Replace a shown membership that has ended by the first queued invite."""
    sql = (
        "SELECT membership FROM queued_invites WHERE room_nid = ? AND user_id = ? AND event_id = ?"
    )
    found = txn.query_one(sql, (row.room_nid, row.user_id, row.event_id))
    assert found is not None, "it was just read"
    _remove_queued(txn, row.room_nid, row.user_id, [row.event_id])
    present = select_memberships(txn, row.room_nid, [row.user_id]).get(row.user_id)
    _put(txn, row, msgspec.json.decode(found[0], type=NewMembership), present)


def _put(
    txn: WriteTransaction, row: OutOfRoomRow, new: NewMembership, present: MembershipRow | None
) -> None:
    txn.execute(
        f"INSERT INTO out_of_room_memberships ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (room_nid, user_id) DO UPDATE"
        " SET event_id = excluded.event_id, server = excluded.server,"
        " version = excluded.version, pdu = excluded.pdu, stripped_state = excluded.stripped_state",
        (
            row.room_nid,
            row.user_id,
            row.event_id,
            row.server,
            row.version,
            row.pdu,
            row.stripped_state,
        ),
    )
    membership = MembershipRow(
        row.room_nid,
        row.user_id,
        new.membership,
        OUT_OF_ROOM,
        new.sender,
        txn.next_position(),
        new.is_local,
        new.display_name,
        new.avatar_url,
        forgotten=False,
        left_position=None if present is None else present.left_position,
    )
    put_memberships(txn, [membership])
    txn.announce(
        Change(membership.position, Topic.MEMBERSHIP, user_id=row.user_id, detail=membership)
    )
