"""Rechecks the events that were stored with partial state, once the complete state is known.

Events are rechecked in the order in which they were stored. Each is checked against the state
before it, and against the current state that follows from the events rechecked so far. No result is
visible until the room is completed (`completion.py`).
"""

from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Final

import msgspec

from federation.protocol.event_signing import required_signers
from federation.protocol.events import Event
from federation.protocol.ids import EventID, RoomID, ServerName
from federation.protocol.policy_server import NAMING, find_naming
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.partial_state.late_notifications import LateCandidate, LateNotifications
from federation.rooms.receipt_checks import SHOWN, ReceivedPdu, Verdict, check_on_receipt
from federation.rooms.receive.check_sources import CheckServices, PolicyVerdicts, StoredSources
from federation.rooms.receive.persist import EventPersister
from federation.rooms.receive.unverified_events import UnverifiedStateEvents
from federation.rooms.rejoins import UnacknowledgedLeaves
from federation.rooms.resolve import StateResolver
from federation.rooms.snapshot import RoomSnapshot
from federation.rooms.timelines import Timelines
from storage.engine.database import Database
from storage.events.events import EventFlag
from storage.partial_state.completion import LateMessage, RecomputedEvent, StateCompletion
from storage.partial_state.unverified_events import NeededIn
from storage.persist.room_writer import StateChange
from storage.rooms.partial_rooms import PartialEvent, PartialRoomStore
from storage.rooms.rooms import RoomRow

CHUNK: Final = 100
MAX_FETCHED: Final = 50
"""States before events at gaps that are fetched. For further gaps the state before our join is
used."""

FetchState = Callable[[EventID], Awaitable[StateChange | None]]
"""Fetches the state before an event from other servers; returns None if no server sends it."""


class RecheckProgress(msgspec.Struct):
    """The progress of a recheck, and the resulting room."""

    before_join: StateChange
    fetch: FetchState
    ordinal: int = 0
    after: dict[int, StateChange] = msgspec.field(default_factory=dict)
    """The states after the events, by event number."""
    extremities: dict[EventID, int] = msgspec.field(default_factory=dict)
    refused: dict[EventID, Sequence[EventID]] = msgspec.field(default_factory=dict)
    """Refused events, each with its prev_events."""
    hidden: set[int] = msgspec.field(default_factory=set)
    """Events that were shown and are not any more."""
    shown: list[StoredEvent] = msgspec.field(default_factory=list)
    """Events that were refused and are shown now."""
    late_messages: list[LateCandidate] = msgspec.field(default_factory=list)
    """The messages among these that came as news."""
    assumed: set[int] = msgspec.field(default_factory=set)
    """Events whose state before them no server sends, and their descendants. What this state does
    not allow is not refused for good."""
    fetched: int = 0

    def remove_extremities(self, event: Event) -> None:
        """Remove the prev_events of an event, and what they hide, from the extremities."""
        names = list(event.prev_events)
        while names:
            name = names.pop()
            self.extremities.pop(name, None)
            names += self.refused.pop(name, ())


class Recheck:
    """Rechecks events. Use this class only on the reactor thread."""

    # More than ten: a recheck repeats all checks, and repairs what depends on them.
    def __init__(
        self,
        *,
        database: Database,
        store: PartialRoomStore,
        events: RoomEvents,
        resolver: StateResolver,
        writer: StateCompletion,
        services: CheckServices,
        persister: EventPersister,
        unverified: UnverifiedStateEvents,
        late_notifications: LateNotifications,
        timelines: Timelines,
        unacknowledged_leaves: UnacknowledgedLeaves,
    ) -> None:
        self._late_notifications = late_notifications
        self._timelines = timelines
        self._unacknowledged_leaves = unacknowledged_leaves
        self._unverified = unverified
        self._persister = persister
        self._database = database
        self._store = store
        self._events = events
        self._resolver = resolver
        self._writer = writer
        self._services = services

    async def recheck_all(self, snapshot: RoomSnapshot, walk: RecheckProgress) -> None:
        """Recheck all events that are left."""
        room_nid = snapshot.room.room_nid
        while True:
            rows = await self._store.get_events(room_nid, walk.ordinal, CHUNK)
            if not rows:
                return
            stored = await self._events.get_events(row.event_nid for row in rows)
            found: list[RecomputedEvent] = []
            for row in rows:
                found.append(await self._recheck_event(snapshot, walk, row, stored[row.event_nid]))
                walk.ordinal = row.ordinal
                if found[-1].auth:  # the next resolution may depend on it
                    break
            roots = await self._database.write(
                "recheck_events", self._writer.store_recomputed, room_nid, found
            )
            walk.after.update((nid, StateChange(root)) for nid, root in roots.items())

    async def compute_current_state(
        self, snapshot: RoomSnapshot, walk: RecheckProgress
    ) -> StateChange:
        """Return the current state according to the events that are rechecked."""
        return await self._resolve(snapshot, [walk.after[nid] for nid in walk.extremities.values()])

    async def find_new_messages(
        self, snapshot: RoomSnapshot, walk: RecheckProgress
    ) -> Sequence[LateMessage]:
        """Return the messages that count as new, among the events that are rechecked."""
        return await self._late_notifications.find_new_messages(
            snapshot.room.room_nid, walk.late_messages
        )

    async def _recheck_event(
        self, snapshot: RoomSnapshot, walk: RecheckProgress, row: PartialEvent, stored: StoredEvent
    ) -> RecomputedEvent:
        event = stored.event
        is_join = stored.nid == snapshot.head.partial_join
        if is_join:
            await self._add_last_state(walk, stored)
        before = (
            walk.before_join if is_join else await self._state_before(snapshot, walk, row, stored)
        )
        base, before = before, await self._add_unverified_cited(snapshot, before, event)
        verdict = (
            Verdict.ACCEPT if is_join else await self._check(snapshot, walk, row, stored, before)
        )
        flags = _flags(stored, verdict)
        if flags & EventFlag.TIMELINE and not stored.flags & EventFlag.TIMELINE:
            if await self._is_forbidden_redaction(snapshot, event, before):
                flags = 0
            else:
                walk.shown.append(stored)
                if event.state_key is None and stored.redacted_by is None and not row.is_backfilled:
                    walk.late_messages.append(
                        await self._late_notifications.classify(snapshot, stored, before)
                    )
        if before is not base:
            flags |= EventFlag.STATE_ADDED
        is_change = event.state_key is not None and verdict is not Verdict.REJECT
        after = before
        if is_change:
            after = StateChange(before.root, {**before.entries, event.key: stored.nid})
        walk.after[stored.nid] = after
        current: StateChange | None = None
        if verdict not in SHOWN:
            walk.refused[event.event_id] = event.prev_events
        elif not row.is_backfilled:
            walk.remove_extremities(event)
            walk.extremities[event.event_id] = stored.nid
            if len(walk.extremities) > 1:
                current = await self.compute_current_state(snapshot, walk)
        if stored.in_timeline and not flags & EventFlag.TIMELINE:
            walk.hidden.add(stored.nid)
        auth: Collection[int] = ()
        if is_change and stored.rejected:
            cited = await self._events.get_by_id(snapshot.room.room_nid, event.auth_events)
            auth = [
                other.nid
                for other in cited.values()
                if other.event.state_key is not None and not other.rejected
            ]
        return RecomputedEvent(
            row.ordinal, stored.nid, event.key if is_change else None, flags, before, current, auth
        )

    async def _add_last_state(self, walk: RecheckProgress, join: StoredEvent) -> None:
        """If we were in the room before, add the state in which we left, if it counts.

        It counts if the server that we joined through did not know our last events.
        """
        if join.position is None:
            return
        last = (await self._timelines.get_newest({join.room_nid: join.position - 1})).get(
            join.room_nid
        )
        if last is None:
            return
        end = (await self._events.get_events([last.event_nid]))[last.event_nid]
        old_state = StateChange(end.state_root)
        if await self._unacknowledged_leaves.find_replaced(
            join.room_nid, old_state, walk.before_join
        ):
            walk.after[end.nid] = old_state
            walk.extremities[end.event.event_id] = end.nid

    async def _add_unverified_cited(
        self, snapshot: RoomSnapshot, before: StateChange, event: Event
    ) -> StateChange:
        """Add cited events that were verified late to a state, where it has no event for their
        key."""
        room_nid = snapshot.room.room_nid
        unverified = await self._unverified.find_stored(room_nid, event.auth_events)
        names = [
            name
            for name in event.auth_events
            if unverified.get(name, NeededIn.AUTH_CHAIN) is not NeededIn.AUTH_CHAIN
        ]
        if not names:
            return before
        found = await self._events.get_by_id(room_nid, names)
        cited = {stored.event.key: stored.nid for stored in found.values() if not stored.rejected}
        known = await self._resolver.load(room_nid, before, cited)
        return StateChange(
            before.root,
            {**before.entries, **{k: nid for k, nid in cited.items() if k not in known}},
        )

    async def _is_forbidden_redaction(
        self, snapshot: RoomSnapshot, event: Event, before: StateChange
    ) -> bool:
        """Return whether the event is a redaction that its sender may not make.

        spec: rooms/v3#handling-redactions
        """
        target = (
            None
            if event.redacts is None
            else await self._events.get_event(snapshot.room.room_nid, event.redacts)
        )
        return target is not None and not await self._persister.may_redact(
            snapshot.room, event, target.event.sender, before
        )

    async def _state_before(
        self, snapshot: RoomSnapshot, walk: RecheckProgress, row: PartialEvent, stored: StoredEvent
    ) -> StateChange:
        event = stored.event
        if not event.prev_events:
            return StateChange(None)
        if row.has_gap:
            base = await self._state_before_gap(snapshot, walk, event)
            if base is not None:
                return base
            walk.assumed.add(stored.nid)
        known = await self._events.get_by_id(snapshot.room.room_nid, event.prev_events)
        if any(prev.nid in walk.assumed for prev in known.values()):
            walk.assumed.add(stored.nid)
        states = [
            walk.after.get(prev.nid) or StateChange(prev.state_root)
            for prev in known.values()
            if not prev.is_outlier
        ]
        if row.has_gap or not states:
            states.append(walk.before_join)
        return await self._resolve(snapshot, states)

    async def _state_before_gap(
        self, snapshot: RoomSnapshot, walk: RecheckProgress, event: Event
    ) -> StateChange | None:
        """Return the state before an event at a gap; None if no server sends it."""
        assert snapshot.head.partial_join is not None, "the room has partial state"
        join = (await self._events.get_events([snapshot.head.partial_join]))[
            snapshot.head.partial_join
        ]
        if set(event.prev_events) == set(join.event.prev_events):
            return walk.before_join
        if walk.fetched >= MAX_FETCHED:
            return None
        walk.fetched += 1
        return await walk.fetch(event.event_id)

    async def _check(
        self,
        snapshot: RoomSnapshot,
        walk: RecheckProgress,
        row: PartialEvent,
        stored: StoredEvent,
        before: StateChange,
    ) -> Verdict:
        event = stored.event
        auth = await self._events.get_by_id(snapshot.room.room_nid, event.auth_events)
        if len(auth) < len(set(event.auth_events)):
            return Verdict.REJECT  # an event is stored after its auth events
        current = (
            await self.compute_current_state(snapshot, walk)
            if walk.extremities
            else walk.before_join
        )
        create = await snapshot.create_event()
        named = find_naming(await self._resolver.load(snapshot.room.room_nid, current, NAMING))
        sources = _Sources(
            services=self._services,
            room=snapshot.room,
            auth=list(auth.values()),
            before=before,
            current=None if row.is_backfilled else current,
            signers=required_signers(event),
            create=create,
            verdicts=PolicyVerdicts(None if named is None else named.event),
            was_approved=not stored.flags & (EventFlag.REJECTED | EventFlag.SOFT_FAILED),
        )
        checked = await check_on_receipt(
            ReceivedPdu(version=event.version, pdu=event.pdu, event=event),
            RoomID(snapshot.room.room_id),
            sources,
            in_part=stored.nid in walk.assumed,
        )
        return Verdict.REJECT if checked.verdict is Verdict.DROP else checked.verdict

    async def _resolve(self, snapshot: RoomSnapshot, states: Iterable[StateChange]) -> StateChange:
        return await self._resolver.resolve(
            snapshot.room.room_nid, snapshot.version, await snapshot.create_event(), states
        )


class _Sources(StoredSources):
    def __init__(
        self,
        *,
        services: CheckServices,
        room: RoomRow,
        auth: Sequence[StoredEvent],
        before: StateChange | None,
        current: StateChange | None,
        signers: Collection[ServerName] | None,
        create: Event | None,
        verdicts: PolicyVerdicts,
        was_approved: bool,
    ) -> None:
        """`was_approved`: the policy server allowed the event when it came."""
        super().__init__(
            services=services,
            room=room,
            auth=auth,
            before=before,
            current=current,
            signers=signers,
            create=create,
            verdicts=verdicts,
        )
        self._was_approved = was_approved

    async def is_approved(self, event: Event) -> bool:
        # the policy server may have refused the event, or was not asked about it
        return self._was_approved or await super().is_approved(event)


def _flags(stored: StoredEvent, verdict: Verdict) -> int:
    if verdict is Verdict.SOFT_FAIL:
        return EventFlag.SOFT_FAILED
    if verdict not in SHOWN:
        return EventFlag.REJECTED
    refused = stored.flags & (EventFlag.REJECTED | EventFlag.SOFT_FAILED)
    return EventFlag.TIMELINE | (stored.flags & EventFlag.AFTER_GAP) if refused else stored.flags
