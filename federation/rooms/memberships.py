"""Who is in which room, from memory: the rooms of a user, the local users of a room.

Read once, then kept up by the stream of events, so that waking and synchronising cost no query. A
load that a change of the same key overtakes is done again. For the reactor thread.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence, Set

from federation.protocol.ids import UserID
from storage.engine.streams import Change, Streams, Topic
from storage.rooms.memberships import MembershipRow, MembershipStore


class Memberships:
    """Caches of `memberships` by user and by room."""

    def __init__(self, store: MembershipStore, streams: Streams, *, capacity: int) -> None:
        """`capacity`: how many users, and how many rooms, are kept."""
        self._store = store
        self._streams = streams
        self._capacity = capacity
        self._by_user: OrderedDict[str, dict[int, MembershipRow]] = OrderedDict()
        self._local: OrderedDict[int, set[str]] = OrderedDict()
        self._changes_heard = 0
        self.hits = 0
        self.misses = 0
        streams.subscribe(self._hear, Topic.MEMBERSHIP)
        streams.watch(self._heed_others)

    def __len__(self) -> int:
        """Users and rooms in the cache."""
        return len(self._by_user) + len(self._local)

    async def of_user(self, user_id: UserID) -> Mapping[int, MembershipRow]:
        """All memberships of a user by room number. The mapping is the cache's own: read, don't
        keep."""
        found = self.known_of(user_id)
        if found is not None:
            return found
        self.misses += 1
        while True:
            heard = self._changes_heard
            rows = dict(await self._store.get_memberships_of_user(user_id))
            if heard == self._changes_heard:
                break
        self._by_user[user_id] = rows
        if len(self._by_user) > self._capacity:
            self._by_user.popitem(last=False)
        return rows

    def known_of(self, user_id: UserID) -> Mapping[int, MembershipRow] | None:
        """The same as far as it is in memory."""
        found = self._by_user.get(user_id)
        if found is not None:
            self._by_user.move_to_end(user_id)
            self.hits += 1
        return found

    async def local_members(self, room_nid: int) -> Set[str]:
        """This server's users who are joined. The set is the cache's own: read, don't keep."""
        found = self._local.get(room_nid)
        if found is not None:
            self._local.move_to_end(room_nid)
            self.hits += 1
            return found
        self.misses += 1
        while True:
            heard = self._changes_heard
            members = set(await self._store.get_local_members(room_nid))
            if heard == self._changes_heard:
                break
        self._local[room_nid] = members
        if len(self._local) > self._capacity:
            self._local.popitem(last=False)
        return members

    async def find_joined(self, pairs: Iterable[tuple[int, UserID]]) -> Set[tuple[int, UserID]]:
        """Those of the pairs of a room and a user where the user is joined: one query at most.

        Nothing is remembered for it: it is for what others say, who may name whom they like.
        """
        found: set[tuple[int, UserID]] = set()
        unknown: dict[tuple[int, str], UserID] = {}
        for room_nid, user_id in pairs:
            rooms = self._by_user.get(user_id)
            if rooms is None:
                unknown[room_nid, user_id] = user_id
            elif room_nid in rooms and rooms[room_nid].membership == "join":
                found.add((room_nid, user_id))
        if unknown:
            found |= {
                (pair[0], unknown[pair]) for pair in await self._store.get_joined(list(unknown))
            }
        return found

    async def find_invited(self, user_id: UserID, others: Iterable[UserID]) -> Set[UserID]:
        """Those of the others who are invited, by somebody of this server, to a room that the user
        is in. Two queries."""
        return {UserID(other) for other in await self._store.get_invited_by_ours(user_id, others)}

    def _hear(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.topic is Topic.MEMBERSHIP:
                self._changes_heard += 1
                row = change.detail
                if isinstance(row, MembershipRow):
                    self._apply(row)
                else:
                    self._forget_all()

    def _heed_others(self, after: int, upto: int) -> None:
        """Another node wrote: where it has not said what, of whom is not known here."""
        self._changes_heard += 1
        told = self._streams.told(after, upto)
        if told is None:
            self._forget_all()
            return
        for change in told:
            if change.topic is Topic.MEMBERSHIP:
                row = change.detail
                if isinstance(row, MembershipRow):
                    self._by_user.pop(row.user_id, None)
                    self._local.pop(row.room_nid, None)
                else:
                    self._forget_all()

    def _forget_all(self) -> None:
        self._by_user.clear()
        self._local.clear()

    def _apply(self, row: MembershipRow) -> None:
        rooms = self._by_user.get(row.user_id)
        if rooms is not None:
            rooms[row.room_nid] = row
        members = self._local.get(row.room_nid)
        if members is not None and row.is_local:
            if row.membership == "join":
                members.add(row.user_id)
            else:
                members.discard(row.user_id)
