"""Returns the time for purges by age, unless the wall clock cannot be trusted.

A clock that is ahead makes messages expire too early. When it is corrected, messages that were only
hidden reappear, but purged messages are lost. So nothing is purged by age for a day after the clock
jumped forward. During this pause an operator can correct a wrong clock. If the clock was right,
messages are purged a day late.

Laws:
- While the server runs, the monotonic clock shows whether the wall clock jumped.
- After a restart, the wall clock is compared with the time of the last stored check. If more than a
  day passed, the pause begins, because a long downtime and a jump of the clock look the same.
- A pause that has begun continues after a restart.
"""

from collections.abc import Callable
from typing import Final

from twisted.logger import Logger

from homeserver.observe.metrics import RetentionMetrics
from storage.cluster.clock_checks import ClockCheck, ClockCheckStore
from storage.retention.purging import DAY_MS

MAX_JUMP_MS: Final = 5 * 60_000
"""Permitted difference of the two clocks between two checks: network time synchronisation moves a
clock by less."""
MAX_DOWNTIME_MS: Final = DAY_MS
DISTRUST_MS: Final = DAY_MS
STORE_INTERVAL_MS: Final = 10 * 60_000


class TrustedClock:
    """Returns the time for purges by age. Use this class only on the reactor thread."""

    _log = Logger()

    def __init__(
        self,
        *,
        store: ClockCheckStore,
        now_ms: Callable[[], int],
        monotonic: Callable[[], float],
        metrics: RetentionMetrics,
    ) -> None:
        """`monotonic`: the monotonic clock, in seconds."""
        self._store = store
        self._now_ms = now_ms
        self._monotonic = monotonic
        self._metrics = metrics
        self._seen_ms, self._ticks = now_ms(), monotonic()
        self._stored: ClockCheck | None = None
        """The check in the database; None: it was not read yet."""
        self._distrusted_since: int | None = None

    async def read(self) -> int | None:
        """Return the time in milliseconds since 1970; None while it is not trusted."""
        before, began = self._stored, self._seen_ms
        if before is None:
            before = await self._store.get()
        now, ticks = self._now_ms(), self._monotonic()
        jump = now - self._seen_ms - int((ticks - self._ticks) * 1000)
        self._seen_ms, self._ticks = now, ticks
        if self._stored is None and before is not None:
            self._distrusted_since = before.distrusted_since_ms
            if began - before.checked_ms > MAX_DOWNTIME_MS:
                self._distrust(now, began - before.checked_ms)
        if jump > MAX_JUMP_MS:
            self._distrust(now, jump)
        elif self._distrusted_since is not None and now < self._distrusted_since:
            self._distrusted_since = now  # the clock went back: count the day from here
        elif self._distrusted_since is not None and now - self._distrusted_since >= DISTRUST_MS:
            self._distrusted_since = None
            self._log.info("the clock has been steady for a day: messages are purged by age again")
        seen = ClockCheck(now, self._distrusted_since)
        if (
            self._stored is None
            or self._stored.distrusted_since_ms != seen.distrusted_since_ms
            or abs(now - self._stored.checked_ms) >= STORE_INTERVAL_MS
        ):
            self._stored = seen
            await self._store.put(seen)
        self._metrics.paused.set(self._distrusted_since is not None)
        return now if self._distrusted_since is None else None

    def _distrust(self, now: int, by_ms: int) -> None:
        self._distrusted_since = now
        self._log.error(
            "the clock jumped forward by {minutes} minutes, or the server was down for that long: "
            "no message is purged by age for a day. Check the date of this machine.",
            minutes=by_ms // 60_000,
        )
