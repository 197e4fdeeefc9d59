"""The one write that adds events to a room: rows, edges, state, memberships, summary, head,
positions.

Laws:
- The head's version is checked: who built upon a head that has moved gets `HeadMoved` and builds
  again.
- All of it is one savepoint: either every event of the batch is kept, with everything that follows
  from it, or none.
- This file knows no rule of Matrix: what a membership event says of a user, or a name event of a
  room, comes as plain values with the event.
"""

from collections.abc import Mapping, Sequence, Set

import msgspec
from msgspec.structs import replace

from storage.engine.streams import Change, Topic
from storage.engine.transaction import WriteTransaction
from storage.events.auth_chains import AuthChainStore, AuthNode
from storage.events.event_threads import links_of, select_standing
from storage.events.events import EventFlag, EventRow, select_event_nids
from storage.events.relations import Relation, RelationRow, add_relations
from storage.media.references import Recheck, note_rechecks
from storage.persist.redactions import Redaction, redact_event
from storage.persist.state_effects import NO_EFFECT, StateEffect, apply_effects
from storage.push.event_push_actions import add_outcomes
from storage.rooms.memberships import count_members
from storage.rooms.partial_rooms import add_partial_events
from storage.rooms.rooms import Head, RoomRow, move_head
from storage.rooms.sent_transactions import SentTransaction, add_transaction
from storage.rooms.sticky_events import LONGEST_MS, StickyRow, add_sticky_events
from storage.search.search import note_placed
from storage.state.state_tree import StateTreeStore

MAY_STICK = EventFlag.TIMELINE | EventFlag.SOFT_FAILED


class HeadMoved(Exception):
    """The room's head is no longer the one that the batch was built upon."""


class NewEvent(msgspec.Struct, frozen=True):
    """An event to store."""

    event_id: str
    pdu: bytes
    depth: int
    type: str
    state_key: str | None
    sender: str
    origin_server_ts: int
    flags: int
    prev_events: Sequence[str]
    auth_nids: Sequence[int]
    """Numbers of those auth events that are stored; `auth_ids` names those in the same batch. Not
    of message events."""
    auth_ids: Sequence[str] = ()
    effect: StateEffect = NO_EFFECT
    redacts: str | None = None
    redaction: Redaction | None = None
    sent: SentTransaction | None = None
    """The client's request that it comes from."""
    outcomes: Mapping[str, int] = msgspec.field(default_factory=dict)
    """What it is to users of this server to whom it is something else than its flags say."""
    thread_root: str | None = None
    state_before: "StateChange | None" = None
    """The state before it; None: the state after the event before it in the batch, first the
    head's."""
    placed_nid: int | None = None
    """The number that it has already, as an outlier that now finds its place."""
    redacted_by: int | None = None
    """Number of the redaction that came before it: its content is not in `pdu`."""
    relation: Relation | None = None
    """What it says of another event."""
    sticky_ms: int | None = None
    """For how long it says that it is to be told to everyone."""
    has_gap: bool = False
    """Something that it follows is missing, and `state_before` is assumed: in a room with a part of
    its state."""


class StateChange(msgspec.Struct, frozen=True):
    """A state, as a stored one and what differs from it. Values are numbers of stored events."""

    root: bytes | None
    entries: Mapping[tuple[str, str], int] = msgspec.field(default_factory=dict)


class NewCurrentState(msgspec.Struct, frozen=True):
    """The current state after a batch, when it is not simply the state after its last event.

    `effects`: for each entry that differs from the old current state the event's number (None: the
    entry is gone) or, for an event of the batch, its id, and what it means.
    """

    state: StateChange
    batch_entries: Mapping[tuple[str, str], str]
    """Entries that are events of the batch, by id."""
    effects: Sequence[tuple[int | str, StateEffect]]
    recount: bool = False
    """Count the members anew: effects of this state were written before the batch."""
    partial_join: int | None = None
    """As in `Head`."""


class Appended(msgspec.Struct, frozen=True):
    """What a write did."""

    head: Head
    rows: Sequence[EventRow]


class RoomWriter:
    """Adds events to rooms, inside a write transaction."""

    def __init__(self, trees: StateTreeStore, chains: AuthChainStore) -> None:
        self._trees = trees
        self._chains = chains

    def append(
        self,
        txn: WriteTransaction,
        room: RoomRow,
        head: Head,
        events: Sequence[NewEvent],
        extremities: Sequence[str],
        *,
        current: NewCurrentState | None = None,
        now_ms: int,
    ) -> Appended:
        """Add a batch, given in topological order, whose new forward extremities are `extremities`.

        Raises HeadMoved, AlreadySent.
        """
        nids = self._take_numbers(txn, events)
        shown = sum(1 for event in events if event.flags & EventFlag.TIMELINE)
        position = txn.next_position(max(shown, 1))
        last_position = position + max(shown, 1) - 1
        rows: list[EventRow] = []
        root = head.state_root
        effects: list[tuple[int, int, StateEffect]] = []
        for event in events:
            in_timeline = bool(event.flags & EventFlag.TIMELINE)
            row = self._place(
                txn,
                room.room_nid,
                event,
                nids[event.event_id],
                position if in_timeline else None,
                root,
                now_ms,
            )
            root = row.state_root
            rows.append(row)
            if in_timeline:
                if event.state_key is not None:
                    effects.append((row.event_nid, position, event.effect))
                position += 1
        if current is not None:
            entries = dict(current.state.entries)
            entries.update({key: nids[event_id] for key, event_id in current.batch_entries.items()})
            root = self._trees.apply(txn, room.room_nid, current.state.root, entries)
            effects = [
                (nids[ref] if isinstance(ref, str) else ref, last_position, effect)
                for ref, effect in current.effects
            ]
        for row, event in zip(rows, events, strict=True):
            if event.redaction is not None:
                # before the effects: what replaces the target in the same batch has the last word
                redact_event(txn, room.room_nid, row.event_nid, row.position, event.redaction)
        begins = head.version == 0 and current is None
        joined, invited = apply_effects(txn, room.room_nid, effects, begins=begins)
        joined, invited = head.joined_count + joined, head.invited_count + invited
        if current is not None and current.recount:
            joined, invited = count_members(txn, room.room_nid)
        new_head = Head(
            version=head.version + 1,
            extremities=self._number(txn, extremities, nids, head),
            depth=max([head.depth, *(event.depth for event in events)]),
            state_root=root,
            joined_count=joined,
            invited_count=invited,
            partial_join=head.partial_join if current is None else current.partial_join,
        )
        if not move_head(txn, room.room_nid, head.version, new_head):
            raise HeadMoved(room.room_id)
        if current is not None:
            rows = _note_current_state(rows, root, {nid for nid, _, _ in effects})
        self._insert(txn, room, events, rows, nids, now_ms)
        if new_head.partial_join is not None:
            add_partial_events(txn, room.room_nid, _gaps(rows, events))
        self._tell(txn, room, events, rows)
        return Appended(new_head, rows)

    def add_aside(
        self,
        txn: WriteTransaction,
        room: RoomRow,
        events: Sequence[NewEvent],
        now_ms: int,
        *,
        is_partial: bool = False,
        past: bool = False,
    ) -> list[EventRow]:
        """Add events at their place in the past or beside the timeline: the head stays, and nobody
        is told of anything new.

        Each has its `state_before`, or goes on from the one before it. `is_partial`: that is only a
        part of the state, of the past or not.
        """
        nids = self._take_numbers(txn, events)
        rows: list[EventRow] = []
        root: bytes | None = None
        for event in events:
            row = self._place(txn, room.room_nid, event, nids[event.event_id], None, root, now_ms)
            root = row.state_root
            rows.append(row)
        self._insert(txn, room, events, rows, nids, now_ms)
        if is_partial:
            add_partial_events(txn, room.room_nid, _gaps(rows, events), past=past)
        self._tell(txn, room, events, rows)
        return rows

    def add_outliers(
        self, txn: WriteTransaction, room: RoomRow, events: Sequence[NewEvent], now_ms: int
    ) -> list[EventRow]:
        """Store events without their place in the room: they are known, and neither shown nor built
        upon."""
        known = select_event_nids(txn, [event.event_id for event in events])
        new = [event for event in events if event.event_id not in known]
        nids = known | self._take_numbers(txn, new)
        rows = [
            _row(room.room_nid, nids[event.event_id], None, None, None, event, now_ms)
            for event in new
        ]
        self._insert(txn, room, new, rows, nids, now_ms)
        return rows

    def begin_state(
        self, txn: WriteTransaction, event_nid: int, *, afresh: bool = False
    ) -> bytes | None:
        """The root of what has been gathered of the state for an outlier: nothing yet, or nothing
        any more if `afresh`.

        The root is kept with the event, so that what was gathered outlives a restart.
        """
        if afresh:
            txn.execute("UPDATE events SET state_root = NULL WHERE event_nid = ?", (event_nid,))
        row = txn.query_one("SELECT state_root FROM events WHERE event_nid = ?", (event_nid,))
        if row is None:
            raise LookupError(f"no event with number {event_nid}")
        return None if row[0] is None else bytes(row[0])

    def grow_state(
        self,
        txn: WriteTransaction,
        room: RoomRow,
        event_nid: int,
        entries: Mapping[tuple[str, str], int],
    ) -> bytes | None:
        """Add entries to the state that is being gathered for an outlier: part of an import in
        several writes; its root."""
        root = self._trees.apply(txn, room.room_nid, self.begin_state(txn, event_nid), entries)
        txn.execute("UPDATE events SET state_root = ? WHERE event_nid = ?", (root, event_nid))
        return root

    def add_effects(
        self, txn: WriteTransaction, room: RoomRow, effects: Sequence[tuple[int, StateEffect]]
    ) -> None:
        """Write what entries of a state mean before it becomes the current one: part of an import
        in several writes."""
        position = txn.next_position()
        apply_effects(txn, room.room_nid, [(nid, position, effect) for nid, effect in effects])

    def _take_numbers(self, txn: WriteTransaction, events: Sequence[NewEvent]) -> dict[str, int]:
        new = [event for event in events if event.placed_nid is None]
        first = txn.allocate("event", len(new))
        nids = {
            event.event_id: event.placed_nid for event in events if event.placed_nid is not None
        }
        nids.update((event.event_id, first + index) for index, event in enumerate(new))
        return nids

    def _place(
        self,
        txn: WriteTransaction,
        room_nid: int,
        event: NewEvent,
        nid: int,
        position: int | None,
        root: bytes | None,
        now_ms: int,
    ) -> EventRow:
        """The row of an event upon a state, with the state after it."""
        replaces: int | None = None
        if event.state_before is not None:
            root = self._trees.apply(
                txn, room_nid, event.state_before.root, event.state_before.entries
            )
        if event.state_key is not None and not event.flags & EventFlag.REJECTED:
            key = (event.type, event.state_key)
            replaces = self._trees.get_entries_in(txn, room_nid, root, [key]).get(key)
            root = self._trees.apply(txn, room_nid, root, {key: nid})
        if event.redacted_by is not None and event.relation is not None:
            event = replace(
                event, thread_root=select_standing(txn, room_nid, links_of(event.relation)).root
            )
        return _row(room_nid, nid, position, root, replaces, event, now_ms)

    def _tell(
        self,
        txn: WriteTransaction,
        room: RoomRow,
        events: Sequence[NewEvent],
        rows: Sequence[EventRow],
    ) -> None:
        """Carry out redactions, and announce what was added."""
        for row, event in zip(rows, events, strict=True):
            if event.placed_nid is not None:
                position = row.position if row.position is not None else txn.next_position()
                txn.announce(Change(position, Topic.PLACED, detail=row.event_nid))
            if event.redaction is not None:
                redact_event(txn, room.room_nid, row.event_nid, row.position, event.redaction)
            if row.position is not None:
                txn.announce(Change(row.position, Topic.EVENT, room.room_id, event.sender, row))

    def _insert(
        self,
        txn: WriteTransaction,
        room: RoomRow,
        events: Sequence[NewEvent],
        rows: Sequence[EventRow],
        nids: Mapping[str, int],
        now_ms: int,
    ) -> None:
        placed = {event.event_id for event in events if event.placed_nid is not None}
        if placed:
            txn.execute_many(
                "UPDATE events SET position = ?, depth = ?, origin_server_ts = ?, flags = ?, state_root = ?, replaces = ?,"
                " current_root = ?, thread_root = ?,"
                " pdu = CASE WHEN redacted_by IS NULL THEN ? ELSE pdu END, redacted_by = COALESCE(redacted_by, ?)"
                " WHERE event_nid = ?",
                [
                    (
                        row.position,
                        row.depth,
                        row.origin_server_ts,
                        row.flags,
                        row.state_root,
                        row.replaces,
                        row.current_root,
                        row.thread_root,
                        row.pdu,
                        row.redacted_by,
                        row.event_nid,
                    )
                    for row in rows
                    if row.event_id in placed
                ],
            )
            note_placed(txn, [row.event_nid for row in rows if row.event_id in placed])
        txn.execute_many(
            "INSERT INTO events (event_nid, event_id, room_nid, position, depth, type, state_key, sender,"
            " origin_server_ts, flags, state_root, replaces, redacted_by, pdu, current_root, thread_root)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    row.event_nid,
                    row.event_id,
                    row.room_nid,
                    row.position,
                    row.depth,
                    row.type,
                    row.state_key,
                    row.sender,
                    row.origin_server_ts,
                    row.flags,
                    row.state_root,
                    row.replaces,
                    row.redacted_by,
                    row.pdu,
                    row.current_root,
                    row.thread_root,
                )
                for row in rows
                if row.event_id not in placed
            ],
        )
        note_rechecks(
            txn, Recheck.EVENT, [row.event_nid for row in rows if row.redacted_by is not None]
        )
        nodes = [
            AuthNode(row.event_nid, auths, row.replaces if row.replaces in auths else None)
            for row, event in zip(rows, events, strict=True)
            # what was rejected is in no state and so in no auth chain
            if event.state_key is not None and not event.flags & EventFlag.REJECTED
            for auths in ((*event.auth_nids, *(nids[auth_id] for auth_id in event.auth_ids)),)
        ]
        if nodes:
            self._chains.add(
                txn, nodes, [row.event_nid for row in rows if row.event_id not in placed]
            )
        for event in events:
            nid = nids[event.event_id]
            if event.sent is not None:
                add_transaction(txn, event.sent, nid, None, now_ms)
            if event.redacts is not None:
                sql = "INSERT INTO redactions (redacts, event_nid) VALUES (?, ?) ON CONFLICT DO NOTHING"
                txn.execute(sql, (event.redacts, nid))
        positions = {row.event_nid: row.position for row in rows}
        children = [
            _child(event.relation, row, event.origin_server_ts)
            for row, event in zip(rows, events, strict=True)
            if event.relation is not None
            and row.flags & EventFlag.TIMELINE
            and row.redacted_by is None
        ]
        if children:
            add_relations(txn, children)
            for child in children:
                position = positions[child.event_nid]
                txn.announce(
                    Change(
                        txn.next_position() if position is None else position,
                        Topic.RELATED,
                        detail=child.relation.target,
                    )
                )
        sticky = [
            StickyRow(
                row.event_nid,
                room.room_nid,
                row.sender,
                row.position or txn.next_position(),
                expires_ts,
                waits=not row.flags & EventFlag.TIMELINE,
            )
            for row, event in zip(rows, events, strict=True)
            if event.sticky_ms is not None and row.flags & MAY_STICK and row.redacted_by is None
            for expires_ts in [row.origin_server_ts + min(event.sticky_ms, LONGEST_MS)]
            if expires_ts > now_ms
        ]
        if sticky:
            add_sticky_events(txn, room.room_id, sticky)
        outcomes = [
            (user_id, room.room_nid, row.position, row.event_nid, outcome)
            for row, event in zip(rows, events, strict=True)
            if row.position is not None
            for user_id, outcome in event.outcomes.items()
        ]
        if outcomes:
            add_outcomes(txn, outcomes)

    def _number(
        self, txn: WriteTransaction, extremities: Sequence[str], nids: Mapping[str, int], head: Head
    ) -> tuple[tuple[int, str], ...]:
        known = {event_id: nid for nid, event_id in head.extremities} | dict(nids)
        missing = [event_id for event_id in extremities if event_id not in known]
        if missing:
            known |= select_event_nids(txn, missing)
        return tuple((known[event_id], event_id) for event_id in extremities)


def _row(
    room_nid: int,
    nid: int,
    position: int | None,
    root: bytes | None,
    replaces: int | None,
    event: NewEvent,
    now_ms: int,
) -> EventRow:
    return EventRow(
        nid,
        event.event_id,
        room_nid,
        position,
        event.depth,
        event.type,
        event.state_key,
        event.sender,
        # what claims to be from the future would never grow old
        min(event.origin_server_ts, now_ms),
        event.flags,
        root,
        replaces,
        event.redacted_by,
        event.pdu,
        thread_root=event.thread_root,
    )


def _gaps(rows: Sequence[EventRow], events: Sequence[NewEvent]) -> list[tuple[int, bool]]:
    return [(row.event_nid, event.has_gap) for row, event in zip(rows, events, strict=True)]


def _note_current_state(
    rows: Sequence[EventRow], root: bytes | None, changed: Set[int]
) -> list[EventRow]:
    """The rows, with the newest that is shown telling what the current state is now, if it is not
    the state after it."""
    noted = list(rows)
    shown = [at for at, row in enumerate(rows) if row.position is not None]
    if shown:
        last = rows[shown[-1]]
        own = {rows[at].event_nid for at in shown if rows[at].state_key is not None}
        noted[shown[-1]] = replace(
            last,
            flags=last.flags | (0 if changed == own else EventFlag.RESOLVED),
            current_root=None if root == last.state_root else root,
        )
    return noted


def _child(relation: Relation, row: EventRow, origin_server_ts: int) -> RelationRow:
    return RelationRow(
        relation,
        row.event_nid,
        row.event_id,
        row.room_nid,
        row.depth,
        row.type,
        row.sender,
        origin_server_ts,
    )
