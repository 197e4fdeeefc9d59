"""Fetches the space hierarchies of rooms that this server is not in, from servers that are in them.

- A page of a hierarchy needs many rooms. At most `CONCURRENT_ROOMS` of them are requested at the
  same time, each from a few servers in turn.
- Responses and refusals are cached for some minutes, because the next page needs the same rooms
  again. A cached refusal applies only to the servers that gave it.

spec: server-server-api#get_matrixfederationv1hierarchyroomid
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from federation.protocol.errors import MatrixError
from federation.protocol.ids import RoomID, ServerName
from federation.protocol.space_hierarchy import RemoteHierarchy
from federation.remote.directory import RemoteDirectoryClient
from federation.rooms.concurrency import map_concurrently
from federation.rooms.server_fallback import ServerFallback
from storage.cache import LRU

CONCURRENT_ROOMS: Final = 8
MAX_SERVERS: Final = 3
"""Servers that are asked for one room."""
CACHE_MS: Final = 5 * 60_000
MAX_CACHED: Final = 2000


class _Cached(msgspec.Struct, frozen=True):
    """A cached response, None if the servers had none, and the time when it expires."""

    until: int
    answer: RemoteHierarchy | None
    servers: frozenset[ServerName]


class RemoteHierarchies:
    """Implements `RemoteSpaces` with requests to other servers. Use this class only on the reactor
    thread."""

    def __init__(
        self,
        *,
        requests: RemoteDirectoryClient,
        candidates: ServerFallback,
        now_ms: Callable[[], int],
    ) -> None:
        self._requests = requests
        self._fallback = candidates
        self._now_ms = now_ms
        self._cache: LRU[tuple[RoomID, bool], _Cached] = LRU(max_entries=MAX_CACHED)

    async def get_hierarchies(
        self, rooms: Mapping[RoomID, Sequence[ServerName]], *, suggested_only: bool
    ) -> Mapping[RoomID, RemoteHierarchy]:
        """Implement `RemoteSpaces.get_hierarchies`."""
        now = self._now_ms()
        found: dict[RoomID, RemoteHierarchy | None] = {}
        for room_id, servers in rooms.items():
            cached = self._cache.peek((room_id, suggested_only))
            if (
                cached is not None
                and cached.until > now
                and (cached.answer is not None or cached.servers.issuperset(servers))
            ):
                found[room_id] = cached.answer

        async def ask(room_id: RoomID) -> None:
            answer = found[room_id] = await self._request(room_id, rooms[room_id], suggested_only)
            cached = _Cached(self._now_ms() + CACHE_MS, answer, frozenset(rooms[room_id]))
            self._cache.put((room_id, suggested_only), cached)

        missing = [room_id for room_id in rooms if room_id not in found]
        if missing:
            await map_concurrently(ask, missing, CONCURRENT_ROOMS)
        return {room_id: answer for room_id, answer in found.items() if answer is not None}

    async def _request(
        self, room_id: RoomID, servers: Sequence[ServerName], suggested_only: bool
    ) -> RemoteHierarchy | None:
        async def request(server: ServerName) -> RemoteHierarchy:
            return await self._requests.get_hierarchy(
                server, room_id, suggested_only=suggested_only
            )

        try:
            return await self._fallback.run(servers, request, max_servers=MAX_SERVERS)
        except MatrixError:
            return None  # the client sees as much of the hierarchy as could be fetched
