"""What users keep of rooms, from memory: who has read all of it lately looks into one room after
another.

Laws:
- What is kept of a user is all that they keep, but for the rooms where something was set since:
  these are read anew. So is all of it once something was set that is of no room.
- What was read while something was set is not kept.
- It goes when a device of the user goes, and when all that they keep goes at once, as their account
  is erased, the second time too.

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
"""Bytes, about, for an entry, for a room, and for a user beside what they say."""
MOST_CHANGED: Final = 200
"""Rooms of a user where something was set since; who has more is read anew."""
LARGEST_SHARE: Final = 16
"""Who keeps more than one part in so many of all that may be kept is not kept."""


class _OfUser(msgspec.Struct, gc=False):
    everywhere: dict[str, bytes] | None
    """What is of no room; None once something of it was set."""
    rooms: dict[str, dict[str, bytes]]
    size: int
    changed: set[str] = set()
    """Rooms that are not in `rooms`, though the user may keep something of them. They have a size
    too."""


class KeptAccountData:
    """Reads account data, through a cache."""

    def __init__(self, store: AccountDataStore, streams: Streams, *, capacity: int) -> None:
        """`capacity`: about how many bytes are kept."""
        self._store = store
        self._capacity = capacity
        self._users: OrderedDict[str, _OfUser] = OrderedDict()
        self.weight = 0
        """About how many bytes are kept."""
        self.hits = 0
        self.misses = 0
        self._changes_heard = 0
        streams.subscribe(self._hear, *HEEDED)
        streams.watch(self._heed_others)

    def __len__(self) -> int:
        """Users in the cache."""
        return len(self._users)

    async def of_user(self, user_id: str) -> AccountData:
        """All that a user keeps."""
        kept = self._users.get(user_id)
        if kept is not None and kept.changed and kept.everywhere is not None:
            await self.of_rooms(user_id, tuple(kept.changed))
            kept = self._users.get(user_id)
        if kept is not None and kept.everywhere is not None and not kept.changed:
            self._users.move_to_end(user_id)
            self.hits += 1
            return AccountData(kept.everywhere, dict(kept.rooms))
        self.misses += 1
        heard = self._changes_heard
        data = await self._store.get_account_data(user_id)
        if heard == self._changes_heard:
            self._forget(user_id)
            size = _weigh(data.everywhere) + sum(map(_weigh, data.rooms.values()))
            if size * LARGEST_SHARE <= self._capacity:
                self._users[user_id] = _OfUser(dict(data.everywhere), dict(data.rooms), size)
                self.weight += size
                self._make_room()
        return data

    async def of_rooms(
        self, user_id: str, room_ids: Collection[str]
    ) -> dict[str, dict[str, bytes]]:
        """What a user keeps of some rooms, by room; rooms of which they keep nothing are
        missing."""
        kept = self._users.get(user_id)
        if kept is None:
            self.misses += 1
            return await self._store.get_rooms_account_data(user_id, room_ids)
        self._users.move_to_end(user_id)
        changed = kept.changed.intersection(room_ids)
        if changed:
            self.misses += 1
            heard = self._changes_heard
            read = await self._store.get_rooms_account_data(user_id, room_ids)
            if heard == self._changes_heard and self._users.get(user_id) is kept:
                for room_id in (
                    changed & kept.changed
                ):  # others may have read some of them meanwhile
                    kept.changed.remove(room_id)
                    self._grow(kept, -ENTRY)
                    if room_id in read:
                        kept.rooms[room_id] = read[room_id]
                        self._grow(kept, _weigh(read[room_id]))
                if kept.size * LARGEST_SHARE > self._capacity:
                    self._forget(user_id)
                self._make_room()
            return read
        self.hits += 1
        return {room_id: kept.rooms[room_id] for room_id in room_ids if room_id in kept.rooms}

    def _grow(self, kept: _OfUser, size: int) -> None:
        kept.size += size
        self.weight += size

    def _make_room(self) -> None:
        while self.weight > self._capacity:
            self._forget(next(iter(self._users)))

    def _forget(self, user_id: str) -> None:
        kept = self._users.pop(user_id, None)
        if kept is not None:
            self.weight -= kept.size

    def _hear(self, changes: Iterable[Change]) -> None:
        for change in changes:
            if change.topic not in HEEDED:
                continue
            self._changes_heard += 1
            user_id, room_id = change.user_id, change.room_id
            if user_id is None:
                self._forget_all()
            elif change.topic is not Topic.ACCOUNT_DATA or (
                room_id is None and change.detail is None
            ):
                self._forget(user_id)
            elif (kept := self._users.get(user_id)) is None:
                continue
            elif room_id is None:
                if kept.everywhere is not None:
                    self._grow(kept, ENTRY - _weigh(kept.everywhere))
                    kept.everywhere = None
            else:
                former = kept.rooms.pop(room_id, None)
                if former is not None:
                    self._grow(kept, -_weigh(former))
                if room_id not in kept.changed:
                    kept.changed.add(room_id)
                    self._grow(kept, ENTRY)
                if len(kept.changed) > MOST_CHANGED:
                    self._forget(user_id)
                self._make_room()

    def _heed_others(self, _after: int, _upto: int) -> None:
        """Another node wrote: of whom is not known here."""
        self._changes_heard += 1
        self._forget_all()

    def _forget_all(self) -> None:
        self._users.clear()
        self.weight = 0


def _weigh(entries: Mapping[str, bytes]) -> int:
    return ENTRY + sum(ENTRY + len(content) for content in entries.values())
