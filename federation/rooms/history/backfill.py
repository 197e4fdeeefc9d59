"""Fetches earlier events of a room that this server does not have, when a local user paginates
back.

- The backward extremities are stored with their depths. So one query finds out whether events are
  missing between the lowest and the highest depth on a page.
- Messages that this server purged because all local users had forgotten the room are fetched again
  (`history_refetch.py`).
- A room has one fetch at a time on each node, which all readers share. A reader waits with a time
  limit and then gets what is stored. The fetch continues.
- If no server could help, none is asked for this room for a minute.

spec: server-server-api#backfilling-and-retrieving-missing-events
"""

from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.peers.client import RefusedByRemote, get_retry_after_ms
from federation.peers.peer_backoff import PeerBackoff
from federation.peers.shared_work import SharedWork
from federation.protocol.errors import Forbidden, MatrixError, RemoteError
from federation.protocol.events import Event
from federation.protocol.ids import EventID, ServerName
from federation.remote.events import EventClient
from federation.rooms.history.history_refetch import HistoryRefetch, RefetchResult
from federation.rooms.receive.batch import parse_events
from federation.rooms.receive.missing_events import MissingEvents
from federation.rooms.room_servers import RoomServers
from federation.rooms.snapshot import RoomSnapshot
from storage.events.timelines import Gaps, TimelineStore

PAGE: Final = 100
"""Events per request."""
MAX_EXTREMITIES: Final = 5
"""Backward extremities per request."""
MAX_WAIT: Final = 20.0
"""Seconds that a reader waits."""
BACKOFF_MS: Final = 60_000
"""Pause in milliseconds before we ask again after no server could help."""


class Gap(Enum):
    """The state of the history between two depths of a room."""

    NONE = "none"
    """Nothing is missing."""
    FILLED = "filled"
    """Some missing events have been fetched."""
    OPEN = "open"
    """Events are missing, and cannot be fetched now."""


class Backfill:
    """Fetches earlier events of rooms. Use this class only on the reactor thread."""

    def __init__(
        self,
        *,
        timelines: TimelineStore,
        servers: RoomServers,
        missing: MissingEvents,
        remote: EventClient,
        refetch: HistoryRefetch,
        clock: IReactorTime,
    ) -> None:
        self._timelines = timelines
        self._servers = servers
        self._missing = missing
        self._remote = remote
        self._refetch = refetch
        self._clock = clock
        self._work: SharedWork[int, Gap] = SharedWork()
        self._backoff: PeerBackoff[int] = PeerBackoff(now_ms=lambda: int(clock.seconds() * 1000))
        """Rooms for which no server could help."""
        self._log = Logger()

    async def fill(self, snapshot: RoomSnapshot, lowest: int, highest: int) -> Gap:
        """Fetch some missing events between two depths.

        Makes no request, and at most one query, if nothing is missing.
        """
        room_nid = snapshot.room.room_nid
        if not await self._servers.in_room(room_nid):
            return Gap.NONE
        gaps = await self._timelines.get_gaps(room_nid, lowest, highest)
        if not gaps.ends and gaps.purged_message is None:
            return Gap.NONE
        if self._backoff.left_ms(room_nid):
            return Gap.OPEN
        wait = Deferred.fromCoroutine(self._work.run(room_nid, lambda: self._try(snapshot, gaps)))
        try:
            return await wait.addTimeout(MAX_WAIT, self._clock)
        except TimedOut:
            return Gap.OPEN

    async def _try(self, snapshot: RoomSnapshot, gaps: Gaps) -> Gap:
        try:
            is_filled = await self._fetch(snapshot, gaps)
        except Exception:  # an unexpected error, or the database is away
            self._log.failure("the past of a room could not be fetched")
            is_filled = False
        if is_filled:
            return Gap.FILLED
        self._backoff.pause(snapshot.room.room_nid, BACKOFF_MS)
        return Gap.OPEN

    async def _fetch(self, snapshot: RoomSnapshot, gaps: Gaps) -> bool:
        """Return whether anything was placed, restored or given up."""
        useless: set[int] = set()
        for server in await self._missing.choose_servers(snapshot):
            try:
                if await self._fetch_from(server, snapshot, gaps, useless):
                    return True
            except (RemoteError, Forbidden) as error:
                self._log.info(
                    "{server} does not send the past: {error}", server=server, error=str(error)
                )
                self._missing.record_failure(server, error)
            except MatrixError:
                return False  # this server is no longer in the room
        if useless:
            await self._refetch.give_up(useless)
        return bool(useless)

    async def _fetch_from(
        self, server: ServerName, snapshot: RoomSnapshot, gaps: Gaps, useless: set[int]
    ) -> bool:
        try:
            if gaps.ends and await self._fetch_ends(
                server, snapshot, [EventID(name) for name in gaps.ends[:MAX_EXTREMITIES]]
            ):
                return True
        except RefusedByRemote as error:
            if gaps.purged_message is None or get_retry_after_ms(error):
                raise
        if gaps.purged_message is None:
            return False
        # a past that no server has must not block what can be restored
        _, restored = await self._request(server, snapshot, [EventID(gaps.purged_message)])
        useless |= restored.useless
        return restored.count > 0

    async def _request(
        self, server: ServerName, snapshot: RoomSnapshot, extremities: Sequence[EventID]
    ) -> tuple[Mapping[EventID, Event], RefetchResult]:
        """Request events; return them, and the result of restoring purged messages."""
        pdus = await self._remote.get_backfill(server, snapshot.room_id, extremities, PAGE)
        found = await parse_events(snapshot.version, snapshot.room_id, pdus, self._clock)
        return found, await self._refetch.restore(snapshot, found)

    async def _fetch_ends(
        self, server: ServerName, snapshot: RoomSnapshot, ends: Sequence[EventID]
    ) -> bool:
        found, restored = await self._request(server, snapshot, ends)
        received = [found[name] for name in ends if name in found]
        if not received:
            return restored.count > 0
        outcomes = await self._missing.receive(
            snapshot.room_id, received, server, is_past=True, walk=False, fetched=found
        )
        return restored.count > 0 or any(
            outcome.verdict is not None or outcome.was_known for outcome in outcomes.values()
        )
