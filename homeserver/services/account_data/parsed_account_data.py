"""Cache of account data that the server itself acts on (such as the list of ignored users), in
parsed form. It is used only on the reactor thread."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Generic, TypeVar

from federation.protocol.ids import UserID
from storage.account_data.account_data import AccountDataStore
from storage.cache import StreamCache
from storage.engine.streams import Change, Streams, Topic

T = TypeVar("T")

BYTES_PER_USER: Final = 1024
"""Average bytes of JSON per cached user. If users have more, fewer of them are cached."""


class ParsedAccountDataCache(Generic[T]):
    """Caches some types of global account data by user."""

    def __init__(
        self,
        *,
        account_data: AccountDataStore,
        streams: Streams,
        types: Sequence[str],
        parse: Callable[[Mapping[str, bytes], UserID], T],
        capacity: int,
    ) -> None:
        """`parse`: gets the existing contents by type. `capacity`: cached users."""
        self._account_data = account_data
        self._types = tuple(types)
        self._parse = parse
        self._cache: StreamCache[UserID, tuple[T, int]] = StreamCache(
            streams,
            Topic.ACCOUNT_DATA,
            load=self._load,
            keys_of=self._users_of,
            max_entries=capacity,
            max_weight=capacity * BYTES_PER_USER,
            weigh=lambda _, parsed: parsed[1],
        )

    @property
    def cache(self) -> StreamCache[UserID, tuple[T, int]]:
        """The account data by user, for metrics."""
        return self._cache

    async def of_user(self, user_id: UserID) -> T:
        """Return a user's data, from the database if it is not cached."""
        return (await self._cache.get(user_id))[0]

    def get_cached(self, user_id: UserID) -> T | None:
        """Return a user's data if it is cached."""
        found = self._cache.find(user_id)
        return None if found is None else found[0]

    @property
    def version(self) -> int:
        """The number of invalidations. Read it before reading a user's account data, and pass it to
        `add`."""
        return self._cache.changes

    def add(self, user_id: UserID, contents: Mapping[str, bytes], version: int) -> T:
        """Parse and return a user's data, and cache it if nothing has changed. `contents`: all
        global account data of the user, read when `self.version` was `version`."""
        parsed = self._parse_all(user_id, contents)
        self._cache.put(user_id, parsed, since=version)
        return parsed[0]

    async def of_users(self, user_ids: Iterable[UserID]) -> dict[UserID, T]:
        """Return the data of these users, with one query for all that is not cached."""
        found = await self._cache.get_many(user_ids)
        return {user_id: parsed for user_id, (parsed, _) in found.items()}

    async def _load(self, user_ids: Sequence[UserID]) -> Mapping[UserID, tuple[T, int]]:
        contents = await self._account_data.get_entries_of_users(user_ids, self._types)
        return {
            user_id: self._parse_all(user_id, contents.get(user_id, {})) for user_id in user_ids
        }

    def _parse_all(self, user_id: UserID, contents: Mapping[str, bytes]) -> tuple[T, int]:
        """Return the parsed entries and their size in bytes."""
        of_user = {type: contents[type] for type in self._types if type in contents}
        return self._parse(of_user, user_id), sum(map(len, of_user.values()))

    def _users_of(self, change: Change) -> Sequence[UserID]:
        is_relevant = change.room_id is None and (
            change.detail is None or change.detail in self._types
        )
        return (UserID(change.user_id),) if is_relevant and change.user_id is not None else ()
