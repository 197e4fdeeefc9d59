"""Messages lose their content for good: in their own row, and in all that was made of it.

Laws:
- What stays of an event is what a redaction leaves, under the same id: others go on to stand upon
  it, servers that ask are given that, and who sends the whole again is told that it is known. (What
  was forgotten may be had back: `regaining.py`.)
- One write takes a message's content from every table that has a copy, and notes how many it took,
  and why.
- What is still to be purged is found by an index that who is purged leaves (`messages_by_time`): an
  interrupted purge goes on by looking again, and what comes late, or is placed late, is found like
  the rest.
- In which thread a message stood stays known, as after a redaction: people mark threads as read up
  to it.
- State is not touched.
"""

from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from typing import Final

import msgspec

from storage.email.outbox import withdraw_letters
from storage.engine.database import Database
from storage.engine.interface import Row
from storage.engine.streams import Change, Topic
from storage.engine.transaction import Transaction, WriteTransaction
from storage.events.event_threads import select_roots
from storage.events.events import IS_UNPURGED_MESSAGE, EventFlag
from storage.events.relations import remove_relations
from storage.media.content_uris import find_addresses
from storage.media.references import bounded, note_purged
from storage.push.event_push_actions import remove_outcomes
from storage.rooms.delayed_events import forget_contents
from storage.rooms.sticky_events import remove_sticky_events
from storage.search.search import SearchStore

DAY_MS: Final = 24 * 3_600_000
BEFORE_ALL: Final = (-(2**62), 0)
"""Time and number before those of every message."""
_COUNTED: Final = EventFlag.NOTIFIES | EventFlag.CALLS_ROOM | EventFlag.OUTCOMES
_KEPT_FLAGS: Final = (2**31 - 1) ^ _COUNTED


class Cause(Enum):
    """Why messages lose their content."""

    RETENTION = "retention"
    """They are older than their room keeps them."""
    PURGE = "purge"
    """An administrator purges the history of the room."""
    FORGOTTEN = "forgotten"
    """Nobody of this server remembers the room."""


class PurgedMessages(msgspec.Struct, frozen=True):
    """Messages that have lost their content, or regained it."""

    room_nid: int
    nids: Sequence[int]
    counted_upto: int = 0
    """Position of the last that may have been counted as unread; 0: none."""


class Message(msgspec.Struct, frozen=True):
    """A message that may be purged."""

    event_nid: int
    event_id: str
    depth: int
    origin_server_ts: int
    sender: str
    pdu: bytes


class PurgedDay(msgspec.Struct, frozen=True):
    """How many messages of a room were purged on a day."""

    day: int
    """Since 1970, in UTC."""
    room_nid: int
    cause: str
    room_id: str
    messages: int


_COLUMNS: Final = "event_nid, event_id, depth, origin_server_ts, sender, pdu"
_SELECT: Final = f"SELECT {_COLUMNS} FROM events WHERE room_nid = ? AND {IS_UNPURGED_MESSAGE}"
_ORDERED: Final = "ORDER BY origin_server_ts, event_nid LIMIT ?"


class PurgingStore:
    """Finds messages to purge, and purges them."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._texts = SearchStore(database)

    async def find_rooms(self, oldest: Mapping[int, int]) -> Sequence[int]:
        """Those of the rooms that have messages which were sent before the room's time."""

        def read(txn: Transaction) -> Sequence[int]:
            # in an order, though one is enough: else PostgreSQL hopes to meet one soon without an
            # index
            sql = (
                f"SELECT event_nid FROM events WHERE room_nid = ? AND {IS_UNPURGED_MESSAGE}"
                " AND origin_server_ts < ? ORDER BY origin_server_ts, event_nid LIMIT 1"
            )
            found = txn.query_each(sql, list(oldest.items()))
            return [nid for nid, rows in zip(oldest, found, strict=True) if rows]

        return await self._database.read("find_rooms_to_purge", read)

    async def get_older(
        self, room_nid: int, before_ms: int, after: tuple[int, int], limit: int
    ) -> Sequence[Message]:
        """Messages of a room that were sent before a time, after one by time and number, the oldest
        first: so many at most, and as many as one write may purge for the files that they name."""

        def read(txn: Transaction) -> Sequence[Message]:
            sql = f"{_SELECT} AND origin_server_ts < ? AND (origin_server_ts, event_nid) > (?, ?) {_ORDERED}"
            return _messages(txn.query(sql, (room_nid, before_ms, *after, limit)))

        return await self._database.read("get_older_messages", read)

    async def get_following(
        self, room_nid: int, after: tuple[int, int], limit: int
    ) -> Sequence[Message]:
        """Messages of a room after one, by time and number: so many at most, and as many as one
        write may purge."""

        def read(txn: Transaction) -> Sequence[Message]:
            sql = f"{_SELECT} AND (origin_server_ts, event_nid) > (?, ?) {_ORDERED}"
            return _messages(txn.query(sql, (room_nid, *after, limit)))

        return await self._database.read("get_following_messages", read)

    async def get_days(self, after: tuple[int, int, str] | None, limit: int) -> Sequence[PurgedDay]:
        """What was purged, by day, room and cause, the latest day first; `after`: day, room and
        cause of the last that was told."""

        def read(txn: Transaction) -> Sequence[PurgedDay]:
            day, room_nid, cause = after or (2**40, 0, "")
            rows = txn.query(
                "SELECT p.day, p.room_nid, p.cause, r.room_id, p.messages FROM purged_messages AS p"
                " JOIN rooms AS r ON r.room_nid = p.room_nid WHERE (p.day, p.room_nid, p.cause) < (?, ?, ?)"
                " ORDER BY p.day DESC, p.room_nid DESC, p.cause DESC LIMIT ?",
                (day, room_nid, cause, limit),
            )
            return [PurgedDay(*row) for row in rows]

        return await self._database.read("get_purged_days", read)

    async def remove_days(self, before_ms: int, limit: int) -> int:
        """Forget what was noted of days long ago; how many rows that were."""

        def write(txn: WriteTransaction) -> int:
            sql = "SELECT room_nid, day, cause FROM purged_messages WHERE day < ? ORDER BY day LIMIT ?"
            rows = txn.query(sql, (before_ms // DAY_MS, limit))
            txn.execute_many(
                "DELETE FROM purged_messages WHERE room_nid = ? AND day = ? AND cause = ?", rows
            )
            return len(rows)

        return await self._database.write("forget_purged_days", write)

    def purge(
        self,
        txn: WriteTransaction,
        room_nid: int,
        pruned: Mapping[int, bytes],
        cause: Cause,
        now_ms: int,
    ) -> int:
        """Purge messages of a room: by number what stays of each. How many had not been purged
        before."""
        # by their numbers alone: a condition on the room would have `messages_by_time` read, all of
        # the room
        found = txn.query_in(
            "SELECT event_nid, event_id, position, flags, room_nid, state_key FROM events WHERE event_nid IN {keys}",
            pruned,
        )
        rows = [
            (nid, event_id, position, flags)
            for nid, event_id, position, flags, of_room, state_key in found
            if of_room == room_nid and state_key is None and not flags & EventFlag.PURGED
        ]
        nids = [nid for nid, *_ in rows]
        if not nids:
            return 0
        note_purged(txn, room_nid, nids, cause.value)
        roots = select_roots(txn, room_nid, nids)
        purged = EventFlag.PURGED | (EventFlag.FORGOTTEN if cause is Cause.FORGOTTEN else 0)
        txn.execute_many(
            f"UPDATE events SET pdu = ?, redacted_by = COALESCE(redacted_by, event_nid),"
            f" flags = (flags & {_KEPT_FLAGS}) | {purged}, thread_root = ? WHERE event_nid = ?",
            [(pruned[nid], roots[nid], nid) for nid in nids],
        )
        self._texts.remove_texts(txn, nids)
        remove_relations(txn, nids)
        remove_sticky_events(txn, nids)
        withdraw_letters(txn, nids)
        remove_outcomes(
            txn,
            room_nid,
            {
                nid: position
                for nid, _, position, flags in rows
                if position and flags & EventFlag.OUTCOMES
            },
        )
        forget_contents(txn, nids)
        _forget_reasons(txn, [event_id for _, event_id, *_ in rows])
        position = txn.next_position()
        counted = max((at for _, _, at, flags in rows if at and flags & _COUNTED), default=0)
        txn.execute(
            "INSERT INTO purged_messages (room_nid, day, cause, messages, position, counted_upto)"
            " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (room_nid, day, cause) DO UPDATE SET position = excluded.position,"
            " messages = purged_messages.messages + excluded.messages, counted_upto = CASE"
            " WHEN purged_messages.counted_upto > excluded.counted_upto THEN purged_messages.counted_upto"
            " ELSE excluded.counted_upto END",
            (room_nid, now_ms // DAY_MS, cause.value, len(nids), position, counted),
        )
        txn.announce(Change(position, Topic.PURGED, detail=PurgedMessages(room_nid, nids, counted)))
        return len(nids)


def _forget_reasons(txn: WriteTransaction, event_ids: Collection[str]) -> None:
    """Why they were redacted with what is related to them."""
    keys = [(event_id,) for event_id in event_ids]
    txn.execute_many(
        "UPDATE related_redactions SET reason = NULL WHERE target = ? AND reason IS NOT NULL", keys
    )


def _messages(rows: Sequence[Row]) -> Sequence[Message]:
    messages = [
        Message(nid, event_id, depth, sent, sender, bytes(pdu))
        for nid, event_id, depth, sent, sender, pdu in rows
    ]
    return bounded(messages, lambda each: len(find_addresses(each.pdu)))
