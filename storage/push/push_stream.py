"""The stream as it is read for pushing, where memory does not have it: after a start, and what
other nodes wrote."""

from collections.abc import Sequence

import msgspec

from storage.engine.database import Database, Row
from storage.engine.transaction import Transaction
from storage.events.events import EventFlag
from storage.rooms.memberships import MembershipRow, select_new_invites

_SOMETHING = EventFlag.NOTIFIES | EventFlag.OUTCOMES
"""Events without these flags notify nobody."""


class NewEvent(msgspec.Struct, frozen=True):
    """An event that arrived, and that is something to some user."""

    position: int
    event_nid: int
    room_nid: int
    type: str
    sender: str
    state_key: str | None
    flags: int
    thread_root: str | None


class NewReceipt(msgspec.Struct, frozen=True):
    """Somebody has read a room, or a thread of it, up to an event."""

    position: int
    room_nid: int
    user_id: str
    thread_id: str
    event_position: int | None


class Stretch(msgspec.Struct, frozen=True):
    """What happened, up to a position."""

    upto: int
    events: Sequence[NewEvent]
    receipts: Sequence[NewReceipt]
    invites: Sequence[MembershipRow]
    """Of users of this server who have not answered them yet."""
    moved: Sequence[str]
    """Users of this server who came into a room, or are no longer in one."""
    hiding: Sequence[str]
    """Users who changed whom they want to hear of."""
    taken_from: Sequence[int]
    """Rooms in which messages lost their content."""


class PushStream:
    """Reads the stream in stretches."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_stretch(self, after: int, upto: int, limit: int) -> Stretch:
        """The next stretch after a position, with at most so many rows of each kind."""
        return await self._database.read("get_stretch_to_push", _select, after, upto, limit)


_RECEIPTS = [
    # each kind has an index of its own
    "SELECT position, room_nid, user_id, thread_id, event_position FROM receipts"
    f" WHERE receipt_type = '{kind}' AND position > ? AND position <= ? ORDER BY position LIMIT ?"
    for kind in ("m.read", "m.read.private")
]


_MOVES = [
    # each has an index of its own
    f"SELECT position, user_id FROM memberships WHERE {kind} AND is_local = 1"
    " AND position > ? AND position <= ? ORDER BY position LIMIT ?"
    for kind in (
        "membership = 'join' AND (joined_position IS NULL OR joined_position = position)",
        "membership IN ('leave', 'ban')",
    )
]
HIDING = (
    "m.ignored_user_list",
    "m.invite_permission_config",
    "org.matrix.msc4380.invite_permission_config",
    "org.matrix.msc4155.invite_permission_config",
)
"""The types of account data that say whom a user wants to hear of, and whose invites they take."""
_HIDING = (
    "SELECT position, user_id FROM account_data WHERE room_id = ''"
    f" AND type IN ({', '.join(map(repr, HIDING))}) AND position > ? AND position <= ? ORDER BY position LIMIT ?"
)
_TAKEN_FROM = [
    "SELECT position, room_nid FROM purged_messages WHERE position > ? AND position <= ? ORDER BY position LIMIT ?",
    "SELECT position, room_nid FROM events WHERE type = 'm.room.redaction'"
    " AND position > ? AND position <= ? ORDER BY position LIMIT ?",
]
_EVENTS = (
    "SELECT position, event_nid, room_nid, type, sender, state_key, flags, thread_root FROM events"
    f" WHERE position > ? AND position <= ? AND (flags & {_SOMETHING}) <> 0 ORDER BY position LIMIT ?"
)


def _select(txn: Transaction, after: int, upto: int, limit: int) -> Stretch:
    def find(*questions: str) -> list[Row]:
        """What stands up to where the answer to each of these is whole; the stretch ends there."""
        nonlocal upto
        rows: list[Row] = []
        for sql in questions:
            found = txn.query(sql, (after, upto, limit))
            if len(found) == limit:
                upto = found[-1][0]
            rows += found
        return rows

    events, receipts = find(_EVENTS), find(*_RECEIPTS)
    invites = select_new_invites(txn, after, upto, limit)
    if len(invites) == limit:
        upto = invites[-1].position
    moved, hiding, taken_from = find(*_MOVES), find(_HIDING), find(*_TAKEN_FROM)
    return Stretch(
        upto,
        [NewEvent(*row) for row in events if row[0] <= upto],
        [NewReceipt(*row) for row in receipts if row[0] <= upto],
        [invite for invite in invites if invite.position <= upto],
        [user_id for position, user_id in moved if position <= upto],
        [user_id for position, user_id in hiding if position <= upto],
        [room_nid for position, room_nid in taken_from if position <= upto],
    )
