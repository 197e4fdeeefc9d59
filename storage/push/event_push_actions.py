"""The push actions of events, and the unread counts that follow from them and the user's receipts.

An action is 0 (nothing), 1 (notify) or 3 (notify and highlight). The event's push flags and the
user's notification level give the default action. A user whose action differs from the default has
a row with the action (a push action row).
"""

from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter, itemgetter

import msgspec

from storage.engine.database import Database
from storage.engine.interface import CUSTOM_PLAN
from storage.engine.transaction import Transaction, WriteTransaction
from storage.events.events import EventFlag
from storage.push.push_rule_history import PushRuleSpan

NOTIFIES = 1
HIGHLIGHTED = 2
MAIN = "main"
"""Stands for the main timeline in place of a thread root."""

_MAX_IGNORED = 500
_MAX_JOINED_ARGUMENTS = 200
"""With at most so many arguments one statement reads all rooms; PostgreSQL then takes about
1,600."""
_INLINE_EVENTS = 5000
"""At most this many events are counted on the calling thread, if the database allows that."""
MAX_THREADS = 5000
"""The maximum number of threads of a room that are read further than the room and counted
separately."""

_COUNTED = f"(e.flags & {EventFlag.NOTIFIES | EventFlag.HAS_PUSH_ACTIONS}) <> 0"
_IS_HIGHLIGHTED = f"(e.flags & {EventFlag.HIGHLIGHTS}) <> 0"
_EVENTS = (
    f" FROM events AS e LEFT JOIN event_push_actions AS o ON (e.flags &"
    f" {EventFlag.HAS_PUSH_ACTIONS}) <> 0"
    " AND o.user_id = ?"
    " AND o.room_nid = e.room_nid AND o.position = e.position"
)
_ROWS = (
    " FROM event_push_actions AS o JOIN events AS e ON e.event_nid = o.event_nid AND o.user_id = ?"
)


class _ActionSource(msgspec.Struct, frozen=True):
    """Tables with events that may notify a user. In a span of a room, each event is in at most one
    source."""

    tables: str
    """Takes the user as an argument."""
    where: str
    table: str
    """The table whose `room_nid` and `position` select the events."""
    outcome: str


_ALL = _ActionSource(
    _EVENTS,
    _COUNTED,
    "e",
    f"COALESCE(o.action, CASE WHEN {_IS_HIGHLIGHTED} THEN 3"
    f" ELSE (e.flags & {EventFlag.NOTIFIES}) / 8 END)",
)
_HIGHLIGHTING = _ActionSource(_EVENTS, _IS_HIGHLIGHTED, "e", "COALESCE(o.action, 3)")
_OWN = _ActionSource(_ROWS, f"(e.flags & {EventFlag.HIGHLIGHTS}) = 0", "o", "o.action")
_OWN_ONLY = _ActionSource(_ROWS, "1 = 1", "o", "o.action")
_BY_LEVEL = {0: (_ALL,), 1: (_HIGHLIGHTING, _OWN), 2: (_OWN_ONLY,)}
_HIGHLIGHTED = {0: (_HIGHLIGHTING, _OWN), 1: (_HIGHLIGHTING, _OWN), 2: (_OWN_ONLY,)}
"""The sources with highlighted events."""


def get_default_outcome(flags: int, level: int) -> int:
    """Return the outcome of an event with these flags for a user without a row of their own."""
    if flags & EventFlag.HIGHLIGHTS and level < 2:
        return NOTIFIES | HIGHLIGHTED
    return NOTIFIES if flags & EventFlag.NOTIFIES and level == 0 else 0


class ReadPositions(msgspec.Struct, frozen=True):
    """The positions up to which a user has read a room: the complete room, single threads (MAIN is
    one) beyond that position, and all threads (without MAIN)."""

    everything: int
    threads: Mapping[str, int]
    all_threads: int = 0

    def of(self, thread: str) -> int:
        """Return the position up to which a thread, or MAIN, is read."""
        of_all = 0 if thread == MAIN else self.all_threads
        return max(self.everything, of_all, self.threads.get(thread, 0))


class ThreadCount(msgspec.Struct, frozen=True):
    """Unread counts of a thread."""

    thread: str
    notifications: int
    highlights: int


class NotifiedEvent(msgspec.Struct, frozen=True):
    """An event that notified a user."""

    position: int
    event_nid: int
    room_nid: int
    outcome: int


class EventPushActionStore:
    """Reads the push actions of events."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_counts(
        self,
        user_id: str,
        rooms: Mapping[int, tuple[ReadPositions, Sequence[PushRuleSpan]]],
        ignored: Iterable[str],
    ) -> Mapping[int, list[ThreadCount]]:
        """Return by room the unread counts of each thread, by the rules of each span. No span
        begins before `everything`.

        A user's own message in a thread marks everything before it in that thread as read.
        """
        # each position is at most one event; to count a thousand takes a tenth of a millisecond
        event_count = sum(span.upto - span.after for _, spans in rooms.values() for span in spans)
        read = (
            self._database.read_quickly
            if event_count <= _INLINE_EVENTS
            else self._database.read_without_snapshot
        )
        return await read("get_push_counts", _select_counts, user_id, dict(rooms), list(ignored))

    async def get_purged_since(self, position: int) -> Mapping[int, int]:
        """Return by room the position of the last purged message since then that may have been
        counted. One query."""
        return await self._database.read_quickly(
            "get_purged_push_actions", _select_purged, position
        )

    async def get_outcomes(self, user_id: str, rooms: Mapping[int, int]) -> Mapping[int, int]:
        """Return the user's own rows in these rooms after these positions: outcomes by position."""
        return await self._database.read_quickly(
            "get_push_actions", _select_outcomes, user_id, dict(rooms)
        )

    async def get_notified(
        self,
        user_id: str,
        rooms: Sequence[tuple[int, Sequence[PushRuleSpan]]],
        ignored: Iterable[str],
        *,
        highlights_only: bool,
        limit: int,
    ) -> list[NotifiedEvent]:
        """Return the newest events of these rooms, in the given spans, that notified the user:
        newest first."""
        return await self._database.read(
            "get_notified_users",
            _select_notified,
            user_id,
            list(rooms),
            list(ignored),
            highlights_only,
            limit,
        )

    async def get_unread(
        self,
        user_id: str,
        rooms: Mapping[int, tuple[ReadPositions, Sequence[PushRuleSpan]]],
        ignored: Iterable[str],
        *,
        after: int,
        limit: int,
    ) -> Mapping[int, list[NotifiedEvent]]:
        """Return for each room the newest events that `get_counts` counts and that arrived after a
        position: newest first."""
        return await self._database.read(
            "get_unread", _select_unread, user_id, dict(rooms), list(ignored), after, limit
        )

    def remove_user(self, txn: WriteTransaction, user_id: str) -> None:
        """Delete all rows of a user whose account is deleted."""
        txn.execute("DELETE FROM event_push_actions WHERE user_id = ?", (user_id,))
        txn.execute("DELETE FROM event_push_action_floors WHERE user_id = ?", (user_id,))
        txn.execute("DELETE FROM push_rule_history WHERE user_id = ?", (user_id,))


def add_outcomes(txn: WriteTransaction, rows: Sequence[tuple[str, int, int, int, int]]) -> None:
    """Insert (user, room, position, event, outcome)."""
    txn.execute_many(
        "INSERT INTO event_push_actions (user_id, room_nid, position, event_nid, action)"
        " VALUES (?, ?, ?, ?, ?)",
        rows,
    )


def remove_outcomes(txn: WriteTransaction, room_nid: int, events: Mapping[int, int]) -> None:
    """Delete all users' rows of these events of a room, given by number with their positions."""
    if not events:
        return
    # by the users who may have rows: the table has no index by room
    rows = txn.query_in(
        f"{CUSTOM_PLAN}SELECT o.user_id, o.room_nid, o.position FROM memberships AS m"
        " JOIN event_push_actions AS o ON o.user_id = m.user_id"
        " AND o.room_nid = m.room_nid AND o.position >= ? AND o.position <= ?"
        " WHERE m.room_nid = ? AND m.is_local = 1 AND o.event_nid IN {keys}",
        events,
        before=(min(events.values()), max(events.values()), room_nid),
    )
    txn.execute_many(
        "DELETE FROM event_push_actions WHERE user_id = ? AND room_nid = ? AND position = ?", rows
    )


def _within(source: _ActionSource, ignored: Sequence[str]) -> str:
    """Return the SQL condition on events. Takes the room, the bounds of the span, and the senders
    who do not count."""
    return (
        f" WHERE {source.table}.room_nid = ? AND {source.table}.position > ?"
        f" AND {source.table}.position <= ?"
        f" AND {source.where} AND e.redacted_by IS NULL"
        f" AND e.sender NOT IN ({', '.join('?' * len(ignored))})"
    )


def _select_counts(
    txn: Transaction,
    user_id: str,
    rooms: dict[int, tuple[ReadPositions, Sequence[PushRuleSpan]]],
    ignored: list[str],
) -> dict[int, list[ThreadCount]]:
    excluded = [user_id, *ignored[:_MAX_IGNORED]]
    own = _select_own_messages(
        txn, user_id, {nid: spans for nid, (_, spans) in rooms.items() if spans}
    )
    queries: dict[str, list[tuple[int, Sequence[str | int]]]] = {}
    """Rooms and their arguments by statement."""
    for room_nid, own_messages in own.items():
        read, spans = rooms[room_nid]
        bounds = _bounds(read, own_messages)
        for span in spans:
            for source in _BY_LEVEL[span.level]:
                args = (*bounds, user_id, room_nid, span.after, span.upto, *excluded)
                sql = _count_by_thread(source, len(bounds) // 2, excluded)
                queries.setdefault(sql, []).append((room_nid, args))
    counts: dict[int, dict[str, list[int]]] = {nid: {} for nid in rooms}
    for sql, each in queries.items():
        if sql.count("?") <= _MAX_JOINED_ARGUMENTS:
            found = txn.query_each(sql, [args for _, args in each])
        else:
            found = [txn.query(sql, args) for _, args in each]
        for (room_nid, _), rows in zip(each, found, strict=True):
            for thread, notifications, highlights in rows:
                numbers = counts[room_nid].setdefault(thread, [0, 0])
                numbers[0] += int(notifications)
                numbers[1] += int(highlights)
    return {
        nid: [ThreadCount(thread, *numbers) for thread, numbers in threads.items()]
        for nid, threads in counts.items()
    }


def _select_unread(
    txn: Transaction,
    user_id: str,
    rooms: dict[int, tuple[ReadPositions, Sequence[PushRuleSpan]]],
    ignored: list[str],
    after: int,
    limit: int,
) -> dict[int, list[NotifiedEvent]]:
    excluded = [user_id, *ignored[:_MAX_IGNORED]]
    own = _select_own_messages(
        txn, user_id, {nid: spans for nid, (_, spans) in rooms.items() if spans}
    )
    unread: dict[int, list[NotifiedEvent]] = {nid: [] for nid in rooms}
    for room_nid, own_messages in own.items():
        read, spans = rooms[room_nid]
        bounds = _bounds(read, own_messages)
        found: list[NotifiedEvent] = []
        for span in spans:
            for source in _BY_LEVEL[span.level] if span.upto > after else ():
                sql = (
                    f"{_marks(len(bounds) // 2)} SELECT e.position, e.event_nid, e.room_nid,"
                    f" {source.outcome}"
                    f"{_unread(source, excluded)} ORDER BY {source.table}.position DESC LIMIT ?"
                )
                args = (
                    *bounds,
                    user_id,
                    room_nid,
                    max(span.after, after),
                    span.upto,
                    *excluded,
                    limit,
                )
                found += [NotifiedEvent(*row) for row in txn.query(sql, args)]
        unread[room_nid] = sorted(found, key=attrgetter("position"), reverse=True)[:limit]
    return unread


def _bounds(read: ReadPositions, own_messages: Mapping[str, int]) -> list[str | int]:
    """Return threads that are read further than the room, each followed by its position. The first
    has no name: up to its position all threads are read. `own_messages`: the user's own last
    messages by thread."""
    marks = {
        thread: max(read.of(thread), own_messages.get(thread, 0))
        for thread in {*read.threads, *own_messages}
    }
    main, of_all = marks.pop(MAIN, 0), read.all_threads
    further = sorted(marks.items(), key=itemgetter(1), reverse=True)
    if len(further) > MAX_THREADS:
        of_all = max(of_all, further[MAX_THREADS][1])
    bounds: list[str | int] = ["", of_all]
    for thread, upto in ((MAIN, main), *further[:MAX_THREADS]):
        if upto > (read.everything if thread == MAIN else max(read.everything, of_all)):
            bounds += (thread, upto)
    return bounds


def _count_by_thread(source: _ActionSource, bounds: int, excluded: Sequence[str]) -> str:
    """Return the query of counts by thread. Takes so many bounds, the user, and the arguments of
    `_within`."""
    return (
        f"{_marks(bounds)} SELECT COALESCE(e.thread_root, '{MAIN}'), count(*),"
        f" sum(CASE WHEN {source.outcome} >= {HIGHLIGHTED} THEN 1 ELSE 0 END)"
        f"{_unread(source, excluded)} GROUP BY COALESCE(e.thread_root, '{MAIN}')"
    )


def _marks(bounds: int) -> str:
    """Return the WITH clause of `marks`. Takes so many bounds."""
    return f"WITH marks (thread, upto) AS (VALUES {', '.join(['(?, ?)'] * bounds)})"


def _unread(source: _ActionSource, excluded: Sequence[str]) -> str:
    """Return the FROM and WHERE clauses of events that notify the user and are not read by `marks`.
    Takes the user, and the arguments of `_within`."""
    return (
        f"{source.tables} LEFT JOIN marks ON marks.thread = COALESCE(e.thread_root, '{MAIN}')"
        f"{_within(source, excluded)} AND {source.outcome} > 0"
        " AND e.position > COALESCE(marks.upto,"
        " CASE WHEN e.thread_root IS NULL THEN 0 ELSE (SELECT upto FROM marks"
        " WHERE thread = '') END)"
    )


def _select_own_messages(
    txn: Transaction, user_id: str, rooms: Mapping[int, Sequence[PushRuleSpan]]
) -> dict[int, dict[str, int]]:
    """Return for each room the positions of the user's own last messages in the spans, by
    thread."""
    if not rooms:
        return {}
    found = txn.query_each(
        f"SELECT COALESCE(e.thread_root, '{MAIN}'), max(e.position) FROM events AS e"
        f" WHERE e.room_nid = ? AND e.position > ? AND e.position <= ? AND {_COUNTED}"
        f" AND (e.flags & {EventFlag.NOTIFIES}) <> 0 AND e.sender = ?"
        f" GROUP BY COALESCE(e.thread_root, '{MAIN}')",
        [(room_nid, spans[0].after, spans[-1].upto, user_id) for room_nid, spans in rooms.items()],
    )
    return dict(zip(rooms, map(dict, found), strict=True))


def _select_purged(txn: Transaction, position: int) -> dict[int, int]:
    sql = (
        "SELECT room_nid, MAX(counted_upto) FROM purge_counts"
        " WHERE position > ? AND counted_upto > 0 GROUP BY room_nid"
    )
    return dict(txn.query(sql, (position,)))


def _select_outcomes(txn: Transaction, user_id: str, rooms: dict[int, int]) -> dict[int, int]:
    found: dict[int, int] = {}
    for room_nid, after in rooms.items():
        found.update(
            txn.query(
                "SELECT position, action FROM event_push_actions"
                " WHERE user_id = ? AND room_nid = ? AND position > ?",
                (user_id, room_nid, after),
            )
        )
    return found


def _select_notified(
    txn: Transaction,
    user_id: str,
    rooms: list[tuple[int, Sequence[PushRuleSpan]]],
    ignored: list[str],
    highlights_only: bool,
    limit: int,
) -> list[NotifiedEvent]:
    excluded = [user_id, *ignored[:_MAX_IGNORED]]
    minimum, sources = (HIGHLIGHTED, _HIGHLIGHTED) if highlights_only else (NOTIFIES, _BY_LEVEL)
    found: list[NotifiedEvent] = []
    for room_nid, spans in rooms:
        oldest = found[limit - 1].position if len(found) >= limit else 0
        for span in spans:
            for source in sources[span.level] if span.upto > oldest else ():
                rows = txn.query(
                    f"SELECT e.position, e.event_nid, e.room_nid, {source.outcome}{source.tables}"
                    f"{_within(source, excluded)} AND {source.outcome} >= {minimum}"
                    f" ORDER BY {source.table}.position DESC LIMIT ?",
                    (user_id, room_nid, max(span.after, oldest), span.upto, *excluded, limit),
                )
                found += [NotifiedEvent(*row) for row in rows]
        found = sorted(found, key=attrgetter("position"), reverse=True)[:limit]
    return found
