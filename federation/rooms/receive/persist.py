"""Persists checked events from other servers: computes what they change in the room, and writes
them.

- A rejected event leaves the state unchanged. A soft-failed or backfilled state event is part of
  the state after it, but leaves the room head unchanged.
- A redaction whose sender may not redact its target is stored and never shown, because clients
  would apply it.
- An accepted event replaces its prev_events among the forward extremities. If other extremities
  remain, the current state is the resolution of the states after all extremities.
- State resolution reads stored events. So if other extremities remain, a state event is first
  stored as an outlier, and then added to the room's graph. After a crash between these steps, it
  remains an outlier until it is received again.
"""

from collections.abc import Callable, Iterable, Sequence

import msgspec
from msgspec.structs import replace

from federation.peers.identity import ServerIdentity
from federation.protocol.events import Event, StateKey, encode_event_json, encode_pdu
from federation.protocol.ids import EventID, UserID
from federation.protocol.power_levels import PowerLevels
from federation.protocol.redaction import may_redact, redact
from federation.rooms.build import (
    MAX_DEPTH,
    Classification,
    Classify,
    RoomBeforeEvent,
    count_joins,
    make_redaction,
)
from federation.rooms.engine import RoomEngine
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.receipt_checks import SHOWN, CheckResult, Verdict
from federation.rooms.relations import read_relation
from federation.rooms.resolve import StateResolver
from federation.rooms.snapshot import CREATE, POWER_LEVELS, RoomSnapshot
from federation.rooms.state_effects import effect_of_absence, state_effect
from federation.rooms.state_view import StateView
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.events.events import EventFlag, EventRow
from storage.events.timelines import move_backward_extremities
from storage.persist.redactions import Redaction
from storage.persist.room_writer import (
    AppendResult,
    HeadMoved,
    NewCurrentState,
    NewEvent,
    RoomWriter,
    StateChange,
)
from storage.persist.state_effects import NO_EFFECT, StateEffect
from storage.rooms.early_receipts import apply_early_receipts, select_awaited
from storage.rooms.rooms import RoomRow, select_head

MAX_SKIPPED_ANCESTORS = 100
"""Rejected and soft-failed ancestors that we pass through to find the visible ones."""


class CheckedArrival(msgspec.Struct, frozen=True):
    """A checked event, with all data that its position in the room's graph depends on."""

    checked: CheckResult
    event: Event
    before: StateChange
    prev: Sequence[StoredEvent]
    missing: Sequence[EventID]
    """The prev_events that are not stored. The event came with its state then."""
    auth: Sequence[StoredEvent]
    outlier: StoredEvent | None
    """The event itself, if it is stored as an outlier."""
    redactions: Sequence[StoredEvent]
    """Accepted redactions of it that came before it."""
    is_backfilled: bool
    """It is part of the past: neither news nor a forward extremity."""
    send_on: bool = False
    """We send it to the other servers in the room."""
    has_gap: bool = False
    """The state before it is assumed, because the room has partial state."""
    has_cited_state: bool = False
    """The state before it also has cited events that were verified later than its ancestors."""
    is_after_gap: bool = False
    """It is news, and events between our last one and it are missing."""


class EventPersister:
    """Persists events from other servers. Use this class only on the reactor thread."""

    def __init__(
        self,
        *,
        database: Database,
        engine: RoomEngine,
        events: RoomEvents,
        resolver: StateResolver,
        writer: RoomWriter,
        identity: ServerIdentity,
        classify: Classify,
        now_ms: Callable[[], int],
    ) -> None:
        self._database = database
        self._engine = engine
        self._events = events
        self._resolver = resolver
        self._writer = writer
        self._identity = identity
        self._classify = classify
        self._now_ms = now_ms

    async def persist(self, snapshot: RoomSnapshot, arrival: CheckedArrival) -> StoredEvent:
        """Write the event at its place in the room. Raises HeadMoved when the room, or what is
        stored of the event, has changed."""
        new = await self._new_event(snapshot, arrival)
        if arrival.is_backfilled or arrival.checked.verdict not in SHOWN:
            row = await self._database.write(
                "add_off_timeline", self._add_off_timeline, snapshot, arrival, new
            )
            return self._events.get_or_parse(snapshot.room, row)
        remaining = await self._remaining_extremities(snapshot, arrival)
        if remaining and new.state_key is not None and new.outlier_nid is None:
            outlier = replace(new, flags=int(EventFlag.OUTLIER), redaction=None, push_actions={})
            await self._database.write(
                "add_outliers", self._writer.add_outliers, snapshot.room, [outlier], self._now_ms()
            )
            nids = await self._events.get_by_id(snapshot.room.room_nid, [arrival.event.event_id])
            new = replace(new, outlier_nid=nids[arrival.event.event_id].nid)
        current, changes = await self._compute_current_state(snapshot, arrival, new, remaining)
        if current is None:
            new = replace(new, state_before=None)  # it builds on the current state
        extremities = [*(stored.event.event_id for stored in remaining), arrival.event.event_id]
        if not arrival.redactions:
            self._events.expect([arrival.event])
        try:
            appended = await self._database.write(
                "append_event", self._append, snapshot, arrival, new, extremities, current
            )
        finally:
            self._events.stop_expecting([arrival.event])
        own = self._events.get_or_parse(snapshot.room, appended.rows[0])
        if changes is not None and own.event.state_key is not None and own.event.key in changes:
            changes[own.event.key] = own
        self._engine.advance(snapshot, appended, changes)
        return own

    async def find_redactions(
        self, room: RoomRow, event: Event, redactions: Iterable[StoredEvent]
    ) -> Sequence[StoredEvent]:
        """Return the earlier redactions of an event that their senders were allowed to make."""
        effective: list[StoredEvent] = []
        for redaction in redactions:
            if redaction.room_nid == room.room_nid and redaction.in_timeline:
                state = StateChange(redaction.state_root)
                if await self.may_redact(room, redaction.event, event.sender, state):
                    effective.append(redaction)
        return effective

    async def _load_power_levels(
        self, room: RoomRow, before: StateChange, loaded: StateView | None = None
    ) -> PowerLevels | None:
        state = await self._resolver.load(room.room_nid, before, [CREATE, POWER_LEVELS], loaded)
        if CREATE not in state:
            return None
        power, create = state.get(POWER_LEVELS), state[CREATE].event
        return PowerLevels.of(create.version, None if power is None else power.event, create)

    async def classify(
        self, snapshot: RoomSnapshot, event: Event, state_before: StateChange
    ) -> Classification:
        """Classify an event for the users of this server: push rules, threads, flags."""
        room_nid = snapshot.room.room_nid
        member_count = snapshot.head.joined_count
        if event.membership is not None and event.state_key is not None:
            before = (await self._resolver.load(room_nid, state_before, [event.key])).get(event.key)
            member_count += count_joins(event, None if before is None else before.event)
        levels = await self._load_power_levels(snapshot.room, state_before, snapshot.state)
        return await self._classify(event, RoomBeforeEvent(room_nid, member_count, levels))

    async def may_redact(
        self, room: RoomRow, redaction: Event, target_sender: UserID, before: StateChange
    ) -> bool:
        """Return whether a redaction after a state may redact an event of that user."""
        levels = await self._load_power_levels(room, before)
        return levels is not None and may_redact(
            redaction.version,
            redacter=redaction.sender,
            target_sender=target_sender,
            sender_level=levels.user_level(redaction.sender),
            redact_level=levels.redact,
        )

    async def _new_event(self, snapshot: RoomSnapshot, arrival: CheckedArrival) -> NewEvent:
        event, verdict = arrival.event, arrival.checked.verdict
        flags, classification = 0, Classification()
        redaction: Redaction | None = None
        if verdict is Verdict.REJECT:
            flags = EventFlag.REJECTED
        elif verdict is Verdict.SOFT_FAIL:
            flags = EventFlag.SOFT_FAILED
        elif await self._is_effective(snapshot, arrival):
            flags = EventFlag.TIMELINE | (EventFlag.TO_SEND if arrival.send_on else 0)
            redaction = await self._redaction(snapshot, arrival)
            if not arrival.is_backfilled and not arrival.redactions:
                classification = await self.classify(snapshot, event, arrival.before)
                flags |= classification.flags | (
                    EventFlag.HAS_PUSH_ACTIONS if classification.outcomes else 0
                )
        if arrival.is_after_gap:
            flags |= EventFlag.AFTER_GAP
        if arrival.has_cited_state:
            flags |= EventFlag.STATE_ADDED
        return replace(
            new_event(event, int(flags), [other.nid for other in arrival.auth], arrival.redactions),
            depth=_depth(arrival),
            effect=state_effect(event, self._identity) if flags & EventFlag.TIMELINE else NO_EFFECT,
            redaction=redaction,
            push_actions=classification.outcomes,
            thread_root=classification.thread_root,
            state_before=arrival.before,
            outlier_nid=arrival.outlier.nid if arrival.outlier is not None else None,
            has_gap=arrival.has_gap,
        )

    async def _is_effective(self, snapshot: RoomSnapshot, arrival: CheckedArrival) -> bool:
        """Return whether it is anything but a redaction that its sender may not make.

        spec: rooms/v3#handling-redactions
        """
        target = await self._find_target(snapshot, arrival)
        return target is None or await self.may_redact(
            snapshot.room, arrival.event, target.event.sender, arrival.before
        )

    async def _redaction(self, snapshot: RoomSnapshot, arrival: CheckedArrival) -> Redaction | None:
        """Return the redaction to apply; None if the target is unknown or redacted already."""
        target = await self._find_target(snapshot, arrival)
        if target is None or target.redacted_by is not None:
            return None
        return await make_redaction(snapshot, target, self._identity)

    async def _find_target(
        self, snapshot: RoomSnapshot, arrival: CheckedArrival
    ) -> StoredEvent | None:
        target_id = arrival.event.redacts
        return (
            None
            if target_id is None
            else await self._events.get_event(snapshot.room.room_nid, target_id)
        )

    async def _remaining_extremities(
        self, snapshot: RoomSnapshot, arrival: CheckedArrival
    ) -> list[StoredEvent]:
        """Return the forward extremities that the event does not replace."""
        passed = {stored.event.event_id for stored in arrival.prev} | set(arrival.missing)
        invisible = [stored for stored in arrival.prev if not stored.in_timeline]
        for _ in range(MAX_SKIPPED_ANCESTORS):
            if not invisible:
                break
            names = [name for name in invisible.pop().event.prev_events if name not in passed]
            passed.update(names)
            before = await self._events.get_by_id(snapshot.room.room_nid, names)
            invisible += [stored for stored in before.values() if not stored.in_timeline]
        nids = [nid for nid, event_id in snapshot.head.extremities if event_id not in passed]
        loaded = await self._events.get_events(nids)
        return [loaded[nid] for nid in nids]

    async def _compute_current_state(
        self,
        snapshot: RoomSnapshot,
        arrival: CheckedArrival,
        new: NewEvent,
        remaining: Sequence[StoredEvent],
    ) -> tuple[NewCurrentState | None, dict[StateKey, StoredEvent | None] | None]:
        """Compute the new current state and its difference from the old one.

        (None, None): the event's own change is the whole difference.
        """
        room_nid, old = snapshot.room.room_nid, StateChange(snapshot.head.state_root)
        if not remaining:
            if arrival.before.root == old.root and not arrival.before.entries:
                return None, None
            state = arrival.before
        else:
            after = arrival.before
            if new.outlier_nid is not None and new.state_key is not None:
                entries = {**after.entries, (new.type, new.state_key): new.outlier_nid}
                after = StateChange(after.root, entries)
            state = await self._resolver.resolve(
                room_nid,
                snapshot.version,
                await snapshot.create_event(),
                [after, *(StateChange(other.state_root) for other in remaining)],
            )
        difference = await self._resolver.diff(room_nid, old, state)
        loaded = await self._events.get_events(
            {nid for pair in difference.values() for nid in pair if nid is not None}
        )
        changes: dict[StateKey, StoredEvent | None] = {}
        effects: list[tuple[int | str, StateEffect]] = []
        for key, (old_nid, new_nid) in difference.items():
            changes[key] = None if new_nid is None else loaded[new_nid]
            if new_nid is not None:
                effects.append((new_nid, state_effect(loaded[new_nid].event, self._identity)))
            elif old_nid is not None:
                effects.append((old_nid, effect_of_absence(loaded[old_nid].event, self._identity)))
        batch_entries: dict[tuple[str, str], str] = {}
        if not remaining and new.state_key is not None:
            batch_entries[(new.type, new.state_key)] = new.event_id
            changes[StateKey(new.type, new.state_key)] = (
                None  # the event itself, once it has been written
            )
            effects.append((new.event_id, new.effect))
        return NewCurrentState(
            state, batch_entries, effects, partial_join=snapshot.head.partial_join
        ), changes

    def _append(
        self,
        txn: WriteTransaction,
        snapshot: RoomSnapshot,
        arrival: CheckedArrival,
        new: NewEvent,
        extremities: Sequence[str],
        current: NewCurrentState | None,
    ) -> AppendResult:
        is_awaited = self._check_unchanged(txn, snapshot, arrival, new)
        appended = self._writer.append(
            txn,
            snapshot.room,
            snapshot.head,
            [new],
            extremities,
            current=current,
            now_ms=self._now_ms(),
        )
        if is_awaited:
            apply_early_receipts(txn, snapshot.room.room_id, appended.rows)
        return appended

    def _add_off_timeline(
        self, txn: WriteTransaction, snapshot: RoomSnapshot, arrival: CheckedArrival, new: NewEvent
    ) -> EventRow:
        is_awaited = self._check_unchanged(txn, snapshot, arrival, new)
        is_partial = snapshot.head.partial_join is not None
        if new.flags & EventFlag.SOFT_FAILED or is_partial:
            head = select_head(txn, snapshot.room.room_nid)
            if head.partial_join != snapshot.head.partial_join or (
                new.flags & EventFlag.SOFT_FAILED and head.version != snapshot.head.version
            ):
                raise HeadMoved(
                    snapshot.room.room_id
                )  # it was checked against a state that is outdated
        rows = self._writer.add_outside_timeline(
            txn,
            snapshot.room,
            [new],
            self._now_ms(),
            is_partial=is_partial,
            is_past=arrival.is_backfilled,
        )
        if is_awaited:
            apply_early_receipts(txn, snapshot.room.room_id, rows)
        return rows[0]

    def _check_unchanged(
        self, txn: WriteTransaction, snapshot: RoomSnapshot, arrival: CheckedArrival, new: NewEvent
    ) -> bool:
        """Check that no other node stored the event meanwhile, and update the backward extremities.

        Returns whether receipts wait for the event. Raises HeadMoved.
        """
        flags, is_awaited = select_awaited(txn, new.event_id)
        was_outlier = bool((flags or 0) & EventFlag.OUTLIER)
        if was_outlier != (new.outlier_nid is not None) or (flags is not None and not was_outlier):
            raise HeadMoved(snapshot.room.room_id)
        move_backward_extremities(
            txn, snapshot.room.room_nid, [new.event_id], arrival.missing, new.depth
        )
        return is_awaited


def _depth(arrival: CheckedArrival) -> int:
    """Return the depth of an event: one more than that of its prev_events.

    The depth that the event claims counts only where these are missing.
    """
    if arrival.missing or not arrival.prev:
        return min(arrival.event.depth, MAX_DEPTH)
    return min(1 + max(stored.depth for stored in arrival.prev), MAX_DEPTH)


def new_event(
    event: Event, flags: int, auth_nids: Sequence[int], redactions: Sequence[StoredEvent]
) -> NewEvent:
    """Return the row of an event, wherever it is placed.

    It has no content if redactions of it came before it.
    """
    pdu = encode_pdu(event)
    if redactions:
        pdu = encode_event_json(event.version, redact(event.version, event.pdu))
    return NewEvent(
        event_id=event.event_id,
        pdu=pdu,
        depth=event.depth,
        type=event.type,
        state_key=event.state_key,
        sender=event.sender,
        origin_server_ts=event.origin_server_ts,
        flags=flags,
        prev_events=event.prev_events,
        auth_nids=auth_nids,
        redacts=event.redacts,
        redacted_by=redactions[0].nid if redactions else None,
        relation=read_relation(event),
        sticky_ms=event.sticky_ms,
    )
