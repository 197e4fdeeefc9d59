"""Sends requests to push gateways, with a time limit, and with a back-off for unreachable ones.

Laws:
- A gateway is not trusted: the address policy checks its address, redirects are not followed, and
  the size of its answer is limited.
- The number of concurrent requests is limited, for one gateway and for all together. So a gateway
  that hangs does not delay the others. Gateways that were slow recently share a smaller limit, so
  fast gateways get slots however many others hang. (Users choose gateways, so anybody can add slow
  ones.)
- An unreachable gateway is tried with one request at a time, after a pause that grows; all its
  pushes wait for that request. An error status concerns only the one pusher of the request.
- An answer with a success status means that the push was accepted, even if the body is invalid or
  never arrives: otherwise a phone would ring for it again and again. An unreadable answer removes
  no pusher: a gateway that rejects a pushkey does so again at the next push.

spec: push-gateway-api#homeserver-behaviour, push-gateway-api#post_matrixpushv1notify
"""

from collections import deque
from http import HTTPStatus
from typing import Final, Protocol

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.logger import Logger

from federation.http_client.client import WebClient
from federation.http_client.errors import OutboundError
from federation.http_client.retry_after import read_retry_after
from federation.peers.backoff_schedule import BackoffSchedule
from homeserver.observe.push import REJECTED, SENT, UNREADABLE, PushMetrics
from homeserver.services.pushers.pushers import origin_of
from storage.cache import LRU

MAX_PER_GATEWAY: Final = 8
"""Requests to one gateway at a time."""
MAX_TO_FAST: Final = 200
"""Requests to fast gateways at a time."""
MAX_TO_SLOW: Final = 50
"""Requests to slow gateways at a time. Those in flight to gateways that have become slow count,
too.
"""
FAST_SECONDS: Final = 2.0
MAX_CACHED_FAST: Final = 1000
"""Gateways that are cached as fast."""
TIMEOUT_SECONDS: Final = 20.0
MAX_RESPONSE_BYTES: Final = 64 * 1024
RETRIES: Final = BackoffSchedule(5_000, 10 * 60_000)
UNREADABLE_SECONDS: Final = 24 * 3600.0
"""The interval at which unreadable answers of one gateway are logged."""
MAX_CACHED_UNREADABLE: Final = 1000
REFUSALS: Final = frozenset(
    {HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY}
)
"""Status codes that refuse this one request for its content. Other errors concern the client or the
state of the gateway.
"""
_HEADERS: Final = (("Content-Type", "application/json"),)


class SendJob(Protocol):
    """A pusher's queue that waits for its turn at a gateway."""

    async def send(self) -> None:
        """Send the next push. Raises nothing."""
        ...


class PushFailed(Exception):
    """A push was not accepted. `permanent`: a retry is useless. `unreachable`: there was no answer.
    `refused`: the gateway refuses the content of this push, which says nothing about others.
    `wait_ms`: the pause that the gateway asks for; 0 if it names none."""

    def __init__(
        self,
        text: str,
        *,
        permanent: bool = False,
        unreachable: bool = False,
        refused: bool = False,
        wait_ms: int = 0,
    ) -> None:
        super().__init__(text)
        self.permanent = permanent
        self.unreachable = unreachable
        self.refused = refused
        self.wait_ms = wait_ms


class _GatewayResponse(msgspec.Struct, frozen=True):
    rejected: list[str] = []


class Gateway(msgspec.Struct):
    """The state of one gateway while pushes wait for it or it is unreachable."""

    origin: str
    """Scheme, host and port."""
    waiting: deque[SendJob] = msgspec.field(default_factory=deque)
    busy: int = 0
    backoff_ms: int = 0
    """The back-off; 0 while the gateway is reachable."""
    timer: IDelayedCall | None = None
    is_queued: bool = False
    pumping: bool = False
    is_fast: bool = False
    request_starts: list[float] = msgspec.field(default_factory=list)
    """Start times of the requests in flight, oldest first."""

    @property
    def is_failing(self) -> bool:
        return self.backoff_ms > 0


class Gateways:
    """All gateways. Use this class only on the reactor thread."""

    log = Logger()

    def __init__(self, *, clock: IReactorTime, web: WebClient, metrics: PushMetrics) -> None:
        self._clock = clock
        self._web = web
        self._metrics = metrics
        self._gateways: dict[str, Gateway] = {}
        self._fast: LRU[str, None] = LRU(max_entries=MAX_CACHED_FAST)
        # of fast (True) and slow (False) gateways
        self._queues: dict[bool, deque[Gateway]] = {True: deque(), False: deque()}
        self._busy = {True: 0, False: 0}
        self._slow_check: IDelayedCall | None = None
        self._unreadable: LRU[str, float] = LRU(max_entries=MAX_CACHED_UNREADABLE)
        """By gateway, when its unreadable answers were last logged."""

    def add(self, url: str, job: SendJob) -> None:
        """Queue a job until its turn comes."""
        origin = origin_of(url)
        gateway = self._gateways.get(origin)
        if gateway is None:
            gateway = self._gateways[origin] = Gateway(origin, is_fast=origin in self._fast)
        gateway.waiting.append(job)
        self._pump(gateway)

    def count_failing(self) -> int:
        """Return the number of unreachable gateways."""
        return sum(1 for gateway in self._gateways.values() if gateway.is_failing)

    def is_failing(self, url: str) -> bool:
        """Return whether the gateway of that address is unreachable."""
        gateway = self._gateways.get(origin_of(url))
        return gateway is not None and gateway.is_failing

    def stop(self) -> None:
        """Stop to send and clear all queues."""
        for gateway in self._gateways.values():
            gateway.waiting.clear()
            if gateway.timer is not None and gateway.timer.active():
                gateway.timer.cancel()
        self._gateways.clear()
        for queue in self._queues.values():
            queue.clear()
        if self._slow_check is not None:
            self._slow_check.cancel()
            self._slow_check = None

    async def notify(self, url: str, pushkey: str, body: bytes) -> bool:
        """Send a notification. Return False if the gateway rejects the pushkey. Raises
        `PushFailed`."""
        origin = origin_of(url)
        started = self._clock.seconds()
        gateway = self._gateways.get(origin)
        if gateway is not None:
            gateway.request_starts.append(started)
        try:
            response = await self._ask(url, body)
        except PushFailed as error:
            self._metrics.failed(origin)
            if error.unreachable:
                self._record_unreachable(origin)
            else:
                self._record_response(origin)
            raise
        finally:
            if gateway is not None:
                gateway.request_starts.remove(started)
                self._record_speed(gateway, self._clock.seconds() - started <= FAST_SECONDS)
        self._record_response(origin)
        is_rejected = response is not None and pushkey in response.rejected
        outcome = UNREADABLE if response is None else REJECTED if is_rejected else SENT
        self._metrics.sent(origin, outcome, self._clock.seconds() - started)
        if response is None:
            self._record_unreadable(origin)
        return not is_rejected

    async def _ask(self, url: str, body: bytes) -> _GatewayResponse | None:
        """Return the answer to an accepted push; None if it is unreadable. Raises `PushFailed`."""
        try:
            response = await self._web.request(
                "POST",
                url,
                _HEADERS,
                body,
                seconds=TIMEOUT_SECONDS,
                max_bytes=MAX_RESPONSE_BYTES,
                redirects=0,
            )
        except OutboundError as error:
            if error.status is None:
                raise PushFailed(
                    str(error), permanent=not error.retryable, unreachable=error.retryable
                ) from error
            if _is_success(error.status):
                return None
            # it may be a page of the proxy of a gateway that is down
            raise PushFailed(
                f"it answered {error.status}", refused=error.status in REFUSALS
            ) from error
        if not _is_success(response.status):
            raise PushFailed(
                f"it answered {response.status}",
                refused=response.status in REFUSALS,
                wait_ms=read_retry_after(response.headers, self._clock.seconds()),
            )
        try:
            return (
                msgspec.json.decode(response.body, type=_GatewayResponse)
                if response.body
                else _GatewayResponse()
            )
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    def _record_unreadable(self, origin: str) -> None:
        now = self._clock.seconds()
        logged = self._unreadable.peek(origin)
        if logged is not None and now - logged < UNREADABLE_SECONDS:
            return
        self.log.warn(
            "the push gateway {origin} accepts pushes, but its answers are unreadable",
            origin=origin,
        )
        self._unreadable.put(origin, now)

    def _record_unreachable(self, origin: str) -> None:
        gateway = self._gateways.get(origin)
        if gateway is not None and (gateway.timer is None or not gateway.timer.active()):
            gateway.backoff_ms = RETRIES.after(gateway.backoff_ms)
            gateway.timer = self._clock.callLater(gateway.backoff_ms / 1000, self._pump, gateway)

    def _record_response(self, origin: str) -> None:
        gateway = self._gateways.get(origin)
        if gateway is not None:
            gateway.backoff_ms = 0
            if gateway.timer is not None and gateway.timer.active():
                gateway.timer.cancel()

    def _record_speed(self, gateway: Gateway, is_fast: bool) -> None:
        """Record that a gateway is fast or slow, and move its requests in flight to that limit."""
        if is_fast:
            self._fast.put(gateway.origin, None)
        else:
            self._fast.pop(gateway.origin)
        if gateway.is_fast is not is_fast:
            self._busy[gateway.is_fast] -= gateway.busy
            self._busy[is_fast] += gateway.busy
            gateway.is_fast = is_fast

    def _find_slow(self) -> None:
        """Find the gateways that hang when all slots are taken, and count them as slow."""
        self._slow_check = None
        started_before = self._clock.seconds() - FAST_SECONDS
        for gateway in list(self._gateways.values()):
            if (
                gateway.is_fast
                and gateway.request_starts
                and gateway.request_starts[0] <= started_before
            ):
                self._record_speed(gateway, False)
        self._pump_queues()
        if self._queues[True]:
            self._slow_check = self._clock.callLater(FAST_SECONDS, self._find_slow)

    def _pump(self, gateway: Gateway) -> None:
        """Start queued jobs while there are free slots."""
        if gateway.pumping or (gateway.timer is not None and gateway.timer.active()):
            return
        gateway.pumping = (
            True  # a job that ends at once must not pump again: the loop sees the free slot
        )
        while gateway.waiting and gateway.busy < (1 if gateway.is_failing else MAX_PER_GATEWAY):
            if self._is_full(gateway.is_fast):
                if not gateway.is_queued:
                    gateway.is_queued = True
                    self._queues[gateway.is_fast].append(gateway)
                    if gateway.is_fast and self._slow_check is None:
                        self._slow_check = self._clock.callLater(FAST_SECONDS, self._find_slow)
                break
            gateway.busy += 1
            self._busy[gateway.is_fast] += 1
            work = Deferred.fromCoroutine(gateway.waiting.popleft().send())
            work.addErrback(lambda failure: self.log.failure("push failed", failure))
            work.addBoth(lambda _: self._done(gateway))
            if gateway.timer is not None and gateway.timer.active():
                break
        gateway.pumping = False
        is_idle = (
            not gateway.waiting
            and not gateway.busy
            and (gateway.timer is None or not gateway.timer.active())
        )
        if is_idle and self._gateways.get(gateway.origin) is gateway:
            del self._gateways[gateway.origin]

    def _done(self, gateway: Gateway) -> None:
        gateway.busy -= 1
        self._busy[gateway.is_fast] -= 1
        self._pump(gateway)
        self._pump_queues()

    def _is_full(self, is_fast: bool) -> bool:
        return self._busy[is_fast] >= (MAX_TO_FAST if is_fast else MAX_TO_SLOW)

    def _pump_queues(self) -> None:
        for is_fast, queue in self._queues.items():
            # a gateway that has changed its speed goes to the other queue if that limit is full
            for _ in range(len(queue)):
                if self._is_full(is_fast):
                    break
                other = queue.popleft()
                other.is_queued = False
                self._pump(other)


def _is_success(status: int) -> bool:
    return 200 <= status < 300
