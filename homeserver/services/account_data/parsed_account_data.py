"""Cache of account data that the server itself acts on, in parsed form. The stream invalidates
changed entries. For the reactor thread.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Generic, TypeVar

from federation.protocol.ids import UserID
from storage.account_data.account_data import AccountDataStore
from storage.engine.streams import Change, Streams, Topic

T = TypeVar("T")

BYTES_OF_A_USER: Final = 1024
"""Average bytes of JSON per cached user. If users have more, fewer are cached; one user may have a
thousand times as much."""


class ParsedAccountData(Generic[T]):
    """Caches some types of global account data by user."""

    def __init__(
        self,
        account_data: AccountDataStore,
        streams: Streams,
        types: Sequence[str],
        parse: Callable[[Mapping[str, bytes], UserID], T],
        *,
        capacity: int,
    ) -> None:
        """`parse`: gets the existing contents by type. `capacity`: cached users."""
        self._account_data = account_data
        self._streams = streams
        self._types = tuple(types)
        self._parse = parse
        self._capacity = capacity
        self._parsed: OrderedDict[str, tuple[T, int]] = OrderedDict()
        """By user, the parsed data and the size of its JSON."""
        self._size = 0
        self._version = 0
        streams.subscribe(self._on_changes, Topic.ACCOUNT_DATA)
        streams.watch(self._on_remote_write)

    async def of_user(self, user_id: UserID) -> T:
        """Return a user's data, from the database if it is not cached."""
        known = self._parsed.get(user_id)
        if known is None:
            return (await self.of_users([user_id]))[user_id]
        self._parsed.move_to_end(user_id)
        return known[0]

    def known_of(self, user_id: UserID) -> T | None:
        """Return a user's data if it is cached."""
        known = self._parsed.get(user_id)
        return None if known is None else known[0]

    @property
    def heard(self) -> int:
        """Changes with every invalidation. Read it before reading a user's account data, and pass
        it to `learn`."""
        return self._version

    def learn(self, user_id: UserID, contents: Mapping[str, bytes], heard: int) -> T:
        """Parse, cache and return a user's data. `contents`: all global account data of the user,
        read when `self.heard` was `heard`."""
        of_user = {type: contents[type] for type in self._types if type in contents}
        parsed = self._parse(of_user, user_id)
        if heard == self._version:
            self._add(user_id, parsed, sum(map(len, of_user.values())))
        return parsed

    async def of_users(self, user_ids: Iterable[UserID]) -> dict[UserID, T]:
        """Return the data of these users, with one query for all that is not cached."""
        found: dict[UserID, T] = {}
        missing: list[UserID] = []
        for user_id in user_ids:
            known = self._parsed.get(user_id)
            if known is None:
                missing.append(user_id)
            else:
                self._parsed.move_to_end(user_id)
                found[user_id] = known[0]
        while missing:
            version = self._version
            contents = await self._account_data.get_entries_of_users(missing, self._types)
            if version != self._version:
                continue
            for user_id in missing:
                of_user = contents.get(user_id, {})
                found[user_id] = self._parse(of_user, user_id)
                self._add(user_id, found[user_id], sum(map(len, of_user.values())))
            break
        return found

    def _add(self, user_id: str, parsed: T, size: int) -> None:
        self._evict(user_id)
        self._parsed[user_id] = (parsed, size)
        self._size += size
        while len(self._parsed) > self._capacity or self._size > self._capacity * BYTES_OF_A_USER:
            self._evict(next(iter(self._parsed)))

    def _evict(self, user_id: str) -> None:
        known = self._parsed.pop(user_id, None)
        if known is not None:
            self._size -= known[1]

    def _on_changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if (
                change.topic is Topic.ACCOUNT_DATA
                and change.room_id is None
                and (change.detail is None or change.detail in self._types)
            ):
                self._version += 1
                if change.user_id is not None:
                    self._evict(change.user_id)

    def _on_remote_write(self, after: int, upto: int) -> None:
        """Invalidate what another node changed; everything if it did not say what."""
        announced = self._streams.told(after, upto)
        if announced is not None:
            self._on_changes(announced)
            return
        self._version += 1
        self._parsed.clear()
        self._size = 0
