"""The writes that complete the state of a room that was joined with partial state.

Laws:
- The fetched state and the recomputed columns of events are first stored in tables of their own
  (`partial_rooms.py`), chunk by chunk. Meanwhile the room is used with its partial state. After a
  restart, finished chunks are not repeated.
- One final write copies the recomputed columns to the events and sets the complete state in the
  room head. So a reader sees either the partial state or the complete one.
"""

from collections.abc import Collection, Mapping, Sequence

import msgspec
from msgspec import structs
from msgspec.structs import replace

from storage.engine.streams import Change, Topic
from storage.engine.transaction import WriteTransaction
from storage.events.auth_chains import AuthChainStore, AuthNode
from storage.events.events import EventFlag, select_events
from storage.events.relations import RelationRow, add_relations, remove_relation
from storage.persist.redactions import Redaction, redact_event
from storage.persist.room_writer import HeadMoved, StateChange
from storage.persist.state_effects import StateEffect, apply_effects
from storage.push.event_push_actions import add_outcomes
from storage.rooms.memberships import count_members
from storage.rooms.partial_rooms import (
    CompletedEventRow,
    PartialRoom,
    abandon_partial_join,
    complete_partial_join,
    select_fetched_root,
    set_completed_events,
    set_fetched_root,
)
from storage.rooms.rooms import RoomHead, RoomRow, move_head
from storage.rooms.sticky_events import release_sticky_events
from storage.search.search import queue_former_outliers
from storage.state.state_tree import StateTreeStore

CHUNK = 500
_SELECT_SHOWN = (
    "SELECT e.event_nid FROM partial_events AS p JOIN events AS e ON e.event_nid = p.event_nid"
    f" WHERE p.room_nid = ? AND (p.flags & {EventFlag.TIMELINE}) <> 0"
    f" AND (e.flags & {EventFlag.TIMELINE}) = 0"
)
"""Events of a room that are not in the timeline yet, and will be."""


class RecomputedEvent(msgspec.Struct, frozen=True):
    """An event recomputed from the complete state."""

    ordinal: int
    event_nid: int
    key: tuple[str, str] | None
    """The key of a state event that changes the state."""
    flags: int
    before: StateChange
    current: StateChange | None = None
    """The current state at its arrival, if it differs from the state after the event."""
    auth: Collection[int] = ()
    """Its auth events, if it was rejected before and so is not in the auth chain index."""


class LateMessage(msgspec.Struct, frozen=True):
    """A message that was rejected at its arrival, and that the complete state allows."""

    event_nid: int
    flags: int
    """Its push flags, in addition to `TIMELINE`."""
    outcomes: Mapping[str, int]
    """Other push outcomes by user: see `add_outcomes`."""
    thread_root: str | None


class CompletedRoom(msgspec.Struct, frozen=True):
    """The room with its complete state."""

    extremities: tuple[tuple[int, str], ...]
    state: StateChange
    effects: Sequence[tuple[int, StateEffect]]
    """The effects of the entries that differ from those written before."""
    hidden: Collection[int]
    """Events that leave the timeline."""
    children: Sequence[RelationRow] = ()
    """Relations of the events that enter the timeline."""
    redactions: Sequence[tuple[int, Redaction]] = ()
    """Redactions of these events, by number of the redaction."""
    late_messages: Sequence[LateMessage] = ()
    """The events that no client has received, in order of arrival."""


class StateCompletion:
    """Writes the completion inside a write transaction."""

    def __init__(self, *, trees: StateTreeStore, chains: AuthChainStore) -> None:
        self._trees = trees
        self._chains = chains

    def add_fetched_state(
        self,
        txn: WriteTransaction,
        room: RoomRow,
        before: bytes | None,
        entries: Mapping[tuple[str, str], int],
        *,
        replace_existing: bool = False,
    ) -> bytes | None:
        """Add entries to the fetched part of the state before the join (`replace_existing`: replace
        it). Return its root.

        Raises HeadMoved if the root is no longer `before`: another node fetches too, and may have
        received another state.
        """
        room_nid = room.room_nid
        if select_fetched_root(txn, room_nid) != before:
            raise HeadMoved(room.room_id)
        root = None if replace_existing else before
        root = self._trees.apply(txn, room_nid, root, entries)
        set_fetched_root(txn, room_nid, root)
        return root

    def store_recomputed(
        self, txn: WriteTransaction, room_nid: int, found: Sequence[RecomputedEvent]
    ) -> dict[int, bytes | None]:
        """Store recomputed events. Return the root of the state after each."""
        values: dict[int, CompletedEventRow] = {}
        roots: dict[int, bytes | None] = {}
        for each in found:
            root = self._trees.apply(txn, room_nid, each.before.root, each.before.entries)
            replaces: int | None = None
            if each.key is not None:
                replaces = self._trees.get_entries_in(txn, room_nid, root, [each.key]).get(each.key)
                root = self._trees.apply(txn, room_nid, root, {each.key: each.event_nid})
            current: bytes | None = None
            if each.current is not None:
                current = self._trees.apply(txn, room_nid, each.current.root, each.current.entries)
            values[each.ordinal] = CompletedEventRow(
                each.flags, root, replaces, None if current == root else current
            )
            roots[each.event_nid] = root
        accepted = [AuthNode(each.event_nid, list(each.auth)) for each in found if each.auth]
        if accepted:
            self._chains.add(txn, accepted)
        set_completed_events(txn, room_nid, values)
        return roots

    def finish(
        self,
        txn: WriteTransaction,
        room: RoomRow,
        partial: PartialRoom,
        head: RoomHead,
        completed: CompletedRoom,
    ) -> RoomHead:
        """Apply all recomputed columns to the events, and move the head. Raises HeadMoved."""
        position = txn.next_position()
        nid = room.room_nid
        events = txn.query("SELECT event_nid, flags FROM partial_events WHERE room_nid = ?", (nid,))
        if any(flags is None for _, flags in events):
            raise HeadMoved(room.room_id)  # another node has stored one more event
        shown = [nid for (nid,) in txn.query(_SELECT_SHOWN, (nid,))]
        txn.execute(
            "UPDATE events SET flags = p.flags, state_root = p.state_root, replaces = p.replaces,"
            " current_root = p.current_root"
            " FROM partial_events AS p WHERE p.room_nid = ? AND p.event_nid = events.event_nid",
            (nid,),
        )
        self._hide(txn, nid, completed.hidden)
        add_relations(txn, completed.children)
        for child in completed.children:
            txn.announce(Change(position, Topic.RELATION, detail=child.relation.target))
        root = self._trees.apply(txn, nid, completed.state.root, completed.state.entries)
        apply_effects(
            txn, nid, [(event_nid, position, effect) for event_nid, effect in completed.effects]
        )
        joined, invited = count_members(txn, nid)
        new = RoomHead(head.version + 1, completed.extremities, head.depth, root, joined, invited)
        if not move_head(txn, nid, head.version, new):
            raise HeadMoved(room.room_id)
        for redaction_nid, redaction in completed.redactions:
            redact_event(txn, nid, redaction_nid, position, redaction)
        complete_partial_join(txn, nid, position)
        for event_nid, _ in events:
            txn.announce(Change(position, Topic.OUTLIER_PLACED, detail=event_nid))
        txn.announce(
            Change(
                position,
                Topic.PARTIAL_STATE,
                room.room_id,
                detail=replace(partial, completed_position=position),
            )
        )
        positions = self._deliver(txn, room, root, completed.late_messages)
        queue_former_outliers(txn, shown)  # the search index has passed them already
        release_sticky_events(txn, room.room_id, shown, positions)
        return new

    def abandon(
        self, txn: WriteTransaction, room: RoomRow, partial: PartialRoom, head: RoomHead
    ) -> RoomHead:
        """Leave the room with its partial state; nobody waits for the rest. Raises HeadMoved.

        The head still says so: new events are judged by partial state, and checked again when a
        local user rejoins or a server sends the rest.
        """
        new = structs.replace(head, version=head.version + 1)
        if not move_head(txn, room.room_nid, head.version, new):
            raise HeadMoved(room.room_id)
        position = txn.next_position()
        abandon_partial_join(txn, room.room_nid, position)
        txn.announce(
            Change(
                position,
                Topic.PARTIAL_STATE,
                room.room_id,
                detail=replace(partial, completed_position=position),
            )
        )
        return new

    @staticmethod
    def _deliver(
        txn: WriteTransaction, room: RoomRow, root: bytes | None, messages: Sequence[LateMessage]
    ) -> dict[int, int]:
        """Deliver messages that were rejected at their arrival. Return their positions by number.
        `root`: the current state, which is not the one after them."""
        if not messages:
            return {}
        first = txn.next_position(len(messages))
        stored = select_events(txn, [each.event_nid for each in messages])
        outcomes = []
        for position, each in enumerate(messages, first):
            flags = EventFlag.TIMELINE | EventFlag.RESOLVED | each.flags
            row = structs.replace(
                stored[each.event_nid],
                position=position,
                flags=stored[each.event_nid].flags | flags,
                current_root=root,
                thread_root=each.thread_root,
            )
            txn.execute(
                "UPDATE events SET position = ?, flags = ?, current_root = ?, thread_root = ?"
                " WHERE event_nid = ?",
                (row.position, row.flags, row.current_root, row.thread_root, row.event_nid),
            )
            outcomes += [
                (user_id, room.room_nid, position, row.event_nid, outcome)
                for user_id, outcome in each.outcomes.items()
            ]
            txn.announce(Change(position, Topic.EVENT, room.room_id, row.sender, row))
        if outcomes:
            add_outcomes(txn, outcomes)
        return {each.event_nid: position for position, each in enumerate(messages, first)}

    @staticmethod
    def _hide(txn: WriteTransaction, room_nid: int, event_nids: Collection[int]) -> None:
        """Remove events from the timeline, with the rows derived from them."""
        rows = txn.query_in(
            "SELECT event_nid, position, flags FROM events"
            " WHERE event_nid IN {keys} AND position IS NOT NULL",
            event_nids,
        )
        hidden = [
            (nid, position) for nid, position, flags in rows if not flags & EventFlag.TIMELINE
        ]
        if not hidden:
            return
        txn.execute_many(
            "UPDATE events SET position = NULL WHERE event_nid = ?", [(nid,) for nid, _ in hidden]
        )
        for start in range(0, len(hidden), CHUNK):  # each statement scans the table, so use few
            positions = [position for _, position in hidden[start : start + CHUNK]]
            marks = ", ".join("?" * len(positions))
            txn.execute(
                f"DELETE FROM event_push_actions WHERE room_nid = ? AND position IN ({marks})",
                (room_nid, *positions),
            )
        for nid, _ in hidden:
            remove_relation(txn, nid)
