"""The state of a room as the answer to a join, whole or without most of its members.

spec: server-server-api#put_matrixfederationv2send_joinroomideventid
"""

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from federation.api.responses import Response
from federation.peers.identity import ServerIdentity
from federation.protocol.events import StateKey
from federation.rooms.events import StoredEvent, entries_before
from federation.rooms.membership_templates import MEMBER
from federation.rooms.room_servers import RoomServers
from federation.rooms.serving.spliced import Part, part_of, spliced
from federation.rooms.snapshot import RoomSnapshot
from storage.events.events import EventStore
from storage.rooms.served_states import ToldStates
from storage.rooms.summaries import RoomSummaryStore

HEROES: Final = 5
FEW_MEMBERS: Final = 100
"""Up to so many memberships are told even to who would do without: to ask for them once more would
cost more."""
FEW_SERVERS: Final = 10
"""But not where they are of more servers, whose keys have to be had first: one that is away keeps
people waiting for ten seconds."""
NAMES: Final = (StateKey("m.room.name", ""), StateKey("m.room.canonical_alias", ""))
_encode = msgspec.json.encode


class JoinAnswers:
    """Puts together what a server gets whose user has joined."""

    def __init__(
        self,
        store: EventStore,
        states: ToldStates,
        servers: RoomServers,
        summaries: RoomSummaryStore,
        identity: ServerIdentity,
    ) -> None:
        self._store = store
        self._states = states
        self._servers = servers
        self._summaries = summaries
        self._identity = identity

    async def answer(
        self, snapshot: RoomSnapshot, join: StoredEvent, *, omit_members: bool, in_pair: bool
    ) -> Response:
        """The state before the join, with its auth chain. `in_pair`: as version 1 of the endpoint
        has it."""
        room_nid, own = snapshot.room.room_nid, self._identity.server_name
        heroes = await self._heroes(snapshot, join) if omit_members else frozenset()

        def choose(after: Mapping[tuple[str, str], int]) -> Iterable[int]:
            nonlocal omit_members
            entries = entries_before(join, after)
            omit_members = omit_members and not _is_small(entries)
            if not omit_members:
                return entries.values()
            return [nid for key, nid in entries.items() if key[0] != MEMBER or nid in heroes]

        told = await self._states.get_state(
            room_nid, join.state_root, choose, [join.nid], only_beyond=omit_members
        )
        others = await self._servers.in_room(room_nid)
        # a server that has come in with this very join was not in the room before
        servers = [own, *(server for server, since in others.items() if since != join.position)]
        head = _encode({"origin": own, "members_omitted": omit_members})[:-1]
        parts: list[Part] = [
            (b"[200," if in_pair else b"") + head + b',"event":' + join.pdu + b',"state":[',
            part_of(told, told.state),
            b'],"auth_chain":[',
            part_of(told, told.chain),
            b'],"servers_in_room":' + _encode(servers) + (b"}]" if in_pair else b"}"),
        ]
        return spliced(self._store, parts, str(join.nid))

    async def _heroes(self, snapshot: RoomSnapshot, join: StoredEvent) -> frozenset[int]:
        """The membership events of those by whom a room is called that has no name."""
        if await snapshot.state.load(NAMES):
            return frozenset()
        nids = [snapshot.room.room_nid]
        rosters = await self._summaries.get_rosters(join.event.sender, nids, HEROES)
        return frozenset(hero.event_nid for roster in rosters.values() for hero in roster.heroes)


def _is_small(entries: Mapping[tuple[str, str], int]) -> bool:
    members = [state_key for type, state_key in entries if type == MEMBER]
    return (
        len(members) <= FEW_MEMBERS
        and len({user.partition(":")[2] for user in members}) <= FEW_SERVERS
    )
