"""Which other servers are in a room, from memory: whom to tell of what happens there.

Counts are kept in the database as users join and leave (`storage/rooms/room_servers.py`); here the
servers of recent rooms are remembered, and forgotten when a user of another server comes or goes.
For the reactor thread.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Final

from federation.protocol.ids import ServerName, UserID
from federation.rooms.memberships import Memberships
from storage.engine.streams import Change, Streams, Topic
from storage.rooms.memberships import MembershipRow
from storage.rooms.room_servers import RoomServerStore

Servers = Mapping[ServerName, int]
"""The other servers in a room, and the position since which each is there."""
_NONE: Final[Servers] = {}


class RoomServers:
    """A cache of `room_servers`."""

    def __init__(
        self, store: RoomServerStore, memberships: Memberships, streams: Streams, *, capacity: int
    ) -> None:
        """`capacity`: how many rooms are remembered."""
        self._store = store
        self._memberships = memberships
        self._capacity = capacity
        self._known: OrderedDict[int, Servers] = OrderedDict()
        self._is_alone: bool | None = None
        """Whether no other server is in any room; None: not known. A server that is not, may be
        again after its next start."""
        self._changes_heard = 0
        streams.subscribe(self._hear, Topic.COMPLETENESS, Topic.MEMBERSHIP)
        streams.watch(self._heed_others)

    def peek(self, room_nid: int) -> Servers | None:
        """What is remembered of a room; None if that is nothing."""
        return _NONE if self._is_alone else self._known.get(room_nid)

    @property
    def is_known_alone(self) -> bool:
        """Whether it is known without a question that no other server is in any room."""
        return self._is_alone is True

    async def is_alone(self) -> bool:
        """Whether no other server is in any room: then nothing is asked for a room, or a user. One
        query, or none."""
        while self._is_alone is None:
            heard = self._changes_heard
            is_alone = not await self._store.has_any()
            if heard == self._changes_heard:
                self._is_alone = is_alone
        return self._is_alone

    async def in_room(self, room_nid: int) -> Servers:
        """The other servers in one room."""
        found = self._known.get(room_nid)
        return found if found is not None else (await self.in_rooms([room_nid]))[room_nid]

    async def in_rooms(self, room_nids: Iterable[int]) -> Mapping[int, Servers]:
        """The other servers in each of the rooms."""
        wanted = set(room_nids)
        if await self.is_alone():
            return dict.fromkeys(wanted, _NONE)
        found: dict[int, Servers] = {}
        missing = []
        for nid in wanted:
            servers = self._known.get(nid)
            if servers is None:
                missing.append(nid)
            else:
                found[nid] = servers
        while missing:
            heard = self._changes_heard
            rows = await self._store.get_servers(missing)
            if heard != self._changes_heard:
                continue
            for nid in missing:
                servers = {ServerName(row.server): row.since for row in rows.get(nid, ())}
                found[nid] = self._known[nid] = servers
            break
        while len(self._known) > self._capacity:
            self._known.popitem(last=False)
        return found

    async def newly_shared(self, user_id: UserID, room_nid: int, position: int) -> set[ServerName]:
        """The other servers that share a room with one of our users since they joined it at a
        position: not one from before."""
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
        """The other servers that share a room with one of our users."""
        if await self.is_alone():
            return set()
        rows = await self._memberships.of_user(user_id)
        rooms = await self.in_rooms([nid for nid, row in rows.items() if row.membership == "join"])
        return {server for servers in rooms.values() for server in servers}

    async def find_strangers(
        self, user_id: UserID, servers: Set[ServerName], users: Iterable[str]
    ) -> set[ServerName]:
        """Those of the servers that share no room with one of our users, and of whom none of these
        users is invited to one.

        Who is invited may read a room, so that their keys are needed before they are in it. Invites
        by others than ours do not count: nobody knows whether there are such servers, where an
        invite of ours is signed by that of whoever is invited.
        """
        rows = await self._memberships.of_user(user_id)
        strangers = set(servers)
        for in_room in (
            await self.in_rooms([nid for nid, row in rows.items() if row.membership == "join"])
        ).values():
            if not strangers:
                break
            strangers = {server for server in strangers if server not in in_room}
        if strangers:
            theirs = [UserID(each) for each in users if _server_of(each) in strangers]
            strangers -= {
                _server_of(each) for each in await self._memberships.find_invited(user_id, theirs)
            }
        return strangers

    def _hear(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.topic is Topic.COMPLETENESS:
                self._forget_all()
            elif change.topic is Topic.MEMBERSHIP:
                row = change.detail
                if not isinstance(row, MembershipRow):
                    self._forget_all()
                elif not row.is_local:
                    self._note_change()
                    self._known.pop(row.room_nid, None)

    def _heed_others(self, _after: int, _upto: int) -> None:
        """Another node wrote: who came and went is not known here."""
        self._forget_all()

    def _forget_all(self) -> None:
        self._note_change()
        self._known.clear()

    def _note_change(self) -> None:
        self._changes_heard += 1
        if self._is_alone:
            self._is_alone = None


def longest_in(servers: Servers) -> list[ServerName]:
    """The servers, who has been there for longest first: the likeliest to answer for the room."""
    return sorted(servers, key=lambda server: servers[server])


def _server_of(user_id: str) -> ServerName:
    """As a name that may be none: clients write what they like."""
    return ServerName(user_id.partition(":")[2])
