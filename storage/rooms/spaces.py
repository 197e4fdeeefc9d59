"""The children of spaces.

`storage.persist.state_effects` writes them in the transaction that changes a room's state.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction

MAX_CHILDREN = 5000
"""The maximum number of children of a space that is read."""


class NewChild(msgspec.Struct, frozen=True):
    """The content of an m.space.child event."""

    child_id: str
    is_link: bool
    """False: the event names no servers, so the room is not, or no longer, a child."""
    order: str | None
    suggested: bool
    origin_server_ts: int


class ChildRow(msgspec.Struct, frozen=True):
    """A child of a space."""

    child_id: str
    event_nid: int
    suggested: bool


class SpaceStore:
    """Reads the table `space_children`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_children(self, room_nids: Iterable[int]) -> Mapping[int, Sequence[ChildRow]]:
        """Return the ordered children of spaces; a space without any is missing.

        At most MAX_CHILDREN of each space. The order: spec:
        client-server-api#ordering-of-children-within-a-space
        """
        return await self._database.read("get_space_children", _select_children, list(room_nids))

    async def get_parents(self, room_id: str) -> list[int]:
        """Return the rooms that name the room as their child."""
        return await self._database.read("get_space_parents", _select_parents, room_id)


def set_children(txn: WriteTransaction, room_nid: int, children: Mapping[int, NewChild]) -> None:
    """Store m.space.child events by number; of two for one child the last counts."""
    latest = {child.child_id: (event_nid, child) for event_nid, child in children.items()}
    txn.execute_many(
        "DELETE FROM space_children WHERE room_nid = ? AND child_id = ?",
        [(room_nid, child_id) for child_id in latest],
    )
    rows = [
        (
            room_nid,
            child.child_id,
            event_nid,
            child.origin_server_ts,
            child.order,
            int(child.suggested),
        )
        for event_nid, child in latest.values()
        if child.is_link
    ]
    if rows:
        txn.execute_many(
            "INSERT INTO space_children (room_nid, child_id, event_nid, origin_server_ts,"
            " child_order, suggested)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            rows,
        )


def remove_child_of_event(
    txn: WriteTransaction, room_nid: int, event_nid: int, child_id: str
) -> None:
    """Remove the child of an event that has been redacted, if that event is the current one."""
    txn.execute(
        "DELETE FROM space_children WHERE room_nid = ? AND child_id = ? AND event_nid = ?",
        (room_nid, child_id, event_nid),
    )


def _select_children(txn: Transaction, room_nids: list[int]) -> dict[int, list[ChildRow]]:
    # all children of one space are in one chunk of keys, so each is ordered
    rows = txn.query_in(
        "SELECT room_nid, child_id, event_nid, suggested FROM space_children"
        " WHERE room_nid IN {keys}"
        " ORDER BY room_nid, child_order IS NULL, child_order, origin_server_ts, child_id",
        room_nids,
    )
    found: dict[int, list[ChildRow]] = {}
    for room_nid, child_id, event_nid, suggested in rows:
        children = found.setdefault(room_nid, [])
        if len(children) < MAX_CHILDREN:
            children.append(ChildRow(child_id, event_nid, bool(suggested)))
    return found


def _select_parents(txn: Transaction, room_id: str) -> list[int]:
    rows = txn.query(
        "SELECT room_nid FROM space_children WHERE child_id = ? ORDER BY room_nid", (room_id,)
    )
    return [room_nid for (room_nid,) in rows]
