"""Stores acknowledged events that cannot be received in their room yet, and retries them.

An event waits in the inbox if events that it refers to are missing, if a signing key cannot be
fetched, if the room's policy server has not answered, or if the room has too many forward
extremities (`extremity_limit.py`). It is retried until it can be received, or expires.

Laws:
- The inbox is in the database, so it survives a restart. `start` continues the work.
- A node makes one attempt for a room at a time. The number of rooms that are tried at the same time
  is limited. A lower limit applies to the rooms whose next event came from servers of one
  registered domain. So slow servers of one owner cannot delay all rooms. All rooms whose next event
  came from a server outside the room share one such limit.
- After an attempt without success the room pauses, longer each time. New events from servers or
  users in the room (`room_participants.py`) end the pause early, because they may show that a
  server can be reached again.
- An attempt goes through the servers that sent the events, and tries the events of one server
  together. It starts with servers in the room, and among these with the server whose events have
  had the fewest attempts. If these numbers are equal, the server that has been in the room for
  longer comes first. So if no server has what an event lacks, the events of other servers are not
  delayed. The time limit for the events of one server is short on the first attempt and doubles on
  each further one. If new events for the room arrive during a long attempt, the attempt ends early.
  The room then waits for a moment, so that other rooms have their turn.
- Any server can send events for a room. So for an event from a server outside the room, requests
  are sent only in the cases of `room_participants.py`, for example if its sender is a member. In
  other cases the event waits until another server sends what it lacks.
- An event expires after two days. If a later event refers to it, it is fetched again like any
  missing event.
"""

from collections.abc import Coroutine, Sequence
from typing import Any, Final, Protocol

import msgspec
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from federation.peers.backoff_schedule import BackoffSchedule
from federation.peers.fair_semaphore import FairSemaphore
from federation.protocol.errors import MatrixError
from federation.protocol.events import Event, encode_pdu, parse_event
from federation.protocol.ids import EventID, RoomID, ServerName, domain_of, registered_domain_of
from federation.protocol.policy_server import is_naming
from federation.protocol.room_versions import EventFormat
from federation.rooms.engine import RoomEngine
from federation.rooms.receive.batch import Outcome
from federation.rooms.receive.missing_events import MAX_SECONDS, MissingEvents
from federation.rooms.receive.room_participants import RoomParticipants
from federation.rooms.snapshot import RoomSnapshot
from storage.engine.interface import DatabaseUnavailable
from storage.federation.inbox import InboxRow, InboxStore, NewInboxRow
from storage.rooms.rooms import RoomRow, RoomStore

BATCH: Final = 50
"""Events of one room that are tried together."""
ROOMS_AT_ONCE: Final = 20
ROOMS_OF_ONE: Final = 5
"""Rooms at once whose next event came from servers of one registered domain: the owner of one
machine may run any number of servers."""
OUTSIDE: Final = ""
"""Stands for all servers that were not in the room when they sent an event for it."""
FIRST_SECONDS: Final = 30.0
"""Time limit of the first try for the events of one server. It doubles with each try."""
RETRIES: Final = BackoffSchedule(10_000, 3_600_000)
MIN_PAUSE: Final = 2.0
"""A room pauses at least this long, even if there is news of it."""
MAX_AGE_MS: Final = 2 * 24 * 3600 * 1000
POLL_SECONDS: Final = 60.0
"""Seconds between two searches for events that a stopped node has left."""


class PduObserver(Protocol):
    """Receives the outcomes of events from other servers. Must not raise or block."""

    def pdu_received(self, result: str) -> None:
        """An event got its outcome: a value of `Verdict`, or `known`, `waiting` or `expired`."""

    def inbox_changed(self, length: int) -> None:
        """The number of waiting events changed."""


class Inbox:
    """Stores waiting events and retries them. Use this class only on the reactor thread."""

    def __init__(
        self,
        *,
        store: InboxStore,
        rooms: RoomStore,
        engine: RoomEngine,
        missing: MissingEvents,
        participants: RoomParticipants,
        clock: IReactorTime,
        observer: PduObserver,
    ) -> None:
        self._store = store
        self._rooms = rooms
        self._engine = engine
        self._missing = missing
        self._participants = participants
        self._clock = clock
        self._observer = observer
        self._semaphore: FairSemaphore[str] = FairSemaphore(
            permits=ROOMS_AT_ONCE, permits_per_key=ROOMS_OF_ONE
        )
        self._working: dict[int, bool] = {}
        """Rooms that have a worker, and whether there is news for it."""
        self._paused: dict[int, IDelayedCall] = {}
        self._next_poll: IDelayedCall | None = None
        self._tasks: set[Deferred[None]] = set()
        self._last_tried: dict[int, float] = {}
        self._stopped = False
        self._log = Logger()

    async def add(
        self,
        room: RoomRow,
        origin: ServerName,
        events: Sequence[Event],
        *,
        policy_server: ServerName | None = None,
        is_out_of_room: bool = False,
        ends_pause: bool = True,
    ) -> None:
        """Store events until they can be placed. Raises InboxFull: then none of them is stored.

        `policy_server`: the policy server whose answer they wait for. `is_out_of_room`: the
        origin is not in the room. `ends_pause`: they end the pause of the room.
        """
        rows = [
            NewInboxRow(event.event_id, encode_pdu(event), is_naming(event), _is_own(event, origin))
            for event in events
        ]
        await self._store.add(
            room.room_nid,
            origin,
            rows,
            self._now_ms(),
            policy_server=policy_server,
            is_out_of_room=is_out_of_room,
            domain=registered_domain_of(origin),
        )
        if ends_pause or room.room_nid not in self._paused:
            self.wake(room.room_nid)

    def on_join(self, room_nid: int) -> None:
        """Retry the room's events: somebody has joined, and their events may be waiting."""
        if room_nid in self._working or room_nid in self._paused:
            self.wake(room_nid)

    def start(self) -> None:
        """Continue with what waited when the server stopped, and then at intervals."""
        self._run(self._resume())

    def stop(self) -> None:
        """Stop the running work. It is repeated after the next start."""
        self._stopped = True
        if self._next_poll is not None and self._next_poll.active():
            self._next_poll.cancel()
        self._next_poll = None
        while self._paused:
            self._paused.popitem()[1].cancel()
        for task in list(self._tasks):
            task.cancel()

    def wake(self, room_nid: int) -> None:
        """Work on a room that has news: now, or when its shortest pause is over."""
        if room_nid in self._working:
            self._working[room_nid] = True
            return
        call = self._paused.pop(room_nid, None)
        if call is not None:
            call.cancel()
        wait = self._last_tried.get(room_nid, -MIN_PAUSE) + MIN_PAUSE - self._clock.seconds()
        if call is not None and wait > 0:
            self._pause(room_nid, wait)
        else:
            self._start_work(room_nid)

    def _start_work(self, room_nid: int) -> None:
        self._paused.pop(room_nid, None)
        self._working[room_nid] = False
        self._run(self._work(room_nid))

    def _pause(self, room_nid: int, seconds: float) -> None:
        self._paused[room_nid] = self._clock.callLater(seconds, self._start_work, room_nid)

    async def _resume(self) -> None:
        try:
            for room_nid in await self._store.get_rooms():
                if room_nid not in self._working and room_nid not in self._paused:
                    self._start_work(room_nid)
            self._observer.inbox_changed(await self._store.count())
        finally:
            if not self._stopped:
                self._next_poll = self._clock.callLater(POLL_SECONDS, self.start)

    async def _work(self, room_nid: int) -> None:
        """Retry the events of a room until nothing changes any more."""
        delay: float | None = RETRIES.first_ms / 1000
        slot: str | None = None
        try:
            first = await self._store.get_of_room(room_nid, 1)
            origin = (
                OUTSIDE
                if not first or first[0].is_out_of_room
                else registered_domain_of(first[0].origin)
            )
            await self._semaphore.acquire(origin)
            slot = origin
            while True:
                self._working[room_nid] = False
                left = await self._try_room(room_nid)
                if left is None:
                    delay = None
                    break
                done, attempts = left
                if attempts is None:  # let other rooms have their turn
                    delay = MIN_PAUSE
                    break
                if not done and not self._working[room_nid]:
                    delay = RETRIES.nth(attempts + 1) / 1000
                    break
        finally:
            if slot is not None:
                self._semaphore.release(slot)
            del self._working[room_nid]
            if delay is None:
                self._last_tried.pop(room_nid, None)
            elif not self._stopped:
                self._last_tried[room_nid] = self._clock.seconds()
                self._pause(room_nid, delay)
        self._observer.inbox_changed(await self._store.count())

    async def _try_room(self, room_nid: int) -> tuple[int, int | None] | None:
        """Try once. Return the number of events that are done, and the attempts of the others.

        The attempts are None if the time limit left some servers untried. Returns None when nothing
        waits.
        """
        rows = await self._store.get_of_room(room_nid, BATCH)
        if not rows:
            return None
        room = (await self._rooms.get_rooms_by_nid([room_nid]))[room_nid]
        expired = [row for row in rows if row.received_ts < self._now_ms() - MAX_AGE_MS]
        for row in expired:
            self._log.info(
                "event {event_id} expired: what it refers to cannot be fetched",
                event_id=row.event_id,
            )
            self._observer.pdu_received("expired")
        done = {row.inbox_nid for row in expired}
        rows = [row for row in rows if row.inbox_nid not in done]
        try:
            snapshot = await self._engine.get_snapshot(RoomID(room.room_id))
            since = await self._participants.in_room(snapshot)
            tried: set[int] = set()
            by_origin: dict[ServerName, list[InboxRow]] = {}
            for row in rows:
                by_origin.setdefault(ServerName(row.origin), []).append(row)
            remaining = sorted(
                by_origin,
                key=lambda name: (
                    name not in since,
                    min(row.attempts for row in by_origin[name]),
                    since.get(name, 0),
                ),
            )
            begun = self._clock.seconds()
            while remaining:
                elapsed = self._clock.seconds() - begun
                if elapsed >= MAX_SECONDS or (elapsed >= FIRST_SECONDS and self._working[room_nid]):
                    break
                origin = remaining.pop(0)
                attempted, finished = await self._try_together(snapshot, origin, by_origin[origin])
                tried |= attempted
                done |= finished
        except MatrixError as error:
            self._log.info(
                "waiting events of {room_id} are dropped: {why}",
                room_id=room.room_id,
                why=error.text,
            )
            done = {row.inbox_nid for row in (*rows, *expired)}
            remaining = []
        if done:
            await self._store.remove(done)
        unfinished = [
            row for row in rows if row.inbox_nid not in done and row.origin not in remaining
        ]
        if unfinished:
            await self._store.record_attempt(row.inbox_nid for row in unfinished)
        if remaining:
            return len(done), None
        relevant = [row for row in unfinished if row.inbox_nid in tried] or unfinished
        return len(done), min((row.attempts for row in relevant), default=0)

    async def _try_together(
        self, snapshot: RoomSnapshot, origin: ServerName, rows: Sequence[InboxRow]
    ) -> tuple[set[int], set[int]]:
        """Try the events of one server. Return the rows that were tried, and those of them that
        are done."""
        events: dict[EventID, Event] = {}
        for row in rows:
            event_id = EventID(row.event_id)
            events[event_id] = parse_event(
                snapshot.version, msgspec.json.decode(row.pdu), event_id=event_id
            )
        inside = await self._participants.find_relevant(snapshot, origin, list(events.values()))
        rows = [row for row in rows if row.event_id in inside]
        tried = {row.inbox_nid for row in rows}
        if not rows:
            return tried, set()
        seconds = min(FIRST_SECONDS * 2 ** min(row.attempts for row in rows), MAX_SECONDS)
        batch = [events[EventID(row.event_id)] for row in rows]
        try:
            outcomes = await self._missing.receive(snapshot.room_id, batch, origin, seconds=seconds)
        except MatrixError as error:  # this server is no longer in the room
            self._log.info(
                "waiting events of {room_id} are dropped: {why}",
                room_id=snapshot.room_id,
                why=error.text,
            )
            return tried, tried
        except DatabaseUnavailable as error:
            self._log.warn(
                "events of {room_id} wait on: {error}", room_id=snapshot.room_id, error=error
            )
            return tried, set()
        except Exception:  # an unexpected error, which may be fixed by the next try
            self._log.failure("events of {room_id} could not be received", room_id=snapshot.room_id)
            return tried, set()
        for outcome in outcomes.values():
            if not must_wait(outcome):
                self._observer.pdu_received(outcome_label(outcome))
        return tried, {
            row.inbox_nid for row in rows if not must_wait(outcomes[EventID(row.event_id)])
        }

    def _run(self, work: Coroutine[Deferred[Any], Any, None]) -> None:
        task = Deferred.fromCoroutine(work)
        self._tasks.add(task)
        task.addErrback(self._failed)
        task.addBoth(lambda _: self._tasks.discard(task))

    def _failed(self, failure: Failure) -> None:
        if failure.check(DatabaseUnavailable):
            self._log.warn("waiting events are left for later: {error}", error=failure.value)
        elif not failure.check(CancelledError):
            self._log.failure("work on waiting events failed", failure)

    def _now_ms(self) -> int:
        return int(self._clock.seconds() * 1000)


def _is_own(event: Event, origin: ServerName) -> bool:
    """Return whether a user of that server sent the event, and the server chose its ID.

    In room versions 1 and 2 any server may give an event any ID.
    """
    is_named_by_itself = event.version.event_format is EventFormat.V1
    return domain_of(event.sender) == origin and (
        not is_named_by_itself or domain_of(event.event_id) == origin
    )


def must_wait(outcome: Outcome) -> bool:
    """Return whether the event waits in the inbox, for a reason that the module header names."""
    return outcome.is_waiting or outcome.is_unverified


def outcome_label(outcome: Outcome) -> str:
    """Return the label of an outcome in metrics."""
    if must_wait(outcome):
        return "waiting"
    return "known" if outcome.verdict is None else outcome.verdict.value
