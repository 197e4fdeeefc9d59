"""Caches of memberships: the rooms of a user, and the local users in a room.

The stream updates both caches. So for cached users and rooms, no query is needed to wake clients or
to answer their syncs. The caches are used only on the reactor thread.
"""

from collections.abc import Iterable, Mapping, Sequence, Set

from federation.protocol.ids import UserID
from storage.cache import StreamCache
from storage.engine.streams import Change, Streams, Topic
from storage.rooms.memberships import MembershipRow, MembershipStore


class Memberships:
    """Reads the memberships of users and of rooms through caches."""

    def __init__(self, *, store: MembershipStore, streams: Streams, capacity: int) -> None:
        """`capacity`: users, and as many rooms."""
        self._store = store
        self._by_user: StreamCache[str, dict[int, MembershipRow]] = StreamCache(
            streams,
            Topic.MEMBERSHIP,
            load=self._load_user,
            keys_of=_users_of,
            update=_update_rooms,
            max_entries=capacity,
        )
        self._local: StreamCache[int, set[str]] = StreamCache(
            streams,
            Topic.MEMBERSHIP,
            load=self._load_room,
            keys_of=_rooms_of,
            update=_update_members,
            max_entries=capacity,
        )

    def __len__(self) -> int:
        """Users and rooms in the caches."""
        return len(self._by_user) + len(self._local)

    @property
    def hits(self) -> int:
        """Users and rooms that were cached."""
        return self._by_user.hits + self._local.hits

    @property
    def misses(self) -> int:
        """Users and rooms that had to be read."""
        return self._by_user.misses + self._local.misses

    async def of_user(self, user_id: UserID) -> Mapping[int, MembershipRow]:
        """Return all memberships of a user by room number. The cache changes the mapping: do not
        store it."""
        return await self._by_user.get(user_id)

    def find_of_user(self, user_id: UserID) -> Mapping[int, MembershipRow] | None:
        """Return the same as `of_user` if it is cached, else None."""
        return self._by_user.find(user_id)

    async def local_members(self, room_nid: int) -> Set[str]:
        """Return the local users who are joined. The cache changes the set: do not store it."""
        return await self._local.get(room_nid)

    async def find_joined(self, pairs: Iterable[tuple[int, UserID]]) -> Set[tuple[int, UserID]]:
        """Return the pairs of a room and a user where the user is joined; one query at most.

        It fills no cache, because other servers may name any user.
        """
        found: set[tuple[int, UserID]] = set()
        unknown: dict[tuple[int, str], UserID] = {}
        for room_nid, user_id in pairs:
            rooms = self._by_user.find(user_id)
            if rooms is None:
                unknown[room_nid, user_id] = user_id
            elif room_nid in rooms and rooms[room_nid].membership == "join":
                found.add((room_nid, user_id))
        if unknown:
            found |= {
                (pair[0], unknown[pair]) for pair in await self._store.get_joined(list(unknown))
            }
        return found

    async def find_invited(self, user_id: UserID, candidates: Iterable[UserID]) -> Set[UserID]:
        """Return the users whom a local user invited to a room that `user_id` is in; two
        queries."""
        return {
            UserID(other)
            for other in await self._store.get_invited_by_own_server(user_id, candidates)
        }

    async def _load_user(self, user_ids: Sequence[str]) -> Mapping[str, dict[int, MembershipRow]]:
        return {each: dict(await self._store.get_memberships_of_user(each)) for each in user_ids}

    async def _load_room(self, room_nids: Sequence[int]) -> Mapping[int, set[str]]:
        return {each: set(await self._store.get_local_members(each)) for each in room_nids}


def _users_of(change: Change) -> Sequence[str] | None:
    row = change.detail
    return (row.user_id,) if isinstance(row, MembershipRow) else None


def _rooms_of(change: Change) -> Sequence[int] | None:
    row = change.detail
    if not isinstance(row, MembershipRow):
        return None
    return (row.room_nid,) if row.is_local else ()


def _update_rooms(rooms: dict[int, MembershipRow], change: Change) -> bool:
    row = change.detail
    if not isinstance(row, MembershipRow):
        return False
    rooms[row.room_nid] = row
    return True


def _update_members(members: set[str], change: Change) -> bool:
    row = change.detail
    if not isinstance(row, MembershipRow):
        return False
    if row.membership == "join":
        members.add(row.user_id)
    else:
        members.discard(row.user_id)
    return True
