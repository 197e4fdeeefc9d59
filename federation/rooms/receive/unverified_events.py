"""Stores state events that cannot be verified while a signing key is unavailable, and retries them.
Verified events are added to the state.

If a user's membership event is left out of the state, the user's later events are refused, because
they are checked against that state. The signing keys of a server may be available an hour later, or
never if the server is gone. So no operation waits for the keys. An event is retried for two weeks.
After that, it is verified only if another event has it among its auth events.

Laws:
- A verified event is added only if the current state has no event for its type and state key. If it
  was in the state that we received when we joined, it is added without state resolution, because
  that state is trusted. If it was in a state that we fetched later, it is added only if state
  resolution with the current state accepts it. So no server can restore outdated entries.
- If a received event has a stored unverified event among its auth events, the unverified event is
  verified first and added to the state. Then the received event is checked.

spec: server-server-api#joining-rooms, server-server-api#checks-performed-on-receipt-of-a-pdu
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from federation.peers.backoff_schedule import BackoffSchedule
from federation.peers.identity import ServerIdentity
from federation.protocol.events import StateKey
from federation.protocol.ids import EventID, RoomID
from federation.protocol.room_versions import ROOM_VERSIONS
from federation.rooms.engine import RoomEngine
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.receipt_checks import ReceivedPdu, Verdict
from federation.rooms.receive.batch import Outcome
from federation.rooms.receive.outliers import Outliers
from federation.rooms.receive.state_imports import Pdu, as_mapping
from federation.rooms.resolve import StateResolver
from federation.rooms.snapshot import RoomSnapshot
from federation.rooms.state_effects import state_effect
from storage.cache import StreamValue
from storage.engine.database import Database
from storage.engine.streams import Stage, Topic
from storage.partial_state.unverified_events import (
    NeededIn,
    UnverifiedEvent,
    UnverifiedEventRow,
    UnverifiedEventStore,
    UnverifiedEventWriter,
)
from storage.persist.room_writer import AppendResult, HeadMoved, StateChange
from storage.rooms.rooms import RoomRow, RoomStore

RETRIES: Final = BackoffSchedule(5_000, 6 * 3_600_000)
MAX_ATTEMPTS: Final = 60
"""About two weeks. Afterwards the event is added only if another event cites it."""
POLL_SECONDS: Final = 600.0
"""Seconds between two searches for events that another node has stored."""
MAX_TRIES: Final = 20


def find_left_out(
    events: Iterable[tuple[Pdu, Outcome]], state: Collection[str], needed_in: NeededIn
) -> list[UnverifiedEvent]:
    """Return the events of a remote state that cannot be verified now, with those that cite them.

    `state`: the IDs of events that are in the state itself, not only in its auth chain.
    """
    events = list(events)
    if not any(outcome.is_unverified for _, outcome in events):
        return []
    left: dict[str, UnverifiedEvent] = {}
    for pdu, outcome in events:
        if outcome.event_id is not None and (outcome.is_unverified or outcome.missing_auth):
            depth = as_mapping(pdu).get("depth")
            raw = bytes(pdu) if isinstance(pdu, msgspec.Raw) else msgspec.json.encode(pdu)
            part = needed_in if outcome.event_id in state else NeededIn.AUTH_CHAIN
            left[outcome.event_id] = UnverifiedEvent(
                outcome.event_id, depth if type(depth) is int else 0, raw, part
            )
    return list(left.values())


def is_of_type(event: UnverifiedEvent, type: str) -> bool:
    """Return whether the event has that type, or is only part of the auth chain."""
    return (
        event.needed_in is NeededIn.AUTH_CHAIN
        or as_mapping(msgspec.Raw(event.pdu)).get("type") == type
    )


class UnverifiedStateEvents:
    """Stores unverified state events and adds them to the state. Use this class only on the reactor
    thread."""

    _log = Logger()

    def __init__(
        self,
        *,
        database: Database,
        store: UnverifiedEventStore,
        writer: UnverifiedEventWriter,
        engine: RoomEngine,
        rooms: RoomStore,
        events: RoomEvents,
        outliers: Outliers,
        resolver: StateResolver,
        identity: ServerIdentity,
        clock: IReactorTime,
    ) -> None:
        self._database = database
        self._store = store
        self._writer = writer
        self._engine = engine
        self._rooms = rooms
        self._events = events
        self._outliers = outliers
        self._resolver = resolver
        self._identity = identity
        self._clock = clock
        self._cached_rooms: StreamValue[Mapping[int, int | None]] = StreamValue(
            database.streams, Topic.PARTIAL_STATE, load=store.get_rooms
        )
        """The rooms that have unverified events, with the time of their next retry."""
        self._delayed_call: IDelayedCall | None = None
        self._task: Deferred[None] | None = None
        self._started = False
        # writes of these rows are not announced on the stream
        database.streams.watch(
            lambda _after, _upto: self._cached_rooms.invalidate(), stage=Stage.CACHE
        )

    def start(self) -> None:
        """Continue with the stored events."""
        self._started = True
        self._schedule(0)

    def stop(self) -> None:
        """Stop the running work. It continues after the next start."""
        self._started = False
        if self._delayed_call is not None and self._delayed_call.active():
            self._delayed_call.cancel()
        if self._task is not None:
            self._task.cancel()

    def schedule_first_attempt(self) -> int:
        """Schedule the first retry of events stored now; return its time in milliseconds."""
        self._schedule(RETRIES.first_ms / 1000)
        return self._now_ms() + RETRIES.first_ms

    async def store(self, room_nid: int, left_out: Sequence[UnverifiedEvent]) -> None:
        """Store events that were left out of a state."""
        if left_out:
            await self._store.add(room_nid, left_out, self.schedule_first_attempt())
            self._cached_rooms.invalidate()

    async def find_stored(
        self, room_nid: int, cited: Collection[EventID]
    ) -> Mapping[str, NeededIn]:
        """Return the cited events that are stored as unverified, even if verified by now.

        Makes no query in rooms without such events.
        """
        if room_nid not in await self._cached_rooms.get():
            return {}
        return {
            name: needed_in
            for name, (needed_in, _) in (await self._store.find(room_nid, cited)).items()
        }

    async def add_verified_cited(
        self, room_id: RoomID, cited: Collection[EventID]
    ) -> Mapping[str, NeededIn]:
        """Add cited events to the state that were stored as unverified and verified since.

        Returns all cited ones that are stored as unverified. Call it in the turn of the room.
        """
        room_nid = (await self._engine.get_snapshot(room_id)).room.room_nid
        if room_nid not in await self._cached_rooms.get():
            return {}
        stored = await self._store.find(room_nid, cited)
        if any(event_nid is None for _, event_nid in stored.values()):
            await self.add_verified(room_id)
        return {name: needed_in for name, (needed_in, _) in stored.items()}

    # ----------------------------------------------------------------------------------------
    # adding to the state

    async def add_verified(self, room_id: RoomID) -> None:
        """Add all events that are verified by now. Call it in the turn of the room."""
        for _ in range(MAX_TRIES):
            snapshot = await self._engine.get_snapshot(room_id)
            if snapshot.room.room_nid not in await self._cached_rooms.get():
                return
            if snapshot.head.partial_join is not None or not snapshot.head.extremities:
                return  # the complete state will contain what is stored by then
            rows = [
                row
                for row in await self._store.get_of_room(snapshot.room.room_nid)
                if row.event_nid is None
            ]
            found = await self._events.get_by_id(
                snapshot.room.room_nid, [EventID(row.event_id) for row in rows]
            )
            refused = [name for name, stored in found.items() if stored.rejected]
            if refused:
                await self._store.remove(snapshot.room.room_nid, refused)
            proved = {name: stored for name, stored in found.items() if not stored.rejected}
            try:
                await self._add_to_state(snapshot, rows, proved)
            except HeadMoved:
                await self._engine.refresh(snapshot)
                continue
            finally:
                self._cached_rooms.invalidate()
            return
        raise RuntimeError(
            f"the head of {room_id} moved {MAX_TRIES} times while its state was completed"
        )

    async def _add_to_state(
        self,
        snapshot: RoomSnapshot,
        rows: Sequence[UnverifiedEventRow],
        proved: Mapping[EventID, StoredEvent],
    ) -> None:
        """Raises HeadMoved."""
        if not proved:
            return
        chosen: dict[NeededIn, dict[StateKey, StoredEvent]] = {
            NeededIn.SOME_STATE: {},
            NeededIn.OUR_STATE: {},
        }
        for row in rows:  # the deepest comes last
            stored = proved.get(EventID(row.event_id))
            if (
                stored is not None
                and stored.event.state_key is not None
                and row.needed_in in chosen
            ):
                chosen[row.needed_in][stored.event.key] = stored
        wanted = chosen[NeededIn.SOME_STATE] | chosen[NeededIn.OUR_STATE]
        present = await snapshot.state.load(wanted)
        free = dict.fromkeys(key for key in wanted if key not in present)
        our_state = {
            key: stored for key, stored in chosen[NeededIn.OUR_STATE].items() if key in free
        }
        states = [
            StateChange(
                snapshot.head.state_root,
                {(key.type, key.state_key): each[key].nid for key in free if key in each},
            )
            for each in (our_state, chosen[NeededIn.SOME_STATE] | our_state)
        ]
        create = await snapshot.create_event()
        state = await self._resolver.resolve(
            snapshot.room.room_nid, snapshot.version, create, states
        )
        resolved = await self._resolver.load(snapshot.room.room_nid, state, free)
        entries = {(key.type, key.state_key): stored.nid for key, stored in resolved.items()}
        head = await self._database.write(
            "add_unverified_to_state",
            self._writer.add_to_state,
            snapshot.room,
            snapshot.head,
            {name: stored.nid for name, stored in proved.items()},
            entries,
            [
                (stored.nid, state_effect(stored.event, self._identity))
                for stored in resolved.values()
            ],
        )
        if head is not snapshot.head:
            view = self._engine.view(snapshot.room.room_nid, None)
            self._engine.advance(
                RoomSnapshot(snapshot.room, snapshot.version, snapshot.head, view),
                AppendResult(head, []),
            )

    # ----------------------------------------------------------------------------------------
    # retries

    def _schedule(self, seconds: float) -> None:
        if not self._started:
            return
        if self._delayed_call is not None and self._delayed_call.active():
            if self._delayed_call.getTime() <= self._clock.seconds() + seconds:
                return
            self._delayed_call.cancel()
        self._delayed_call = self._clock.callLater(seconds, self._start_work)

    def _start_work(self) -> None:
        if self._task is None:
            self._task = Deferred.fromCoroutine(self._work())
            self._task.addErrback(self._failed)
            self._task.addBoth(self._ended)

    def _ended(self, _: object) -> None:
        self._task = None

    def _failed(self, failure: Failure) -> None:
        if not failure.check(CancelledError):
            self._log.failure("work on unverified state events failed", failure)

    async def _work(self) -> None:
        delay = POLL_SECONDS
        try:
            self._cached_rooms.invalidate()
            for room_nid, due in (await self._cached_rooms.get()).items():
                if due is not None and due <= self._now_ms():
                    await self._try(room_nid)
            due_times = [
                due for due in (await self._cached_rooms.get()).values() if due is not None
            ]
            if due_times:
                delay = min(max((min(due_times) - self._now_ms()) / 1000, 1), POLL_SECONDS)
        finally:
            self._schedule(delay)

    async def _try(self, room_nid: int) -> None:
        """Verify the stored events of a room again."""
        room = (await self._rooms.get_rooms_by_nid([room_nid]))[room_nid]
        rows = [row for row in await self._store.get_of_room(room_nid) if row.event_nid is None]
        outcomes = await self._outliers.add(room, [_candidate(room, row) for row in rows])
        refused = [
            row.event_id
            for row, outcome in zip(rows, outcomes, strict=True)
            if _is_refused(outcome)
        ]
        if refused:
            await self._store.remove(room_nid, refused)
        now = self._now_ms()
        await self._store.record_attempt(
            room_nid, {row.event_id: now + _retry_delay_ms(row.attempts + 1) for row in rows}
        )
        room_id = RoomID(room.room_id)
        if any(
            outcome.verdict is not Verdict.DROP and not outcome.is_waiting for outcome in outcomes
        ):
            await self._engine.in_turn(room_id, lambda: self.add_verified(room_id))
        self._cached_rooms.invalidate()

    def _now_ms(self) -> int:
        return int(self._clock.seconds() * 1000)


def _candidate(room: RoomRow, row: UnverifiedEventRow) -> ReceivedPdu:
    return ReceivedPdu(version=ROOM_VERSIONS[room.version], pdu=as_mapping(msgspec.Raw(row.pdu)))


def _is_refused(outcome: Outcome) -> bool:
    """Return whether the event turned out to be invalid."""
    return outcome.verdict is Verdict.REJECT or (
        outcome.verdict is Verdict.DROP and not outcome.is_unverified
    )


def _retry_delay_ms(attempts: int) -> int:
    if attempts >= MAX_ATTEMPTS:
        return 2**52
    return RETRIES.nth(attempts + 1)
