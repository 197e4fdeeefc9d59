"""Cache of users' account data: the global data, and the data of each room.

An entry holds all account data of a user, because many clients first read all of it and then the
data of one room after another.

A change of a user's account data in one room invalidates only the data of that user and room. A
change of global account data invalidates only the user's global data. The whole entry of a user is
evicted in three cases: the data of more than `MAX_CHANGED_ROOMS` rooms is invalid, a device of the
user is deleted (settings of the device are account data), or all data of the user is deleted.

The cache is used only on the reactor thread.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Final

import msgspec

from storage.account_data.account_data import AccountDataStore, UserAccountData
from storage.cache import StreamCache
from storage.engine.streams import Change, Streams, Topic

ENTRY_BYTES: Final = 200
"""Approximate overhead in bytes of an entry, of a room and of a user."""
MAX_CHANGED_ROOMS: Final = 200
"""The largest number of rooms with invalid data in a user's entry. An entry with more is
evicted."""
MAX_SHARE: Final = 16
"""A user whose data would take more than this fraction (1/16) of the capacity is not cached."""


class _CachedUser(msgspec.Struct, gc=False):
    """The cached account data of a user."""

    global_data: dict[str, bytes] | None
    """Global account data; None after a change of it."""
    rooms: dict[str, dict[str, bytes]]
    size: int
    changed: set[str] = set()
    """Rooms whose data has changed since it was read: they are not in `rooms`, but count in
    `size`."""

    def update(self, change: Change) -> bool:
        """Apply a change. Return False if the user has to be evicted."""
        room_id = change.room_id
        if change.topic is not Topic.ACCOUNT_DATA or (room_id is None and change.detail is None):
            return False
        if room_id is None:
            if self.global_data is not None:
                self.size += ENTRY_BYTES - _weigh(self.global_data)
                self.global_data = None
            return True
        former = self.rooms.pop(room_id, None)
        if former is not None:
            self.size -= _weigh(former)
        if room_id not in self.changed:
            self.changed.add(room_id)
            self.size += ENTRY_BYTES
        return len(self.changed) <= MAX_CHANGED_ROOMS

    def put_rooms(self, room_ids: Collection[str], read: Mapping[str, dict[str, bytes]]) -> None:
        """Add the data that was read of changed rooms. Rooms that another call has read meanwhile
        are skipped."""
        for room_id in self.changed.intersection(room_ids):
            self.changed.remove(room_id)
            self.size -= ENTRY_BYTES
            if room_id in read:
                self.rooms[room_id] = read[room_id]
                self.size += _weigh(read[room_id])


class AccountDataCache:
    """Reads account data, through a cache."""

    def __init__(self, *, store: AccountDataStore, streams: Streams, capacity: int) -> None:
        """`capacity`: in bytes, approximately."""
        self._store = store
        self._users: StreamCache[str, _CachedUser] = StreamCache(
            streams,
            Topic.ACCOUNT_DATA,
            Topic.DEVICES_DELETED,
            load=self._load,
            keys_of=lambda change: None if change.user_id is None else (change.user_id,),
            update=_CachedUser.update,
            max_weight=capacity,
            weigh=lambda _, of_user: of_user.size,
            largest_share=MAX_SHARE,
        )
        self._rooms_read = 0

    def __len__(self) -> int:
        """Return the number of cached users."""
        return len(self._users)

    @property
    def weight(self) -> int:
        """The approximate size of the cache in bytes."""
        return self._users.weight

    @property
    def hits(self) -> int:
        """The number of reads without a query."""
        return self._users.hits

    @property
    def misses(self) -> int:
        """The number of reads with a query."""
        return self._users.misses + self._rooms_read

    async def of_user(self, user_id: str) -> UserAccountData:
        """Return all account data of a user."""
        while True:
            of_user = await self._users.get(user_id)
            if of_user.global_data is None:
                self._users.invalidate(user_id)
            elif of_user.changed:
                await self._read_rooms(user_id, of_user, tuple(of_user.changed))
            else:
                return UserAccountData(of_user.global_data, dict(of_user.rooms))

    async def of_rooms(
        self, user_id: str, room_ids: Collection[str]
    ) -> dict[str, dict[str, bytes]]:
        """Return a user's account data of some rooms, by room. Rooms without any are missing."""
        of_user = self._users.find(user_id)
        if of_user is None:
            self._rooms_read += 1
            return await self._store.get_rooms_account_data(user_id, room_ids)
        if not of_user.changed.isdisjoint(room_ids):
            return await self._read_rooms(user_id, of_user, room_ids)
        return {room_id: of_user.rooms[room_id] for room_id in room_ids if room_id in of_user.rooms}

    async def _read_rooms(
        self, user_id: str, of_user: _CachedUser, room_ids: Collection[str]
    ) -> dict[str, dict[str, bytes]]:
        self._rooms_read += 1
        changes = self._users.changes
        read = await self._store.get_rooms_account_data(user_id, room_ids)
        if changes == self._users.changes and self._users.find(user_id) is of_user:
            of_user.put_rooms(room_ids, read)
            self._users.reweigh(user_id)
        return read

    async def _load(self, user_ids: Sequence[str]) -> Mapping[str, _CachedUser]:
        found: dict[str, _CachedUser] = {}
        for user_id in user_ids:
            data = await self._store.get_account_data(user_id)
            size = _weigh(data.global_data) + sum(map(_weigh, data.rooms.values()))
            found[user_id] = _CachedUser(dict(data.global_data), dict(data.rooms), size)
        return found


def _weigh(entries: Mapping[str, bytes]) -> int:
    return ENTRY_BYTES + sum(ENTRY_BYTES + len(content) for content in entries.values())
