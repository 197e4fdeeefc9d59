"""Bounds how often the password of one account is tried, at once and in a row.

Laws:
- An attempt that is under way counts as a failure until it ends, so many at once are no more
  guesses than many in a row.
- Where only attempts under way leave no room for another, it waits for them, for a short time:
  several devices of one person that sign in at the same moment with the right password all get in.
- Where failures leave no room, an attempt is refused at once, and so are those that wait.
- A right password forgets the failures before it, and not the attempts beside it.
"""

import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from twisted.internet.interfaces import IReactorTime

from federation.peers.fair_semaphore import FairSemaphore, Waits
from federation.protocol.errors import LimitExceeded
from homeserver.api.limits import Limit
from homeserver.http.rate_limits import Attempt, Counted, RateLimiter

MOST_WAITING: Final = 20
"""For one account."""
LONGEST_WAIT: Final = 20.0
"""In seconds."""
_LATER_MS: Final = 2000


class PasswordAttempts:
    """Lets attempts begin."""

    def __init__(self, clock: IReactorTime, limiter: RateLimiter) -> None:
        self._limiter = limiter
        self._under_way: FairSemaphore[str] = FairSemaphore(
            sys.maxsize,
            lambda account: limiter.room(Limit.LOGIN_FAILED, account),
            max_waiting_per_key=MOST_WAITING,
            refusal=lambda _account: LimitExceeded(retry_after_ms=_LATER_MS),
            waits=Waits(clock, longest=LONGEST_WAIT),
        )

    @asynccontextmanager
    async def attempt(self, key: str, also: Sequence[Counted] = ()) -> AsyncIterator[Attempt]:
        """Wait until the attempt may begin; it lasts as long as the context. It counts if it is
        marked as failed; where nothing is raised either, the password was right. `key`: the
        account; `also`: where else a failure counts.

        Raises `LimitExceeded`.
        """
        if not self._under_way.held(key):
            self._limiter.check_only(Limit.LOGIN_FAILED, key)
        await self._under_way.acquire(key)
        attempt = Attempt()
        try:
            with self._limiter.attempting(also) as attempt:
                yield attempt
            if not attempt.has_failed:
                self._limiter.forget(Limit.LOGIN_FAILED, key)
        finally:
            if attempt.has_failed:
                self._limiter.count(Limit.LOGIN_FAILED, key)
            self._under_way.release(key)
            if not self._under_way.held(key):  # no attempt will make room for those that wait
                self._under_way.refuse_waiting(lambda: self._refusal(key), key)

    def _refusal(self, key: str) -> LimitExceeded:
        try:
            self._limiter.check_only(Limit.LOGIN_FAILED, key)
        except LimitExceeded as error:
            return error
        return LimitExceeded(retry_after_ms=_LATER_MS)
