"""What events are to users: counted from the flags of events, from the few rows for whom they are
something else, and from how far the user has read.

An outcome is 0 (nothing), 1 (notifies) or 3 (notifies and is highlighted).
"""

from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter, itemgetter

import msgspec

from storage.engine.database import Database
from storage.engine.interface import FOR_ITS_ARGUMENTS
from storage.engine.transaction import Transaction, WriteTransaction
from storage.events.events import EventFlag
from storage.push.push_rule_history import Span

NOTIFIES = 1
HIGHLIGHTED = 2
MAIN = "main"
"""Stands for the main timeline where a thread's root would."""

_MOST_IGNORED = 500
_FEW_ARGUMENTS = 200
"""With up to so many the same is asked for all rooms at once; PostgreSQL takes some 1,600 then."""
_FEW_EVENTS = 5000
"""Up to so many are counted like what is read by key."""
_MOST_THREADS = 5000
"""How many threads of a room that are read further than the room are told apart."""

_COUNTED = f"(e.flags & {EventFlag.NOTIFIES | EventFlag.OUTCOMES}) <> 0"
_CALLS = f"(e.flags & {EventFlag.CALLS_ROOM}) <> 0"
_EVENTS = (
    f" FROM events AS e LEFT JOIN push_outcomes AS o ON (e.flags & {EventFlag.OUTCOMES}) <> 0 AND o.user_id = ?"
    " AND o.room_nid = e.room_nid AND o.position = e.position"
)
_ROWS = " FROM push_outcomes AS o JOIN events AS e ON e.event_nid = o.event_nid AND o.user_id = ?"


class _Source(msgspec.Struct, frozen=True):
    """Where events that may be something to a user are found: in a span of a room, each in one
    source at most."""

    tables: str
    """Takes the user."""
    where: str
    place: str
    """Whose `room_nid` and `position` lead to them."""
    outcome: str


_ALL = _Source(
    _EVENTS,
    _COUNTED,
    "e",
    f"COALESCE(o.outcome, CASE WHEN {_CALLS} THEN 3 ELSE (e.flags & {EventFlag.NOTIFIES}) / 8 END)",
)
_CALLING = _Source(_EVENTS, _CALLS, "e", "COALESCE(o.outcome, 3)")
_OWN = _Source(_ROWS, f"(e.flags & {EventFlag.CALLS_ROOM}) = 0", "o", "o.outcome")
_OWN_ONLY = _Source(_ROWS, "1 = 1", "o", "o.outcome")
_BY_ATTENTION = {0: (_ALL,), 1: (_CALLING, _OWN), 2: (_OWN_ONLY,)}
_HIGHLIGHTED = {0: (_CALLING, _OWN), 1: (_CALLING, _OWN), 2: (_OWN_ONLY,)}
"""Where highlighted ones are found."""


def flags_outcome(flags: int, attention: int) -> int:
    """What an event with these flags is to a user without an own row."""
    if flags & EventFlag.CALLS_ROOM and attention < 2:
        return NOTIFIES | HIGHLIGHTED
    return NOTIFIES if flags & EventFlag.NOTIFIES and attention == 0 else 0


class ReadUpTo(msgspec.Struct, frozen=True):
    """Up to which positions a user has read a room: all of it, and further than that single threads
    (MAIN is one), and all threads (MAIN is none of them)."""

    everything: int
    threads: Mapping[str, int]
    all_threads: int = 0

    def of(self, thread: str) -> int:
        """Up to where a thread, or MAIN, is read."""
        of_all = 0 if thread == MAIN else self.all_threads
        return max(self.everything, of_all, self.threads.get(thread, 0))


class ThreadCount(msgspec.Struct, frozen=True):
    """What is unread in one thread."""

    thread: str
    notifications: int
    highlights: int


class Notified(msgspec.Struct, frozen=True):
    """An event that a user was notified of."""

    position: int
    event_nid: int
    room_nid: int
    outcome: int


class PushOutcomeStore:
    """Readers of what events are to users."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_counts(
        self,
        user_id: str,
        rooms: Mapping[int, tuple[ReadUpTo, Sequence[Span]]],
        ignored: Iterable[str],
    ) -> Mapping[int, list[ThreadCount]]:
        """For each room what is unread by thread: of the spans (none of them before `everything`),
        by what held in each.

        Sending is reading too: what came in a thread before the user's own last message in it is
        read.
        """
        # each position is one event at most; to count a thousand takes a tenth of a millisecond
        looked_at = sum(span.upto - span.after for _, spans in rooms.values() for span in spans)
        read = self._database.read_quickly if looked_at <= _FEW_EVENTS else self._database.read_once
        return await read("get_push_counts", _select_counts, user_id, dict(rooms), list(ignored))

    async def get_purged_since(self, position: int) -> Mapping[int, int]:
        """By room the position of the last of the messages that were purged since and may have been
        counted; one query."""
        return await self._database.read_quickly("get_purged_counts", _select_purged, position)

    async def get_outcomes(self, user_id: str, rooms: Mapping[int, int]) -> Mapping[int, int]:
        """The user's own rows in these rooms after these positions: outcomes by position."""
        return await self._database.read_quickly(
            "get_push_outcomes", _select_outcomes, user_id, dict(rooms)
        )

    async def get_notified(
        self,
        user_id: str,
        rooms: Sequence[tuple[int, Sequence[Span]]],
        ignored: Iterable[str],
        *,
        highlights_only: bool,
        limit: int,
    ) -> list[Notified]:
        """The newest events of these rooms, in the spans given for each, that notified the user:
        newest first."""
        return await self._database.read(
            "get_notified",
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
        rooms: Mapping[int, tuple[ReadUpTo, Sequence[Span]]],
        ignored: Iterable[str],
        *,
        after: int,
        limit: int,
    ) -> Mapping[int, list[Notified]]:
        """For each room the newest of those events that `get_counts` counts, and that came after a
        position: newest first."""
        return await self._database.read(
            "get_unread", _select_unread, user_id, dict(rooms), list(ignored), after, limit
        )

    def remove_user(self, txn: WriteTransaction, user_id: str) -> None:
        """Remove what is kept of what events were to a user, for an account that ends."""
        txn.execute("DELETE FROM push_outcomes WHERE user_id = ?", (user_id,))
        txn.execute("DELETE FROM push_outcome_floors WHERE user_id = ?", (user_id,))
        txn.execute("DELETE FROM push_attention WHERE user_id = ?", (user_id,))


def add_outcomes(txn: WriteTransaction, rows: Sequence[tuple[str, int, int, int, int]]) -> None:
    """Write (user, room, position, event, outcome)."""
    txn.execute_many(
        "INSERT INTO push_outcomes (user_id, room_nid, position, event_nid, outcome) VALUES (?, ?, ?, ?, ?)",
        rows,
    )


def remove_outcomes(txn: WriteTransaction, room_nid: int, events: Mapping[int, int]) -> None:
    """Remove what events of a room, by number with their positions, were to whomever."""
    if not events:
        return
    # by the users whose rows there may be: the table has no order by rooms
    rows = txn.query_in(
        f"{FOR_ITS_ARGUMENTS}SELECT o.user_id, o.room_nid, o.position FROM memberships AS m"
        " JOIN push_outcomes AS o ON o.user_id = m.user_id"
        " AND o.room_nid = m.room_nid AND o.position >= ? AND o.position <= ?"
        " WHERE m.room_nid = ? AND m.is_local = 1 AND o.event_nid IN {keys}",
        events,
        before=(min(events.values()), max(events.values()), room_nid),
    )
    txn.execute_many(
        "DELETE FROM push_outcomes WHERE user_id = ? AND room_nid = ? AND position = ?", rows
    )


def _within(source: _Source, ignored: Sequence[str]) -> str:
    """What the events have to be. Takes the room, the bounds of the span, and the senders who do
    not count."""
    return (
        f" WHERE {source.place}.room_nid = ? AND {source.place}.position > ? AND {source.place}.position <= ?"
        f" AND {source.where} AND e.redacted_by IS NULL AND e.sender NOT IN ({', '.join('?' * len(ignored))})"
    )


def _select_counts(
    txn: Transaction,
    user_id: str,
    rooms: dict[int, tuple[ReadUpTo, Sequence[Span]]],
    ignored: list[str],
) -> dict[int, list[ThreadCount]]:
    others = [user_id, *ignored[:_MOST_IGNORED]]
    own = _select_own_messages(
        txn, user_id, {nid: spans for nid, (_, spans) in rooms.items() if spans}
    )
    asked: dict[str, list[tuple[int, Sequence[str | int]]]] = {}
    """By statement: rooms, each with what it is asked for."""
    for room_nid, spoken in own.items():
        read, spans = rooms[room_nid]
        bounds = _bounds(read, spoken)
        for span in spans:
            for source in _BY_ATTENTION[span.attention]:
                args = (*bounds, user_id, room_nid, span.after, span.upto, *others)
                sql = _count_by_thread(source, len(bounds) // 2, others)
                asked.setdefault(sql, []).append((room_nid, args))
    counts: dict[int, dict[str, list[int]]] = {nid: {} for nid in rooms}
    for sql, each in asked.items():
        if sql.count("?") <= _FEW_ARGUMENTS:
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
    rooms: dict[int, tuple[ReadUpTo, Sequence[Span]]],
    ignored: list[str],
    after: int,
    limit: int,
) -> dict[int, list[Notified]]:
    others = [user_id, *ignored[:_MOST_IGNORED]]
    own = _select_own_messages(
        txn, user_id, {nid: spans for nid, (_, spans) in rooms.items() if spans}
    )
    unread: dict[int, list[Notified]] = {nid: [] for nid in rooms}
    for room_nid, spoken in own.items():
        read, spans = rooms[room_nid]
        bounds = _bounds(read, spoken)
        found: list[Notified] = []
        for span in spans:
            for source in _BY_ATTENTION[span.attention] if span.upto > after else ():
                sql = (
                    f"{_marks(len(bounds) // 2)} SELECT e.position, e.event_nid, e.room_nid, {source.outcome}"
                    f"{_unread(source, others)} ORDER BY {source.place}.position DESC LIMIT ?"
                )
                args = (
                    *bounds,
                    user_id,
                    room_nid,
                    max(span.after, after),
                    span.upto,
                    *others,
                    limit,
                )
                found += [Notified(*row) for row in txn.query(sql, args)]
        unread[room_nid] = sorted(found, key=attrgetter("position"), reverse=True)[:limit]
    return unread


def _bounds(read: ReadUpTo, spoken: Mapping[str, int]) -> list[str | int]:
    """Threads that are read further than the room, each with its position, one after the other. The
    first is of no thread: up to there all are read. `spoken`: the user's own last messages by
    thread."""
    marks = {
        thread: max(read.of(thread), spoken.get(thread, 0)) for thread in {*read.threads, *spoken}
    }
    main, of_all = marks.pop(MAIN, 0), read.all_threads
    further = sorted(marks.items(), key=itemgetter(1), reverse=True)
    if len(further) > _MOST_THREADS:
        of_all = max(of_all, further[_MOST_THREADS][1])
    bounds: list[str | int] = ["", of_all]
    for thread, upto in ((MAIN, main), *further[:_MOST_THREADS]):
        if upto > (read.everything if thread == MAIN else max(read.everything, of_all)):
            bounds += (thread, upto)
    return bounds


def _count_by_thread(source: _Source, bounds: int, others: Sequence[str]) -> str:
    """Takes so many bounds, the user, and what `_within` takes."""
    return (
        f"{_marks(bounds)} SELECT COALESCE(e.thread_root, '{MAIN}'), count(*),"
        f" sum(CASE WHEN {source.outcome} >= {HIGHLIGHTED} THEN 1 ELSE 0 END)"
        f"{_unread(source, others)} GROUP BY COALESCE(e.thread_root, '{MAIN}')"
    )


def _marks(bounds: int) -> str:
    """Takes so many bounds."""
    return f"WITH marks (thread, upto) AS (VALUES {', '.join(['(?, ?)'] * bounds)})"


def _unread(source: _Source, others: Sequence[str]) -> str:
    """What is something to the user, and not read by `marks`. Takes the user, and what `_within`
    takes."""
    return (
        f"{source.tables} LEFT JOIN marks ON marks.thread = COALESCE(e.thread_root, '{MAIN}')"
        f"{_within(source, others)} AND {source.outcome} > 0 AND e.position > COALESCE(marks.upto,"
        " CASE WHEN e.thread_root IS NULL THEN 0 ELSE (SELECT upto FROM marks WHERE thread = '') END)"
    )


def _select_own_messages(
    txn: Transaction, user_id: str, rooms: Mapping[int, Sequence[Span]]
) -> dict[int, dict[str, int]]:
    """For each room the positions of the user's own last messages in the spans, by thread."""
    if not rooms:
        return {}
    found = txn.query_each(
        f"SELECT COALESCE(e.thread_root, '{MAIN}'), max(e.position) FROM events AS e"
        f" WHERE e.room_nid = ? AND e.position > ? AND e.position <= ? AND {_COUNTED}"
        f" AND (e.flags & {EventFlag.NOTIFIES}) <> 0 AND e.sender = ? GROUP BY COALESCE(e.thread_root, '{MAIN}')",
        [(room_nid, spans[0].after, spans[-1].upto, user_id) for room_nid, spans in rooms.items()],
    )
    return dict(zip(rooms, map(dict, found), strict=True))


def _select_purged(txn: Transaction, position: int) -> dict[int, int]:
    sql = "SELECT room_nid, MAX(counted_upto) FROM purged_messages WHERE position > ? AND counted_upto > 0 GROUP BY room_nid"
    return dict(txn.query(sql, (position,)))


def _select_outcomes(txn: Transaction, user_id: str, rooms: dict[int, int]) -> dict[int, int]:
    found: dict[int, int] = {}
    for room_nid, after in rooms.items():
        found.update(
            txn.query(
                "SELECT position, outcome FROM push_outcomes WHERE user_id = ? AND room_nid = ? AND position > ?",
                (user_id, room_nid, after),
            )
        )
    return found


def _select_notified(
    txn: Transaction,
    user_id: str,
    rooms: list[tuple[int, Sequence[Span]]],
    ignored: list[str],
    highlights_only: bool,
    limit: int,
) -> list[Notified]:
    others = [user_id, *ignored[:_MOST_IGNORED]]
    least, sources = (HIGHLIGHTED, _HIGHLIGHTED) if highlights_only else (NOTIFIES, _BY_ATTENTION)
    found: list[Notified] = []
    for room_nid, spans in rooms:
        floor = found[limit - 1].position if len(found) >= limit else 0
        for span in spans:
            for source in sources[span.attention] if span.upto > floor else ():
                rows = txn.query(
                    f"SELECT e.position, e.event_nid, e.room_nid, {source.outcome}{source.tables}"
                    f"{_within(source, others)} AND {source.outcome} >= {least}"
                    f" ORDER BY {source.place}.position DESC LIMIT ?",
                    (user_id, room_nid, max(span.after, floor), span.upto, *others, limit),
                )
                found += [Notified(*row) for row in rows]
        found = sorted(found, key=attrgetter("position"), reverse=True)[:limit]
    return found
