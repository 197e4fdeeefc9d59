"""Events that were acknowledged and wait for what this server lacks (what they refer to, or a key
with which they are signed): tried again until they have their place, or are given up.

Laws:
- What waits is in the database, so a restart forgets nothing; `resume` goes on where it was.
- A room has one worker at a time, and few rooms have one at once; fewer yet on behalf of one
  server, which may let us wait for what its events refer to. After a try in vain the room rests,
  longer each time; news of the room end the rest early, since then somebody can be reached again.
- What was tried least is tried first, by turns among the servers that sent it: events that nobody
  can complete do not hold up the others. Of servers that were tried as often, the one that has been
  in the room for longest comes first; it has little time at the first try, more at each further
  one. What takes long ends when there is news, and others have their turn.
- For what comes from outside the room nothing is asked of anybody, unless it has to do with the
  room (`participants.py`): it waits for what others bring. Rooms in which only such events wait are
  worked on as for one server.
- After two days an event is given up. Should others build upon it, it is missing like any other
  then, and asked for again.
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
from federation.rooms.receive.participants import Insiders
from federation.rooms.snapshot import RoomSnapshot
from storage.engine.interface import DatabaseUnavailable
from storage.federation.inbox import InboxRow, InboxStore, NewInboxRow
from storage.rooms.rooms import RoomRow, RoomStore

BATCH: Final = 50
"""Events of one room that are tried together."""
ROOMS_AT_ONCE: Final = 20
ROOMS_OF_ONE: Final = 5
"""Of these, in which the event that is tried next came from servers of one registered domain:
whoever has one machine may be any number of servers."""
OUTSIDE: Final = ""
"""Stands for all servers that were not in the room for which they sent something."""
FIRST_SECONDS: Final = 30.0
"""For the events of one server, when they are tried first; twice as long each time after."""
RETRIES: Final = BackoffSchedule(10_000, 3_600_000)
SHORTEST_REST: Final = 2.0
"""So long a room rests even when there is news of it."""
MAX_AGE_MS: Final = 2 * 24 * 3600 * 1000
LOOK_EVERY: Final = 60.0
"""Seconds between looks for what another node, now gone, has left."""


class ReceiptObserver(Protocol):
    """Hears what becomes of events from other servers. May not raise or block."""

    def pdu_received(self, verdict: str) -> None:
        """An event got its verdict: a value of `Verdict`, or `known`, `waiting` or `given_up`."""

    def inbox_changed(self, length: int) -> None:
        """So many events wait."""


class Inbox:
    """Keeps what waits, and works on it. For the reactor thread."""

    def __init__(
        self,
        store: InboxStore,
        rooms: RoomStore,
        engine: RoomEngine,
        missing: MissingEvents,
        insiders: Insiders,
        clock: IReactorTime,
        observer: ReceiptObserver,
    ) -> None:
        self._store = store
        self._rooms = rooms
        self._engine = engine
        self._missing = missing
        self._insiders = insiders
        self._clock = clock
        self._observer = observer
        self._at_once: FairSemaphore[str] = FairSemaphore(ROOMS_AT_ONCE, ROOMS_OF_ONE)
        self._working: dict[int, bool] = {}
        """Rooms that have a worker, and whether there is news for it."""
        self._resting: dict[int, IDelayedCall] = {}
        self._look: IDelayedCall | None = None
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
        judge: ServerName | None = None,
        is_outside: bool = False,
        is_news: bool = True,
    ) -> None:
        """Keep events until they have their place. Raises InboxFull: then none of them is kept.

        `judge`: the policy server for whose word they wait. `is_outside`: that server is not in the
        room. `is_news`: they end the rest of the room.
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
            judge=judge,
            is_outside=is_outside,
            domain=registered_domain_of(origin),
        )
        if is_news or room.room_nid not in self._resting:
            self.wake(room.room_nid)

    def newcomer(self, room_nid: int) -> None:
        """Somebody has joined the room: what they have said may wait for that."""
        if room_nid in self._working or room_nid in self._resting:
            self.wake(room_nid)

    def start(self) -> None:
        """Go on with what waited when the server stopped; then look at intervals."""
        self._run(self._resume())

    def stop(self) -> None:
        """End what is under way: it is done again after the next start."""
        self._stopped = True
        if self._look is not None and self._look.active():
            self._look.cancel()
        self._look = None
        while self._resting:
            self._resting.popitem()[1].cancel()
        for task in list(self._tasks):
            task.cancel()

    def wake(self, room_nid: int) -> None:
        """There is something new in the room: work on it now, or as soon as it has rested a
        little."""
        if room_nid in self._working:
            self._working[room_nid] = True
            return
        call = self._resting.pop(room_nid, None)
        if call is not None:
            call.cancel()
        wait = (
            self._last_tried.get(room_nid, -SHORTEST_REST) + SHORTEST_REST - self._clock.seconds()
        )
        if call is not None and wait > 0:
            self._rest(room_nid, wait)
        else:
            self._begin(room_nid)

    def _begin(self, room_nid: int) -> None:
        self._resting.pop(room_nid, None)
        self._working[room_nid] = False
        self._run(self._work(room_nid))

    def _rest(self, room_nid: int, seconds: float) -> None:
        self._resting[room_nid] = self._clock.callLater(seconds, self._begin, room_nid)

    async def _resume(self) -> None:
        try:
            for room_nid in await self._store.get_rooms():
                if room_nid not in self._working and room_nid not in self._resting:
                    self._begin(room_nid)
            self._observer.inbox_changed(await self._store.count())
        finally:
            if not self._stopped:
                self._look = self._clock.callLater(LOOK_EVERY, self.start)

    async def _work(self, room_nid: int) -> None:
        """Try what waits in a room until nothing moves any more."""
        rest: float | None = RETRIES.first_ms / 1000
        slot: str | None = None
        try:
            first = await self._store.get_of_room(room_nid, 1)
            origin = (
                OUTSIDE
                if not first or first[0].is_outside
                else registered_domain_of(first[0].origin)
            )
            await self._at_once.acquire(origin)
            slot = origin
            while True:
                self._working[room_nid] = False
                left = await self._try_room(room_nid)
                if left is None:
                    rest = None
                    break
                settled, attempts = left
                if attempts is None:  # others have their turn before it goes on
                    rest = SHORTEST_REST
                    break
                if not settled and not self._working[room_nid]:
                    rest = RETRIES.nth(attempts + 1) / 1000
                    break
        finally:
            if slot is not None:
                self._at_once.release(slot)
            del self._working[room_nid]
            if rest is None:
                self._last_tried.pop(room_nid, None)
            elif not self._stopped:
                self._last_tried[room_nid] = self._clock.seconds()
                self._rest(room_nid, rest)
        self._observer.inbox_changed(await self._store.count())

    async def _try_room(self, room_nid: int) -> tuple[int, int | None] | None:
        """Try once: how many events are settled, and how often the others were tried before, or
        None where some had no turn since it took so long; None when nothing waits."""
        rows = await self._store.get_of_room(room_nid, BATCH)
        if not rows:
            return None
        room = (await self._rooms.get_rooms_by_nid([room_nid]))[room_nid]
        given_up = [row for row in rows if row.received_ts < self._now_ms() - MAX_AGE_MS]
        for row in given_up:
            self._log.info(
                "event {event_id} is given up: what it refers to cannot be had",
                event_id=row.event_id,
            )
            self._observer.pdu_received("given_up")
        settled = {row.inbox_nid for row in given_up}
        rows = [row for row in rows if row.inbox_nid not in settled]
        try:
            snapshot = await self._engine.get_snapshot(RoomID(room.room_id))
            since = await self._insiders.in_room(snapshot)
            tried: set[int] = set()
            by_origin: dict[ServerName, list[InboxRow]] = {}
            for row in rows:
                by_origin.setdefault(ServerName(row.origin), []).append(row)
            turns = sorted(
                by_origin,
                key=lambda name: (
                    name not in since,
                    min(row.attempts for row in by_origin[name]),
                    since.get(name, 0),
                ),
            )
            begun = self._clock.seconds()
            while turns:
                took = self._clock.seconds() - begun
                if took >= MAX_SECONDS or (took >= FIRST_SECONDS and self._working[room_nid]):
                    break
                origin = turns.pop(0)
                asked, done = await self._try_together(snapshot, origin, by_origin[origin])
                tried |= asked
                settled |= done
        except MatrixError as error:
            self._log.info(
                "what waits in {room_id} is dropped: {why}", room_id=room.room_id, why=error.text
            )
            settled = {row.inbox_nid for row in (*rows, *given_up)}
            turns = []
        if settled:
            await self._store.remove(settled)
        vain = [row for row in rows if row.inbox_nid not in settled and row.origin not in turns]
        if vain:
            await self._store.note_attempt(row.inbox_nid for row in vain)
        if turns:
            return len(settled), None
        matter = [row for row in vain if row.inbox_nid in tried] or vain
        return len(settled), min((row.attempts for row in matter), default=0)

    async def _try_together(
        self, snapshot: RoomSnapshot, origin: ServerName, rows: Sequence[InboxRow]
    ) -> tuple[set[int], set[int]]:
        """What one server sent: those of the rows that were tried, and of these those that need not
        wait any longer."""
        events: dict[EventID, Event] = {}
        for row in rows:
            event_id = EventID(row.event_id)
            events[event_id] = parse_event(
                snapshot.version, msgspec.json.decode(row.pdu), event_id=event_id
            )
        inside = await self._insiders.find(snapshot, origin, list(events.values()))
        rows = [row for row in rows if row.event_id in inside]
        tried = {row.inbox_nid for row in rows}
        if not rows:
            return tried, set()
        seconds = min(FIRST_SECONDS * 2 ** min(row.attempts for row in rows), MAX_SECONDS)
        given = [events[EventID(row.event_id)] for row in rows]
        try:
            outcomes = await self._missing.take_in(snapshot.room_id, given, origin, seconds=seconds)
        except MatrixError as error:  # this server is no longer in the room
            self._log.info(
                "what waits in {room_id} is dropped: {why}",
                room_id=snapshot.room_id,
                why=error.text,
            )
            return tried, tried
        except DatabaseUnavailable as error:
            self._log.warn(
                "events of {room_id} wait on: {error}", room_id=snapshot.room_id, error=error
            )
            return tried, set()
        except Exception:  # a bug of ours: it may be mended by the time of the next try
            self._log.failure("events of {room_id} could not be taken in", room_id=snapshot.room_id)
            return tried, set()
        for outcome in outcomes.values():
            if not must_wait(outcome):
                self._observer.pdu_received(verdict_of(outcome))
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
            self._log.warn("what waits is left for later: {error}", error=failure.value)
        elif not failure.check(CancelledError):
            self._log.failure("work on what waits failed", failure)

    def _now_ms(self) -> int:
        return int(self._clock.seconds() * 1000)


def _is_own(event: Event, origin: ServerName) -> bool:
    """Whether the event is of a user of that server, and its name too: in room versions 1 and 2
    anybody may give it any."""
    is_named_by_itself = event.version.event_format is EventFormat.V1
    return domain_of(event.sender) == origin and (
        not is_named_by_itself or domain_of(event.event_id) == origin
    )


def must_wait(outcome: Outcome) -> bool:
    """Whether the event may have its place later: what it refers to is missing, or a key with which
    it is signed."""
    return outcome.is_waiting or outcome.is_unproved


def verdict_of(outcome: Outcome) -> str:
    """What metrics call it."""
    if must_wait(outcome):
        return "waiting"
    return "known" if outcome.verdict is None else outcome.verdict.value
