"""Cache of users' account data: a client that has read all of it then reads one room after another.

Laws:
- The cache holds all account data of a user, except for rooms with changes since, which are read
  again. A change of global account data makes the next complete read query everything.
- A result that a change overtakes while it is read is not cached.
- An entry is evicted when a device of the user is removed, and when all data of the user is removed
  at once by an erasure.

For the reactor thread.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from typing import Final

import msgspec

from storage.account_data.account_data import AccountData, AccountDataStore
from storage.engine.streams import Change, Streams, Topic

HEEDED: Final = (Topic.ACCOUNT_DATA, Topic.DEVICES_GONE)
ENTRY: Final = 200
"""Approximate overhead in bytes of an entry, of a room and of a user."""
MOST_CHANGED: Final = 200
"""Changed rooms of a user; a user with more is evicted."""
LARGEST_SHARE: Final = 16
"""A user whose data would take more than this fraction (1/16) of the capacity is not cached."""


class _CachedUser(msgspec.Struct, gc=False):
    """The cached account data of a user."""

    everywhere: dict[str, bytes] | None
    """Global account data; None after a change of it."""
    rooms: dict[str, dict[str, bytes]]
    size: int
    changed: set[str] = set()
    """Rooms with changes since: they are not in `rooms`, but count in `size`."""


class KeptAccountData:
    """Reads account data, through a cache."""

    def __init__(self, store: AccountDataStore, streams: Streams, *, capacity: int) -> None:
        """`capacity`: in bytes, approximately."""
        self._store = store
        self._capacity = capacity
        self._users: OrderedDict[str, _CachedUser] = OrderedDict()
        self.weight = 0
        """Approximate size in bytes."""
        self.hits = 0
        self.misses = 0
        self._version = 0
        streams.subscribe(self._on_changes, *HEEDED)
        streams.watch(self._on_remote_write)

    def __len__(self) -> int:
        """Return the number of cached users."""
        return len(self._users)

    async def of_user(self, user_id: str) -> AccountData:
        """Return all account data of a user."""
        cached = self._users.get(user_id)
        if cached is not None and cached.changed and cached.everywhere is not None:
            await self.of_rooms(user_id, tuple(cached.changed))
            cached = self._users.get(user_id)
        if cached is not None and cached.everywhere is not None and not cached.changed:
            self._users.move_to_end(user_id)
            self.hits += 1
            return AccountData(cached.everywhere, dict(cached.rooms))
        self.misses += 1
        version = self._version
        data = await self._store.get_account_data(user_id)
        if version == self._version:
            self._evict(user_id)
            size = _weigh(data.everywhere) + sum(map(_weigh, data.rooms.values()))
            if size * LARGEST_SHARE <= self._capacity:
                self._users[user_id] = _CachedUser(dict(data.everywhere), dict(data.rooms), size)
                self.weight += size
                self._shrink()
        return data

    async def of_rooms(
        self, user_id: str, room_ids: Collection[str]
    ) -> dict[str, dict[str, bytes]]:
        """Return a user's account data of some rooms, by room. Rooms without any are missing."""
        cached = self._users.get(user_id)
        if cached is None:
            self.misses += 1
            return await self._store.get_rooms_account_data(user_id, room_ids)
        self._users.move_to_end(user_id)
        changed = cached.changed.intersection(room_ids)
        if changed:
            self.misses += 1
            version = self._version
            read = await self._store.get_rooms_account_data(user_id, room_ids)
            if version == self._version and self._users.get(user_id) is cached:
                # a concurrent call may have read some of the changed rooms
                for room_id in changed & cached.changed:
                    cached.changed.remove(room_id)
                    self._grow(cached, -ENTRY)
                    if room_id in read:
                        cached.rooms[room_id] = read[room_id]
                        self._grow(cached, _weigh(read[room_id]))
                if cached.size * LARGEST_SHARE > self._capacity:
                    self._evict(user_id)
                self._shrink()
            return read
        self.hits += 1
        return {room_id: cached.rooms[room_id] for room_id in room_ids if room_id in cached.rooms}

    def _grow(self, cached: _CachedUser, size: int) -> None:
        cached.size += size
        self.weight += size

    def _shrink(self) -> None:
        while self.weight > self._capacity:
            self._evict(next(iter(self._users)))

    def _evict(self, user_id: str) -> None:
        cached = self._users.pop(user_id, None)
        if cached is not None:
            self.weight -= cached.size

    def _on_changes(self, changes: Iterable[Change]) -> None:
        for change in changes:
            if change.topic not in HEEDED:
                continue
            self._version += 1
            user_id, room_id = change.user_id, change.room_id
            if user_id is None:
                self._evict_all()
            elif change.topic is not Topic.ACCOUNT_DATA or (
                room_id is None and change.detail is None
            ):
                self._evict(user_id)
            elif (cached := self._users.get(user_id)) is None:
                continue
            elif room_id is None:
                if cached.everywhere is not None:
                    self._grow(cached, ENTRY - _weigh(cached.everywhere))
                    cached.everywhere = None
            else:
                former = cached.rooms.pop(room_id, None)
                if former is not None:
                    self._grow(cached, -_weigh(former))
                if room_id not in cached.changed:
                    cached.changed.add(room_id)
                    self._grow(cached, ENTRY)
                if len(cached.changed) > MOST_CHANGED:
                    self._evict(user_id)
                self._shrink()

    def _on_remote_write(self, _after: int, _upto: int) -> None:
        """Evict all: another node may have changed any user's data."""
        self._version += 1
        self._evict_all()

    def _evict_all(self) -> None:
        self._users.clear()
        self.weight = 0


def _weigh(entries: Mapping[str, bytes]) -> int:
    return ENTRY + sum(ENTRY + len(content) for content in entries.values())
