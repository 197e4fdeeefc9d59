"""The data that lists filter by, in memory: users' direct chats and tags, and the name, type and
encryption of rooms. Use this module only on the reactor thread."""

from collections.abc import Collection, Mapping, Sequence, Set
from typing import Final

import msgspec

from federation.protocol.ids import UserID
from storage.account_data.account_data import AccountDataStore
from storage.cache import StreamCache
from storage.engine.streams import Change, Stage, Streams, Topic
from storage.events.events import EventFlag, EventRow, EventSummary
from storage.rooms.summaries import RoomSummaryStore, SummaryRow

DIRECT: Final = "m.direct"
TAGS: Final = "m.tag"
CREATE: Final = "m.room.create"
ENCRYPTION: Final = "m.room.encryption"
NAME: Final = "m.room.name"
TRAITS: Final = frozenset({CREATE, ENCRYPTION, NAME})
NO_TAGS: Final[frozenset[str]] = frozenset()
MAX_CHANGES: Final = 10_000


class RoomTags(msgspec.Struct, frozen=True, gc=False):
    """A user's direct chats (`m.direct`) and tags (`m.tag`), by room ID."""

    direct: frozenset[str]
    tags: Mapping[str, frozenset[str]]


class RoomTagCache:
    """Reads and caches direct chats and tags."""

    def __init__(self, *, store: AccountDataStore, streams: Streams, capacity: int) -> None:
        """`capacity`: the number of users in the cache."""
        self._store = store
        self._cache: StreamCache[UserID, RoomTags] = StreamCache(
            streams, Topic.ACCOUNT_DATA, load=self._load, keys_of=_users_of, max_entries=capacity
        )

    async def of_user(self, user_id: UserID) -> RoomTags:
        """Return the direct chats and tags of a user."""
        return await self._cache.get(user_id)

    async def _load(self, user_ids: Sequence[UserID]) -> Mapping[UserID, RoomTags]:
        return {user_id: await self._load_user(user_id) for user_id in user_ids}

    async def _load_user(self, user_id: UserID) -> RoomTags:
        direct = await self._store.get_entry(user_id, None, DIRECT)
        tags = await self._store.get_rooms_entries(user_id, TAGS)
        return RoomTags(
            _parse_direct(direct) if direct is not None else frozenset(),
            {room_id: _parse_tags(content) for room_id, content in tags.items()},
        )


def _users_of(change: Change) -> Sequence[UserID]:
    return () if change.user_id is None else (UserID(change.user_id),)


class RoomTraitCache:
    """Reads and caches name, type and encryption of rooms.

    No `StreamCache`: a list looks up thousands of rooms, so it gets the mapping itself.
    """

    def __init__(self, *, store: RoomSummaryStore, streams: Streams, capacity: int) -> None:
        """`capacity`: the number of rooms in the cache."""
        self._store = store
        self._streams = streams
        self._capacity = capacity
        self._known: dict[int, SummaryRow] = {}
        self._version = 0
        self._changes: list[tuple[int, str]] = []
        """The latest changes: room and type of state event."""
        self._changes_before = 0
        streams.subscribe(
            self._on_changes, Topic.EVENT, Topic.REDACTED, Topic.PARTIAL_STATE, stage=Stage.CACHE
        )
        streams.watch(self._on_remote_write, stage=Stage.CACHE)

    async def of_rooms(self, room_nids: Collection[int]) -> Mapping[int, SummaryRow]:
        """Return the traits of at least these rooms. The mapping belongs to the cache: do not hold
        it."""
        while missing := [nid for nid in room_nids if nid not in self._known]:
            if len(self._known) > self._capacity:
                self._known, missing = {}, list(room_nids)
            version, known = self._version, self._known
            read = await self._store.get_summaries(missing)
            if version == self._version and known is self._known:
                known.update(read)
                break
        return self._known

    def cursor(self) -> int:
        """Return the current position in the list of changes, for `changed_since`."""
        return self._changes_before + len(self._changes)

    def changed_since(self, cursor: int, types: Set[str]) -> Set[int] | None:
        """Return the rooms whose state of these types changed since the cursor; None if that is
        not known."""
        if cursor < self._changes_before:
            return None
        changes = self._changes[cursor - self._changes_before :]
        return {nid for nid, type in changes if type in types} if changes else frozenset()

    def _on_changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            row = change.detail
            if isinstance(row, EventRow | EventSummary):
                # state resolution may have changed any of them
                types = TRAITS if row.flags & EventFlag.RESOLVED else TRAITS & {row.type}
                if types:
                    self._version += 1
                    self._known.pop(row.room_nid, None)
                for type in types:
                    self._add_change(row.room_nid, type)
            elif change.topic in (Topic.EVENT, Topic.REDACTED, Topic.PARTIAL_STATE):
                self._clear()  # the whole state of a room may have changed without an event

    def _on_remote_write(self, after: int, upto: int) -> None:
        """Another node wrote: apply its changes if they are known, else clear the cache."""
        changes = self._streams.get_remote_changes(after, upto)
        if changes is None:
            self._clear()
        else:
            self._on_changes(changes)

    def _add_change(self, room_nid: int, type: str) -> None:
        self._changes.append((room_nid, type))
        if len(self._changes) > 2 * MAX_CHANGES:
            del self._changes[:MAX_CHANGES]
            self._changes_before += MAX_CHANGES

    def _clear(self) -> None:
        self._version += 1
        self._known = {}
        self._changes_before = self.cursor() + 1
        self._changes = []


def _parse_direct(content: bytes) -> frozenset[str]:
    by_user = msgspec.json.decode(content)
    lists = [rooms for rooms in by_user.values() if isinstance(rooms, list)]
    return frozenset(room_id for rooms in lists for room_id in rooms if isinstance(room_id, str))


def _parse_tags(content: bytes) -> frozenset[str]:
    tags = msgspec.json.decode(content).get("tags")
    return frozenset(tags) if isinstance(tags, dict) else NO_TAGS
