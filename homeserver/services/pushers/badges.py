"""The badge on an app's icon: the number of the user's invites and unread messages. With the option
`group_unread_count_by_room`, rooms with unread messages count instead of messages.

The first badge of a user counts all rooms. For later badges, only the rooms in which something
changed for the user are counted again. The code that reads the stream marks these rooms
(`invalidate_room_of_user`). After a write of another node, all rooms are counted again
(`invalidate_all`). If pushes for several devices of a user need the badge at once, the counts run
one after the other, so later ones find the rooms already counted. Use this module only on the
reactor thread.

spec: push-gateway-api#post_matrixpushv1notify, the field `unread` of `counts`
"""

from collections.abc import Mapping, Sequence, Set
from typing import Final

import msgspec
from twisted.internet.defer import DeferredLock

from federation.protocol.ids import UserID
from federation.rooms.memberships import Memberships
from homeserver.services.account_data.ignored_users import IgnoredUsers
from homeserver.services.account_data.invite_permissions import InvitePermissions
from homeserver.services.push.unread_counts import UnreadCounts
from storage.cache import LRU
from storage.rooms.memberships import MembershipRow

MAX_CACHED_USERS: Final = 20_000
MAX_CACHED_APPS: Final = 100_000


class _Rooms(msgspec.Struct):
    unread: dict[int, int] = msgspec.field(default_factory=dict)
    """The number of unread messages by room, for rooms that have any."""
    changed: set[int] = msgspec.field(default_factory=set)
    counted: Set[int] = frozenset()
    """The rooms that are being counted."""
    invalidations: int = 0
    """The value of `BadgeCounts._invalidations` at the last count."""
    counting: DeferredLock = msgspec.field(default_factory=DeferredLock)


class SentBadges:
    """A cache of the badges that apps show, as this process last sent them, by pusher."""

    def __init__(self) -> None:
        self._numbers: LRU[int, int] = LRU(max_entries=MAX_CACHED_APPS)

    def get(self, pusher_nid: int) -> int | None:
        """Return the badge that the app shows; None if it is not known."""
        return self._numbers.peek(pusher_nid)

    def record(self, pusher_nid: int, number: int) -> None:
        """Record the badge that was sent to the app."""
        self._numbers.put(pusher_nid, number)

    def clear(self) -> None:
        """Clear the cache: another node may send badges now."""
        self._numbers.clear()


class BadgeCounts:
    """Badges by user.

    No `StreamCache`: a change marks one room of a user, and the badge is corrected by the count of
    that room.
    """

    def __init__(
        self,
        *,
        memberships: Memberships,
        unread: UnreadCounts,
        ignored: IgnoredUsers,
        permissions: InvitePermissions,
        by_room: bool,
    ) -> None:
        """`by_room`: count the rooms with unread messages instead of the messages."""
        self._memberships = memberships
        self._unread = unread
        self._ignored = ignored
        self._permissions = permissions
        self._by_room = by_room
        self._users: LRU[str, _Rooms] = LRU(max_entries=MAX_CACHED_USERS)
        self._invalidations = 0

    def invalidate_room_of_user(self, user_id: str, room_nid: int) -> None:
        """Count the room again for this user at the next read."""
        rooms = self._users.peek(user_id)
        if rooms is not None:
            rooms.changed.add(room_nid)

    def invalidate_room(self, room_nid: int) -> Sequence[str]:
        """Count the room again for all users: something in it was removed. Return the cached users
        whose badge may change."""
        users: list[str] = []
        for user_id, rooms in self._users.items():
            if room_nid in rooms.unread or room_nid in rooms.counted:
                rooms.changed.add(room_nid)
                users.append(user_id)
        return users

    def invalidate_user(self, user_id: str) -> None:
        """Invalidate all counts of a user."""
        self._users.pop(user_id)

    def invalidate_all(self) -> None:
        """Count all joined rooms again for all users at the next read."""
        self._invalidations += 1

    def clear(self) -> None:
        """Clear the cache."""
        self._users.clear()

    async def get(self, user_id: UserID) -> int:
        """Return the current badge of a user."""
        memberships = await self._memberships.of_user(user_id)
        rooms = self._users.get(user_id)
        if rooms is None:
            rooms = _Rooms(changed=set(memberships), invalidations=self._invalidations)
            self._users.put(user_id, rooms)
        async with rooms.counting:
            memberships = await self._memberships.of_user(user_id)
            if rooms.invalidations != self._invalidations:
                rooms.changed.update(memberships, rooms.unread)
                rooms.invalidations = self._invalidations
            rooms.counted = changed = rooms.changed
            rooms.changed = set()
            try:
                await self._count(user_id, rooms, changed, memberships)
            except BaseException:
                rooms.changed |= changed
                raise
            finally:
                rooms.counted = frozenset()
        invites = [row for row in memberships.values() if row.membership == "invite"]
        visible = [row for row in invites if not await self._permissions.hides(row)]
        return len(visible) + (len(rooms.unread) if self._by_room else sum(rooms.unread.values()))

    async def _count(
        self,
        user_id: UserID,
        rooms: _Rooms,
        changed: set[int],
        memberships: Mapping[int, MembershipRow],
    ) -> None:
        if not changed:
            return
        joined = [
            memberships[nid]
            for nid in changed
            if nid in memberships and memberships[nid].membership == "join"
        ]
        counts = await self._unread.get_counts(
            user_id, joined, await self._ignored.of_user(user_id)
        )
        for room_nid in changed:
            number = counts[room_nid].total.notifications if room_nid in counts else 0
            if number:
                rooms.unread[room_nid] = number
            else:
                rooms.unread.pop(room_nid, None)
