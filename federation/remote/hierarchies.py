"""Asking other servers about spaces and rooms that this server is not in: what `RemoteSpaces` is for.

Laws:
- Answers are remembered for some minutes, refusals for a shorter time: the pages of a tree ask for the same rooms again.
- A few servers are asked about a room, one after the other, until one tells; about several rooms at the same time.

spec: server-server-api#spaces
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.identity import ServerIdentity
from federation.protocol.errors import MatrixError, RemoteError
from federation.protocol.ids import RoomID, ServerName, is_server_name
from federation.protocol.space_hierarchy import RemoteHierarchy, parse_hierarchy
from federation.requests import Requests, path_of
from federation.rooms.concurrent import map_at_once

MAX_SERVERS: Final = 3
"""Who are asked about one room."""
AT_ONCE: Final = 10
"""About how many rooms is asked at the same time, for one page."""
SECONDS: Final = 10
MAX_BYTES: Final = 4 << 20
SECONDS_REMEMBERED: Final = 300
SECONDS_REFUSED: Final = 60
"""After which it is asked again about a room of which nobody told."""
ANSWERS_REMEMBERED: Final = 2000

_PATH: Final = "/_matrix/federation/v1/hierarchy/{}"


@dataclass(frozen=True, slots=True)
class _Remembered:
    until: float
    answer: RemoteHierarchy | None


class HierarchyRequests:
    """Asks, and remembers. For the reactor thread."""

    def __init__(self, requests: Requests, identity: ServerIdentity, clock: IReactorTime) -> None:
        self._requests = requests
        self._identity = identity
        self._clock = clock
        self._remembered: OrderedDict[tuple[RoomID, bool], _Remembered] = OrderedDict()
        self._log = Logger()

    async def get_hierarchies(
        self, rooms: Mapping[RoomID, Sequence[ServerName]], *, suggested_only: bool
    ) -> Mapping[RoomID, RemoteHierarchy]:
        """What servers tell of these rooms, each with servers that may know it; what nobody tells of is missing."""
        now = self._clock.seconds()
        found: dict[RoomID, RemoteHierarchy | None] = {}
        unknown: list[RoomID] = []
        for room_id in rooms:
            kept = self._remembered.get((room_id, suggested_only))
            if kept is not None and kept.until > now:
                found[room_id] = kept.answer
            else:
                unknown.append(room_id)

        async def ask(room_id: RoomID) -> RemoteHierarchy | None:
            return await self._ask(room_id, rooms[room_id], suggested_only)

        if unknown:
            found.update(zip(unknown, await map_at_once(ask, unknown, AT_ONCE), strict=True))
        return {room_id: answer for room_id, answer in found.items() if answer is not None}

    async def _ask(self, room_id: RoomID, via: Sequence[ServerName], suggested_only: bool) -> RemoteHierarchy | None:
        answer = None
        for server in self._choose(room_id, via):
            try:
                told = await self._requests.get(
                    server,
                    path_of(_PATH, room_id),
                    [("suggested_only", "true" if suggested_only else "false")],
                    seconds=SECONDS,
                    max_bytes=MAX_BYTES,
                )
                answer = parse_hierarchy(room_id, told)
                break
            except (RemoteError, MatrixError) as error:
                self._log.info("{server} does not tell of a room: {error}", server=server, error=str(error))
        seconds = SECONDS_REMEMBERED if answer is not None else SECONDS_REFUSED
        key = (room_id, suggested_only)
        self._remembered[key] = _Remembered(self._clock.seconds() + seconds, answer)
        self._remembered.move_to_end(key)
        if len(self._remembered) > ANSWERS_REMEMBERED:
            self._remembered.popitem(last=False)
        return answer

    def _choose(self, room_id: RoomID, via: Sequence[ServerName]) -> Sequence[ServerName]:
        """The servers that are named, then who gave the room its id, where ids tell that."""
        _, named, maker = room_id.partition(":")
        candidates = [*via, *([ServerName(maker)] if named and is_server_name(maker) else [])]
        return [server for server in dict.fromkeys(candidates) if server != self._identity.server_name][:MAX_SERVERS]
