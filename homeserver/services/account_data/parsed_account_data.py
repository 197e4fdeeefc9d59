"""A cache of account data that the server itself acts on, parsed. For the reactor thread."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Generic, TypeVar

from federation.protocol.ids import UserID
from storage.account_data.account_data import AccountDataStore
from storage.cache import StreamCache
from storage.engine.streams import Change, Streams, Topic

T = TypeVar("T")

BYTES_OF_A_USER: Final = 1024
"""As JSON, on average: if users have more, fewer users are cached. One user may have a thousand
times as much."""


class ParsedAccountData(Generic[T]):
    """Some types of global account data, parsed, by user."""

    def __init__(
        self,
        account_data: AccountDataStore,
        streams: Streams,
        types: Sequence[str],
        parse: Callable[[Mapping[str, bytes], UserID], T],
        *,
        capacity: int,
    ) -> None:
        """`parse` gets the contents that exist, by type. `capacity`: users."""
        self._account_data = account_data
        self._types = tuple(types)
        self._parse = parse
        self._cache: StreamCache[UserID, tuple[T, int]] = StreamCache(
            streams,
            Topic.ACCOUNT_DATA,
            load=self._load,
            keys_of=self._users_of,
            max_entries=capacity,
            max_weight=capacity * BYTES_OF_A_USER,
            weigh=lambda _, parsed: parsed[1],
        )

    @property
    def cache(self) -> StreamCache[UserID, tuple[T, int]]:
        """The account data by user, for metrics."""
        return self._cache

    async def of_user(self, user_id: UserID) -> T:
        """The parsed account data of a user."""
        return (await self._cache.get(user_id))[0]

    def known_of(self, user_id: UserID) -> T | None:
        """As `of_user`, if it is cached; else None."""
        found = self._cache.find(user_id)
        return None if found is None else found[0]

    @property
    def heard(self) -> int:
        """A count of changes, to be read before all account data of a user is, for `learn`."""
        return self._cache.changes

    def learn(self, user_id: UserID, contents: Mapping[str, bytes], heard: int) -> T:
        """Parse the account data of a user who had all their global account data read anyway, and
        cache it if nothing has changed since `heard` was read."""
        parsed = self._parse_all(user_id, contents)
        self._cache.put(user_id, parsed, since=heard)
        return parsed[0]

    async def of_users(self, user_ids: Iterable[UserID]) -> dict[UserID, T]:
        """The parsed account data of some users: one query for all that are not cached."""
        found = await self._cache.get_many(user_ids)
        return {user_id: parsed for user_id, (parsed, _) in found.items()}

    async def _load(self, user_ids: Sequence[UserID]) -> Mapping[UserID, tuple[T, int]]:
        contents = await self._account_data.get_entries_of_users(user_ids, self._types)
        return {
            user_id: self._parse_all(user_id, contents.get(user_id, {})) for user_id in user_ids
        }

    def _parse_all(self, user_id: UserID, contents: Mapping[str, bytes]) -> tuple[T, int]:
        """The parsed entries and their size in bytes."""
        of_user = {type: contents[type] for type in self._types if type in contents}
        return self._parse(of_user, user_id), sum(map(len, of_user.values()))

    def _users_of(self, change: Change) -> Sequence[UserID]:
        is_ours = change.room_id is None and (change.detail is None or change.detail in self._types)
        return (UserID(change.user_id),) if is_ours and change.user_id is not None else ()
