"""Reads from the database the events, receipts, invites and other changes that affect pushes.

The node that sends pushes gets most changes from memory. It uses this module only for changes that
are not in memory, such as those before its start and the writes of other nodes.
"""

from collections.abc import Sequence

import msgspec

from storage.engine.database import Database, Row
from storage.engine.transaction import Transaction
from storage.events.events import EventFlag
from storage.rooms.memberships import MembershipRow, select_new_invites

_MAY_NOTIFY = EventFlag.NOTIFIES | EventFlag.HAS_PUSH_ACTIONS
"""Events without these flags notify nobody."""


class PushedEvent(msgspec.Struct, frozen=True):
    """An arrived event that may notify a user."""

    position: int
    event_nid: int
    room_nid: int
    type: str
    sender: str
    state_key: str | None
    flags: int
    thread_root: str | None


class MovedReceipt(msgspec.Struct, frozen=True):
    """A receipt of a room or a thread that moved to another event."""

    position: int
    room_nid: int
    user_id: str
    thread_id: str
    event_position: int | None


class PushStreamBatch(msgspec.Struct, frozen=True):
    """The changes up to a position."""

    upto: int
    events: Sequence[PushedEvent]
    receipts: Sequence[MovedReceipt]
    invites: Sequence[MembershipRow]
    """Pending invites of local users."""
    changed_members: Sequence[str]
    """Local users who joined a room, or are no longer in one."""
    changed_filters: Sequence[str]
    """Users who changed their ignored users or whose invites they accept."""
    rooms_with_removals: Sequence[int]
    """Rooms in which messages lost their content."""


class PushStream:
    """Reads the stream in batches."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_batch(self, after: int, upto: int, limit: int) -> PushStreamBatch:
        """Return the next changes after a position, with at most `limit` rows of each kind."""
        return await self._database.read("get_push_stream", _select, after, upto, limit)


_RECEIPTS = [
    # each kind has an index of its own
    "SELECT position, room_nid, user_id, thread_id, event_position FROM receipts"
    f" WHERE receipt_type = '{kind}' AND position > ? AND position <= ? ORDER BY position LIMIT ?"
    for kind in ("m.read", "m.read.private")
]


_MEMBERSHIP_CHANGES = [
    # each kind has an index of its own
    f"SELECT position, user_id FROM memberships WHERE {kind} AND is_local = 1"
    " AND position > ? AND position <= ? ORDER BY position LIMIT ?"
    for kind in (
        "membership = 'join' AND (joined_position IS NULL OR joined_position = position)",
        "membership IN ('leave', 'ban')",
    )
]
FILTER_TYPES = (
    "m.ignored_user_list",
    "m.invite_permission_config",
    "org.matrix.msc4380.invite_permission_config",
    "org.matrix.msc4155.invite_permission_config",
)
"""The types of account data that hold a user's ignored users and accepted invites."""
_FILTER_CHANGES = (
    "SELECT position, user_id FROM account_data WHERE room_id = ''"
    f" AND type IN ({', '.join(map(repr, FILTER_TYPES))}) AND position > ? AND position <= ?"
    " ORDER BY position LIMIT ?"
)
_REMOVALS = [
    "SELECT position, room_nid FROM purge_counts WHERE position > ? AND position <= ?"
    " ORDER BY position LIMIT ?",
    "SELECT position, room_nid FROM events WHERE type = 'm.room.redaction'"
    " AND position > ? AND position <= ? ORDER BY position LIMIT ?",
]
_EVENTS = (
    "SELECT position, event_nid, room_nid, type, sender, state_key, flags, thread_root FROM events"
    f" WHERE position > ? AND position <= ? AND (flags & {_MAY_NOTIFY}) <> 0"
    " ORDER BY position LIMIT ?"
)


def _select(txn: Transaction, after: int, upto: int, limit: int) -> PushStreamBatch:
    def read_complete(*queries: str) -> list[Row]:
        """Return the rows up to where every answer is complete; the batch ends there."""
        nonlocal upto
        rows: list[Row] = []
        for sql in queries:
            found = txn.query(sql, (after, upto, limit))
            if len(found) == limit:
                upto = found[-1][0]
            rows += found
        return rows

    events, receipts = read_complete(_EVENTS), read_complete(*_RECEIPTS)
    invites = select_new_invites(txn, after, upto, limit)
    if len(invites) == limit:
        upto = invites[-1].position
    moved, hiding, purged = (
        read_complete(*_MEMBERSHIP_CHANGES),
        read_complete(_FILTER_CHANGES),
        read_complete(*_REMOVALS),
    )
    return PushStreamBatch(
        upto,
        [PushedEvent(*row) for row in events if row[0] <= upto],
        [MovedReceipt(*row) for row in receipts if row[0] <= upto],
        [invite for invite in invites if invite.position <= upto],
        [user_id for position, user_id in moved if position <= upto],
        [user_id for position, user_id in hiding if position <= upto],
        [room_nid for position, room_nid in purged if position <= upto],
    )
