"""Builds the response to send_join: the state before the join, with its auth chain.

If the request allows partial state (`omit_members`), most memberships are omitted, except in small
rooms.

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
from federation.rooms.serving.streamed_events import Part, make_part, splice
from federation.rooms.snapshot import RoomSnapshot
from storage.events.events import EventStore
from storage.rooms.served_states import ServedStateReader
from storage.rooms.summaries import RoomSummaryStore

HEROES: Final = 5
MAX_SMALL_MEMBERS: Final = 100
"""Up to this number, memberships are never omitted: fetching them later would cost more."""
MAX_SMALL_SERVERS: Final = 10
"""The same holds only up to this number of servers. The joining server needs their keys first, and
each one that is down delays the join by ten seconds."""
NAMES: Final = (StateKey("m.room.name", ""), StateKey("m.room.canonical_alias", ""))
_encode = msgspec.json.encode


class JoinResponses:
    """Builds send_join responses."""

    def __init__(
        self,
        *,
        store: EventStore,
        states: ServedStateReader,
        servers: RoomServers,
        summaries: RoomSummaryStore,
        identity: ServerIdentity,
    ) -> None:
        self._store = store
        self._states = states
        self._servers = servers
        self._summaries = summaries
        self._identity = identity

    async def build(
        self, snapshot: RoomSnapshot, join: StoredEvent, *, omit_members: bool, is_v1: bool
    ) -> Response:
        """Return the state before the join with its auth chain.

        `is_v1`: in the form of version 1 of the endpoint.
        """
        room_nid, own = snapshot.room.room_nid, self._identity.server_name
        heroes = await self._get_hero_events(snapshot, join) if omit_members else frozenset()

        def choose(after: Mapping[tuple[str, str], int]) -> Iterable[int]:
            nonlocal omit_members
            entries = entries_before(join, after)
            omit_members = omit_members and not _is_small(entries)
            if not omit_members:
                return entries.values()
            return [nid for key, nid in entries.items() if key[0] != MEMBER or nid in heroes]

        state = await self._states.get_state(
            room_nid, join.state_root, choose, [join.nid], exclude_state=omit_members
        )
        since_by_server = await self._servers.in_room(room_nid)
        # a server that is in the room since this very join was not in it before
        servers = [
            own,
            *(server for server, since in since_by_server.items() if since != join.position),
        ]
        head = _encode({"origin": own, "members_omitted": omit_members})[:-1]
        parts: list[Part] = [
            (b"[200," if is_v1 else b"") + head + b',"event":' + join.pdu + b',"state":[',
            make_part(state, state.state),
            b'],"auth_chain":[',
            make_part(state, state.chain),
            b'],"servers_in_room":' + _encode(servers) + (b"}]" if is_v1 else b"}"),
        ]
        return splice(self._store, parts, str(join.nid))

    async def _get_hero_events(self, snapshot: RoomSnapshot, join: StoredEvent) -> frozenset[int]:
        """Return the membership events of the heroes of a room without a name."""
        if await snapshot.state.load(NAMES):
            return frozenset()
        nids = [snapshot.room.room_nid]
        namings = await self._summaries.get_namings(join.event.sender, nids, HEROES)
        return frozenset(hero.event_nid for naming in namings.values() for hero in naming.heroes)


def _is_small(entries: Mapping[tuple[str, str], int]) -> bool:
    members = [state_key for type, state_key in entries if type == MEMBER]
    return (
        len(members) <= MAX_SMALL_MEMBERS
        and len({user.partition(":")[2] for user in members}) <= MAX_SMALL_SERVERS
    )
