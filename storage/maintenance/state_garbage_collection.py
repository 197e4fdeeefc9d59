"""Deletes the nodes of a room's state trees that no event, no room head and no partial-state resync
needs any more.

States are orphaned when events are removed. Code that removes events calls `schedule` for the room
in the same transaction, and a job calls `step` until nothing is left to do. No code removes events
at present: a purge leaves a skeleton of each event, with its state (ADR 25). So the job has no work
yet.

A collection also deletes nodes that were orphaned in another way. If state resolution computed the
state of a room head, its tree may have nodes that no event uses. The next event replaces the head
and orphans them. Nodes that are orphaned during a collection may be left for the next one.

A collection has an even number, its *cycle*, which increases with each collection. New nodes that a
write creates during the collection are marked with this number. They may refer to nodes that the
collection has not reached yet. Nodes that the collection reaches from the head, the events and the
partial-state tables of the room are marked with the next higher number, so that each is visited
once. Then the nodes of the room with a mark below the cycle are deleted. All this happens in small
steps, while the room is in use. No needed node is deleted, for these reasons:

- Writes run one after the other, whichever process makes them. So a step and a write never overlap.
- During a collection, `StateTreeStore.apply` marks every node it creates with the cycle, even if
  the node exists. It does not rely on its cache for that.
- All other nodes of a new tree are shared with the older tree from which it was made. An event or
  the head needs the older tree, so its nodes are marked before anything is deleted. This is true
  even if only a head needed it, and was replaced during the collection. The head is read before the
  events. So the collection reads either that head, or the event that was built on it.
- A removal of events during a collection restarts it.
"""

import json
from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from storage.engine.transaction import WriteTransaction
from storage.events.events import IS_NOT_SHOWN, IS_SHOWN
from storage.rooms.partial_rooms import select_partial_roots
from storage.state.radix_tree import get_child_ids

_START = """
    INSERT INTO state_garbage_collections (room_nid, cycle, progress) VALUES (?, ?, ?)
    ON CONFLICT (room_nid) DO UPDATE SET cycle = excluded.cycle, progress = excluded.progress
"""
_PART = """
    SELECT * FROM (
        SELECT depth, event_nid, state_root, current_root FROM events
        WHERE room_nid = ? AND (depth, event_nid) > (?, ?) AND {}
        ORDER BY depth, event_nid LIMIT ?
    ) AS part
"""
# visible and other events have separate indexes
_SELECT_EVENTS = (
    f"{_PART.format(IS_SHOWN)} UNION ALL {_PART.format(IS_NOT_SHOWN)}"
    " ORDER BY depth, event_nid LIMIT ?"
)
_SELECT_UNMARKED = (
    "SELECT node, content FROM state_nodes WHERE room_nid = ? AND node IN {keys} AND cycle < ?"
)
_SELECT_NODES = (
    "SELECT node, cycle FROM state_nodes WHERE room_nid = ? AND node > ? ORDER BY node LIMIT ?"
)

_BEFORE_ALL = -(1 << 62)


class _Progress(msgspec.Struct, frozen=True):
    """The progress of a collection. Nodes on the stack are marked, with all nodes below them,
    before anything else is done."""

    head_read: bool = False
    events_read: bool = False
    depth: int = _BEFORE_ALL
    event_nid: int = _BEFORE_ALL
    stack: tuple[bytes, ...] = ()
    deleted_upto: bytes = b""

    def to_json(self) -> str:
        stack = [node.hex() for node in self.stack]
        return json.dumps(
            [
                self.head_read,
                self.events_read,
                self.depth,
                self.event_nid,
                stack,
                self.deleted_upto.hex(),
            ],
            separators=(",", ":"),
        )

    @classmethod
    def from_json(cls, text: str) -> "_Progress":
        head_read, events_read, depth, event_nid, stack, deleted_upto = json.loads(text)
        nodes = tuple(bytes.fromhex(node) for node in stack)
        return cls(head_read, events_read, depth, event_nid, nodes, bytes.fromhex(deleted_upto))


class StateGarbageCollector:
    """Collects garbage, room by room. A step reads up to `nodes_per_step` state nodes, or as many
    events."""

    def __init__(self, nodes_per_step: int = 500) -> None:
        self._nodes = nodes_per_step

    def schedule(self, txn: WriteTransaction, room_nid: int) -> None:
        """Schedule a collection for a room whose events are removed in this transaction."""
        txn.execute(
            _START, (room_nid, 2 * txn.allocate("state_garbage_collection"), _Progress().to_json())
        )

    def step(self, txn: WriteTransaction) -> bool:
        """Do some work. Return False if there was nothing to do."""
        row = txn.query_one(
            "SELECT room_nid, cycle, progress FROM state_garbage_collections ORDER BY cycle LIMIT 1"
        )
        if row is None:
            return False
        room_nid, cycle, text = row
        progress = _Progress.from_json(text)
        if progress.stack:
            progress = self._mark(txn, room_nid, cycle, progress)
        elif not progress.head_read:
            head = txn.query_one("SELECT state_root FROM rooms WHERE room_nid = ?", (room_nid,))
            roots = select_partial_roots(txn, room_nid)
            if head is not None and head[0] is not None:
                roots.add(bytes(head[0]))
            progress = replace(progress, head_read=True, stack=tuple(roots))
        elif not progress.events_read:
            progress = self._read_events(txn, room_nid, progress)
        else:
            return self._sweep(txn, room_nid, cycle, progress)
        self._save(txn, room_nid, progress)
        return True

    def _mark(
        self, txn: WriteTransaction, room_nid: int, cycle: int, progress: _Progress
    ) -> _Progress:
        """Mark the nodes on top of the stack, and push their children."""
        stack, top = progress.stack[: -self._nodes], progress.stack[-self._nodes :]
        rows = txn.query_in(_SELECT_UNMARKED, top, before=(room_nid,), after=(cycle + 1,))
        self._set_cycle(txn, room_nid, cycle + 1, [bytes(node) for node, _ in rows])
        children = dict.fromkeys(
            child for _, content in rows for child in get_child_ids(bytes(content))
        )
        return replace(progress, stack=(*stack, *children))

    def _read_events(self, txn: WriteTransaction, room_nid: int, progress: _Progress) -> _Progress:
        """Push the state roots of the next events on the stack."""
        args = (room_nid, progress.depth, progress.event_nid, self._nodes)
        rows = txn.query(_SELECT_EVENTS, (*args, *args, self._nodes))
        if not rows:
            return replace(progress, events_read=True)
        depth, event_nid, *_ = rows[-1]
        roots = dict.fromkeys(
            bytes(root) for _, _, *pair in rows for root in pair if root is not None
        )
        return replace(progress, depth=depth, event_nid=event_nid, stack=tuple(roots))

    def _sweep(self, txn: WriteTransaction, room_nid: int, cycle: int, progress: _Progress) -> bool:
        """Delete the unmarked nodes among the next ones. After the last node, the collection
        ends."""
        rows = txn.query(_SELECT_NODES, (room_nid, progress.deleted_upto, self._nodes))
        unused = [(room_nid, bytes(node)) for node, seen in rows if seen < cycle]
        if unused:
            txn.execute_many("DELETE FROM state_nodes WHERE room_nid = ? AND node = ?", unused)
        if rows:
            self._save(txn, room_nid, replace(progress, deleted_upto=bytes(rows[-1][0])))
        else:
            txn.execute("DELETE FROM state_garbage_collections WHERE room_nid = ?", (room_nid,))
        return True

    @staticmethod
    def _set_cycle(
        txn: WriteTransaction, room_nid: int, cycle: int, nodes: Sequence[bytes]
    ) -> None:
        if nodes:
            rows = [(cycle, room_nid, node) for node in nodes]
            txn.execute_many(
                "UPDATE state_nodes SET cycle = ? WHERE room_nid = ? AND node = ?", rows
            )

    @staticmethod
    def _save(txn: WriteTransaction, room_nid: int, progress: _Progress) -> None:
        txn.execute(
            "UPDATE state_garbage_collections SET progress = ? WHERE room_nid = ?",
            (progress.to_json(), room_nid),
        )
