"""Profiles, aliases and public rooms of other servers, for our users: asked for when somebody
looks, remembered briefly.

Laws:
- The same question is asked once, however many look at the same time.
- One server that is slow or flooded with questions is asked few of them at a time.
- What is remembered of a server that the policy refuses by now is not told.

For the reactor thread.
"""

import sys
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.peers.fair_semaphore import FairSemaphore
from federation.peers.policy import Policy
from federation.peers.requests import RefusedByRemote
from federation.peers.shared_work import SharedWork
from federation.protocol.errors import (
    Forbidden,
    LimitExceeded,
    MatrixError,
    NotFound,
    OtherServerFailed,
    RemoteError,
)
from federation.protocol.ids import RoomAlias, RoomID, ServerName, UserID, domain_of
from federation.remote.directory import DirectoryQuery, DirectoryRequests
from storage.cache import LRU

SECONDS_REMEMBERED: Final = 30
ANSWERS_REMEMBERED: Final = 2000
BYTES_REMEMBERED: Final = 8 << 20
"""As JSON, of all answers: servers say much or little."""
QUESTIONS_AT_ONCE: Final = 20
"""To one server."""
PROFILE, ALIAS, DIRECTORY = "profile", "alias", "directory"
_PATHS: Final = {
    PROFILE: "/_matrix/federation/v1/query/profile",
    ALIAS: "/_matrix/federation/v1/query/directory",
    DIRECTORY: "/_matrix/federation/v1/publicRooms",
}
"""Which right of a member of the federation each of them needs goes by the path."""

T = TypeVar("T")


class _Cached(msgspec.Struct, frozen=True):
    until: float
    value: Any
    """The answer, or the MatrixError that there was instead."""
    size: int
    """In bytes, as JSON."""


class RemoteDirectory:
    """Asks other servers on behalf of our users."""

    def __init__(self, requests: DirectoryRequests, policy: Policy, clock: IReactorTime) -> None:
        self._requests = requests
        self._policy = policy
        self._clock = clock
        self._cache: LRU[Hashable, _Cached] = LRU(
            max_entries=ANSWERS_REMEMBERED,
            max_weight=BYTES_REMEMBERED,
            weigh=lambda _, cached: cached.size,
        )
        self._asking: SharedWork[Hashable, _Cached] = SharedWork()
        self._questions: FairSemaphore[ServerName] = FairSemaphore(
            sys.maxsize,
            QUESTIONS_AT_ONCE,
            refusal=lambda server: LimitExceeded(
                f"{server} is being asked a lot already", retry_after_ms=1000
            ),
        )

    async def get_profile(self, user_id: UserID, field: str | None) -> Mapping[str, object]:
        """The whole profile of another server's user, or one field. Raises NotFound, Forbidden,
        OtherServerFailed."""
        server = domain_of(user_id)

        async def ask() -> Mapping[str, object]:
            return await self._requests.get_profile(server, user_id, field)

        profile = await self._find(server, ("profile", user_id, field), ask, PROFILE)
        if field is None:
            return profile
        if field not in profile:
            raise NotFound("The profile has no such field")
        return {field: profile[field]}

    async def get_alias(
        self, alias: RoomAlias, *, anew: bool = False
    ) -> tuple[RoomID, Sequence[ServerName]]:
        """The room of another server's alias, and servers in it. `anew`: whatever is remembered,
        for who is about to enter the room: an upgrade may just have moved the alias. Raises
        NotFound, Forbidden, OtherServerFailed."""
        server = domain_of(alias)

        async def ask() -> tuple[RoomID, Sequence[ServerName]]:
            return await self._requests.get_alias(server, alias)

        key = ("alias", alias)
        if anew:
            self._cache.pop(key)
        return await self._find(server, key, ask, ALIAS)

    async def get_public_rooms(self, server: ServerName, query: DirectoryQuery) -> dict[str, Any]:
        """A page of another server's directory. Raises Forbidden, OtherServerFailed."""

        async def ask() -> dict[str, Any]:
            return await self._requests.get_public_rooms(server, query)

        return await self._find(server, ("rooms", server, query), ask, DIRECTORY)

    async def _find(
        self, server: ServerName, key: Hashable, ask: Callable[[], Awaitable[T]], what: str
    ) -> T:
        self._policy.check_destination(server, _PATHS[what])
        known = self._cache.peek(key)
        if known is None or known.until <= self._clock.seconds():
            known = await self._asking.run(key, lambda: self._ask(server, key, ask, what))
        if isinstance(known.value, MatrixError):
            # one of its own for each: an exception that was raised holds all that the request had
            raise type(known.value)(known.value.text)
        found: T = known.value
        return found

    async def _ask(
        self, server: ServerName, key: Hashable, ask: Callable[[], Awaitable[T]], what: str
    ) -> _Cached:
        value: T | MatrixError
        with self._questions.hold_now(server):
            try:
                value = await ask()
            except RemoteError as error:
                value = _explain(error, what)
        size = 0 if isinstance(value, MatrixError) else len(msgspec.json.encode(value))
        cached = _Cached(self._clock.seconds() + SECONDS_REMEMBERED, value, size)
        self._cache.put(key, cached)
        return cached


def _explain(error: RemoteError, what: str) -> MatrixError:
    if isinstance(error, RefusedByRemote):
        if error.status == 404:
            return NotFound(f"{error.destination} knows of no such {what}")
        if error.status == 403:
            return Forbidden(f"{error.destination} refused: {error.text}")
    return OtherServerFailed(f"{error.destination} could not be asked: {error.reason}")
