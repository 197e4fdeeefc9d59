"""The state of a room as the answer to a join: spliced from stored bytes and sent piece by piece, so that a large room
costs neither memory for all of it nor a query for each event.

spec: server-server-api#put_matrixfederationv2send_joinroomideventid
"""

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from federation.identity import ServerIdentity
from federation.protocol.answers import File, Response
from federation.protocol.events import StateKey
from federation.rooms.room_events import StoredEvent
from federation.rooms.servers import RoomServers
from federation.rooms.snapshots import RoomSnapshot
from federation.rooms.templates import MEMBER
from storage.auth_chains import AuthChainStore
from storage.events import EventStore
from storage.room_summaries import RoomSummaryStore
from storage.state_tree import StateTreeStore

EVENTS_AT_ONCE: Final = 500
HEROES: Final = 5
FEW_MEMBERS: Final = 20
"""Up to so many memberships are told even to who would do without: to ask for them once more would cost more."""
NAMES: Final = (StateKey("m.room.name", ""), StateKey("m.room.canonical_alias", ""))
_encode = msgspec.json.encode


class JoinAnswers:
    """Puts together what a server gets whose user has joined."""

    def __init__(
        self,
        store: EventStore,
        trees: StateTreeStore,
        chains: AuthChainStore,
        servers: RoomServers,
        summaries: RoomSummaryStore,
        identity: ServerIdentity,
    ) -> None:
        self._store = store
        self._trees = trees
        self._chains = chains
        self._servers = servers
        self._summaries = summaries
        self._identity = identity

    async def answer(self, snapshot: RoomSnapshot, join: StoredEvent, *, omit_members: bool, in_pair: bool) -> Response:
        """The state before the join, with its auth chain. `in_pair`: as version 1 of the endpoint has it."""
        room_nid, own = snapshot.room.room_nid, self._identity.server_name
        entries = dict(await self._trees.get_all(room_nid, join.state_root))
        if join.replaces is None:
            entries.pop(join.event.key, None)
        else:
            entries[join.event.key] = join.replaces
        kept = entries
        omit_members = omit_members and sum(key[0] == MEMBER for key in entries) > FEW_MEMBERS
        if omit_members:
            needed = await self._heroes(snapshot, join) if not any(key in entries for key in NAMES) else frozenset()
            kept = {key: nid for key, nid in entries.items() if key[0] != MEMBER or nid in needed}
        state = sorted(kept.values())
        chain = await self._chains.get_auth_chain([*state, join.nid])
        if omit_members:
            chain -= set(state)
        others = await self._servers.in_room(room_nid)
        # a server that has come in with this very join was not in the room before
        servers = [own, *(server for server, since in others.items() if since != join.position)]
        sizes = await self._store.get_sizes({*state, *chain})
        head = _encode({"origin": own, "members_omitted": omit_members})[:-1]
        parts: list[bytes | Sequence[tuple[int, int]]] = [
            (b"[200," if in_pair else b"") + head + b',"event":' + join.pdu + b',"state":[',
            [(nid, sizes[nid]) for nid in state],
            b'],"auth_chain":[',
            [(nid, sizes[nid]) for nid in sorted(chain)],
            b'],"servers_in_room":' + _encode(servers) + (b"}]" if in_pair else b"}"),
        ]
        pieces = _Pieces(self._store, parts)
        etag = f"{join.nid}-{pieces.size}"
        return Response(headers={"Content-Type": "application/json"}, body=File(pieces, pieces.size, etag))

    async def _heroes(self, snapshot: RoomSnapshot, join: StoredEvent) -> frozenset[int]:
        """The membership events of those by whom a room without a name is called."""
        nids = [snapshot.room.room_nid]
        rosters = await self._summaries.get_rosters(join.event.sender, nids, HEROES)
        return frozenset(hero.event_nid for roster in rosters.values() for hero in roster.heroes)


class _Pieces:
    """A `Source` of fixed bytes and of lists of stored events, read once from front to back.

    An event that loses its content by a redaction while it is waited for is filled up with spaces.
    """

    def __init__(self, store: EventStore, parts: Iterable[bytes | Sequence[tuple[int, int]]]) -> None:
        """`parts`: bytes, or events as their numbers and sizes."""
        self._store = store
        self._parts: deque[bytes | Sequence[tuple[int, int]]] = deque()
        self._ready = b""
        self.size = 0
        for part in parts:
            if isinstance(part, bytes):
                self.size += len(part)
                self._parts.append(part)
                continue
            self.size += sum(size for _, size in part) + max(len(part) - 1, 0)
            for start in range(0, len(part), EVENTS_AT_ONCE):
                if start:
                    self._parts.append(b",")
                self._parts.append(part[start : start + EVENTS_AT_ONCE])

    async def read(self, offset: int, size: int) -> bytes:
        """What comes next; `offset` is where the last piece ended."""
        while len(self._ready) < size and self._parts:
            part = self._parts.popleft()
            self._ready += part if isinstance(part, bytes) else await self._load(part)
        piece, self._ready = self._ready[:size], self._ready[size:]
        return piece

    def close(self) -> None:
        self._parts.clear()
        self._ready = b""

    async def _load(self, events: Sequence[tuple[int, int]]) -> bytes:
        pdus = await self._store.get_pdus(nid for nid, _ in events)
        return b",".join(pdus[nid].ljust(size) for nid, size in events)
