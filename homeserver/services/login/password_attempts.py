"""Limits the attempts at the password of one account: how many fail, and how many run concurrently.

Laws:
- An attempt in progress counts as a failure until it ends, so concurrent attempts allow no more
  guesses than sequential ones.
- If attempts in progress exhaust the limit, another attempt waits for them for a short time. So
  several devices of one user that sign in at the same moment all succeed.
- If failures exhaust the limit, an attempt is refused immediately, and so are the waiting ones.
- A correct password resets the failures before it, but not the concurrent attempts.
"""

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from twisted.internet.interfaces import IReactorTime

from federation.peers.fair_semaphore import FairSemaphore, WaitLimits
from federation.protocol.errors import LimitExceeded
from homeserver.api.limits import Limit
from homeserver.http.rate_limits import Attempt, CountedAction, RateLimiter

MAX_WAITING: Final = 20
"""Maximum number of waiting attempts of one account."""
MAX_WAIT_SECONDS: Final = 20.0
"""Maximum wait of an attempt, in seconds."""
_RETRY_AFTER_MS: Final = 2000


class PasswordAttempts:
    """Admits attempts within the rate limit."""

    def __init__(self, *, clock: IReactorTime, limiter: RateLimiter) -> None:
        self._limiter = limiter
        self._attempts: FairSemaphore[str] = FairSemaphore(
            permits=sys.maxsize,
            permits_per_key=lambda account: limiter.count_allowed(Limit.LOGIN_FAILED, account),
            max_waiting_per_key=MAX_WAITING,
            refusal=lambda _account: LimitExceeded(retry_after_ms=_RETRY_AFTER_MS),
            wait_limits=WaitLimits(clock, max_wait=MAX_WAIT_SECONDS),
        )

    @asynccontextmanager
    async def attempt(
        self, key: str, further_limits: Sequence[CountedAction] = ()
    ) -> AsyncIterator[Attempt]:
        """Wait until the attempt may begin; it lasts as long as the context.

        It counts only if it is marked as failed. If it is not and nothing is raised, the password
        was right. `key`: the account. `further_limits`: further limits that a failure counts
        against. Raises `LimitExceeded`.
        """
        if not self._attempts.held(key):
            self._limiter.check_without_counting(Limit.LOGIN_FAILED, key)
        await self._attempts.acquire(key)
        attempt = Attempt()
        try:
            with self._limiter.attempt(further_limits) as attempt:
                yield attempt
            if not attempt.has_failed:
                self._limiter.reset(Limit.LOGIN_FAILED, key)
        finally:
            if attempt.has_failed:
                self._limiter.count(Limit.LOGIN_FAILED, key)
            self._attempts.release(key)
            if not self._attempts.held(key):  # no attempt is left to make room for waiting ones
                self._attempts.refuse_waiting(lambda: self._refusal(key), key)

    def _refusal(self, key: str) -> LimitExceeded:
        try:
            self._limiter.check_without_counting(Limit.LOGIN_FAILED, key)
        except LimitExceeded as error:
            return error
        return LimitExceeded(retry_after_ms=_RETRY_AFTER_MS)
