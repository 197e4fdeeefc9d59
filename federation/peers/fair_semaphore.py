"""Limits concurrency, and shares the permits fairly among keys such as servers, users or domains.

Laws:
- The number of permits is fixed. Each key has a share: the number of permits that may be held for
  it at the same time (`permits_per_key`).
- A permit may be held for several keys, such as a remote server and the user who made the request.
  The permit then counts for each of them, and is given only if each has some of its share left.
- Waiters get permits in rounds. In each round, each set of keys gets one permit. Waiters with the
  same set of keys are served in the order of arrival. A waiter whose keys have used up their share
  delays nobody. `prioritize` lets a set of keys have the next permit.
- The queue may be bounded, in total and for each key. If it is full, further waiters are refused
  immediately.
- A waiter that is cancelled, or has waited too long, leaves the queue without a permit.
- With `WaitLimits.slow_after`, all keys whose recent work was slow are limited together to the
  share of one key. The remaining permits stay free for the other keys.
"""

from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Hashable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import chain
from typing import Final, Generic, TypeVar

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as TimedOut
from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import LimitExceeded, MatrixError
from storage.cache import LRU

SLOW_FOR_SECONDS: Final = 600.0
"""How long a key stays slow."""
MAX_SLOW_KEYS: Final = 10_000

K = TypeVar("K", bound=Hashable)


class WaitLimits(msgspec.Struct, frozen=True):
    """Time limits of a semaphore, in seconds."""

    clock: IReactorTime
    slow_after: float | None = None
    """The first key of a permit that was held for longer is slow from then on."""
    max_wait: float | None = None
    """A waiter is refused after this time."""


class FairSemaphore(Generic[K]):
    """Hands out permits. Use this class only on the reactor thread."""

    def __init__(
        self,
        *,
        permits: int,
        permits_per_key: int | Callable[[K], int],
        max_waiting: int | None = None,
        max_waiting_per_key: int | Callable[[K], int | None] | None = None,
        refusal: Callable[[K | None], MatrixError] = lambda _key: LimitExceeded(),
        wait_limits: WaitLimits | None = None,
    ) -> None:
        """`permits_per_key`: a share, or a function of the key; call `recheck` when it rises.

        `max_waiting` and `max_waiting_per_key` bound the queue; None means no bound. `refusal`
        makes the error for a key whose part of the queue is full, or for None where all of it is.
        """
        self._free = permits
        self._permits_per_key = permits_per_key
        self._max_waiting = max_waiting
        self._max_waiting_per_key = max_waiting_per_key
        self._refusal = refusal
        self._wait_limits = wait_limits
        self._slow_until: LRU[K, float] = LRU(max_entries=MAX_SLOW_KEYS)
        self._held: Counter[K] = Counter()
        self._held_by_slow = 0
        self._waiting: Counter[K] = Counter()
        self._queues: OrderedDict[_Claim[K], deque[Deferred[None]]] = OrderedDict()
        """The waiters, in the order of the round: no cache, and nothing is evicted."""
        self._queues_of: dict[K, dict[_Claim[K], None]] = {}
        """The claims that wait for each key, in the order of `_queues`."""
        self._total_waiting = 0
        self._freed: dict[tuple[K, ...] | None, None] = {}
        """Keys whose waiters are to be looked at; None: all waiters."""
        self._is_admitting = False
        self.seconds_waited = 0.0
        """The time that all waiters together have waited, where `wait_limits` has a clock."""

    @property
    def free(self) -> int:
        """The number of permits that are not held."""
        return self._free

    @property
    def total_waiting(self) -> int:
        """The number of waiters."""
        return self._total_waiting

    def held(self, key: K) -> int:
        """Return the number of permits held for the key."""
        return self._held[key]

    def waiting(self, key: K) -> int:
        """Return the number of waiters for the key."""
        return self._waiting[key]

    def waiting_keys(self) -> Iterator[tuple[K, ...]]:
        """Return the sets of keys that have waiters."""
        return (claim.keys for claim in self._queues)

    async def acquire(self, *keys: K) -> None:
        """Wait for a permit for the keys. Call `release` with the same keys. Raises the refusal."""
        await self._acquire(_Claim(keys))

    def release(self, *keys: K) -> None:
        """Give a permit back."""
        self._release(_Claim(keys))

    @asynccontextmanager
    async def hold(self, *keys: K) -> AsyncIterator[None]:
        """Wait for a permit, and hold it in the context. Raises the refusal."""
        claim = _Claim(keys, self._is_slow(keys[0]))
        await self._acquire(claim)
        began = self._now()
        try:
            yield
        finally:
            self._record_time(keys[0], self._now() - began)
            self._release(claim)

    @contextmanager
    def hold_now(self, *keys: K) -> Iterator[None]:
        """Hold a permit without waiting.

        Raises the refusal of a key without a share left, or of all keys.
        """
        claim = _Claim(keys)
        if not self._has_room(claim):
            raise self._refusal(
                next((key for key in keys if self._held[key] >= self._share(key)), None)
            )
        self._take(claim)
        try:
            yield
        finally:
            self._release(claim)

    def prioritize(self, *keys: K) -> None:
        """Give the keys the next permit, if they have a waiter."""
        claim = _Claim(keys)
        if claim in self._queues:
            self._queues.move_to_end(claim, last=False)
            for key in keys:
                self._queues_of[key] = {claim: None, **self._queues_of[key]}

    def refuse_waiting(self, refusal: Callable[[], MatrixError], *keys: K) -> None:
        """Let all waiters for the keys fail, each with an error of its own."""
        claim = _Claim(keys)
        for waiter in list(self._queues.get(claim, ())):
            self._leave_queue(claim, waiter)
            waiter.errback(refusal())

    def recheck(self) -> None:
        """Admit waiters whose share has risen."""
        self._admit(None)

    # ---- waiting

    async def _acquire(self, claim: "_Claim[K]") -> None:
        self._check_queue(claim.keys)
        if not self._is_admitting and claim not in self._queues and self._has_room(claim):
            self._take(claim)  # no other waiter could have taken this permit
            return
        waiter: Deferred[None] = Deferred(lambda _: self._leave_queue(claim, waiter))
        self._enter_queue(claim, waiter)
        began = self._now()
        if self._wait_limits is not None and self._wait_limits.max_wait is not None:
            waiter.addTimeout(self._wait_limits.max_wait, self._wait_limits.clock)
        try:
            await waiter
        except TimedOut:
            raise self._refusal(None) from None
        finally:
            self.seconds_waited += self._now() - began

    def _check_queue(self, keys: tuple[K, ...]) -> None:
        """Raises the refusal where the queue is full."""
        if self._max_waiting is not None and self._total_waiting >= self._max_waiting:
            raise self._refusal(None)
        for key in keys:
            limit = self._max_waiting_per_key
            limit = limit(key) if callable(limit) else limit
            if limit is not None and self._waiting[key] >= limit:
                raise self._refusal(key)

    def _enter_queue(self, claim: "_Claim[K]", waiter: Deferred[None]) -> None:
        if claim not in self._queues:
            self._queues[claim] = deque()
            for key in claim.keys:
                self._queues_of.setdefault(key, {})[claim] = None
        self._queues[claim].append(waiter)
        self._total_waiting += 1
        _add(self._waiting, claim.keys, 1)

    def _leave_queue(self, claim: "_Claim[K]", waiter: Deferred[None]) -> None:
        self._total_waiting -= 1
        _add(self._waiting, claim.keys, -1)
        self._queues[claim].remove(waiter)
        if not self._queues[claim]:
            del self._queues[claim]
            for key in claim.keys:
                del self._queues_of[key][claim]
                if not self._queues_of[key]:
                    del self._queues_of[key]

    def _move_to_end(self, claim: "_Claim[K]") -> None:
        if claim in self._queues:
            self._queues.move_to_end(claim)
            for key in claim.keys:
                self._queues_of[key][claim] = self._queues_of[key].pop(claim)

    # ---- permits

    def _has_room(self, claim: "_Claim[K]") -> bool:
        if self._free <= 0 or (claim.is_slow and self._held_by_slow >= self._share(claim.keys[0])):
            return False
        return all(self._held[key] < self._share(key) for key in claim.keys)

    def _share(self, key: K) -> int:
        share = self._permits_per_key
        return share(key) if callable(share) else share

    def _take(self, claim: "_Claim[K]") -> None:
        self._free -= 1
        self._held_by_slow += claim.is_slow
        _add(self._held, claim.keys, 1)

    def _release(self, claim: "_Claim[K]") -> None:
        # unless permits are scarce, other waiters only lack a share of their own keys
        admits_any = self._free <= 0 or claim.is_slow
        self._free += 1
        self._held_by_slow -= claim.is_slow
        _add(self._held, claim.keys, -1)
        self._admit(None if admits_any else claim.keys)

    def _admit(self, keys: tuple[K, ...] | None) -> None:
        """Give permits to the waiters for these keys, or to any waiters.

        An admitted waiter may release at once. The running loop then continues, so that the stack
        does not grow with the queue.
        """
        self._freed[keys] = None
        if self._is_admitting:
            return
        self._is_admitting = True
        try:
            while self._freed:
                freed = next(iter(self._freed))
                claim = next(filter(self._has_room, self._waiting_for(freed)), None)
                if claim is None:
                    del self._freed[freed]
                    continue
                waiter = self._queues[claim][0]
                self._leave_queue(claim, waiter)
                self._move_to_end(claim)
                self._take(claim)
                waiter.callback(None)
        finally:
            self._is_admitting = False

    def _waiting_for(self, keys: tuple[K, ...] | None) -> Iterable["_Claim[K]"]:
        if keys is None:
            return self._queues
        return chain.from_iterable(self._queues_of.get(key, ()) for key in keys)

    # ---- slow keys

    def _is_slow(self, key: K) -> bool:
        until = self._slow_until.peek(key)
        if until is not None and until <= self._now():
            self._slow_until.pop(key)
            return False
        return until is not None

    def _record_time(self, key: K, seconds: float) -> None:
        slow_after = None if self._wait_limits is None else self._wait_limits.slow_after
        if slow_after is not None and seconds > slow_after:
            self._slow_until.put(key, self._now() + SLOW_FOR_SECONDS)

    def _now(self) -> float:
        return 0.0 if self._wait_limits is None else self._wait_limits.clock.seconds()


class _Claim(msgspec.Struct, Generic[K], frozen=True):
    """The keys of a waiter. Waiters with equal claims share a queue."""

    keys: tuple[K, ...]
    is_slow: bool = False


def _add(counter: Counter[K], keys: tuple[K, ...], change: int) -> None:
    for key in keys:
        counter[key] += change
        if not counter[key]:
            del counter[key]
