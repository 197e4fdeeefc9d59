"""The stream as it is read for pushing, where memory does not have it: after a start, and what other nodes wrote."""

from collections.abc import Sequence

import msgspec

from storage.database import Database
from storage.events import EventFlag
from storage.memberships import MembershipRow, select_new_invites
from storage.transaction import Transaction

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
    """Users who changed whom they want to hear of, in a later stretch, too."""
    taken_from: Sequence[int]
    """Rooms in which messages lost their content, in a later stretch, too."""


class PushStream:
    """Reads the stream in stretches."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_stretch(self, after: int, upto: int, limit: int) -> Stretch:
        """The next stretch after a position, with at most so many events, receipts and invites."""
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
    "SELECT DISTINCT user_id FROM account_data WHERE room_id = ''"
    f" AND type IN ({', '.join(map(repr, HIDING))}) AND position > ?"
)
_TAKEN_FROM = (
    "SELECT room_nid FROM purged_messages WHERE position > ?"
    " UNION SELECT room_nid FROM events WHERE position > ? AND type = 'm.room.redaction'"
)


def _select(txn: Transaction, after: int, upto: int, limit: int) -> Stretch:
    events = [
        NewEvent(*row)
        for row in txn.query(
            "SELECT position, event_nid, room_nid, type, sender, state_key, flags, thread_root FROM events"
            f" WHERE position > ? AND position <= ? AND (flags & {_SOMETHING}) <> 0 ORDER BY position LIMIT ?",
            (after, upto, limit),
        )
    ]
    if len(events) == limit:
        upto = events[-1].position
    receipts: list[NewReceipt] = []
    for sql in _RECEIPTS:
        found = [NewReceipt(*row) for row in txn.query(sql, (after, upto, limit))]
        if len(found) == limit:
            upto = found[-1].position
        receipts += found
    invites = select_new_invites(txn, after, upto, limit)
    if len(invites) == limit:
        upto = invites[-1].position
    moves: list[tuple[int, str]] = []
    for sql in _MOVES:
        moved = txn.query(sql, (after, upto, limit))
        if len(moved) == limit:
            upto = moved[-1][0]
        moves += moved
    hiding = txn.query(_HIDING, (after,))
    taken_from = txn.query(_TAKEN_FROM, (after, after))
    return Stretch(
        upto,
        [event for event in events if event.position <= upto],
        [receipt for receipt in receipts if receipt.position <= upto],
        [invite for invite in invites if invite.position <= upto],
        [user_id for _, user_id in moves],
        [user_id for (user_id,) in hiding],
        [room_nid for (room_nid,) in taken_from],
    )
