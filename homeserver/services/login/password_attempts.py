"""How often the password of one account is tried, at once and in a row.

Laws:
- An attempt counts against the account from when it begins, so that many at once are no more
  guesses than many in a row.
- Where only those under way leave no room for another, it waits for them, not for long: several
  devices of one person, or bots, that sign in at the same moment with the right password all get
  in. Where failures leave none, it is refused at once, and so are those that wait.
- A right password forgets failures before it, and not what is under way beside it.
"""

from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import LimitExceeded
from homeserver.api.limits import Limit
from homeserver.http.rate_limits import Attempt, Counted, RateLimiter

MOST_WAITING: Final = 20
"""For one account."""
LONGEST_WAIT: Final = 20.0
"""In seconds."""
_LATER_MS: Final = 2000


class PasswordAttempts:
    """Lets attempts begin, by turns."""

    def __init__(self, clock: IReactorTime, limiter: RateLimiter) -> None:
        self._clock = clock
        self._limiter = limiter
        self._under_way: Counter[str] = Counter()
        self._waiting: dict[str, deque[Deferred[None]]] = {}

    @asynccontextmanager
    async def attempt(self, key: str, also: Sequence[Counted] = ()) -> AsyncIterator[Attempt]:
        """Wait for a turn, and have it while the context lasts. Unless the attempt is said to have
        failed, it does not count in the end; where nothing is raised either, the password was
        right. `key`: the account; `also`: where else a failure counts. Raises `LimitExceeded`."""
        await self._begin(key)
        is_right = False
        attempt = Attempt()
        try:
            with self._limiter.attempting(also) as attempt:
                yield attempt
            is_right = not attempt.has_failed
        finally:
            self._end(key, attempt, is_right=is_right)

    async def _begin(self, key: str) -> None:
        waiting = self._waiting.get(key)
        if not waiting:
            try:
                self._limiter.check(Limit.LOGIN_FAILED, key)
            except LimitExceeded:
                if not self._under_way[key]:
                    raise
            else:
                self._under_way[key] += 1
                return
            waiting = self._waiting.setdefault(key, deque())
        if len(waiting) >= MOST_WAITING:
            raise LimitExceeded(retry_after_ms=_LATER_MS)
        turn: Deferred[None] = Deferred(waiting.remove)
        turn.addTimeout(LONGEST_WAIT, self._clock, _give_up)
        waiting.append(turn)
        await turn

    def _end(self, key: str, attempt: Attempt, *, is_right: bool) -> None:
        self._under_way -= Counter({key: 1})
        if is_right:
            self._limiter.forget(Limit.LOGIN_FAILED, key)
            if self._under_way[key]:
                self._limiter.count(Limit.LOGIN_FAILED, key, cost=self._under_way[key])
        elif not attempt.has_failed:
            self._limiter.give_back(Limit.LOGIN_FAILED, key)
        self._let_in(key)

    def _let_in(self, key: str) -> None:
        """Those that wait, as far as there is room; where nothing is under way that may make any,
        they are refused."""
        waiting = self._waiting.get(key, deque())
        while waiting:
            try:
                self._limiter.check(Limit.LOGIN_FAILED, key)
            except LimitExceeded as error:
                if self._under_way[key]:
                    return
                waiting.popleft().errback(error)
            else:
                self._under_way[key] += 1
                waiting.popleft().callback(None)
        if self._waiting.get(key) is waiting:
            del self._waiting[key]


def _give_up(_result: object, _seconds: float) -> None:
    """It has waited too long."""
    raise LimitExceeded(retry_after_ms=_LATER_MS)
