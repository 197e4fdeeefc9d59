"""A cache of the other servers in each room: the servers to which events of the room are sent.

The database counts the users of each server as they join and leave
(`storage/rooms/room_servers.py`). When a remote user joins or leaves, the room's entry is
invalidated. The cache is used only on the reactor thread.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Final

from federation.protocol.ids import ServerName, UserID
from federation.rooms.memberships import Memberships
from storage.cache import StreamCache, StreamValue
from storage.engine.streams import Change, Streams, Topic
from storage.rooms.memberships import MembershipRow
from storage.rooms.room_servers import RoomServerStore

Servers = Mapping[ServerName, int]
"""The other servers in a room, with the position since which each has been there."""
_NONE: Final[Servers] = {}


class RoomServers:
    """Reads the other servers in rooms through a cache."""

    def __init__(
        self, *, store: RoomServerStore, memberships: Memberships, streams: Streams, capacity: int
    ) -> None:
        """`capacity`: rooms."""
        self._store = store
        self._memberships = memberships
        self._rooms: StreamCache[int, Servers] = StreamCache(
            streams,
            Topic.PARTIAL_STATE,
            Topic.MEMBERSHIP,
            load=self._load,
            keys_of=_rooms_of,
            max_entries=capacity,
        )
        self._alone: StreamValue[bool] = StreamValue(
            streams,
            Topic.PARTIAL_STATE,
            Topic.MEMBERSHIP,
            load=self._load_alone,
            concerns=lambda change: _rooms_of(change) != (),
        )
        self._has_remote_servers = False
        """Whether another server was in some room since the start. Then we no longer check whether
        all have left."""

    def peek(self, room_nid: int) -> Servers | None:
        """Return the same as `in_room` if it is cached, else None."""
        return _NONE if self._alone.find() else self._rooms.find(room_nid)

    @property
    def is_known_alone(self) -> bool:
        """Whether it is cached that no other server is in any room."""
        return self._alone.find() is True

    async def is_alone(self) -> bool:
        """Return whether no other server is in any room, so that no query is needed; at most one
        query."""
        if not self._has_remote_servers and not await self._alone.get():
            self._has_remote_servers = True
        return not self._has_remote_servers

    async def in_room(self, room_nid: int) -> Servers:
        """Return the other servers in one room."""
        found = self._rooms.find(room_nid)
        return found if found is not None else (await self.in_rooms([room_nid]))[room_nid]

    @property
    def cache(self) -> StreamCache[int, Servers]:
        """The servers by room, for metrics."""
        return self._rooms

    async def in_rooms(self, room_nids: Iterable[int]) -> Mapping[int, Servers]:
        """Return the other servers in each of the rooms."""
        wanted = set(room_nids)
        if await self.is_alone():
            return dict.fromkeys(wanted, _NONE)
        return await self._rooms.get_many(wanted)

    async def find_newly_shared(
        self, user_id: UserID, room_nid: int, position: int
    ) -> set[ServerName]:
        """Return the servers that share a room with a local user only since the user joined this
        room at a position."""
        rows = await self._memberships.of_user(user_id)
        earlier = [
            nid for nid, row in rows.items() if row.membership == "join" and row.position < position
        ]
        if room_nid not in rows or rows[room_nid].membership != "join":
            return set()
        found = await self.in_rooms([room_nid, *earlier])
        return found[room_nid].keys() - {
            server for nid in earlier if nid != room_nid for server in found[nid]
        }

    async def of_user(self, user_id: UserID) -> set[ServerName]:
        """Return the other servers that share a room with a local user."""
        if await self.is_alone():
            return set()
        rows = await self._memberships.of_user(user_id)
        rooms = await self.in_rooms([nid for nid, row in rows.items() if row.membership == "join"])
        return {server for servers in rooms.values() for server in servers}

    async def find_unrelated(
        self, user_id: UserID, servers: Set[ServerName], users: Iterable[str]
    ) -> set[ServerName]:
        """Return the servers that share no room with a local user and have no user invited to one.

        `users`: the users to check for invites. An invited user may read a room, so their keys are
        needed before they join. Only invites by local users count: the server of an invited user
        has signed those, so it exists.
        """
        rows = await self._memberships.of_user(user_id)
        unrelated = set(servers)
        for in_room in (
            await self.in_rooms([nid for nid, row in rows.items() if row.membership == "join"])
        ).values():
            if not unrelated:
                break
            unrelated = {server for server in unrelated if server not in in_room}
        if unrelated:
            candidates = [UserID(each) for each in users if _server_of(each) in unrelated]
            unrelated -= {
                _server_of(each)
                for each in await self._memberships.find_invited(user_id, candidates)
            }
        return unrelated

    async def _load(self, room_nids: Sequence[int]) -> Mapping[int, Servers]:
        rows = await self._store.get_servers(room_nids)
        return {
            nid: {ServerName(row.server): row.joined_position for row in rows.get(nid, ())}
            for nid in room_nids
        }

    async def _load_alone(self) -> bool:
        return not await self._store.has_any()


def _rooms_of(change: Change) -> Sequence[int] | None:
    row = change.detail
    if not isinstance(row, MembershipRow):
        return None
    return () if row.is_local else (row.room_nid,)


def sort_by_join(servers: Servers) -> list[ServerName]:
    """Return the servers, those that joined earliest first: they most likely know the room best."""
    return sorted(servers, key=lambda server: servers[server])


def _server_of(user_id: str) -> ServerName:
    """Return the part after the first colon; it need not be a valid name."""
    return ServerName(user_id.partition(":")[2])
