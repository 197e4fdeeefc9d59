"""In which threads something was said in a stretch of the sequence.

A thread counts as one, whatever was said in it; of what was said the newest place in the room's order is told. The cost is that
of what was said in threads of the rooms in the stretch.
"""

from collections.abc import Collection, Sequence

import msgspec

from storage.database import Database
from storage.relations import THREAD
from storage.timelines import Place
from storage.transaction import Transaction

MOST_IGNORED = 500


class ThreadUpdateRow(msgspec.Struct, frozen=True, gc=False):
    """A thread in which something was said."""

    room_nid: int
    root: str
    position: int
    """Of what came last."""
    newest: Place
    """The newest event in the order of the room."""
    count: int
    """Events of the stretch."""


class ThreadUpdateStore:
    """Reads what was said in threads."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_updates(
        self, room_nids: Collection[int], after: int, upto: int, last: int, limit: int, ignored: Collection[str]
    ) -> list[ThreadUpdateRow]:
        """The threads of these rooms in which something was said after `after`, up to `upto`, the last of it no later than `last`;
        those with the latest first. Without what `ignored` sent."""
        return await self._database.read(
            "get_thread_updates", _select, list(room_nids), after, upto, last, limit, list(ignored)[:MOST_IGNORED]
        )


def _select(
    txn: Transaction, room_nids: Sequence[int], after: int, upto: int, last: int, limit: int, ignored: Sequence[str]
) -> list[ThreadUpdateRow]:
    of_thread = "OVER (PARTITION BY e.room_nid, r.target)"
    said = (
        "SELECT e.room_nid AS room_nid, r.target AS root, e.depth AS depth, e.event_nid AS event_nid,"
        f" max(e.position) {of_thread} AS latest, count(*) {of_thread} AS total,"
        " row_number() OVER (PARTITION BY e.room_nid, r.target ORDER BY e.depth DESC, e.event_nid DESC) AS place"
        f" FROM events AS e JOIN relations AS r ON r.event_nid = e.event_nid AND r.rel_type = '{THREAD}'"
        " WHERE e.room_nid IN {keys} AND e.thread_root IS NOT NULL AND e.position > ? AND e.position <= ?"
        + (f" AND e.sender NOT IN ({', '.join('?' * len(ignored))})" if ignored else "")
    )
    rows = txn.query_in(
        f"SELECT room_nid, root, latest, depth, event_nid, total FROM ({said}) AS said"
        " WHERE place = 1 AND latest <= ? ORDER BY latest DESC LIMIT ?",
        room_nids,
        after=(after, upto, *ignored, last, limit),
    )
    found = [ThreadUpdateRow(nid, root, at, Place(depth, event), total) for nid, root, at, depth, event, total in rows]
    found.sort(key=lambda row: row.position, reverse=True)  # many rooms are asked for in several queries
    return found[:limit]
