"""Purges messages: deletes their content from their own row and from all derived data.

Laws:
- A purged event keeps the fields that a redaction keeps, under the same id, because other events
  refer to it. Servers that request it get these fields. If a server sends the complete event again,
  it is ignored, because the event is known. (Purges of forgotten rooms can be undone:
  `history_refetch.py`.)
- One write removes a message's content from every table with a copy, and records how many messages
  were purged, and why.
- Messages to purge are found by an index of unpurged messages (`events_messages_by_time`). So an
  interrupted purge continues by searching again, and also finds messages that arrive late.
- The thread of a message remains known, as after a redaction, because read receipts of the thread
  may point to the message.
- State events are not touched.
"""

from collections.abc import Collection, Mapping, Sequence
from enum import Enum
from typing import Final

import msgspec

from storage.email.outbox import withdraw_notification_emails
from storage.engine.database import Database
from storage.engine.interface import Row
from storage.engine.streams import Change, Topic
from storage.engine.transaction import Transaction, WriteTransaction
from storage.events.event_threads import select_roots
from storage.events.events import IS_UNPURGED_MESSAGE, EventFlag
from storage.events.relations import remove_relations
from storage.media.content_uris import find_content_uris
from storage.media.references import limit_by_uris, record_purge
from storage.push.event_push_actions import remove_outcomes
from storage.rooms.delayed_events import erase_contents
from storage.rooms.sticky_events import remove_sticky_events
from storage.search.search import SearchStore

DAY_MS: Final = 24 * 3_600_000
BEFORE_FIRST: Final = (-(2**62), 0)
"""Time and number before those of every message."""
_PUSH_FLAGS: Final = EventFlag.NOTIFIES | EventFlag.HIGHLIGHTS | EventFlag.HAS_PUSH_ACTIONS
_RETAINED_FLAGS: Final = (2**31 - 1) ^ _PUSH_FLAGS


class PurgeCause(Enum):
    """Why messages lose their content."""

    RETENTION = "retention"
    """They exceed the retention period of their room."""
    PURGE = "purge"
    """An administrator purges the history of the room."""
    FORGOTTEN = "forgotten"
    """All local users have left and forgotten the room."""


class PurgedMessages(msgspec.Struct, frozen=True):
    """Messages that lost or regained their content."""

    room_nid: int
    nids: Sequence[int]
    counted_upto: int = 0
    """Position of the last that may have been counted as unread; 0: none."""


class PurgeableMessage(msgspec.Struct, frozen=True):
    """A message that may be purged."""

    event_nid: int
    event_id: str
    depth: int
    origin_server_ts: int
    sender: str
    pdu: bytes


class PurgedDay(msgspec.Struct, frozen=True):
    """The number of messages of a room that were purged on a day."""

    day: int
    """Days since 1970, in UTC."""
    room_nid: int
    cause: str
    room_id: str
    messages: int


_COLUMNS: Final = "event_nid, event_id, depth, origin_server_ts, sender, pdu"
_SELECT: Final = f"SELECT {_COLUMNS} FROM events WHERE room_nid = ? AND {IS_UNPURGED_MESSAGE}"
_ORDERED: Final = "ORDER BY origin_server_ts, event_nid LIMIT ?"


class PurgingStore:
    """Finds and purges messages."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._search = SearchStore(database)

    async def find_rooms(self, oldest: Mapping[int, int]) -> Sequence[int]:
        """Return those of the rooms with messages sent before the room's time."""

        def read(txn: Transaction) -> Sequence[int]:
            # ordered, though one row is enough: otherwise PostgreSQL expects to find one soon
            # without an index
            sql = (
                f"SELECT event_nid FROM events WHERE room_nid = ? AND {IS_UNPURGED_MESSAGE}"
                " AND origin_server_ts < ? ORDER BY origin_server_ts, event_nid LIMIT 1"
            )
            found = txn.query_each(sql, list(oldest.items()))
            return [nid for nid, rows in zip(oldest, found, strict=True) if rows]

        return await self._database.read("find_rooms_to_purge", read)

    async def get_older(
        self, room_nid: int, before_ms: int, after: tuple[int, int], limit: int
    ) -> Sequence[PurgeableMessage]:
        """Return messages of a room sent before a time, after `after` (time and number), the oldest
        first: at most `limit`, and as many as one write may purge for their content URIs."""

        def read(txn: Transaction) -> Sequence[PurgeableMessage]:
            sql = (
                f"{_SELECT} AND origin_server_ts < ?"
                f" AND (origin_server_ts, event_nid) > (?, ?) {_ORDERED}"
            )
            return _messages(txn.query(sql, (room_nid, before_ms, *after, limit)))

        return await self._database.read("get_older_messages", read)

    async def get_following(
        self, room_nid: int, after: tuple[int, int], limit: int
    ) -> Sequence[PurgeableMessage]:
        """Return messages of a room after `after` (time and number): at most `limit`, and as many
        as one write may purge."""

        def read(txn: Transaction) -> Sequence[PurgeableMessage]:
            sql = f"{_SELECT} AND (origin_server_ts, event_nid) > (?, ?) {_ORDERED}"
            return _messages(txn.query(sql, (room_nid, *after, limit)))

        return await self._database.read("get_following_messages", read)

    async def get_days(self, after: tuple[int, int, str] | None, limit: int) -> Sequence[PurgedDay]:
        """Return what was purged by day, room and cause, the latest day first. `after`: day, room
        and cause of the last row of the previous page."""

        def read(txn: Transaction) -> Sequence[PurgedDay]:
            day, room_nid, cause = after or (2**40, 0, "")
            rows = txn.query(
                "SELECT p.day, p.room_nid, p.cause, r.room_id, p.messages FROM purge_counts AS p"
                " JOIN rooms AS r ON r.room_nid = p.room_nid"
                " WHERE (p.day, p.room_nid, p.cause) < (?, ?, ?)"
                " ORDER BY p.day DESC, p.room_nid DESC, p.cause DESC LIMIT ?",
                (day, room_nid, cause, limit),
            )
            return [PurgedDay(*row) for row in rows]

        return await self._database.read("get_purged_days", read)

    async def remove_days(self, before_ms: int, limit: int) -> int:
        """Delete old records. Return how many rows."""

        def write(txn: WriteTransaction) -> int:
            sql = "SELECT room_nid, day, cause FROM purge_counts WHERE day < ? ORDER BY day LIMIT ?"
            rows = txn.query(sql, (before_ms // DAY_MS, limit))
            txn.execute_many(
                "DELETE FROM purge_counts WHERE room_nid = ? AND day = ? AND cause = ?", rows
            )
            return len(rows)

        return await self._database.write("remove_purged_days", write)

    def purge(
        self,
        txn: WriteTransaction,
        room_nid: int,
        pruned: Mapping[int, bytes],
        cause: PurgeCause,
        now_ms: int,
    ) -> int:
        """Purge messages of a room. `pruned`: what stays of each, by number. Return how many had
        not been purged before."""
        # by number alone: with a condition on the room PostgreSQL would read
        # `events_messages_by_time` for the complete room
        candidates = txn.query_in(
            "SELECT event_nid, event_id, position, flags, room_nid, state_key FROM events"
            " WHERE event_nid IN {keys}",
            pruned,
        )
        rows = [
            (nid, event_id, position, flags)
            for nid, event_id, position, flags, of_room, state_key in candidates
            if of_room == room_nid and state_key is None and not flags & EventFlag.PURGED
        ]
        nids = [nid for nid, *_ in rows]
        if not nids:
            return 0
        record_purge(txn, room_nid, nids, cause.value)
        roots = select_roots(txn, room_nid, nids)
        purged = EventFlag.PURGED | (EventFlag.FORGOTTEN if cause is PurgeCause.FORGOTTEN else 0)
        txn.execute_many(
            f"UPDATE events SET pdu = ?, redacted_by = COALESCE(redacted_by, event_nid),"
            f" flags = (flags & {_RETAINED_FLAGS}) | {purged}, thread_root = ? WHERE event_nid = ?",
            [(pruned[nid], roots[nid], nid) for nid in nids],
        )
        self._search.remove_texts(txn, nids)
        remove_relations(txn, nids)
        remove_sticky_events(txn, nids)
        withdraw_notification_emails(txn, nids)
        remove_outcomes(
            txn,
            room_nid,
            {
                nid: position
                for nid, _, position, flags in rows
                if position and flags & EventFlag.HAS_PUSH_ACTIONS
            },
        )
        erase_contents(txn, nids)
        _remove_reasons(txn, [event_id for _, event_id, *_ in rows])
        position = txn.next_position()
        counted = max((at for _, _, at, flags in rows if at and flags & _PUSH_FLAGS), default=0)
        txn.execute(
            "INSERT INTO purge_counts (room_nid, day, cause, messages, position, counted_upto)"
            " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (room_nid, day, cause) DO UPDATE"
            " SET position = excluded.position,"
            " messages = purge_counts.messages + excluded.messages, counted_upto = CASE"
            " WHEN purge_counts.counted_upto > excluded.counted_upto THEN"
            " purge_counts.counted_upto"
            " ELSE excluded.counted_upto END",
            (room_nid, now_ms // DAY_MS, cause.value, len(nids), position, counted),
        )
        txn.announce(Change(position, Topic.PURGED, detail=PurgedMessages(room_nid, nids, counted)))
        return len(nids)


def _remove_reasons(txn: WriteTransaction, event_ids: Collection[str]) -> None:
    """Delete the reasons of requests to redact related events."""
    keys = [(event_id,) for event_id in event_ids]
    txn.execute_many(
        "UPDATE related_redactions SET reason = NULL WHERE target = ? AND reason IS NOT NULL", keys
    )


def _messages(rows: Sequence[Row]) -> Sequence[PurgeableMessage]:
    messages = [
        PurgeableMessage(nid, event_id, depth, sent, sender, bytes(pdu))
        for nid, event_id, depth, sent, sender, pdu in rows
    ]
    return limit_by_uris(messages, lambda each: len(find_content_uris(each.pdu)))
