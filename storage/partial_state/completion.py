"""The writes that complete the state of a room that was entered with a part of it.

Laws:
- What is gathered and found is kept beside the room (`partial_rooms.py`), chunk by chunk: the room
  goes on with the part that it has, and after a restart what is there need not be done again.
- One last write puts everything in its place and moves the head: whoever reads sees all of it or
  nothing.
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
    FoundRow,
    PartialRoom,
    abandon_partial,
    end_partial,
    select_gathered,
    set_found,
    set_gathered,
)
from storage.rooms.rooms import Head, RoomRow, move_head
from storage.rooms.sticky_events import release_sticky_events
from storage.search.search import note_placed
from storage.state.state_tree import StateTreeStore

CHUNK = 500
_SELECT_SHOWN = (
    "SELECT e.event_nid FROM partial_events AS p JOIN events AS e ON e.event_nid = p.event_nid"
    f" WHERE p.room_nid = ? AND (p.flags & {EventFlag.TIMELINE}) <> 0 AND (e.flags & {EventFlag.TIMELINE}) = 0"
)
"""Events of a room that are not in the timeline yet, and will be there."""


class Found(msgspec.Struct, frozen=True):
    """What an event is with all of the state."""

    place: int
    event_nid: int
    key: tuple[str, str] | None
    """Of a state event that changes the state."""
    flags: int
    before: StateChange
    current: StateChange | None = None
    """The current state then, where that was not the state after the event."""
    auth: Collection[int] = ()
    """What it cites, if it was refused before and so has no place among the auth chains."""


class LateNews(msgspec.Struct, frozen=True):
    """A message that was refused when it came, and is shown now."""

    event_nid: int
    flags: int
    """What it is to people, beside that it stands in the timeline."""
    outcomes: Mapping[str, int]
    """By user, where it is something else to them: see `add_outcomes`."""
    thread_root: str | None


class Completed(msgspec.Struct, frozen=True):
    """The room as it is with all of its state."""

    extremities: tuple[tuple[int, str], ...]
    state: StateChange
    effects: Sequence[tuple[int, StateEffect]]
    """What those entries mean that differ from what was written before."""
    hidden: Collection[int]
    """Events that were in the timeline and are there no more."""
    children: Sequence[RelationRow] = ()
    """What relates to others, of the events that are in the timeline now and were not."""
    redactions: Sequence[tuple[int, Redaction]] = ()
    """By number of the redaction, what takes content away of these events."""
    news: Sequence[LateNews] = ()
    """Those of them that nobody has been told of, in the order in which they came."""


class StateCompletion:
    """Writes, inside a write transaction."""

    def __init__(self, trees: StateTreeStore, chains: AuthChainStore) -> None:
        self._trees = trees
        self._chains = chains

    def gather(
        self,
        txn: WriteTransaction,
        room: RoomRow,
        before: bytes | None,
        entries: Mapping[tuple[str, str], int],
        *,
        afresh: bool = False,
    ) -> bytes | None:
        """Add entries to what has been gathered of the state before the join (`afresh`: to
        nothing); its root.

        Raises HeadMoved where that is not `before` any more: another node gathers too, and may have
        been told another state.
        """
        room_nid = room.room_nid
        if select_gathered(txn, room_nid) != before:
            raise HeadMoved(room.room_id)
        root = None if afresh else before
        root = self._trees.apply(txn, room_nid, root, entries)
        set_gathered(txn, room_nid, root)
        return root

    def keep_found(
        self, txn: WriteTransaction, room_nid: int, found: Sequence[Found]
    ) -> dict[int, bytes | None]:
        """Keep what was found of some events; by event the root of the state after it."""
        values: dict[int, FoundRow] = {}
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
            values[each.place] = FoundRow(
                each.flags, root, replaces, None if current == root else current
            )
            roots[each.event_nid] = root
        unrefused = [AuthNode(each.event_nid, list(each.auth)) for each in found if each.auth]
        if unrefused:
            self._chains.add(txn, unrefused)
        set_found(txn, room_nid, values)
        return roots

    def finish(
        self,
        txn: WriteTransaction,
        room: RoomRow,
        partial: PartialRoom,
        head: Head,
        completed: Completed,
    ) -> Head:
        """Put what was found of all events in its place, and move the head. Raises HeadMoved."""
        position = txn.next_position()
        nid = room.room_nid
        events = txn.query("SELECT event_nid, flags FROM partial_events WHERE room_nid = ?", (nid,))
        if any(flags is None for _, flags in events):
            raise HeadMoved(room.room_id)  # another node has placed one more
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
            txn.announce(Change(position, Topic.RELATED, detail=child.relation.target))
        root = self._trees.apply(txn, nid, completed.state.root, completed.state.entries)
        apply_effects(
            txn, nid, [(event_nid, position, effect) for event_nid, effect in completed.effects]
        )
        joined, invited = count_members(txn, nid)
        new = Head(head.version + 1, completed.extremities, head.depth, root, joined, invited)
        if not move_head(txn, nid, head.version, new):
            raise HeadMoved(room.room_id)
        for redaction_nid, redaction in completed.redactions:
            redact_event(txn, nid, redaction_nid, position, redaction)
        end_partial(txn, nid, position)
        for event_nid, _ in events:
            txn.announce(Change(position, Topic.PLACED, detail=event_nid))
        txn.announce(
            Change(
                position,
                Topic.COMPLETENESS,
                room.room_id,
                detail=replace(partial, completed=position),
            )
        )
        positions = self._tell(txn, room, root, completed.news)
        note_placed(txn, shown)  # whoever looked for texts has passed them by
        release_sticky_events(txn, room.room_id, shown, positions)
        return new

    def abandon(
        self, txn: WriteTransaction, room: RoomRow, partial: PartialRoom, head: Head
    ) -> Head:
        """Let the room stay with the part that it has; nobody waits for the rest. Raises HeadMoved.

        Its head goes on saying so: what still comes is judged by a part, and looked at again when
        somebody has come back, or the rest is told after all.
        """
        new = structs.replace(head, version=head.version + 1)
        if not move_head(txn, room.room_nid, head.version, new):
            raise HeadMoved(room.room_id)
        position = txn.next_position()
        abandon_partial(txn, room.room_nid, position)
        txn.announce(
            Change(
                position,
                Topic.COMPLETENESS,
                room.room_id,
                detail=replace(partial, completed=position),
            )
        )
        return new

    @staticmethod
    def _tell(
        txn: WriteTransaction, room: RoomRow, root: bytes | None, news: Sequence[LateNews]
    ) -> dict[int, int]:
        """Let messages arrive that were refused when they came; their positions, by number. `root`:
        of the present state, which is not the one after them."""
        if not news:
            return {}
        first = txn.next_position(len(news))
        stored = select_events(txn, [each.event_nid for each in news])
        outcomes = []
        for position, each in enumerate(news, first):
            flags = EventFlag.TIMELINE | EventFlag.RESOLVED | each.flags
            row = structs.replace(
                stored[each.event_nid],
                position=position,
                flags=stored[each.event_nid].flags | flags,
                current_root=root,
                thread_root=each.thread_root,
            )
            txn.execute(
                "UPDATE events SET position = ?, flags = ?, current_root = ?, thread_root = ? WHERE event_nid = ?",
                (row.position, row.flags, row.current_root, row.thread_root, row.event_nid),
            )
            outcomes += [
                (user_id, room.room_nid, position, row.event_nid, outcome)
                for user_id, outcome in each.outcomes.items()
            ]
            txn.announce(Change(position, Topic.EVENT, room.room_id, row.sender, row))
        if outcomes:
            add_outcomes(txn, outcomes)
        return {each.event_nid: position for position, each in enumerate(news, first)}

    @staticmethod
    def _hide(txn: WriteTransaction, room_nid: int, event_nids: Collection[int]) -> None:
        """Take events out of the timeline, with what was written about them beside it."""
        rows = txn.query_in(
            "SELECT event_nid, position, flags FROM events WHERE event_nid IN {keys} AND position IS NOT NULL",
            event_nids,
        )
        gone = [(nid, position) for nid, position, flags in rows if not flags & EventFlag.TIMELINE]
        if not gone:
            return
        txn.execute_many(
            "UPDATE events SET position = NULL WHERE event_nid = ?", [(nid,) for nid, _ in gone]
        )
        for start in range(0, len(gone), CHUNK):  # all of the table is looked through, so few times
            positions = [position for _, position in gone[start : start + CHUNK]]
            marks = ", ".join("?" * len(positions))
            txn.execute(
                f"DELETE FROM push_outcomes WHERE room_nid = ? AND position IN ({marks})",
                (room_nid, *positions),
            )
        for nid, _ in gone:
            remove_relation(txn, nid)
