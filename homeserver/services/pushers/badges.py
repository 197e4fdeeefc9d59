"""The number on an app's icon: how much a user has not read, over all rooms.

A user's rooms are counted once, and after that only those in which something has happened that
concerns the user. Who reads the stream says which (`touch`, `forget`). Of a user one count is made
at a time: who asks meanwhile, for another device, waits for it. For the reactor thread.

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

USERS_REMEMBERED: Final = 20_000
APPS_REMEMBERED: Final = 100_000


class _Rooms(msgspec.Struct):
    unread: dict[int, int] = msgspec.field(default_factory=dict)
    """Only those with something unread."""
    touched: set[int] = msgspec.field(default_factory=set)
    counted: Set[int] = frozenset()
    """Those that are being counted."""
    doubts: int = 0
    """How often all was doubted when it was counted last."""
    counting: DeferredLock = msgspec.field(default_factory=DeferredLock)


class ShownNumbers:
    """What apps show, as far as this process told it lately: by the number of the pusher."""

    def __init__(self) -> None:
        self._numbers: LRU[int, int] = LRU(max_entries=APPS_REMEMBERED)

    def get(self, pusher_nid: int) -> int | None:
        """What that app shows; None where it is not known."""
        return self._numbers.peek(pusher_nid)

    def note(self, pusher_nid: int, number: int) -> None:
        """The app shows this from now on."""
        self._numbers.put(pusher_nid, number)

    def forget_all(self) -> None:
        """Another may tell them now."""
        self._numbers.clear()


class Badges:
    """Numbers by user.

    No `StreamCache`: a change marks one room of a user, and the number is corrected by that room.
    """

    def __init__(
        self,
        memberships: Memberships,
        unread: UnreadCounts,
        ignored: IgnoredUsers,
        permissions: InvitePermissions,
        *,
        by_room: bool,
    ) -> None:
        """`by_room`: rooms are counted, not the messages in them."""
        self._memberships = memberships
        self._unread = unread
        self._ignored = ignored
        self._permissions = permissions
        self._by_room = by_room
        self._users: LRU[str, _Rooms] = LRU(max_entries=USERS_REMEMBERED)
        self._doubts = 0

    def touch(self, user_id: str, room_nid: int) -> None:
        """What the user has not read of the room may have changed."""
        rooms = self._users.peek(user_id)
        if rooms is not None:
            rooms.touched.add(room_nid)

    def touch_room(self, room_nid: int) -> Sequence[str]:
        """It may have changed for anybody: something in the room was taken away. Whose number may
        be another, of those whose is known."""
        users: list[str] = []
        for user_id, rooms in self._users.items():
            if room_nid in rooms.unread or room_nid in rooms.counted:
                rooms.touched.add(room_nid)
                users.append(user_id)
        return users

    def forget(self, user_id: str) -> None:
        """It may have changed everywhere."""
        self._users.pop(user_id)

    def doubt_all(self) -> None:
        """It may have changed for anybody, everywhere: where each had something unread is known as
        it was."""
        self._doubts += 1

    def forget_all(self) -> None:
        """Nothing is known any more."""
        self._users.clear()

    async def get(self, user_id: UserID) -> int:
        """The number for now."""
        memberships = await self._memberships.of_user(user_id)
        rooms = self._users.get(user_id)
        if rooms is None:
            rooms = _Rooms(touched=set(memberships), doubts=self._doubts)
            self._users.put(user_id, rooms)
        async with rooms.counting:
            memberships = await self._memberships.of_user(user_id)
            if rooms.doubts != self._doubts:
                rooms.touched.update(memberships, rooms.unread)
                rooms.doubts = self._doubts
            rooms.counted = touched = rooms.touched
            rooms.touched = set()
            try:
                await self._count(user_id, rooms, touched, memberships)
            except BaseException:
                rooms.touched |= touched
                raise
            finally:
                rooms.counted = frozenset()
        invites = [row for row in memberships.values() if row.membership == "invite"]
        shown = [row for row in invites if not await self._permissions.hides(row)]
        return len(shown) + (len(rooms.unread) if self._by_room else sum(rooms.unread.values()))

    async def _count(
        self,
        user_id: UserID,
        rooms: _Rooms,
        touched: set[int],
        memberships: Mapping[int, MembershipRow],
    ) -> None:
        if not touched:
            return
        joined = [
            memberships[nid]
            for nid in touched
            if nid in memberships and memberships[nid].membership == "join"
        ]
        counts = await self._unread.get_counts(
            user_id, joined, await self._ignored.of_user(user_id)
        )
        for room_nid in touched:
            number = counts[room_nid].total.notifications if room_nid in counts else 0
            if number:
                rooms.unread[room_nid] = number
            else:
                rooms.unread.pop(room_nid, None)
