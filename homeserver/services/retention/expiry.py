"""Purges messages that are older than the retention policy of their room allows.

Each entry of the option `purge_jobs` is a job with its own interval. The job purges the rooms
whose message lifetime is in the entry's range. One more job purges the rooms that no entry covers.
Expired messages are hidden already (`federation/rooms/history/retention.py`), so it does not matter
when a job runs.

Proposal: MSC1763
"""

from collections.abc import Callable
from typing import Final

from twisted.logger import Logger

from federation.protocol.retention import UNBOUNDED
from federation.rooms.history.purging import MessagePurging
from federation.rooms.history.retention import RoomRetentionCache
from homeserver.observe.metrics import RetentionMetrics
from homeserver.services.retention.trusted_clock import TrustedClock
from storage.engine.interface import DatabaseUnavailable
from storage.retention.purging import BEFORE_FIRST, PurgeCause, PurgingStore
from storage.retention.room_retention import RoomRetentionStore

ROOM_BATCH: Final = 500
"""Rooms that one query checks for expired messages."""
BATCH: Final = 100
"""Messages that are purged in one write: this takes some milliseconds of the writer."""


class MessageExpiry:
    """Runs the steps of a job that goes through all rooms."""

    _log = Logger()

    def __init__(
        self,
        *,
        lifetimes: RoomRetentionCache,
        rooms: RoomRetentionStore,
        store: PurgingStore,
        purging: MessagePurging,
        time: TrustedClock,
        metrics: RetentionMetrics,
        is_for: Callable[[int], bool],
    ) -> None:
        """`is_for`: whether this job handles rooms with a lifetime."""
        self._lifetimes = lifetimes
        self._rooms = rooms
        self._store = store
        self._purging = purging
        self._time = time
        self._metrics = metrics
        self._is_for = is_for
        self._upto = 0
        """The number of the last checked room."""
        self._has_purged = False
        """Whether this pass over the rooms has purged a message."""

    async def do_step(self, limit: int) -> int:
        """Purge up to `limit` messages and return their number. After the last room the next step
        starts a new pass.

        Purges nothing while the clock is not trusted.
        """
        now = await self._time.read()
        if now is None:
            return 0
        done = 0
        while True:
            rooms = await self._rooms.get_rooms(self._upto, ROOM_BATCH)
            lifetimes = await self._lifetimes.get(rooms)
            oldest = {
                nid: now - lifetime
                for nid, lifetime in lifetimes.items()
                if lifetime < UNBOUNDED and self._is_for(lifetime)
            }
            for room_nid in await self._store.find_rooms(oldest) if oldest else ():
                done += await self._purge_safely(room_nid, oldest[room_nid], limit - done)
                self._has_purged = True
                if done >= limit:
                    return done
            if len(rooms) < ROOM_BATCH:
                self._upto = 0
                if self._has_purged:
                    self._has_purged = False
                    await self._purging.truncate_log()
                return done
            self._upto = rooms[-1]

    async def _purge_safely(self, room_nid: int, before_ms: int, limit: int) -> int:
        """Purge a room as `_purge` does. An unexpected error in one room does not stop the
        others."""
        try:
            return await self._purge(room_nid, before_ms, limit)
        except DatabaseUnavailable:
            raise
        except Exception:
            self._log.failure(
                "expired messages of the room with number {room} could not be purged", room=room_nid
            )
            self._metrics.failures.inc()
            return 0

    async def _purge(self, room_nid: int, before_ms: int, limit: int) -> int:
        done, after = 0, BEFORE_FIRST
        while done < limit:
            messages = await self._store.get_older(
                room_nid, before_ms, after, min(BATCH, limit - done)
            )
            if not messages:
                break
            # messages that could not be read are skipped and not counted, so that the job ends
            done += await self._purging.purge(room_nid, messages, PurgeCause.RETENTION)
            after = (messages[-1].origin_server_ts, messages[-1].event_nid)
        return done
