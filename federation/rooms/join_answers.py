"""The state of a room as the answer to a join, whole or without most of its members.

spec: server-server-api#put_matrixfederationv2send_joinroomideventid
"""

from typing import Final

import msgspec

from federation.identity import ServerIdentity
from federation.protocol.answers import Response
from federation.protocol.events import StateKey
from federation.rooms.room_events import StoredEvent
from federation.rooms.servers import RoomServers
from federation.rooms.snapshots import RoomSnapshot
from federation.rooms.spliced import Part, spliced
from federation.rooms.templates import MEMBER
from storage.auth_chains import AuthChainStore
from storage.events import EventStore
from storage.room_summaries import RoomSummaryStore
from storage.state_tree import StateTreeStore

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
        parts: list[Part] = [
            (b"[200," if in_pair else b"") + head + b',"event":' + join.pdu + b',"state":[',
            [(nid, sizes[nid]) for nid in state],
            b'],"auth_chain":[',
            [(nid, sizes[nid]) for nid in sorted(chain)],
            b'],"servers_in_room":' + _encode(servers) + (b"}]" if in_pair else b"}"),
        ]
        return spliced(self._store, parts, str(join.nid))

    async def _heroes(self, snapshot: RoomSnapshot, join: StoredEvent) -> frozenset[int]:
        """The membership events of those by whom a room without a name is called."""
        nids = [snapshot.room.room_nid]
        rosters = await self._summaries.get_rosters(join.event.sender, nids, HEROES)
        return frozenset(hero.event_nid for roster in rosters.values() for hero in roster.heroes)
