"""The searchable texts of events. A job writes them (`homeserver/services/search/indexing.py`). A
search finds them by their words, which are stored in a normalized form, the *keys*
(`storage/engine/text_index.py`).

Laws:
- When the job has processed an event, the event has a row if it is in a timeline, is not redacted
  and has a text. The text is that of its latest edit.
- An edit has its own row only while the event that it edits is not stored.
- Only the job adds and changes rows. It processes events after they are stored, in the order of
  their numbers (`select_batch`, `set_texts`). So a row is outdated for a while after an edit or a
  redaction of its event, and readers check each result against the current event.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

import msgspec

from storage.cluster.job_progress import select_job_progress, set_job_progress
from storage.engine.database import Database
from storage.engine.interface import SQLValue
from storage.engine.text_index import IndexedText, SearchTerm, make_text_index
from storage.engine.transaction import Transaction, WriteTransaction
from storage.events.events import EventFlag, EventRow, select_events
from storage.events.relations import REPLACE

_TIMELINE = int(EventFlag.TIMELINE)

MERGE_JOB: Final = "merge_search_index"
"""The name of the job that removes remains of deleted texts from the index."""
_PENDING, _RUNNING, _DONE = "pending", "running", "done"


class TextRow(msgspec.Struct, frozen=True):
    """A stored text."""

    event_nid: int
    """The event with which the text is shown."""
    text_nid: int
    """The event that contains the text: the same event, or its latest edit."""
    room_nid: int
    position: int | None
    """Arrival position of the event; None for backfilled events."""
    ts: int
    """The time when it was sent, but not later than when it was indexed."""
    kind: int
    sender: str
    words: str
    """The keys of the text, in the format of `storage.engine.text_index`."""


class SearchHit(msgspec.Struct, frozen=True, gc=False):
    """A text that was found. Its fields are those of `TextRow`."""

    event_nid: int
    text_nid: int
    room_nid: int
    position: int | None
    ts: int
    sender: str
    rank: int
    """0 if no rank was requested."""


class TextQuery(msgspec.Struct, frozen=True):
    """A search."""

    user_id: str
    terms: Sequence[SearchTerm]
    rooms: Collection[int] | None
    """The rooms to search. None: all rooms in which the user has a membership, except forgotten
    ones."""
    not_rooms: Collection[int] = ()
    kinds: Collection[int] | None = None
    senders: Collection[str] | None = None
    not_senders: Collection[str] = ()
    upto: int = 2**62
    """The highest event number."""


class SearchBatch(msgspec.Struct, frozen=True):
    """Events to index, in the order of their numbers, and other events whose texts change with
    them."""

    upto: int
    """All events up to this number are processed with this batch."""
    former_outliers: Sequence[int]
    """Outliers that were added to a room's graph later, also processed with this batch."""
    touched: frozenset[int]
    """Events whose text was added, changed or removed."""
    count: int
    """The number of events in the batch."""


class EventText(msgspec.Struct, frozen=True):
    """An event with a searchable text, and the event that contains the text."""

    event: EventRow
    source: EventRow


class SearchStore:
    """Stores searchable texts and their index."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._index = make_text_index(database.engine.name)

    async def get_hits(
        self, query: TextQuery, limit: int, rank: Callable[[str], int] | None = None
    ) -> list[SearchHit]:
        """Return the newest texts, by event number, that contain all terms. One query.

        `rank` is called with the words of each text, on the reading thread. Without it the words
        are not read.
        """
        if not query.terms or any(
            values is not None and not values
            for values in (query.rooms, query.kinds, query.senders)
        ):
            return []
        return await self._database.read("search_texts", self._select_hits, query, limit, rank)

    async def get_latest_nid(self) -> int:
        """Return the number of the newest event."""
        return await self._database.read_quickly("get_latest_event_nid", select_latest_nid)

    def _select_hits(
        self, txn: Transaction, query: TextQuery, limit: int, rank: Callable[[str], int] | None
    ) -> list[SearchHit]:
        conditions, args = " AND {nid} <= ?", list[SQLValue]([query.upto])
        if query.rooms is None:
            conditions += (
                " AND EXISTS (SELECT 1 FROM memberships AS m"
                " WHERE m.room_nid = s.room_nid AND m.user_id = ?"
                " AND m.forgotten = 0)"
            )
            args.append(query.user_id)
        conditions += (
            " AND NOT EXISTS (SELECT 1 FROM room_summaries AS r WHERE r.room_nid = s.room_nid"
            " AND r.encryption IS NOT NULL)"
        )
        for column, wanted, values in (
            ("room_nid", "IN", query.rooms),
            ("room_nid", "NOT IN", query.not_rooms or None),
            ("kind", "IN", query.kinds),
            ("sender", "IN", query.senders),
            ("sender", "NOT IN", query.not_senders or None),
        ):
            if values is not None:
                conditions += f" AND s.{column} {wanted} ({', '.join('?' * len(values))})"
                args += values
        sql, all_args = self._index.select(
            "s.event_nid, s.text_nid, s.room_nid, s.position, s.ts, s.sender, "
            + ("0" if rank is None else "s.words"),
            query.terms,
            query.rooms,
            f"{conditions} ORDER BY {{nid}} DESC LIMIT ?",
            [*args, limit],
        )
        if rank is None:
            return [SearchHit(*row) for row in txn.query(sql, all_args)]
        return [
            SearchHit(event_nid, text_nid, room_nid, position, ts, sender, rank(words))
            for event_nid, text_nid, room_nid, position, ts, sender, words in txn.query(
                sql, all_args
            )
        ]

    def set_texts(
        self, txn: WriteTransaction, touched: Iterable[int], rows: Sequence[TextRow]
    ) -> bool:
        """Replace the texts of the touched events by these rows. Events without a row lose their
        text. Return whether any had one."""
        old = txn.query_in(
            "SELECT event_nid, room_nid, words FROM searchable_events WHERE event_nid IN {keys}",
            touched,
        )
        if old:
            self._index.remove(txn, [IndexedText(*row) for row in old])
            txn.execute_many(
                "DELETE FROM searchable_events WHERE event_nid = ?", [(row[0],) for row in old]
            )
        # events may have been purged since they were read
        purged = _column(
            txn.query_in(
                f"SELECT event_nid FROM events WHERE event_nid IN {{keys}}"
                f" AND (flags & {EventFlag.PURGED}) <> 0",
                {nid for row in rows for nid in (row.event_nid, row.text_nid)},
            )
        )
        rows = [row for row in rows if purged.isdisjoint((row.event_nid, row.text_nid))]
        if rows:
            txn.execute_many(
                "INSERT INTO searchable_events (event_nid, text_nid, room_nid, position, ts, kind,"
                " sender, words)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        row.event_nid,
                        row.text_nid,
                        row.room_nid,
                        row.position,
                        row.ts,
                        row.kind,
                        row.sender,
                        row.words,
                    )
                    for row in rows
                ],
            )
            self._index.add(
                txn, [IndexedText(row.event_nid, row.room_nid, row.words) for row in rows]
            )
        return bool(old)

    def remove_texts(self, txn: WriteTransaction, event_nids: Collection[int]) -> None:
        """Remove the texts of these events. Events that were found by one of these as their edit
        are queued to be indexed again."""
        edited = (
            "SELECT event_nid FROM searchable_events"
            " WHERE text_nid IN {keys} AND text_nid <> event_nid"
        )
        edits = _column(txn.query_in(edited, event_nids)).difference(event_nids)
        if self.set_texts(txn, [*event_nids, *edits], ()):
            set_job_progress(txn, MERGE_JOB, _PENDING)
        if edits:
            queue_former_outliers(txn, edits)

    async def merge_deleted(self, pages: int) -> bool:
        """Continue to remove the remains of deleted texts from the database file, about this many
        pages. Return whether there is more to do."""
        more = await self._database.write("merge_deleted_texts", self._merge_deleted, pages)
        if more is False:
            await self._database.truncate_log()
        return bool(more)

    def _merge_deleted(self, txn: WriteTransaction, pages: int) -> bool | None:
        """Return whether there is more to do; None if there was nothing to do."""
        state = select_job_progress(txn, MERGE_JOB)
        if state in (None, _DONE):
            return None
        more = self._index.merge_deleted(txn, pages, restart=state == _PENDING)
        set_job_progress(txn, MERGE_JOB, _RUNNING if more else _DONE)
        return more

    def clear(self, txn: WriteTransaction) -> None:
        """Delete all texts."""
        self._index.clear(txn)


def queue_former_outliers(txn: WriteTransaction, event_nids: Iterable[int]) -> None:
    """Queue events that were outliers and were added to the graphs of their rooms. The job has
    already passed their numbers."""
    txn.execute_many(
        "INSERT INTO search_queue (event_nid) VALUES (?) ON CONFLICT DO NOTHING",
        [(nid,) for nid in event_nids],
    )


def remove_queued_outliers(txn: WriteTransaction, event_nids: Iterable[int]) -> None:
    """Remove events from the queue after they were processed."""
    txn.execute_many("DELETE FROM search_queue WHERE event_nid = ?", [(nid,) for nid in event_nids])


def select_latest_nid(txn: Transaction) -> int:
    """Return the number of the newest event; 0 if there is none."""
    row = txn.query_one("SELECT value FROM counters WHERE name = 'event'")
    return int(row[0]) if row is not None else 0


def select_batch(txn: Transaction, after: int, limit: int, types: Collection[str]) -> SearchBatch:
    """Return the next events after a number, at most `limit`, and as many queued events. `types`:
    the event types that have a text."""
    rows = txn.query(
        "SELECT event_nid, type FROM events WHERE event_nid > ? ORDER BY event_nid LIMIT ?",
        (after, limit),
    )
    upto = rows[-1][0] if rows else after
    former_outliers = [
        nid
        for (nid,) in txn.query(
            "SELECT event_nid FROM search_queue ORDER BY event_nid LIMIT ?", (limit,)
        )
    ]
    rows += txn.query_in(
        "SELECT event_nid, type FROM events WHERE event_nid IN {keys}", former_outliers
    )
    touched = {nid for nid, type in rows if type in types}
    redacted = (
        "SELECT e.event_nid FROM redactions AS r JOIN events AS e ON e.event_id = r.redacts"
        " WHERE r.event_nid "
    )
    found = txn.query(redacted + "> ? AND r.event_nid <= ?", (after, upto)) + txn.query_in(
        redacted + "IN {keys}", former_outliers
    )
    redacted_nids = {nid for (nid,) in found}
    touched |= redacted_nids
    touched |= _column(
        txn.query_in(
            "SELECT event_nid FROM searchable_events"
            " WHERE text_nid IN {keys} AND text_nid <> event_nid",
            redacted_nids,
        )
    )
    children = (
        "FROM relations AS r JOIN events AS p ON p.event_id = r.target AND p.room_nid = r.room_nid"
        f" WHERE r.rel_type = '{REPLACE}' AND "
    )
    touched |= _column(
        txn.query_in(f"SELECT p.event_nid {children} r.event_nid IN {{keys}}", touched)
    )
    touched |= _column(
        txn.query_in(f"SELECT r.event_nid {children} p.event_nid IN {{keys}}", touched)
    )
    return SearchBatch(upto, former_outliers, frozenset(touched), len(rows))


def select_texts(
    txn: Transaction, event_nids: Iterable[int], types: Collection[str]
) -> list[EventText]:
    """Return those of the events that have a searchable text, each with the event that contains it.
    Four queries."""
    touched = list(event_nids)
    rows = {
        nid: row
        for nid, row in select_events(txn, touched).items()
        if row.flags & _TIMELINE and row.redacted_by is None and row.type in types
    }
    if not rows:
        return []
    encrypted = _column(
        txn.query_in(
            "SELECT room_nid FROM room_summaries"
            " WHERE room_nid IN {keys} AND encryption IS NOT NULL",
            {row.room_nid for row in rows.values()},
        )
    )
    edits = txn.query_in(
        "SELECT p.event_nid, r.event_nid, r.origin_server_ts, r.event_id,"
        " CASE WHEN r.has_new_content = 1 AND r.sender = p.sender AND r.type = p.type"
        " AND p.state_key IS NULL THEN 1 ELSE 0 END"
        " FROM relations AS r JOIN events AS p ON p.event_id = r.target AND p.room_nid = r.room_nid"
        f" WHERE r.rel_type = '{REPLACE}' AND (p.flags & {_TIMELINE}) <> 0"
        f" AND p.event_nid IN {{keys}}",
        touched,
    )
    known = {child for _, child, *_ in edits}
    latest: dict[int, tuple[int, str, int]] = {}
    for parent, child, ts, event_id, is_valid in edits:
        if is_valid:
            latest[parent] = max(latest.get(parent, (ts, event_id, child)), (ts, event_id, child))
    missing = [child for _, _, child in latest.values() if child not in rows]
    events = {**rows, **select_events(txn, missing)}
    return [
        EventText(row, events[latest[nid][2]] if nid in latest else row)
        for nid, row in rows.items()
        if row.room_nid not in encrypted and nid not in known
    ]


def _column(rows: Iterable[tuple[int, ...]]) -> set[int]:
    return {row[0] for row in rows}
