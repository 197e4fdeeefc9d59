"""The time by which messages are deleted for good, and whether it can be believed.

What is hidden because the clock is wrong is seen again once it is right; what is deleted is not. So
for a day after the clock went forwards by itself nothing is deleted by age: if it was wrong,
somebody can set it right meanwhile; if it is right, nothing is lost but a day.

Laws:
- While the server runs, a clock that counts seconds alone says whether the one that tells the date
  jumped.
- Over a restart, what was noted when somebody last looked says so: a server that was away for more
  than a day waits too.
- A doubt outlives a restart.
"""

from collections.abc import Callable
from typing import Final

from twisted.logger import Logger

from homeserver.observe.metrics import RetentionMetrics
from storage.cluster.clock_checks import SeenTime, SeenTimeStore
from storage.retention.purging import DAY_MS

LONGEST_JUMP_MS: Final = 5 * 60_000
"""By which the two clocks may differ between two looks: a clock that is set by the network is moved
by less."""
LONGEST_AWAY_MS: Final = DAY_MS
DOUBTED_MS: Final = DAY_MS
NOTED_EVERY_MS: Final = 10 * 60_000


class BelievedTime:
    """Asked before anything is deleted by age. For the reactor thread."""

    _log = Logger()

    def __init__(
        self,
        store: SeenTimeStore,
        now_ms: Callable[[], int],
        monotonic: Callable[[], float],
        metrics: RetentionMetrics,
    ) -> None:
        """`monotonic`: seconds since whenever, which nobody sets."""
        self._store = store
        self._now_ms = now_ms
        self._monotonic = monotonic
        self._metrics = metrics
        self._seen_ms, self._ticks = now_ms(), monotonic()
        self._noted: SeenTime | None = None
        """As it stands in the database; None: that has not been read yet."""
        self._doubted_since: int | None = None

    async def read(self) -> int | None:
        """Now, in milliseconds since 1970; None while that is not to be believed."""
        before, began = self._noted, self._seen_ms
        if before is None:
            before = await self._store.get()
        now, ticks = self._now_ms(), self._monotonic()
        jump = now - self._seen_ms - int((ticks - self._ticks) * 1000)
        self._seen_ms, self._ticks = now, ticks
        if self._noted is None and before is not None:
            self._doubted_since = before.doubted_since_ms
            if began - before.seen_ms > LONGEST_AWAY_MS:
                self._doubt(now, began - before.seen_ms)
        if jump > LONGEST_JUMP_MS:
            self._doubt(now, jump)
        elif self._doubted_since is not None and now < self._doubted_since:
            self._doubted_since = now  # it went back: a day from here on
        elif self._doubted_since is not None and now - self._doubted_since >= DOUBTED_MS:
            self._doubted_since = None
            self._log.info(
                "The clock has gone evenly for a day: messages are deleted by age again."
            )
        seen = SeenTime(now, self._doubted_since)
        if (
            self._noted is None
            or self._noted.doubted_since_ms != seen.doubted_since_ms
            or abs(now - self._noted.seen_ms) >= NOTED_EVERY_MS
        ):
            self._noted = seen
            await self._store.put(seen)
        self._metrics.paused.set(self._doubted_since is not None)
        return now if self._doubted_since is None else None

    def _doubt(self, now: int, by_ms: int) -> None:
        self._doubted_since = now
        self._log.error(
            "The clock went forwards by {minutes} minutes by itself, or the server was away for so long: no message is deleted by "
            "age for a day. Look whether the date is right.",
            minutes=by_ms // 60_000,
        )
