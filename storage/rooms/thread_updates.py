"""Finds the threads of some rooms that have new events in a range of positions.

An event counts if it is a reply in a thread, and the thread is stored with the event
(`storage/events/event_threads.py`). The threads are returned in pages, the one with the latest
event first. Each thread is listed with its newest event in the order of the room.

A page omits threads that earlier pages listed. To recognize them, it reads the newest `MAX_REPLIES`
replies of each thread. A thread may be listed again if none of these replies is in the range of
the earlier pages.

Law: the cost of a page is bounded. It reads a limited number of thread events, backwards from the
end of the previous page. If these belong to fewer threads than requested, the page is short. It
returns the position that it reached, and the next page continues there.
"""

from collections.abc import Collection, Sequence
from heapq import nlargest

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction
from storage.events.relations import THREAD
from storage.events.timelines import TimelinePlace

MAX_EVENTS = 3000
"""The number of events that a page reads in all rooms; a few more if many rooms are active."""
FIRST_BATCH = 50
"""The first batch of events, or twice the requested threads if that is more. Each later batch is
four times as large, while there are too few threads."""
MIN_EVENTS_PER_ROOM = 10
"""The minimum of events per room and batch."""
MAX_ROOMS_PER_BATCH = 128
"""The number of rooms per batch: those whose unread part has the latest events."""
MAX_REPLIES = 30
"""The number of newest replies of a thread that are read. They show whether an earlier page listed
the thread, and which event of the range is newest in the order of the room. If all of them are
outside the range, a thread may be listed again, with the newest of those events that the page
read."""

# This order, and no condition on the kind of relation, leave PostgreSQL only this index to walk
# along, whatever its statistics say
_SELECT_EVENTS = (
    "SELECT e.position, e.event_nid, e.depth, e.sender, r.rel_type, r.target FROM ("
    "SELECT position, event_nid, depth, sender FROM events"
    " WHERE room_nid = ? AND thread_root IS NOT NULL AND position > ? AND position <= ?"
    " ORDER BY position DESC, event_nid DESC LIMIT ?"
    ") AS e LEFT JOIN relations AS r ON r.event_nid = e.event_nid"
)
_LATEST = (
    "SELECT position FROM events WHERE room_nid = ? AND thread_root IS NOT NULL AND position > ?"
    " AND position <= ?"
    " ORDER BY position DESC, event_nid DESC LIMIT 1"
)
_SELECT_REPLIES = (
    "SELECT e.position, e.event_nid, e.depth, e.sender FROM ("
    f"SELECT event_nid FROM relations WHERE target = ? AND rel_type = '{THREAD}'"
    " ORDER BY depth DESC, event_nid DESC LIMIT ?"
    ") AS r LEFT JOIN events AS e ON e.event_nid = r.event_nid AND e.room_nid = ?"
    " AND e.thread_root IS NOT NULL"
)


_Key = tuple[int, str]
"""Number of the room, ID of the root."""


class ThreadUpdateRow(msgspec.Struct, frozen=True, gc=False):
    """A thread with new events."""

    room_nid: int
    root: str
    position: int
    """The position of its latest event."""
    newest: TimelinePlace
    """Its newest event in the order of the room."""
    count: int
    """The number of its events in the range, among those read."""
    is_complete: bool
    """Whether all its events were read."""


class ThreadUpdatePage(msgspec.Struct, frozen=True):
    """Threads, the one with the latest event first."""

    rows: list[ThreadUpdateRow]
    reached: int | None
    """The position at which reading stopped: the next page starts there, with this as `last`. None:
    the range is done."""


class _Thread(msgspec.Struct):
    """The data of a thread that has been read so far."""

    position: int
    newest: TimelinePlace
    events: set[int]
    """Numbers of events."""
    is_complete: bool = False
    """Whether all its events were read."""


class ThreadUpdateStore:
    """Reads threads with new events."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_updates(
        self,
        room_nids: Collection[int],
        after: int,
        upto: int,
        last: int,
        limit: int,
        ignored: Collection[str],
    ) -> ThreadUpdatePage:
        """Return at most `limit` threads of these rooms with events after `after`, up to `upto`.

        The latest event of each is not after `last`. Events that `ignored` users sent do not count.
        """
        return await self._database.read(
            "get_thread_updates",
            _select,
            list(room_nids),
            after,
            upto,
            min(last, upto),
            limit,
            frozenset(ignored),
        )


def _select(
    txn: Transaction,
    room_nids: Sequence[int],
    after: int,
    upto: int,
    last: int,
    limit: int,
    ignored: frozenset[str],
) -> ThreadUpdatePage:
    threads: dict[_Key, _Thread] = {}
    listed: set[_Key] = set()
    pending = dict.fromkeys(room_nids, last)
    if len(pending) > MAX_ROOMS_PER_BATCH:
        latest = txn.query_each(_LATEST, [(nid, after, last) for nid in pending])
        pending = {
            nid: position for nid, rows in zip(pending, latest, strict=True) for (position,) in rows
        }
    reached: int | None = last if pending else None
    remaining, size = MAX_EVENTS, max(FIRST_BATCH, 2 * limit)
    while pending and remaining > 0:
        rooms = nlargest(MAX_ROOMS_PER_BATCH, pending, key=pending.__getitem__)
        batch = max(MIN_EVENTS_PER_ROOM, min(remaining, size) // len(rooms))
        walked = txn.query_each(
            _SELECT_EVENTS, [(nid, after, pending[nid], batch) for nid in rooms]
        )
        found: dict[_Key, _Thread] = {}
        for nid, rows in zip(rooms, walked, strict=True):
            for position, event_nid, depth, sender, kind, root in rows:
                key = (nid, root)
                if kind == THREAD and sender not in ignored and key not in listed:
                    _add(
                        threads if key in threads else found,
                        key,
                        position,
                        TimelinePlace(depth, event_nid),
                    )
            if len(rows) < batch:
                del pending[nid]
            else:
                pending[nid] = min(row[0] for row in rows) - 1
            remaining -= len(rows)
        size *= 4
        listed |= _read_replies(txn, found, after, upto, last, ignored)
        threads.update((key, thread) for key, thread in found.items() if key not in listed)
        # earlier events may belong to other threads, or to these
        reached = max(pending.values(), default=None)
        if (
            reached is not None
            and sum(thread.position > reached for thread in threads.values()) > limit
        ):
            break
    updates = [
        ThreadUpdateRow(
            nid,
            root,
            thread.position,
            thread.newest,
            len(thread.events),
            thread.is_complete or nid not in pending,
        )
        for (nid, root), thread in threads.items()
        if reached is None or thread.position > reached
    ]
    updates.sort(key=lambda row: row.position, reverse=True)
    return ThreadUpdatePage(
        updates[:limit], updates[limit].position if len(updates) > limit else reached
    )


def _read_replies(
    txn: Transaction,
    found: dict[_Key, _Thread],
    after: int,
    upto: int,
    last: int,
    ignored: frozenset[str],
) -> set[_Key]:
    """Read the newest replies of these threads and add those in the range. Return threads with an
    event after `last`."""
    listed: set[_Key] = set()
    replies = txn.query_each(_SELECT_REPLIES, [(root, MAX_REPLIES, nid) for nid, root in found])
    for key, rows in zip(list(found), replies, strict=True):
        found[key].is_complete = len(rows) < MAX_REPLIES
        for position, event_nid, depth, sender in rows:
            if position is None or not after < position <= upto or sender in ignored:
                continue
            if position > last:
                listed.add(key)
            _add(found, key, position, TimelinePlace(depth, event_nid))
    return listed


def _add(
    threads: dict[_Key, _Thread], key: _Key, position: int, position_in_room: TimelinePlace
) -> None:
    thread = threads.get(key)
    if thread is None:
        threads[key] = _Thread(position, position_in_room, {position_in_room.event_nid})
    else:
        thread.position = max(thread.position, position)
        thread.newest = max(thread.newest, position_in_room)
        thread.events.add(position_in_room.event_nid)
