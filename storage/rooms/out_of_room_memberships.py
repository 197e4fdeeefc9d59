"""Memberships of our users in rooms that this server is not in: invites, knocks, and the leaving
after these.

They stand among the memberships like all others, with `OUTSIDE` as the number of their event. The
event itself is kept here and not among the room's: what it rests upon is not known, so nothing
could be built or decided upon it.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

import msgspec
from msgspec import structs

from storage.engine.database import Database
from storage.engine.interface import Row
from storage.engine.streams import Change, Topic
from storage.engine.transaction import Transaction, WriteTransaction
from storage.federation.pending_leaves import set_untold_leaves
from storage.rooms.memberships import (
    MembershipRow,
    NewMembership,
    put_memberships,
    select_memberships,
)
from storage.rooms.rooms import RoomRow, note_room

OUTSIDE: Final = 0
"""`event_nid` of memberships whose event is kept here."""
MOST_WAITING: Final = 5
"""Invites of one user to one room, beside the one that is shown."""


class OutsideRow(msgspec.Struct, frozen=True):
    """What another server told of a membership."""

    room_nid: int
    user_id: str
    event_id: str
    server: str
    """A server that knows the room."""
    version: str
    """Of the room, as that server says."""
    pdu: bytes
    stripped_state: bytes
    """A JSON array."""


MayEnd = Callable[[OutsideRow, MembershipRow], bool]
"""Whether a membership may come in the place of one that is kept here already."""


class Untouchable(Exception):
    """The membership that is kept may not be replaced by the one given."""


_COLUMNS = "room_nid, user_id, event_id, server, version, pdu, stripped_state"


class OutsideMembershipStore:
    """Readers and writers of the table `outside_memberships`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_outside(self, room_nid: int, user_ids: Iterable[str]) -> Mapping[str, OutsideRow]:
        """What was last told of these users' memberships of a room; it counts while their
        membership is `OUTSIDE`."""
        return await self._database.read_quickly(
            "get_outside_memberships", _select, room_nid, list(user_ids)
        )

    async def get_outside_of(
        self, user_id: str, room_nids: Iterable[int]
    ) -> Mapping[int, OutsideRow]:
        """The same of one user, by room; one query."""
        return await self._database.read_quickly(
            "get_outside_of_user", _select_of_user, user_id, list(room_nids)
        )

    async def get_waiting(self, room_nid: int, user_id: str) -> Sequence[OutsideRow]:
        """The user's invites to the room beside the one that is shown, in the order of their
        coming."""
        return await self._database.read_quickly(
            "get_waiting_invites", _select_waiting, room_nid, user_id
        )

    async def remove_waiting(self, room_nid: int, user_id: str, event_ids: Collection[str]) -> bool:
        """Such invites are taken back; whether there were any."""
        return await self._database.write(
            "remove_waiting_invites", _remove_waiting, room_nid, user_id, event_ids
        )

    async def get_room(self, room_id: str, version: str, now_ms: int) -> RoomRow:
        """The room, which is noted if it was not known. Its version may be another than the one
        given, if we have been in it."""
        return await self._database.write("note_room", note_room, room_id, version, now_ms)

    async def set_outside(
        self,
        row: OutsideRow,
        new: NewMembership,
        may_end: MayEnd,
        untold: Mapping[str, str] | None = None,
        now: int = 0,
    ) -> bool:
        """Keep a membership, and tell of it; False, and nothing is done, when the user is in the
        room by now. An invite that may not end what is kept waits beside it. Raises Untouchable,
        where something else may not, or too many wait.

        `may_end` is asked in a thread of the database. `untold`: servers that have yet to hear of
        it, as noted `now` (ms), each with what it told that this ends.
        """
        return await self._database.write(
            "set_outside_membership", _set, row, new, may_end, untold or {}, now
        )


def _select(txn: Transaction, room_nid: int, user_ids: list[str]) -> dict[str, OutsideRow]:
    rows = txn.query_in(
        f"SELECT {_COLUMNS} FROM outside_memberships WHERE room_nid = ? AND user_id IN {{keys}}",
        user_ids,
        before=(room_nid,),
    )
    return {row[1]: _row(row) for row in rows}


def _select_of_user(txn: Transaction, user_id: str, room_nids: list[int]) -> dict[int, OutsideRow]:
    rows = txn.query_in(
        f"SELECT {_COLUMNS} FROM outside_memberships WHERE user_id = ? AND room_nid IN {{keys}}",
        room_nids,
        before=(user_id,),
    )
    return {row[0]: _row(row) for row in rows}


def _row(row: Row) -> OutsideRow:
    nid, user_id, event_id, server, version, pdu, state = row
    return OutsideRow(nid, user_id, event_id, server, version, bytes(pdu), bytes(state))


def _set(
    txn: WriteTransaction,
    row: OutsideRow,
    new: NewMembership,
    may_end: MayEnd,
    untold: Mapping[str, str],
    now: int,
) -> bool:
    present = select_memberships(txn, row.room_nid, [row.user_id]).get(row.user_id)
    if present is not None and present.membership == "join":
        return False
    kept = _select(txn, row.room_nid, [row.user_id]).get(row.user_id)
    if (
        present is not None
        and present.event_nid == OUTSIDE
        and kept is not None
        and not may_end(kept, present)
    ):
        _add_waiting(txn, row, new)
        return True
    is_fresh = (
        present is None
        or present.event_nid != OUTSIDE
        or present.membership not in ("invite", "knock")
    )
    waiting = _select_waiting(txn, row.room_nid, row.user_id)
    if is_fresh or new.sender == row.user_id:
        _remove_waiting(txn, row.room_nid, row.user_id, [each.event_id for each in waiting])
        waiting = []
    _put(txn, row, new, present)
    set_untold_leaves(txn, row.room_nid, row.user_id, row.event_id, untold, now)
    if waiting and new.membership != "invite":
        _show_first(txn, waiting[0])
    return True


def _select_waiting(txn: Transaction, room_nid: int, user_id: str) -> list[OutsideRow]:
    rows = txn.query(
        f"SELECT {_COLUMNS} FROM waiting_invites WHERE room_nid = ? AND user_id = ? ORDER BY number",
        (room_nid, user_id),
    )
    return [_row(row) for row in rows]


def _remove_waiting(
    txn: WriteTransaction, room_nid: int, user_id: str, event_ids: Collection[str]
) -> bool:
    sql = "DELETE FROM waiting_invites WHERE room_nid = ? AND user_id = ? AND event_id = ?"
    return sum(txn.execute(sql, (room_nid, user_id, event_id)) for event_id in event_ids) > 0


def _add_waiting(txn: WriteTransaction, row: OutsideRow, new: NewMembership) -> None:
    waiting = _select_waiting(txn, row.room_nid, row.user_id)
    if (
        new.membership != "invite"
        or len([each for each in waiting if each.server != row.server]) >= MOST_WAITING
    ):
        raise Untouchable
    _remove_waiting(
        txn,
        row.room_nid,
        row.user_id,
        [each.event_id for each in waiting if each.server == row.server],
    )
    number = txn.allocate("waiting_invite")
    txn.execute(
        f"INSERT INTO waiting_invites ({_COLUMNS}, number, membership) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (*structs.astuple(row), number, msgspec.json.encode(new)),
    )


def _show_first(txn: WriteTransaction, row: OutsideRow) -> None:
    """What was shown has been ended: an invite that waited takes its place."""
    sql = (
        "SELECT membership FROM waiting_invites WHERE room_nid = ? AND user_id = ? AND event_id = ?"
    )
    found = txn.query_one(sql, (row.room_nid, row.user_id, row.event_id))
    assert found is not None, "it was just read"
    _remove_waiting(txn, row.room_nid, row.user_id, [row.event_id])
    present = select_memberships(txn, row.room_nid, [row.user_id]).get(row.user_id)
    _put(txn, row, msgspec.json.decode(found[0], type=NewMembership), present)


def _put(
    txn: WriteTransaction, row: OutsideRow, new: NewMembership, present: MembershipRow | None
) -> None:
    txn.execute(
        f"INSERT INTO outside_memberships ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (room_nid, user_id) DO UPDATE SET event_id = excluded.event_id, server = excluded.server,"
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
        OUTSIDE,
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
