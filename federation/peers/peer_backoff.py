"""Records which remote servers are backed off, because they did not respond or responded 429.

Laws:
- A server that responds 429 to a request receives no more requests of the same kind until the time
  it names. Each kind of request has a `PeerBackoff` of its own, because a server that is too busy
  for one kind may have time for another.
- After a failed request, requests to the server pause. The `BackoffSchedule` computes the pauses,
  which may grow with each consecutive failure. Failures within a pause count as one. A
  `PeerBackoff` without a schedule ignores all failures except 429.
- `record_answer` deletes the record of a server, because the server has responded or has sent us a
  request. Callers do not use it on a `PeerBackoff` without a schedule, because it would end the
  pause after a 429. A failure does not count if the server has answered another request since the
  failed one began.
- The number of records is bounded, and the oldest are evicted. Anybody can cause evictions by
  making this server contact many made-up server names. The only effect is that the evicted servers
  are tried before their pauses are over, and that their pauses start with the shortest again.

These records belong to one process. The sender computes its pauses with a `BackoffSchedule` too,
but stores them in the database (`sender/destination.py`).

spec: client-server-api#rate-limiting
"""

from collections.abc import Callable, Hashable
from typing import Final, Generic, TypeVar

import msgspec

from federation.peers.backoff_schedule import BackoffSchedule
from federation.peers.client import get_retry_after_ms
from federation.peers.wire import Wire, WireRequest, WireResponse
from federation.protocol.ids import ServerName
from storage.cache import LRU

MAX_RECORDS: Final = 1000

K = TypeVar("K", bound=Hashable)


class _Failing(msgspec.Struct, frozen=True):
    since_ms: int
    """Start of the first failed request."""
    until_ms: int
    backoff_ms: int


class PeerBackoff(Generic[K]):
    """Decides whether a server may be asked now. A key is usually a server name. Use this class
    only on the reactor thread."""

    def __init__(
        self,
        *,
        now_ms: Callable[[], int],
        schedule: BackoffSchedule | None = None,
        max_records: int = MAX_RECORDS,
    ) -> None:
        """`schedule`: of failures. None: only requests to wait cause a pause."""
        self._now_ms = now_ms
        self._schedule = schedule
        self._failing: LRU[K, _Failing] = LRU(max_entries=max_records)
        self._answered: LRU[K, int] = LRU(max_entries=max_records)
        """The times of the latest answers."""

    def record_failure(
        self, key: K, failure: Exception | None = None, *, asked_at_ms: int | None = None
    ) -> None:
        """Record a failed request that began at `asked_at_ms`, if that is known."""
        now = self._now_ms()
        since = now if asked_at_ms is None else asked_at_ms
        answered = self._answered.peek(key)
        if answered is not None and answered > since:
            return
        wait_ms = 0 if failure is None else get_retry_after_ms(failure)
        before = self._failing.peek(key)
        if wait_ms:
            self._failing.put(
                key, _Failing(now, now + wait_ms, 0 if before is None else before.backoff_ms)
            )
        elif self._schedule is not None:
            if before is not None and before.until_ms > now:
                since, backoff_ms = (
                    min(since, before.since_ms),
                    before.backoff_ms or self._schedule.after(0),
                )
            else:
                backoff_ms = self._schedule.after(0 if before is None else before.backoff_ms)
            self._failing.put(key, _Failing(since, now + backoff_ms, backoff_ms))

    def pause(self, key: K, milliseconds: int) -> None:
        """Pause requests to the server for this time."""
        now = self._now_ms()
        self._failing.put(key, _Failing(now, now + milliseconds, milliseconds))

    def record_answer(self, key: K) -> None:
        """Record that the server has answered, or has made a request to us."""
        self._failing.pop(key)
        self._answered.put(key, self._now_ms())

    def left_ms(self, key: K) -> int:
        """Return the rest of the pause, or 0 if the server may be asked."""
        known = self._failing.peek(key)
        return 0 if known is None else max(known.until_ms - self._now_ms(), 0)

    def failing_ms(self, key: K) -> int:
        """Return the time since the server began to fail, or 0 if it may be asked."""
        known, now = self._failing.peek(key), self._now_ms()
        return 0 if known is None or known.until_ms <= now else now - known.since_ms


class BackoffWire:
    """A `Wire` that records which servers respond."""

    def __init__(self, *, wire: Wire, backoff: PeerBackoff[ServerName]) -> None:
        self._wire = wire
        self._backoff = backoff

    async def exchange(self, destination: ServerName, request: WireRequest) -> WireResponse:
        """Exchange as the wrapped wire. Raises RemoteError."""
        answer = await self._wire.exchange(destination, request)
        self._backoff.record_answer(destination)
        return answer
