"""Reads, for each room, the position of its newest event, or of its newest event of given types.
Room lists are sorted by these positions.

Events of given types are searched only among the newest `MAX_SEARCHED` events of a room.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from storage.engine.database import Database
from storage.engine.transaction import Transaction

FIRST_SEARCHED: Final = 20
MAX_SEARCHED: Final = 500
"""The number of a room's newest events that are searched for some types: first a few, then this
many."""


class RoomRecencyStore:
    """Reads the newest positions of rooms."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_latest_positions(self, room_nids: Iterable[int]) -> Mapping[int, int]:
        """Return the position of the newest event of each room; rooms without one are missing."""
        return await self._database.read("get_latest_positions", _select_latest, list(room_nids))

    async def get_latest_of_types(
        self, room_nids: Iterable[int], types: Collection[str]
    ) -> Mapping[int, int]:
        """Return the position of the newest event of those types, if it is among the room's newest
        events."""
        return await self._database.read_quickly(
            "get_latest_of_types", _select_of_types, list(room_nids), types
        )


def _select_latest(txn: Transaction, room_nids: list[int]) -> dict[int, int]:
    rows = txn.query_in(
        "SELECT r.room_nid, (SELECT e.position FROM events AS e"
        " WHERE e.room_nid = r.room_nid AND e.position IS NOT NULL"
        " ORDER BY e.position DESC LIMIT 1) FROM rooms AS r WHERE r.room_nid IN {keys}",
        room_nids,
    )
    return {room_nid: position for room_nid, position in rows if position is not None}


def _select_of_types(
    txn: Transaction, room_nids: list[int], types: Collection[str]
) -> dict[int, int]:
    sql = (
        "SELECT position, type FROM events WHERE room_nid = ? AND position IS NOT NULL"
        " ORDER BY position DESC LIMIT ?"
    )
    found: dict[int, int] = {}
    for room_nid in room_nids:
        for limit in (FIRST_SEARCHED, MAX_SEARCHED):
            rows = txn.query(sql, (room_nid, limit))
            position = next((position for position, type in rows if type in types), None)
            if position is not None:
                found[room_nid] = position
            if position is not None or len(rows) < limit:
                break
    return found
