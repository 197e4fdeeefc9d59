"""Remembers which servers to leave alone for now: they did not answer, or asked us to wait (429).

Laws:
- A server that asks us to wait is left alone for as long as it asks, by requests of the same kind.
  Each kind has a `PeerBackoff` of its own: a server with no time for one may have time for another.
- A server that fails is left alone for a pause that grows with each failure in a row. Failures
  within a pause are one failure.
- A server that answers is back: what was remembered is forgotten. A request that failed, but began
  before the server last answered something else, says nothing.
- Memory is bounded. Names that somebody makes up displace others, which are then asked too soon
  once, and no more.

This is the memory of one process. What the sender knows of its destinations is in the database
(`sender/destination.py`), on the same schedule.

spec: client-server-api#rate-limiting
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

import msgspec

from federation.peers.backoff_schedule import BackoffSchedule
from federation.peers.requests import asked_wait_ms
from federation.peers.wire import Wire, WireAnswer, WireRequest
from federation.protocol.ids import ServerName

MAX_REMEMBERED: Final = 1000

K = TypeVar("K", bound=Hashable)


class _Failing(msgspec.Struct, frozen=True):
    since_ms: int
    """When the first request began that failed."""
    until_ms: int
    pause_ms: int


class PeerBackoff(Generic[K]):
    """Says whether a server, or something else by its key, may be asked. For the reactor thread."""

    def __init__(
        self,
        now_ms: Callable[[], int],
        schedule: BackoffSchedule | None = None,
        *,
        max_remembered: int = MAX_REMEMBERED,
    ) -> None:
        """`schedule` of failures; None: only what asks us to wait is left alone."""
        self._now_ms = now_ms
        self._schedule = schedule
        self._max_remembered = max_remembered
        self._failing: OrderedDict[K, _Failing] = OrderedDict()
        self._answered: OrderedDict[K, int] = OrderedDict()

    def record_failure(
        self, key: K, failure: Exception | None = None, *, asked_at_ms: int | None = None
    ) -> None:
        """A request has failed, which began at `asked_at_ms`, or whenever where that is not
        given."""
        now = self._now_ms()
        since = now if asked_at_ms is None else asked_at_ms
        if self._answered.get(key, since) > since:
            return
        wait_ms = 0 if failure is None else asked_wait_ms(failure)
        before = self._failing.get(key)
        if wait_ms:
            self._remember(
                key, _Failing(now, now + wait_ms, 0 if before is None else before.pause_ms)
            )
        elif self._schedule is not None:
            if before is not None and before.until_ms > now:
                since, pause_ms = (
                    min(since, before.since_ms),
                    before.pause_ms or self._schedule.after(0),
                )
            else:
                pause_ms = self._schedule.after(0 if before is None else before.pause_ms)
            self._remember(key, _Failing(since, now + pause_ms, pause_ms))

    def pause(self, key: K, milliseconds: int) -> None:
        """Leave the server alone for this time."""
        now = self._now_ms()
        self._remember(key, _Failing(now, now + milliseconds, milliseconds))

    def record_answer(self, key: K) -> None:
        """The server has answered, or asked something itself: it is there."""
        self._failing.pop(key, None)
        self._answered[key] = self._now_ms()
        self._answered.move_to_end(key)
        if len(self._answered) > self._max_remembered:
            self._answered.popitem(last=False)

    def left_ms(self, key: K) -> int:
        """For how long to leave the server alone; 0 if it may be asked."""
        known = self._failing.get(key)
        return 0 if known is None else max(known.until_ms - self._now_ms(), 0)

    def failing_ms(self, key: K) -> int:
        """For how long the server has failed; 0 if it may be asked."""
        return self._now_ms() - self._failing[key].since_ms if self.left_ms(key) else 0

    def _remember(self, key: K, failing: _Failing) -> None:
        self._failing[key] = failing
        self._failing.move_to_end(key)
        if len(self._failing) > self._max_remembered:
            self._failing.popitem(last=False)


class RecordingWire:
    """A wire that records which servers answer."""

    def __init__(self, wire: Wire, backoff: PeerBackoff[ServerName]) -> None:
        self._wire = wire
        self._backoff = backoff

    async def exchange(self, destination: ServerName, request: WireRequest) -> WireAnswer:
        """Raises RemoteError."""
        answer = await self._wire.exchange(destination, request)
        self._backoff.record_answer(destination)
        return answer
