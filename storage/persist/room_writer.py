"""Adds events to a room in one write, with everything that follows from them: state, auth chains,
relations, memberships, summary, room head, positions.

Laws:
- `append` checks the version of the head. If the head has moved since the caller read it, the
  caller gets `HeadMoved` and builds the events again.
- Everything is in one savepoint: either every event of the batch is stored, with all its effects,
  or none.
- This module has no rules of Matrix. Callers pass the meaning of an event, such as the membership
  that it sets, as plain values.
"""

from collections.abc import Mapping, Sequence, Set

import msgspec
from msgspec.structs import replace

from storage.engine.streams import Change, Topic
from storage.engine.transaction import WriteTransaction
from storage.events.auth_chains import AuthChainStore, AuthNode
from storage.events.event_threads import links_of, select_thread
from storage.events.events import EventFlag, EventRow, select_event_nids
from storage.events.relations import Relation, RelationRow, add_relations
from storage.media.references import RecheckKind, record_rechecks
from storage.persist.redactions import Redaction, redact_event
from storage.persist.state_effects import NO_EFFECT, StateEffect, apply_effects
from storage.push.event_push_actions import add_outcomes
from storage.rooms.memberships import count_members
from storage.rooms.partial_rooms import add_partial_events
from storage.rooms.rooms import RoomHead, RoomRow, move_head
from storage.rooms.sent_transactions import SentTransaction, add_transaction
from storage.rooms.sticky_events import MAX_STICKY_MS, StickyRow, add_sticky_events
from storage.search.search import queue_former_outliers
from storage.state.state_tree import StateTreeStore

STICKY_FLAGS = EventFlag.TIMELINE | EventFlag.SOFT_FAILED


class HeadMoved(Exception):
    """The batch was built on a head of the room that is no longer the current one."""


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
    """Numbers of those auth events that are stored. `auth_ids` has those in the same batch. Empty
    for message events."""
    auth_ids: Sequence[str] = ()
    effect: StateEffect = NO_EFFECT
    redacts: str | None = None
    redaction: Redaction | None = None
    sent_transaction: SentTransaction | None = None
    """The client's transaction that created it."""
    push_actions: Mapping[str, int] = msgspec.field(default_factory=dict)
    """Push actions of the event, for local users for whom they differ from its flags."""
    thread_root: str | None = None
    state_before: "StateChange | None" = None
    """The state before the event. None: the state after the previous event of the batch; for the
    first, the head's state."""
    outlier_nid: int | None = None
    """The number of the event if it is stored as an outlier and now added to the room's graph."""
    redacted_by: int | None = None
    """Number of a redaction that arrived before it. `pdu` then lacks the content."""
    relation: Relation | None = None
    """Its relation to another event."""
    sticky_ms: int | None = None
    """How long the event asks to be sticky."""
    has_gap: bool = False
    """An event that it follows is missing, and `state_before` is assumed: in a room with partial
    state."""


class StateChange(msgspec.Struct, frozen=True):
    """A state: a stored root, and the entries that differ from it. Values are numbers of stored
    events."""

    root: bytes | None
    entries: Mapping[tuple[str, str], int] = msgspec.field(default_factory=dict)


class NewCurrentState(msgspec.Struct, frozen=True):
    """The current state after a batch, if it differs from the state after its last event.

    `effects`: for each entry that differs from the old current state, the event and its effect. An
    event of the batch is given by ID, any other by number. For a removed entry, the event is the
    old one, and the effect is that of its absence.
    """

    state: StateChange
    batch_entries: Mapping[tuple[str, str], str]
    """Entries that are events of the batch, by ID."""
    effects: Sequence[tuple[int | str, StateEffect]]
    recount: bool = False
    """Count all members again: effects of this state were written before the batch."""
    partial_join: int | None = None
    """As in `RoomHead`."""


class AppendResult(msgspec.Struct, frozen=True):
    """The result of a write."""

    head: RoomHead
    rows: Sequence[EventRow]


class RoomWriter:
    """Adds events to rooms, inside a write transaction."""

    def __init__(self, *, trees: StateTreeStore, chains: AuthChainStore) -> None:
        self._trees = trees
        self._chains = chains

    def append(
        self,
        txn: WriteTransaction,
        room: RoomRow,
        head: RoomHead,
        events: Sequence[NewEvent],
        extremities: Sequence[str],
        *,
        current: NewCurrentState | None = None,
        now_ms: int,
    ) -> AppendResult:
        """Add a batch, in topological order, whose new forward extremities are `extremities`.

        Raises HeadMoved, AlreadySent.
        """
        nids = self._take_numbers(txn, events)
        visible = sum(1 for event in events if event.flags & EventFlag.TIMELINE)
        position = txn.next_position(max(visible, 1))
        last_position = position + max(visible, 1) - 1
        rows: list[EventRow] = []
        root = head.state_root
        effects: list[tuple[int, int, StateEffect]] = []
        for event in events:
            in_timeline = bool(event.flags & EventFlag.TIMELINE)
            row = self._make_event_row(
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
                # before the effects: an event of the same batch that replaces the target takes
                # precedence
                redact_event(txn, room.room_nid, row.event_nid, row.position, event.redaction)
        is_new_room = head.version == 0 and current is None
        joined, invited = apply_effects(txn, room.room_nid, effects, is_new_room=is_new_room)
        joined, invited = head.joined_count + joined, head.invited_count + invited
        if current is not None and current.recount:
            joined, invited = count_members(txn, room.room_nid)
        new_head = RoomHead(
            version=head.version + 1,
            extremities=self._find_numbers(txn, extremities, nids, head),
            depth=max([head.depth, *(event.depth for event in events)]),
            state_root=root,
            joined_count=joined,
            invited_count=invited,
            partial_join=head.partial_join if current is None else current.partial_join,
        )
        if not move_head(txn, room.room_nid, head.version, new_head):
            raise HeadMoved(room.room_id)
        if current is not None:
            rows = _mark_current_state(rows, root, {nid for nid, _, _ in effects})
        self._insert(txn, room, events, rows, nids, now_ms)
        if new_head.partial_join is not None:
            add_partial_events(txn, room.room_nid, _gaps(rows, events))
        self._announce(txn, room, events, rows)
        return AppendResult(new_head, rows)

    def add_outside_timeline(
        self,
        txn: WriteTransaction,
        room: RoomRow,
        events: Sequence[NewEvent],
        now_ms: int,
        *,
        is_partial: bool = False,
        is_past: bool = False,
    ) -> list[EventRow]:
        """Add events in the past or outside the timeline. The head stays, and no listener is
        notified of new events.

        Each has its `state_before`, or continues from the previous event. `is_partial`: this is
        only a part of the state, whether past or not.
        """
        nids = self._take_numbers(txn, events)
        rows: list[EventRow] = []
        root: bytes | None = None
        for event in events:
            row = self._make_event_row(
                txn, room.room_nid, event, nids[event.event_id], None, root, now_ms
            )
            root = row.state_root
            rows.append(row)
        self._insert(txn, room, events, rows, nids, now_ms)
        if is_partial:
            add_partial_events(txn, room.room_nid, _gaps(rows, events), is_past=is_past)
        self._announce(txn, room, events, rows)
        return rows

    def add_outliers(
        self, txn: WriteTransaction, room: RoomRow, events: Sequence[NewEvent], now_ms: int
    ) -> list[EventRow]:
        """Store events as outliers: outside the room's graph. They are neither visible nor built
        on."""
        known = select_event_nids(txn, [event.event_id for event in events])
        new = [event for event in events if event.event_id not in known]
        nids = known | self._take_numbers(txn, new)
        rows = [
            _row(room.room_nid, nids[event.event_id], None, None, None, event, now_ms)
            for event in new
        ]
        self._insert(txn, room, new, rows, nids, now_ms)
        return rows

    def get_gathered_state(
        self, txn: WriteTransaction, event_nid: int, *, restart: bool = False
    ) -> bytes | None:
        """Return the root of the state that has been gathered for an outlier. With `restart`,
        discard it first.

        The root is stored with the event, so that an import continues after a restart.
        """
        if restart:
            txn.execute("UPDATE events SET state_root = NULL WHERE event_nid = ?", (event_nid,))
        row = txn.query_one("SELECT state_root FROM events WHERE event_nid = ?", (event_nid,))
        if row is None:
            raise LookupError(f"no event with number {event_nid}")
        return None if row[0] is None else bytes(row[0])

    def extend_gathered_state(
        self,
        txn: WriteTransaction,
        room: RoomRow,
        event_nid: int,
        entries: Mapping[tuple[str, str], int],
    ) -> bytes | None:
        """Add entries to the state that is being gathered for an outlier, as part of an import in
        several writes. Return its root."""
        root = self._trees.apply(
            txn, room.room_nid, self.get_gathered_state(txn, event_nid), entries
        )
        txn.execute("UPDATE events SET state_root = ? WHERE event_nid = ?", (root, event_nid))
        return root

    def apply_early_effects(
        self, txn: WriteTransaction, room: RoomRow, effects: Sequence[tuple[int, StateEffect]]
    ) -> None:
        """Apply the effects of state entries before that state becomes the current one, as part of
        an import in several writes."""
        position = txn.next_position()
        apply_effects(txn, room.room_nid, [(nid, position, effect) for nid, effect in effects])

    def _take_numbers(self, txn: WriteTransaction, events: Sequence[NewEvent]) -> dict[str, int]:
        new = [event for event in events if event.outlier_nid is None]
        first = txn.allocate("event", len(new))
        nids = {
            event.event_id: event.outlier_nid for event in events if event.outlier_nid is not None
        }
        nids.update((event.event_id, first + index) for index, event in enumerate(new))
        return nids

    def _make_event_row(
        self,
        txn: WriteTransaction,
        room_nid: int,
        event: NewEvent,
        nid: int,
        position: int | None,
        root: bytes | None,
        now_ms: int,
    ) -> EventRow:
        """Return the row of an event that follows a state, with the state after it."""
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
                event, thread_root=select_thread(txn, room_nid, links_of(event.relation)).root
            )
        return _row(room_nid, nid, position, root, replaces, event, now_ms)

    def _announce(
        self,
        txn: WriteTransaction,
        room: RoomRow,
        events: Sequence[NewEvent],
        rows: Sequence[EventRow],
    ) -> None:
        """Apply redactions, and announce the new events."""
        for row, event in zip(rows, events, strict=True):
            if event.outlier_nid is not None:
                position = row.position if row.position is not None else txn.next_position()
                txn.announce(Change(position, Topic.OUTLIER_PLACED, detail=row.event_nid))
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
        former_outliers = {event.event_id for event in events if event.outlier_nid is not None}
        if former_outliers:
            txn.execute_many(
                "UPDATE events SET position = ?, depth = ?, origin_server_ts = ?, flags = ?,"
                " state_root = ?, replaces = ?, current_root = ?, thread_root = ?,"
                " pdu = CASE WHEN redacted_by IS NULL THEN ? ELSE pdu END,"
                " redacted_by = COALESCE(redacted_by, ?)"
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
                    if row.event_id in former_outliers
                ],
            )
            queue_former_outliers(
                txn, [row.event_nid for row in rows if row.event_id in former_outliers]
            )
        txn.execute_many(
            "INSERT INTO events (event_nid, event_id, room_nid, position, depth, type, state_key,"
            " sender, origin_server_ts, flags, state_root, replaces, redacted_by, pdu,"
            " current_root, thread_root)"
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
                if row.event_id not in former_outliers
            ],
        )
        record_rechecks(
            txn, RecheckKind.EVENT, [row.event_nid for row in rows if row.redacted_by is not None]
        )
        nodes = [
            AuthNode(row.event_nid, auths, row.replaces if row.replaces in auths else None)
            for row, event in zip(rows, events, strict=True)
            # a rejected event is in no state, so in no auth chain
            if event.state_key is not None and not event.flags & EventFlag.REJECTED
            for auths in ((*event.auth_nids, *(nids[auth_id] for auth_id in event.auth_ids)),)
        ]
        if nodes:
            self._chains.add(
                txn, nodes, [row.event_nid for row in rows if row.event_id not in former_outliers]
            )
        for event in events:
            nid = nids[event.event_id]
            if event.sent_transaction is not None:
                add_transaction(txn, event.sent_transaction, nid, None, now_ms)
            if event.redacts is not None:
                sql = (
                    "INSERT INTO redactions (redacts, event_nid) VALUES (?, ?)"
                    " ON CONFLICT DO NOTHING"
                )
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
                        Topic.RELATION,
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
                is_held=not row.flags & EventFlag.TIMELINE,
            )
            for row, event in zip(rows, events, strict=True)
            if event.sticky_ms is not None and row.flags & STICKY_FLAGS and row.redacted_by is None
            for expires_ts in [row.origin_server_ts + min(event.sticky_ms, MAX_STICKY_MS)]
            if expires_ts > now_ms
        ]
        if sticky:
            add_sticky_events(txn, room.room_id, sticky)
        outcomes = [
            (user_id, room.room_nid, row.position, row.event_nid, outcome)
            for row, event in zip(rows, events, strict=True)
            if row.position is not None
            for user_id, outcome in event.push_actions.items()
        ]
        if outcomes:
            add_outcomes(txn, outcomes)

    def _find_numbers(
        self,
        txn: WriteTransaction,
        extremities: Sequence[str],
        nids: Mapping[str, int],
        head: RoomHead,
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
        # an event with a time in the future would never expire
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


def _mark_current_state(
    rows: Sequence[EventRow], root: bytes | None, changed: Set[int]
) -> list[EventRow]:
    """Return the rows. If the current state is not the state after the newest visible event, that
    event's row gets the current root."""
    marked = list(rows)
    visible = [at for at, row in enumerate(rows) if row.position is not None]
    if visible:
        last = rows[visible[-1]]
        own = {rows[at].event_nid for at in visible if rows[at].state_key is not None}
        marked[visible[-1]] = replace(
            last,
            flags=last.flags | (0 if changed == own else EventFlag.RESOLVED),
            current_root=None if root == last.state_root else root,
        )
    return marked


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
