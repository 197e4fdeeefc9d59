"""In which threads something was said in a stretch of the sequence.

A thread counts as one, whatever was said in it; of what was said the newest place in the room's
order is told.

Laws:
- The cost of a page is bounded, whatever was said: it walks back through what was said in the
  threads of the rooms, over so many events, and where these were of too few threads the page is
  short, and says how far it came.
"""

from collections.abc import Collection, Sequence
from heapq import nlargest

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction
from storage.events.relations import THREAD
from storage.events.timelines import Place

MOST_WALKED = 3000
"""So many events a page walks over, in all rooms, and some more where many rooms are active."""
FIRST_WALKED = 50
"""So many at first, or twice as many as threads are wanted; then four times as many, as long as
there are too few threads."""
FEWEST_WALKED = 10
"""Of each room, at a time."""
MOST_ROOMS = 128
"""Rooms at a time: those in which something is left to be walked over that was said later than in
the others."""
MOST_LOOKED_AT = 30
"""The newest replies of a thread, by which a page knows whether it was told before, and what is the
newest of the stretch. Where all of these are of other times, a thread may be told once more, and
the newest is that of those walked over."""

# The order, and that the kind of relation is no condition, leave PostgreSQL no other index to walk
# along, whatever it knows of the tables
_WALK = (
    "SELECT e.position, e.event_nid, e.depth, e.sender, r.rel_type, r.target FROM ("
    "SELECT position, event_nid, depth, sender FROM events"
    " WHERE room_nid = ? AND thread_root IS NOT NULL AND position > ? AND position <= ? ORDER BY position DESC, event_nid DESC LIMIT ?"
    ") AS e LEFT JOIN relations AS r ON r.event_nid = e.event_nid"
)
_LATEST = (
    "SELECT position FROM events WHERE room_nid = ? AND thread_root IS NOT NULL AND position > ? AND position <= ?"
    " ORDER BY position DESC, event_nid DESC LIMIT 1"
)
_LOOK = (
    "SELECT e.position, e.event_nid, e.depth, e.sender FROM ("
    f"SELECT event_nid FROM relations WHERE target = ? AND rel_type = '{THREAD}' ORDER BY depth DESC, event_nid DESC LIMIT ?"
    ") AS r LEFT JOIN events AS e ON e.event_nid = r.event_nid AND e.room_nid = ? AND e.thread_root IS NOT NULL"
)


_Key = tuple[int, str]
"""Number of the room, id of the root."""


class ThreadUpdateRow(msgspec.Struct, frozen=True, gc=False):
    """A thread in which something was said."""

    room_nid: int
    root: str
    position: int
    """Of what came last."""
    newest: Place
    """The newest event in the order of the room."""
    count: int
    """Events of the stretch, of those that were looked at."""
    is_whole: bool
    """Whether all were."""


class ThreadUpdatePage(msgspec.Struct, frozen=True):
    """Threads, those with the latest first."""

    rows: list[ThreadUpdateRow]
    reached: int | None
    """Up to where nothing was looked at: the page goes on there, with this as `last`. None: there
    is no more of the stretch."""


class _Thread(msgspec.Struct):
    """What is known of a thread so far."""

    position: int
    newest: Place
    said: set[int]
    """Numbers of events."""
    is_whole: bool = False
    """Whether that is everything."""


class ThreadUpdateStore:
    """Reads what was said in threads."""

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
        """The threads of these rooms in which something was said after `after`, up to `upto`, the
        last of it no later than `last`. So many at most; without what `ignored` sent."""
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
    told: set[_Key] = set()
    pending = dict.fromkeys(room_nids, last)
    if len(pending) > MOST_ROOMS:
        latest = txn.query_each(_LATEST, [(nid, after, last) for nid in pending])
        pending = {
            nid: position for nid, rows in zip(pending, latest, strict=True) for (position,) in rows
        }
    reached: int | None = last if pending else None
    left, size = MOST_WALKED, max(FIRST_WALKED, 2 * limit)
    while pending and left > 0:
        rooms = nlargest(MOST_ROOMS, pending, key=pending.__getitem__)
        some = max(FEWEST_WALKED, min(left, size) // len(rooms))
        walked = txn.query_each(_WALK, [(nid, after, pending[nid], some) for nid in rooms])
        found: dict[_Key, _Thread] = {}
        for nid, rows in zip(rooms, walked, strict=True):
            for position, event_nid, depth, sender, kind, root in rows:
                key = (nid, root)
                if kind == THREAD and sender not in ignored and key not in told:
                    _add(
                        threads if key in threads else found, key, position, Place(depth, event_nid)
                    )
            if len(rows) < some:
                del pending[nid]
            else:
                pending[nid] = min(row[0] for row in rows) - 1
            left -= len(rows)
        size *= 4
        told |= _look(txn, found, after, upto, last, ignored)
        threads.update((key, thread) for key, thread in found.items() if key not in told)
        # what was said before may be of other threads, or of these
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
            len(thread.said),
            thread.is_whole or nid not in pending,
        )
        for (nid, root), thread in threads.items()
        if reached is None or thread.position > reached
    ]
    updates.sort(key=lambda row: row.position, reverse=True)
    return ThreadUpdatePage(
        updates[:limit], updates[limit].position if len(updates) > limit else reached
    )


def _look(
    txn: Transaction,
    found: dict[_Key, _Thread],
    after: int,
    upto: int,
    last: int,
    ignored: frozenset[str],
) -> set[_Key]:
    """Add what else was said in these threads, in the stretch. Those in which something was said
    after `last`."""
    told: set[_Key] = set()
    replies = txn.query_each(_LOOK, [(root, MOST_LOOKED_AT, nid) for nid, root in found])
    for key, rows in zip(list(found), replies, strict=True):
        found[key].is_whole = len(rows) < MOST_LOOKED_AT
        for position, event_nid, depth, sender in rows:
            if position is None or not after < position <= upto or sender in ignored:
                continue
            if position > last:
                told.add(key)
            _add(found, key, position, Place(depth, event_nid))
    return told


def _add(threads: dict[_Key, _Thread], key: _Key, position: int, place: Place) -> None:
    thread = threads.get(key)
    if thread is None:
        threads[key] = _Thread(position, place, {place.event_nid})
    else:
        thread.position = max(thread.position, position)
        thread.newest = max(thread.newest, place)
        thread.said.add(place.event_nid)
