"""What lists filter by, from memory: direct chats and tags of users, and what rooms are. For the
reactor thread."""

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence, Set
from typing import Final

import msgspec

from federation.protocol.ids import UserID
from storage.account_data.account_data import AccountDataStore
from storage.engine.streams import Change, Streams, Topic
from storage.events.events import EventFlag, EventNews, EventRow
from storage.rooms.summaries import RoomSummaryStore, SummaryRow

DIRECT: Final = "m.direct"
TAGS: Final = "m.tag"
CREATE: Final = "m.room.create"
ENCRYPTION: Final = "m.room.encryption"
NAME: Final = "m.room.name"
TRAITS: Final = frozenset({CREATE, ENCRYPTION, NAME})
NO_TAGS: Final[frozenset[str]] = frozenset()
CHANGES_KEPT: Final = 10_000


class RoomTags(msgspec.Struct, frozen=True, gc=False):
    """What a user says of rooms, by the rooms' ids."""

    direct: frozenset[str]
    tags: Mapping[str, frozenset[str]]


class RoomTagCache:
    """Reads what users say of their rooms."""

    def __init__(self, store: AccountDataStore, streams: Streams, *, capacity: int) -> None:
        """`capacity`: how many users are remembered."""
        self._store = store
        self._streams = streams
        self._capacity = capacity
        self._known: OrderedDict[str, RoomTags] = OrderedDict()
        self._version = 0
        streams.subscribe(self._on_changes, Topic.ACCOUNT_DATA)
        streams.watch(self._on_remote_write)

    async def of_user(self, user_id: UserID) -> RoomTags:
        """The labels of one user."""
        known = self._known.get(user_id)
        if known is not None:
            self._known.move_to_end(user_id)
            return known
        while True:
            heard = self._version
            direct = await self._store.get_entry(user_id, None, DIRECT)
            tags = await self._store.get_rooms_entries(user_id, TAGS)
            if heard == self._version:
                break
        labels = RoomTags(
            _parse_direct(direct) if direct is not None else frozenset(),
            {room_id: _parse_tags(content) for room_id, content in tags.items()},
        )
        self._known[user_id] = labels
        if len(self._known) > self._capacity:
            self._known.popitem(last=False)
        return labels

    def _on_changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.topic is Topic.ACCOUNT_DATA and change.user_id is not None:
                self._version += 1
                self._known.pop(change.user_id, None)

    def _on_remote_write(self, after: int, upto: int) -> None:
        """Another node wrote: where it has not said what, of whom is not known here."""
        told = self._streams.told(after, upto)
        self._version += 1
        if told is None:
            self._known.clear()
        else:
            self._on_changes(told)


class RoomTraitCache:
    """Knows name, type and encryption of rooms."""

    def __init__(self, store: RoomSummaryStore, streams: Streams, *, capacity: int) -> None:
        """`capacity`: how many rooms are remembered."""
        self._store = store
        self._streams = streams
        self._capacity = capacity
        self._known: dict[int, SummaryRow] = {}
        self._version = 0
        self._changes: list[tuple[int, str]] = []
        """In which rooms state of which type was set, the latest ones."""
        self._changes_before = 0
        streams.subscribe(self._on_changes, Topic.EVENT, Topic.REDACTED, Topic.COMPLETENESS)
        streams.watch(self._on_remote_write)

    async def of_rooms(self, room_nids: Collection[int]) -> Mapping[int, SummaryRow]:
        """The traits of these rooms at least. The mapping is the cache's own: read, don't keep."""
        while missing := [nid for nid in room_nids if nid not in self._known]:
            if len(self._known) > self._capacity:
                self._known, missing = {}, list(room_nids)
            heard, known = self._version, self._known
            read = await self._store.get_summaries(missing)
            if heard == self._version and known is self._known:
                known.update(read)
                break
        return self._known

    def mark(self) -> int:
        """For `changed_since`."""
        return self._changes_before + len(self._changes)

    def changed_since(self, mark: int, types: Set[str]) -> Set[int] | None:
        """The rooms in which such state was set since the mark was taken; None where that is not
        known."""
        if mark < self._changes_before:
            return None
        news = self._changes[mark - self._changes_before :]
        return {nid for nid, type in news if type in types} if news else frozenset()

    def _on_changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            row = change.detail
            if isinstance(row, EventRow | EventNews):
                # the resolution of a fork may have set any of them, or taken it back
                types = TRAITS if row.flags & EventFlag.RESOLVED else TRAITS & {row.type}
                if types:
                    self._version += 1
                    self._known.pop(row.room_nid, None)
                for type in types:
                    self._note(row.room_nid, type)
            elif change.topic in (Topic.EVENT, Topic.REDACTED, Topic.COMPLETENESS):
                self._forget_all()  # all of a room's state may be another, though no event says so

    def _on_remote_write(self, after: int, upto: int) -> None:
        """Another node wrote: where it has not said what, in which rooms is not known here."""
        told = self._streams.told(after, upto)
        if told is None:
            self._forget_all()
        else:
            self._on_changes(told)

    def _note(self, room_nid: int, type: str) -> None:
        self._changes.append((room_nid, type))
        if len(self._changes) > 2 * CHANGES_KEPT:
            del self._changes[:CHANGES_KEPT]
            self._changes_before += CHANGES_KEPT

    def _forget_all(self) -> None:
        self._version += 1
        self._known = {}
        self._changes_before = self.mark() + 1
        self._changes = []


def _parse_direct(content: bytes) -> frozenset[str]:
    by_user = msgspec.json.decode(content)
    lists = [rooms for rooms in by_user.values() if isinstance(rooms, list)]
    return frozenset(room_id for rooms in lists for room_id in rooms if isinstance(room_id, str))


def _parse_tags(content: bytes) -> frozenset[str]:
    tags = msgspec.json.decode(content).get("tags")
    return frozenset(tags) if isinstance(tags, dict) else NO_TAGS
