"""Deletes for good what is older than its room keeps it: a job for each of the intervals that the
operator wants.

What is that old is shown to nobody any more already (`federation/rooms/history/retention.py`), so
nothing depends on when this comes by.

proposal: MSC1763
"""

from collections.abc import Callable
from typing import Final

from twisted.logger import Logger

from federation.protocol.retention import UNBOUNDED
from federation.rooms.history.purging import Purging
from federation.rooms.history.retention import Lifetimes
from homeserver.observe.metrics import RetentionMetrics
from homeserver.services.retention.trusted_clock import BelievedTime
from storage.engine.interface import DatabaseUnavailable
from storage.retention.purging import BEFORE_ALL, Cause, PurgingStore
from storage.retention.room_retention import RoomLifetimeStore

ROOMS_AT_ONCE: Final = 500
"""Rooms that are asked together whether anything in them is too old."""
AT_ONCE: Final = 100
"""Messages that are purged in one write: the writer is held for some milliseconds."""


class MessageExpiry:
    """The steps of a job that goes through the rooms."""

    _log = Logger()

    def __init__(
        self,
        lifetimes: Lifetimes,
        rooms: RoomLifetimeStore,
        store: PurgingStore,
        purging: Purging,
        time: BelievedTime,
        metrics: RetentionMetrics,
        is_for: Callable[[int], bool],
    ) -> None:
        """`is_for`: whether rooms with this lifetime are looked through by this job."""
        self._lifetimes = lifetimes
        self._rooms = rooms
        self._store = store
        self._purging = purging
        self._time = time
        self._metrics = metrics
        self._is_for = is_for
        self._upto = 0
        """The number of the last room that was looked at."""
        self._has_purged = False
        """Something, since it began with the first room."""

    async def do_step(self, limit: int) -> int:
        """Purge up to so many messages; how many it were. After the last room it begins anew the
        next time.

        None are purged while the clock is not believed.
        """
        now = await self._time.read()
        if now is None:
            return 0
        done = 0
        while True:
            rooms = await self._rooms.get_rooms(self._upto, ROOMS_AT_ONCE)
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
            if len(rooms) < ROOMS_AT_ONCE:
                self._upto = 0
                if self._has_purged:
                    self._has_purged = False
                    await self._purging.end()
                return done
            self._upto = rooms[-1]

    async def _purge_safely(self, room_nid: int, before_ms: int, limit: int) -> int:
        """As `_purge`; a room in which that fails by a bug of ours holds up no other."""
        try:
            return await self._purge(room_nid, before_ms, limit)
        except DatabaseUnavailable:
            raise
        except Exception:
            self._log.failure(
                "the old messages of the room with number {room} could not be purged", room=room_nid
            )
            self._metrics.failures.inc()
            return 0

    async def _purge(self, room_nid: int, before_ms: int, limit: int) -> int:
        done, after = 0, BEFORE_ALL
        while done < limit:
            messages = await self._store.get_older(
                room_nid, before_ms, after, min(AT_ONCE, limit - done)
            )
            if not messages:
                break
            # what could not be read is passed over, and not counted: else the job would find work
            # without end
            done += await self._purging.purge(room_nid, messages, Cause.RETENTION)
            after = (messages[-1].origin_server_ts, messages[-1].event_nid)
        return done
