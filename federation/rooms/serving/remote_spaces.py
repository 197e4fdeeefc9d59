"""Rooms of spaces that this server is not in, as other servers tell of them.

- A page of a tree asks for many rooms: some at a time, each of a few servers in turn.
- Answers are remembered for some minutes, refusals too: the next page asks for the same rooms
  again. A refusal counts for the servers that gave it.

spec: server-server-api#get_matrixfederationv1hierarchyroomid
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from federation.protocol.errors import MatrixError
from federation.protocol.ids import RoomID, ServerName
from federation.protocol.space_hierarchy import RemoteHierarchy
from federation.remote.directory import DirectoryRequests
from federation.rooms.concurrent import map_at_once
from federation.rooms.server_fallback import Candidates
from storage.cache import LRU

AT_ONCE: Final = 8
SERVERS_ASKED: Final = 3
"""For one room."""
REMEMBERED_MS: Final = 5 * 60_000
MOST_REMEMBERED: Final = 2000


class _Told(msgspec.Struct, frozen=True):
    """An answer, None where the servers that were asked had none, and until when it counts."""

    until: int
    answer: RemoteHierarchy | None
    servers: frozenset[ServerName]


class RemoteHierarchies:
    """Asks other servers: `RemoteSpaces`. For the reactor thread."""

    def __init__(
        self, requests: DirectoryRequests, candidates: Candidates, now_ms: Callable[[], int]
    ) -> None:
        self._requests = requests
        self._candidates = candidates
        self._now_ms = now_ms
        self._cache: LRU[tuple[RoomID, bool], _Told] = LRU(max_entries=MOST_REMEMBERED)

    async def get_hierarchies(
        self, rooms: Mapping[RoomID, Sequence[ServerName]], *, suggested_only: bool
    ) -> Mapping[RoomID, RemoteHierarchy]:
        """As `RemoteSpaces.get_hierarchies`."""
        now = self._now_ms()
        found: dict[RoomID, RemoteHierarchy | None] = {}
        for room_id, servers in rooms.items():
            told = self._cache.peek((room_id, suggested_only))
            if (
                told is not None
                and told.until > now
                and (told.answer is not None or told.servers.issuperset(servers))
            ):
                found[room_id] = told.answer

        async def ask(room_id: RoomID) -> None:
            answer = found[room_id] = await self._ask(room_id, rooms[room_id], suggested_only)
            told = _Told(self._now_ms() + REMEMBERED_MS, answer, frozenset(rooms[room_id]))
            self._cache.put((room_id, suggested_only), told)

        lacking = [room_id for room_id in rooms if room_id not in found]
        if lacking:
            await map_at_once(ask, lacking, AT_ONCE)
        return {room_id: answer for room_id, answer in found.items() if answer is not None}

    async def _ask(
        self, room_id: RoomID, servers: Sequence[ServerName], suggested_only: bool
    ) -> RemoteHierarchy | None:
        async def request(server: ServerName) -> RemoteHierarchy:
            return await self._requests.get_hierarchy(
                server, room_id, suggested_only=suggested_only
            )

        try:
            return await self._candidates.ask(servers, request, most=SERVERS_ASKED)
        except MatrixError:
            return None  # whoever looks at the tree sees as much of it as could be had
