"""Fetches events that received events refer to and that this server does not have.

1. Request the events between the received and the stored ones with `get_missing_events`: up to ten
   requests to each server, each for events further back.
2. Fetch missing auth events and their auth chains.
3. If prev_events of an event are still missing, request the state before this event, and store the
   event with that state.

Laws:
- Servers are asked in turn, until no event is missing: first the server that sent the events, then
  a few others in the room. If the sending server is not in the room, it is asked last, and no state
  is requested from it.
- All requests of one call share a time limit. Each server but the last gets at most half of the
  time that is left.
- Events that were not requested are ignored. All events go through the checks on receipt.
- A server that responds 429 is not asked for events of any room before the time it names.
- A server that invents an endless past costs a bounded number of requests, events and seconds. Then
  the gap is closed with a state, or stays open.
- Gaps that cannot be filled are reported, and the caller decides when to retry.

spec: server-server-api#backfilling-and-retrieving-missing-events,
server-server-api#checks-performed-on-receipt-of-a-pdu
"""

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.peers.federation_policy import FederationPolicy
from federation.peers.identity import ServerIdentity
from federation.peers.peer_backoff import PeerBackoff
from federation.protocol.errors import Forbidden, MatrixError, RemoteError
from federation.protocol.events import Event
from federation.protocol.ids import EventID, RoomID, ServerName
from federation.protocol.policy_server import NAMING, find_naming
from federation.remote.events import EventClient
from federation.rooms.engine import RoomEngine
from federation.rooms.events import RoomEvents
from federation.rooms.receive.batch import Outcome, make_dropped, parse_events, sort_by_reference
from federation.rooms.receive.receiver import Receiver
from federation.rooms.receive.remote_states import RemoteStates
from federation.rooms.receive.unverified_events import UnverifiedStateEvents
from federation.rooms.room_servers import RoomServers
from federation.rooms.snapshot import RoomSnapshot
from storage.events.timelines import TimelineStore

MAX_ROUNDS: Final = 10
"""Requests to one server, each for events further back."""
PAGE: Final = 100
"""Events per request; servers may send fewer."""
MAX_POOL: Final = 1000
"""Events that are fetched for one gap."""
MAX_LATEST: Final = 20
"""Events that one request starts from."""
MAX_STATES: Final = 4
"""Events at the edge of a gap whose states are requested."""
MAX_AUTH_CHAINS: Final = 10
MAX_SERVERS: Final = 4
MAX_SECONDS: Final = 120.0
"""After this time no other server is tried."""
REMOVALS: Final = frozenset({"leave", "ban"})
CHUNK: Final = 100
"""Events that are received at a time. Our own users have their turn between two chunks."""


FindRefused = Callable[[int, Iterable[Event], Event | None], Awaitable[Collection[EventID]]]
"""Returns the past events of a room (its number) that its policy server (the event that names it)
refuses. Raises RemoteError while it is unavailable."""


class GapEvents:
    """The events of one room that are received together: the given ones, and those fetched for
    them."""

    def __init__(self, *, initial: Iterable[Event], until: float) -> None:
        """`until`: when requests for them to the current server end."""
        self.until = until
        self._initial = {event.event_id: event for event in initial}
        self._events = dict(self._initial)
        self.outcomes: dict[EventID, Outcome] = {}
        self.refused: Collection[EventID] = ()
        """Events that the room's policy server refuses."""

    def __len__(self) -> int:
        return len(self._events)

    @property
    def initial(self) -> Collection[EventID]:
        """The IDs of the events that the gap was found for."""
        return self._initial.keys()

    @property
    def open(self) -> Mapping[EventID, Event]:
        """The events that have no final outcome yet."""
        return {
            name: event
            for name, event in self._events.items()
            if (outcome := self.outcomes.get(name)) is None or outcome.is_waiting
        }

    def references(self) -> set[EventID]:
        """Return the prev_events of the open events that are not among these events."""
        return {
            name
            for event in self.open.values()
            for name in event.prev_events
            if name not in self._events
        }

    def is_done(self) -> bool:
        """Return whether each of the initial events has a final outcome."""
        return all(
            name in self.outcomes and not self.outcomes[name].is_waiting for name in self._initial
        )

    def add(self, found: Mapping[EventID, Event], wanted: Iterable[EventID]) -> int:
        """Add wanted events and their ancestors, as far as they were found. Return the number of
        new ones."""
        stack, before = list(wanted), len(self._events)
        while stack and len(self._events) < MAX_POOL:
            event_id = stack.pop()
            if event_id in found and event_id not in self._events:
                self._events[event_id] = found[event_id]
                stack += found[event_id].prev_events
        return len(self._events) - before

    def discard_fetched(self) -> None:
        """Remove all but the initial events."""
        self._events = dict(self._initial)


class MissingEvents:
    """Fetches missing events of rooms. Use this class only on the reactor thread."""

    # More than ten: it asks other servers, checks, and places what it gets.
    def __init__(
        self,
        *,
        engine: RoomEngine,
        events: RoomEvents,
        receiver: Receiver,
        states: RemoteStates,
        unverified: UnverifiedStateEvents,
        remote: EventClient,
        servers: RoomServers,
        policy: FederationPolicy,
        find_refused: FindRefused,
        identity: ServerIdentity,
        timelines: TimelineStore,
        clock: IReactorTime,
    ) -> None:
        self._find_refused = find_refused
        self._timelines = timelines
        self._engine = engine
        self._events = events
        self._receiver = receiver
        self._states = states
        self._unverified = unverified
        self._remote = remote
        self._servers = servers
        self._policy = policy
        self._identity = identity
        self._clock = clock
        self._backoff: PeerBackoff[ServerName] = PeerBackoff(
            now_ms=lambda: int(clock.seconds() * 1000)
        )
        self._log = Logger()

    async def receive(
        self,
        room_id: RoomID,
        events: Sequence[Event],
        origin: ServerName | None = None,
        *,
        is_past: bool = False,
        walk: bool = True,
        fetched: Mapping[EventID, Event] | None = None,
        seconds: float = MAX_SECONDS,
    ) -> Mapping[EventID, Outcome]:
        """Receive events of a room and fetch what they refer to; return an outcome for each.

        Events that still wait could not be placed with what the servers sent. `origin` is asked
        first. `is_past`: they do not count as new. `walk`: request the events between them and
        known ones; else only the state at the gap. `fetched`: events of the gap that were fetched
        before. `seconds`: the time limit of all requests. Raises NotFound when this server is not
        in the room.
        """
        snapshot = await self._engine.get_snapshot(room_id)
        pool = GapEvents(initial=events, until=self._clock.seconds() + seconds)
        if fetched is not None:
            pool.add(await self._filter_unplaced(snapshot, fetched), pool.references())
        if is_past and not await self._ask_policy_server(snapshot, pool):
            return {name: Outcome(name, None, awaits_policy_server=True) for name in pool.initial}
        await self._receive_pool(pool, room_id, is_past)
        if not pool.is_done():
            present = await self._servers.in_room(snapshot.room.room_nid)
            chosen = await self.choose_servers(snapshot, origin)
            end = pool.until
            for server in chosen:
                time_left = end - self._clock.seconds()
                pool.until = end if server == chosen[-1] else self._clock.seconds() + time_left / 2
                try:
                    await self._fill_from(
                        server, snapshot, pool, is_past, walk, use_states=server in present
                    )
                except (RemoteError, Forbidden) as error:
                    self._log.info(
                        "a gap in {room_id} is not filled: {error}",
                        room_id=room_id,
                        error=str(error),
                    )
                    self.record_failure(server, error)
                if pool.is_done() or self._clock.seconds() > end:
                    break
                pool.discard_fetched()  # that server may have invented all of it
        await self._receive_removals(pool, room_id)
        return {name: pool.outcomes[name] for name in pool.initial}

    async def _ask_policy_server(self, snapshot: RoomSnapshot, pool: GapEvents) -> bool:
        """Ask the room's policy server about past events. Return whether it answered."""
        named = find_naming(await snapshot.state.load(NAMING))
        if named is None:
            return True
        try:
            pool.refused = await self._find_refused(
                snapshot.room.room_nid, pool.open.values(), named.event
            )
        except (RemoteError, MatrixError) as error:
            self._log.info(
                "the past of {room_id} waits: {error}", room_id=snapshot.room_id, error=str(error)
            )
            return False
        return True

    async def _receive_removals(self, pool: GapEvents, room_id: RoomID) -> None:
        """In a room with partial state, receive removals of our users whose past cannot be fetched.

        If no local user is left in the room, other servers send us no more of its events. So the
        events before the removal and the rest of the state may never arrive.
        """
        removals = [
            event
            for name, event in pool.open.items()
            if name in pool.initial
            and event.membership in REMOVALS
            and event.state_key is not None
            and self._identity.is_local(event.state_key)
        ]
        if removals and (await self._engine.get_snapshot(room_id)).head.partial_join is not None:
            outcomes = await self._receiver.receive(room_id, removals, allow_gap=True)
            pool.outcomes.update(zip((event.event_id for event in removals), outcomes, strict=True))

    async def choose_servers(
        self, snapshot: RoomSnapshot, first: ServerName | None = None
    ) -> list[ServerName]:
        """Return servers to ask: `first` if it is in the room, then those that joined earliest.

        If `first` is not in the room it comes last. Report failures with `record_failure`.
        """
        since = await self._servers.in_room(snapshot.room.room_nid)
        candidates = sorted(since, key=lambda server: (since[server], server))
        chosen = [first] if first is not None and first in since else []
        chosen += [
            server for server in candidates if server not in (first, self._identity.server_name)
        ]
        if first is not None and first not in since:
            chosen.append(first)
        return [
            server
            for server in chosen
            if self._policy.allows(server) and not self._backoff.left_ms(server)
        ][:MAX_SERVERS]

    def record_failure(self, server: ServerName, failure: Exception) -> None:
        """Record that a request for events failed, and respect the server's Retry-After."""
        self._backoff.record_failure(server, failure)

    async def _fill_from(
        self,
        server: ServerName,
        snapshot: RoomSnapshot,
        pool: GapEvents,
        is_past: bool,
        walk: bool,
        *,
        use_states: bool,
    ) -> None:
        """Fill the gap from one server. `use_states`: whether its states are used, too."""
        if walk:
            await self._walk(server, snapshot, pool)
            await self._receive_pool(pool, snapshot.room_id, is_past)
        lacking_auth = [name for name in pool.open if pool.outcomes[name].missing_auth]
        for name in lacking_auth[:MAX_AUTH_CHAINS]:
            if self._is_timed_out(pool):
                return
            outcome = pool.outcomes[name]
            await self._states.fetch_auth_chain(
                server,
                snapshot,
                pool.open[name],
                outcome.missing_auth,
                time_left=lambda: self._seconds_left(pool),
            )
        states: dict[EventID, Collection[EventID]] = {}
        # the state may have become complete meanwhile; until then the events wait for it
        if (
            use_states
            and (await self._engine.get_snapshot(snapshot.room_id)).head.partial_join is None
        ):
            edges = await self._find_edges(snapshot, pool)
            if len(edges) > MAX_STATES:
                pool.discard_fetched()
                edges = await self._find_edges(snapshot, pool)
            for name in edges[:MAX_STATES]:
                if not self._is_timed_out(pool):
                    remote_state = await self._states.fetch_state(
                        server, snapshot, name, time_left=lambda: self._seconds_left(pool)
                    )
                    await self._unverified.store(snapshot.room.room_nid, remote_state.left_out)
                    states[name] = remote_state.event_ids
        if lacking_auth or states:
            await self._receive_pool(pool, snapshot.room_id, is_past, states)

    async def _walk(self, server: ServerName, snapshot: RoomSnapshot, pool: GapEvents) -> None:
        """Request the events between the pool and known events."""
        head = (await self._engine.get_snapshot(snapshot.room_id)).head
        earliest = [EventID(event_id) for _, event_id in head.extremities]
        # the events before our oldest event (such as our join) are the past: they do not count as
        # new, and are backfilled when a client reads them
        ends = await self._timelines.get_backward_extremities(snapshot.room.room_nid)
        min_depth = min(ends.values(), default=0)
        if head.partial_join is not None:  # nothing before our join is of use now
            join = (await self._events.get_events([head.partial_join]))[head.partial_join]
            earliest += join.event.prev_events[:MAX_LATEST]
        for _ in range(MAX_ROUNDS):
            missing = await self._find_missing(snapshot, pool)
            edges = [
                name
                for name, event in pool.open.items()
                if not missing.isdisjoint(event.prev_events)
            ]
            if not edges or len(pool) >= MAX_POOL or self._is_timed_out(pool):
                return
            pdus = await self._remote.get_missing_events(
                server,
                snapshot.room_id,
                earliest=earliest[-MAX_LATEST:],
                latest=edges[-MAX_LATEST:],
                limit=min(PAGE, MAX_POOL - len(pool)),
                min_depth=min_depth,
                seconds=self._seconds_left(pool),
            )
            found = await parse_events(snapshot.version, snapshot.room_id, pdus, self._clock)
            recent = {name: event for name, event in found.items() if event.depth >= min_depth}
            if not pool.add(await self._filter_unplaced(snapshot, recent), missing):
                return

    async def _filter_unplaced(
        self, snapshot: RoomSnapshot, found: Mapping[EventID, Event]
    ) -> Mapping[EventID, Event]:
        """Return the events that are not placed yet. Those before a placed one are not in the
        gap."""
        known = await self._events.get_by_id(snapshot.room.room_nid, found)
        placed = {name for name, stored in known.items() if not stored.is_outlier}
        return {name: event for name, event in found.items() if name not in placed}

    def _is_timed_out(self, pool: GapEvents) -> bool:
        return self._seconds_left(pool) <= 0

    def _seconds_left(self, pool: GapEvents) -> float:
        return pool.until - self._clock.seconds()

    async def _find_missing(self, snapshot: RoomSnapshot, pool: GapEvents) -> set[EventID]:
        """Return the IDs of events that open events follow and that are not placed here."""
        names = pool.references()
        known = await self._events.get_by_id(snapshot.room.room_nid, names)
        return {name for name in names if name not in known or known[name].is_outlier}

    async def _find_edges(self, snapshot: RoomSnapshot, pool: GapEvents) -> list[EventID]:
        """Return the open events that follow an event that is not placed here."""
        missing = await self._find_missing(snapshot, pool)
        return [
            name for name, event in pool.open.items() if not missing.isdisjoint(event.prev_events)
        ]

    async def _receive_pool(
        self,
        pool: GapEvents,
        room_id: RoomID,
        is_past: bool,
        states: Mapping[EventID, Collection[EventID]] | None = None,
    ) -> None:
        ordered, circular = sort_by_reference(pool.open)
        for event in circular:
            pool.outcomes[event.event_id] = make_dropped(
                event, "The event is part of a cycle of references"
            )
        for start in range(0, len(ordered), CHUNK):
            chunk = ordered[start : start + CHUNK]
            outcomes = await self._receiver.receive(
                room_id, chunk, is_past=is_past, states=states, refused=pool.refused, may_wait=True
            )
            for event, outcome in zip(chunk, outcomes, strict=True):
                pool.outcomes[event.event_id] = outcome
