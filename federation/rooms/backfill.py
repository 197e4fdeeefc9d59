"""A room's past, as far as this server does not have it: fetched from other servers when one of our users reads back.

- The places where the known past ends are stored with their depth, so that a page knows whether it meets one.
- One fetch a room is under way at a time, for all who wait; they wait so long, and then read what is here while it goes on.
- Where nobody could help, nobody is asked again for a while.

spec: server-server-api#backfilling-and-retrieving-missing-events
"""

from enum import Enum
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.protocol.errors import Forbidden, MatrixError, RemoteError
from federation.protocol.ids import EventID, ServerName
from federation.remote.events import RemoteEvents
from federation.rooms.missing import MissingEvents, Pool
from federation.rooms.servers import RoomServers
from federation.rooms.snapshots import RoomSnapshot
from storage.timelines import TimelineStore

PAGE: Final = 100
"""Events that are asked for at once."""
MAX_ENDS: Final = 5
"""From how many places at once the past is asked for."""
LONGEST_WAIT: Final = 20.0
"""Seconds that a reader waits."""
REST: Final = 60.0
"""Seconds after which servers that could not help are asked again."""


class Gap(Enum):
    """What there is between two depths of a room."""

    NONE = "none"
    """All of it is here."""
    FILLED = "filled"
    """Some of what was missing has come."""
    OPEN = "open"
    """Something is missing, and cannot be had now."""


class Backfill:
    """Fetches the past. For the reactor thread."""

    def __init__(
        self,
        timelines: TimelineStore,
        servers: RoomServers,
        missing: MissingEvents,
        remote: RemoteEvents,
        clock: IReactorTime,
    ) -> None:
        self._timelines = timelines
        self._servers = servers
        self._missing = missing
        self._remote = remote
        self._clock = clock
        self._waiting: dict[int, list[Deferred[Gap]]] = {}
        """Who waits for the fetch that is under way in a room."""
        self._resting: dict[int, float] = {}
        """Rooms for which nobody could help, and until when they rest."""
        self._log = Logger()

    async def fill(self, snapshot: RoomSnapshot, lowest: int, highest: int) -> Gap:
        """Fetch some of what is missing between two depths. No request, and at most one query, where nothing is."""
        room_nid = snapshot.room.room_nid
        if not await self._servers.in_room(room_nid):
            return Gap.NONE
        ends = await self._timelines.get_backward_extremities(room_nid)
        within = sorted((name for name, depth in ends.items() if lowest <= depth <= highest), key=lambda n: -ends[n])
        if not within:
            return Gap.NONE
        if self._resting.get(room_nid, 0) > self._clock.seconds():
            return Gap.OPEN
        wait: Deferred[Gap] = Deferred()
        if room_nid in self._waiting:
            self._waiting[room_nid].append(wait)
        else:
            self._waiting[room_nid] = [wait]
            work = self._work(snapshot, [EventID(name) for name in within[:MAX_ENDS]])
            Deferred.fromCoroutine(work).addErrback(
                lambda failure: self._log.failure("the past of a room could not be fetched", failure)
            )
        wait.addTimeout(LONGEST_WAIT, self._clock)
        try:
            return await wait
        except TimedOut:
            return Gap.OPEN

    async def _work(self, snapshot: RoomSnapshot, ends: list[EventID]) -> None:
        room_nid = snapshot.room.room_nid
        filled = False
        try:
            filled = await self._fetch(snapshot, ends)
        finally:
            if filled:
                self._resting.pop(room_nid, None)
            else:
                self._rest(room_nid)
            for wait in self._waiting.pop(room_nid):
                if not wait.called:
                    wait.callback(Gap.FILLED if filled else Gap.OPEN)

    def _rest(self, room_nid: int) -> None:
        now = self._clock.seconds()
        self._resting = {nid: until for nid, until in self._resting.items() if until > now}
        self._resting[room_nid] = now + REST

    async def _fetch(self, snapshot: RoomSnapshot, ends: list[EventID]) -> bool:
        """Whether anything has found its place."""
        for server in await self._missing.choose_servers(snapshot):
            try:
                if await self._fetch_from(server, snapshot, ends):
                    return True
            except (RemoteError, Forbidden) as error:
                self._log.info("{server} does not give the past: {error}", server=server, error=str(error))
            except MatrixError:
                return False  # this server is no longer in the room
        return False

    async def _fetch_from(self, server: ServerName, snapshot: RoomSnapshot, ends: list[EventID]) -> bool:
        pdus = await self._remote.get_backfill(server, snapshot.room_id, ends, PAGE)
        found = Pool(snapshot.version, snapshot.room_id).parse(pdus)
        given = [found[name] for name in ends if name in found]
        if not given:
            return False
        outcomes = await self._missing.take_in(snapshot.room_id, given, server, past=True, walk=False, fetched=found)
        return any(outcome.verdict is not None or outcome.was_known for outcome in outcomes.values())
