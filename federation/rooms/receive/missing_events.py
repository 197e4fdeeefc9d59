"""Events that refer to what this server does not have: how the gap is filled, from the servers in
the room.

1. What lies between is asked for (`get_missing_events`), a few times, back to what is known.
2. Auth events that lack are fetched with their chains.
3. Where the past still has a gap, the state before the events at its edge is asked for, and they
   are placed upon it.

Laws:
- Who sent the events is asked first, then a few others in the room; one that is not in it comes
  last, and is not believed about any state. None but the last has more than half of the time that
  is left. Nobody is believed about more than was asked: what does not precede the events is passed
  over, and everything goes through the checks on receipt.
- Who says when to come again (429) is not asked for events of any room before that.
- A server that makes up a past without end costs so many requests, events and seconds, and then its
  gap is closed by a state (or not at all). Nothing here loops until something comes.
- What cannot be filled is told; whoever called decides when to try again.

spec: server-server-api#backfilling-and-retrieving-missing-events,
server-server-api#checks-performed-on-receipt-of-a-pdu
"""

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.peers.identity import ServerIdentity
from federation.peers.peer_backoff import PeerBackoff
from federation.peers.policy import Policy
from federation.protocol.errors import Forbidden, MatrixError, RemoteError
from federation.protocol.events import Event
from federation.protocol.ids import EventID, RoomID, ServerName
from federation.protocol.policy_server import NAMING, find_naming
from federation.remote.events import RemoteEvents
from federation.rooms.engine import RoomEngine
from federation.rooms.events import RoomEvents
from federation.rooms.receive.batch import Outcome, dropped, parse_events, sort_by_reference
from federation.rooms.receive.receiver import Receiver
from federation.rooms.receive.remote_states import RemoteStates
from federation.rooms.receive.unverified_events import UnprovedStates
from federation.rooms.room_servers import RoomServers
from federation.rooms.snapshot import RoomSnapshot
from storage.events.timelines import TimelineStore

MAX_ROUNDS: Final = 10
"""How often one server is asked for what lies still further back."""
PAGE: Final = 100
"""Events that are asked for at once; servers may give fewer."""
MAX_POOL: Final = 1000
"""Events that one gap may bring."""
MAX_LATEST: Final = 20
"""Events from which one request goes back."""
MAX_STATES: Final = 4
"""Events at the edge of a gap whose states are asked for."""
MAX_AUTH_CHAINS: Final = 10
MAX_SERVERS: Final = 4
MAX_SECONDS: Final = 120.0
"""After so long no other server is tried."""
PUT_OUT: Final = frozenset({"leave", "ban"})
CHUNK: Final = 100
"""Events that are taken in at a time: between two chunks our own users have their turn."""


FindRefused = Callable[[int, Iterable[Event], Event | None], Awaitable[Collection[EventID]]]
"""Which events of the past of a room (its number) its policy server (the event that names it) does
not let pass. Raises RemoteError while it cannot be asked."""


class Pool:
    """Events of one room that are to be taken in together: those given, and what was fetched for
    them."""

    def __init__(self, given: Iterable[Event], until: float) -> None:
        """`until`: when nothing more is asked for them, of the server that is being asked."""
        self.until = until
        self._given = {event.event_id: event for event in given}
        self._events = dict(self._given)
        self.outcomes: dict[EventID, Outcome] = {}
        self.refused: Collection[EventID] = ()
        """What the room's policy server does not let pass."""

    def __len__(self) -> int:
        return len(self._events)

    @property
    def given(self) -> Collection[EventID]:
        """The events that all this is about."""
        return self._given.keys()

    @property
    def open(self) -> Mapping[EventID, Event]:
        """The events that have no final outcome yet."""
        return {
            name: event
            for name, event in self._events.items()
            if (outcome := self.outcomes.get(name)) is None or outcome.is_waiting
        }

    def references(self) -> set[EventID]:
        """What the open events follow and is not in the pool."""
        return {
            name
            for event in self.open.values()
            for name in event.prev_events
            if name not in self._events
        }

    def is_done(self) -> bool:
        """Whether each of the given events has its outcome."""
        return all(
            name in self.outcomes and not self.outcomes[name].is_waiting for name in self._given
        )

    def add(self, found: Mapping[EventID, Event], wanted: Iterable[EventID]) -> int:
        """Add the wanted ones of these events and what they follow, as far as it is among them; how
        many are new."""
        stack, before = list(wanted), len(self._events)
        while stack and len(self._events) < MAX_POOL:
            event_id = stack.pop()
            if event_id in found and event_id not in self._events:
                self._events[event_id] = found[event_id]
                stack += found[event_id].prev_events
        return len(self._events) - before

    def forget_fetched(self) -> None:
        """Go back to the given events."""
        self._events = dict(self._given)


class MissingEvents:
    """Fills gaps. For the reactor thread."""

    def __init__(
        self,
        engine: RoomEngine,
        events: RoomEvents,
        receiver: Receiver,
        states: RemoteStates,
        unproved: UnprovedStates,
        remote: RemoteEvents,
        servers: RoomServers,
        policy: Policy,
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
        self._unproved = unproved
        self._remote = remote
        self._servers = servers
        self._policy = policy
        self._identity = identity
        self._clock = clock
        self._backoff: PeerBackoff[ServerName] = PeerBackoff(lambda: int(clock.seconds() * 1000))
        self._log = Logger()

    async def take_in(
        self,
        room_id: RoomID,
        events: Sequence[Event],
        origin: ServerName | None = None,
        *,
        past: bool = False,
        walk: bool = True,
        fetched: Mapping[EventID, Event] | None = None,
        seconds: float = MAX_SECONDS,
    ) -> Mapping[EventID, Outcome]:
        """Take in events of a room, fetching what they refer to; an outcome for each.

        Those that still wait could not be placed with what the servers gave. `origin` is asked
        first. `past`: they are no news. `walk`: what lies between them and what is known is asked
        for; else only the state at the gap. `fetched`: what was fetched of it before. `seconds`:
        after so long nothing more is asked for. Raises NotFound when this server is not in the
        room.
        """
        snapshot = await self._engine.get_snapshot(room_id)
        pool = Pool(events, self._clock.seconds() + seconds)
        if fetched is not None:
            pool.add(await self._without_placed(snapshot, fetched), pool.references())
        if past and not await self._judge(snapshot, pool):
            return {name: Outcome(name, None, is_unjudged=True) for name in pool.given}
        await self._take(pool, room_id, past)
        if not pool.is_done():
            there = await self._servers.in_room(snapshot.room.room_nid)
            chosen = await self.choose_servers(snapshot, origin)
            end = pool.until
            for server in chosen:
                left = end - self._clock.seconds()
                pool.until = end if server == chosen[-1] else self._clock.seconds() + left / 2
                try:
                    await self._fill_from(
                        server, snapshot, pool, past, walk, may_tell=server in there
                    )
                except (RemoteError, Forbidden) as error:
                    self._log.info(
                        "a gap in {room_id} is not filled: {error}",
                        room_id=room_id,
                        error=str(error),
                    )
                    self.heed(server, error)
                if pool.is_done() or self._clock.seconds() > end:
                    break
                pool.forget_fetched()  # it may all be an invention of that server
        await self._place_departures(pool, room_id)
        return {name: pool.outcomes[name] for name in pool.given}

    async def _judge(self, snapshot: RoomSnapshot, pool: Pool) -> bool:
        """Ask the room's policy server about all that is to be shown as the past; whether it could
        be asked."""
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

    async def _place_departures(self, pool: Pool, room_id: RoomID) -> None:
        """Where a part of the state is lacking: place what puts a user of ours out, though what it
        follows cannot be had.

        Who was put out is told nothing any more, so neither that nor the rest of the state may ever
        come.
        """
        departures = [
            event
            for name, event in pool.open.items()
            if name in pool.given
            and event.membership in PUT_OUT
            and event.state_key is not None
            and self._identity.is_local(event.state_key)
        ]
        if departures and (await self._engine.get_snapshot(room_id)).head.partial_join is not None:
            outcomes = await self._receiver.receive(room_id, departures, upon_gap=True)
            pool.outcomes.update(
                zip((event.event_id for event in departures), outcomes, strict=True)
            )

    async def choose_servers(
        self, snapshot: RoomSnapshot, first: ServerName | None = None
    ) -> list[ServerName]:
        """Servers that may be asked: that one first if it is in the room, or else last; and those
        who have been there longest. Tell what one fails with (`heed`)."""
        since = await self._servers.in_room(snapshot.room.room_nid)
        others = sorted(since, key=lambda server: (since[server], server))
        chosen = [first] if first is not None and first in since else []
        chosen += [server for server in others if server not in (first, self._identity.server_name)]
        if first is not None and first not in since:
            chosen.append(first)
        return [
            server
            for server in chosen
            if self._policy.allows(server) and not self._backoff.left_ms(server)
        ][:MAX_SERVERS]

    def heed(self, server: ServerName, failure: Exception) -> None:
        """A server was asked for events, and failed so: where that says how long to leave it alone,
        it is."""
        self._backoff.record_failure(server, failure)

    async def _fill_from(
        self,
        server: ServerName,
        snapshot: RoomSnapshot,
        pool: Pool,
        past: bool,
        walk: bool,
        *,
        may_tell: bool,
    ) -> None:
        """`may_tell`: the server is asked for states, too."""
        if walk:
            await self._walk(server, snapshot, pool)
            await self._take(pool, snapshot.room_id, past)
        lacking = [name for name in pool.open if pool.outcomes[name].missing_auth]
        for name in lacking[:MAX_AUTH_CHAINS]:
            if self._is_late(pool):
                return
            outcome = pool.outcomes[name]
            await self._states.fetch_auth_chain(
                server,
                snapshot,
                pool.open[name],
                outcome.missing_auth,
                left=lambda: self._left(pool),
            )
        states: dict[EventID, Collection[EventID]] = {}
        # the whole state may have come meanwhile; while it is on its way they wait for it
        if (
            may_tell
            and (await self._engine.get_snapshot(snapshot.room_id)).head.partial_join is None
        ):
            edges = await self._find_edges(snapshot, pool)
            if len(edges) > MAX_STATES:
                pool.forget_fetched()
                edges = await self._find_edges(snapshot, pool)
            for name in edges[:MAX_STATES]:
                if not self._is_late(pool):
                    told = await self._states.fetch_state(
                        server, snapshot, name, left=lambda: self._left(pool)
                    )
                    await self._unproved.note(snapshot.room.room_nid, told.left_out)
                    states[name] = told.event_ids
        if lacking or states:
            await self._take(pool, snapshot.room_id, past, states)

    async def _walk(self, server: ServerName, snapshot: RoomSnapshot, pool: Pool) -> None:
        """Ask for what lies between the pool and what is known."""
        head = (await self._engine.get_snapshot(snapshot.room_id)).head
        earliest = [EventID(event_id) for _, event_id in head.extremities]
        # what is before the oldest that is here (our join, say) is the past: no news, and read back
        # when somebody wants it
        ends = await self._timelines.get_backward_extremities(snapshot.room.room_nid)
        floor = min(ends.values(), default=0)
        if head.partial_join is not None:  # what was before our join is of no use now
            join = (await self._events.get_events([head.partial_join]))[head.partial_join]
            earliest += join.event.prev_events[:MAX_LATEST]
        for _ in range(MAX_ROUNDS):
            missing = await self._find_missing(snapshot, pool)
            edges = [
                name
                for name, event in pool.open.items()
                if not missing.isdisjoint(event.prev_events)
            ]
            if not edges or len(pool) >= MAX_POOL or self._is_late(pool):
                return
            pdus = await self._remote.get_missing_events(
                server,
                snapshot.room_id,
                earliest=earliest[-MAX_LATEST:],
                latest=edges[-MAX_LATEST:],
                limit=min(PAGE, MAX_POOL - len(pool)),
                min_depth=floor,
                seconds=self._left(pool),
            )
            found = await parse_events(snapshot.version, snapshot.room_id, pdus, self._clock)
            deep = {name: event for name, event in found.items() if event.depth >= floor}
            if not pool.add(await self._without_placed(snapshot, deep), missing):
                return

    async def _without_placed(
        self, snapshot: RoomSnapshot, found: Mapping[EventID, Event]
    ) -> Mapping[EventID, Event]:
        """The events that have no place here yet: what lies behind one that has is no part of the
        gap."""
        known = await self._events.get_by_id(snapshot.room.room_nid, found)
        placed = {name for name, stored in known.items() if not stored.is_outlier}
        return {name: event for name, event in found.items() if name not in placed}

    def _is_late(self, pool: Pool) -> bool:
        return self._left(pool) <= 0

    def _left(self, pool: Pool) -> float:
        return pool.until - self._clock.seconds()

    async def _find_missing(self, snapshot: RoomSnapshot, pool: Pool) -> set[EventID]:
        """What the open events follow, and has no place here."""
        names = pool.references()
        known = await self._events.get_by_id(snapshot.room.room_nid, names)
        return {name for name in names if name not in known or known[name].is_outlier}

    async def _find_edges(self, snapshot: RoomSnapshot, pool: Pool) -> list[EventID]:
        """The open events that follow something that has no place here."""
        missing = await self._find_missing(snapshot, pool)
        return [
            name for name, event in pool.open.items() if not missing.isdisjoint(event.prev_events)
        ]

    async def _take(
        self,
        pool: Pool,
        room_id: RoomID,
        past: bool,
        states: Mapping[EventID, Collection[EventID]] | None = None,
    ) -> None:
        ordered, circular = sort_by_reference(pool.open)
        for event in circular:
            pool.outcomes[event.event_id] = dropped(
                event, "The event refers to itself by what it refers to"
            )
        for start in range(0, len(ordered), CHUNK):
            chunk = ordered[start : start + CHUNK]
            outcomes = await self._receiver.receive(
                room_id, chunk, past=past, states=states, refused=pool.refused, may_wait=True
            )
            for event, outcome in zip(chunk, outcomes, strict=True):
                pool.outcomes[event.event_id] = outcome
