"""Profiles, aliases and public rooms of other servers: fetched on demand and cached briefly.

Laws:
- Concurrent equal queries share one request.
- A server gets a limited number of queries at a time, so that a slow server does not block queries
  to others.
- Cached results of a server are not returned after the federation policy begins to refuse it.

The cache is used only on the reactor thread.
"""

import sys
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from typing import Any, Final, TypeVar

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.peers.client import RefusedByRemote
from federation.peers.fair_semaphore import FairSemaphore
from federation.peers.federation_policy import FederationPolicy
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
from federation.remote.directory import RemoteDirectoryClient, RoomDirectoryQuery
from storage.cache import LRU

CACHE_SECONDS: Final = 30
CACHE_ENTRIES: Final = 2000
CACHE_BYTES: Final = 8 << 20
"""Bytes of all cached results as JSON: their sizes differ much."""
CONCURRENT_QUERIES: Final = 20
"""Concurrent queries to one server."""
PROFILE, ALIAS, DIRECTORY = "profile", "alias", "directory"
_PATHS: Final = {
    PROFILE: "/_matrix/federation/v1/query/profile",
    ALIAS: "/_matrix/federation/v1/query/directory",
    DIRECTORY: "/_matrix/federation/v1/publicRooms",
}
"""The paths of the requests, by which the policy grants access."""

T = TypeVar("T")


class _CachedResult(msgspec.Struct, frozen=True):
    """A cached result of a query."""

    until: float
    value: Any
    """The result, or the MatrixError of the query."""
    size: int
    """Bytes as JSON."""


class RemoteDirectory:
    """Queries other servers on behalf of local users."""

    def __init__(
        self, *, requests: RemoteDirectoryClient, policy: FederationPolicy, clock: IReactorTime
    ) -> None:
        self._requests = requests
        self._policy = policy
        self._clock = clock
        self._cache: LRU[Hashable, _CachedResult] = LRU(
            max_entries=CACHE_ENTRIES,
            max_weight=CACHE_BYTES,
            weigh=lambda _, cached: cached.size,
        )
        self._queries: SharedWork[Hashable, _CachedResult] = SharedWork()
        self._slots: FairSemaphore[ServerName] = FairSemaphore(
            permits=sys.maxsize,
            permits_per_key=CONCURRENT_QUERIES,
            refusal=lambda server: LimitExceeded(
                f"Too many queries to {server} are in progress", retry_after_ms=1000
            ),
        )

    async def get_profile(self, user_id: UserID, field: str | None) -> Mapping[str, object]:
        """Return the complete profile of a remote user, or one field. Raises NotFound, Forbidden,
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
        self, alias: RoomAlias, *, refresh: bool = False
    ) -> tuple[RoomID, Sequence[ServerName]]:
        """Return the room of a remote alias, and servers in it. `refresh`: ignore the cache, for a
        join: an upgrade may just have moved the alias. Raises NotFound, Forbidden,
        OtherServerFailed."""
        server = domain_of(alias)

        async def ask() -> tuple[RoomID, Sequence[ServerName]]:
            return await self._requests.get_alias(server, alias)

        key = ("alias", alias)
        if refresh:
            self._cache.pop(key)
        return await self._find(server, key, ask, ALIAS)

    async def get_public_rooms(
        self, server: ServerName, query: RoomDirectoryQuery
    ) -> dict[str, Any]:
        """Return a page of another server's directory. Raises Forbidden, OtherServerFailed."""

        async def ask() -> dict[str, Any]:
            return await self._requests.get_public_rooms(server, query)

        return await self._find(server, ("rooms", server, query), ask, DIRECTORY)

    async def _find(
        self, server: ServerName, key: Hashable, ask: Callable[[], Awaitable[T]], what: str
    ) -> T:
        self._policy.check_destination(server, _PATHS[what])
        cached = self._cache.peek(key)
        if cached is None or cached.until <= self._clock.seconds():
            cached = await self._queries.run(key, lambda: self._query(server, key, ask, what))
        if isinstance(cached.value, MatrixError):
            # a new exception for each caller: a raised one keeps the frames of its request alive
            raise type(cached.value)(cached.value.text)
        found: T = cached.value
        return found

    async def _query(
        self, server: ServerName, key: Hashable, ask: Callable[[], Awaitable[T]], what: str
    ) -> _CachedResult:
        value: T | MatrixError
        with self._slots.hold_now(server):
            try:
                value = await ask()
            except RemoteError as error:
                value = _explain(error, what)
        size = 0 if isinstance(value, MatrixError) else len(msgspec.json.encode(value))
        cached = _CachedResult(self._clock.seconds() + CACHE_SECONDS, value, size)
        self._cache.put(key, cached)
        return cached


def _explain(error: RemoteError, what: str) -> MatrixError:
    if isinstance(error, RefusedByRemote):
        if error.status == 404:
            return NotFound(f"{error.destination} has no such {what}")
        if error.status == 403:
            return Forbidden(f"{error.destination} refused: {error.text}")
    return OtherServerFailed(f"The query to {error.destination} failed: {error.reason}")
