"""Entries of users' account data that the server itself acts on, in the form in which it does: read
and parsed once, then forgotten when the stream says that they have changed. For the reactor thread.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, Generic, TypeVar

from federation.protocol.ids import UserID
from storage.account_data.account_data import AccountDataStore
from storage.engine.streams import Change, Streams, Topic

T = TypeVar("T")

BYTES_OF_A_USER: Final = 1024
"""As JSON, on average: of users who keep more fewer are remembered. One may keep a thousand times
as much."""


class ParsedAccountData(Generic[T]):
    """What some types of global account data say, by user."""

    def __init__(
        self,
        account_data: AccountDataStore,
        streams: Streams,
        types: Sequence[str],
        parse: Callable[[Mapping[str, bytes], UserID], T],
        *,
        capacity: int,
    ) -> None:
        """`parse` is given the contents that there are, by type. `capacity`: how many users' are
        kept."""
        self._account_data = account_data
        self._streams = streams
        self._types = tuple(types)
        self._parse = parse
        self._capacity = capacity
        self._parsed: OrderedDict[str, tuple[T, int]] = OrderedDict()
        """With the bytes that each was read from."""
        self._size = 0
        self._changes_heard = 0
        streams.subscribe(self._hear, Topic.ACCOUNT_DATA)
        streams.watch(self._heed_others)

    async def of_user(self, user_id: UserID) -> T:
        """What the user has set."""
        known = self._parsed.get(user_id)
        if known is None:
            return (await self.of_users([user_id]))[user_id]
        self._parsed.move_to_end(user_id)
        return known[0]

    def known_of(self, user_id: UserID) -> T | None:
        """The same as far as it is in memory."""
        known = self._parsed.get(user_id)
        return None if known is None else known[0]

    @property
    def heard(self) -> int:
        """How often what was read before may have changed: to be noted before all of a user's
        account data is read, for `learn`."""
        return self._changes_heard

    def learn(self, user_id: UserID, contents: Mapping[str, bytes], heard: int) -> T:
        """What the user has set, by all their global account data, which was just read anyway."""
        of_user = {type: contents[type] for type in self._types if type in contents}
        parsed = self._parse(of_user, user_id)
        if heard == self._changes_heard:
            self._keep(user_id, parsed, sum(map(len, of_user.values())))
        return parsed

    async def of_users(self, user_ids: Iterable[UserID]) -> dict[UserID, T]:
        """What these users have set: one query for all that is not known."""
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
            heard = self._changes_heard
            contents = await self._account_data.get_entries_of_users(missing, self._types)
            if heard != self._changes_heard:
                continue
            for user_id in missing:
                of_user = contents.get(user_id, {})
                found[user_id] = self._parse(of_user, user_id)
                self._keep(user_id, found[user_id], sum(map(len, of_user.values())))
            break
        return found

    def _keep(self, user_id: str, parsed: T, size: int) -> None:
        self._forget(user_id)
        self._parsed[user_id] = (parsed, size)
        self._size += size
        while len(self._parsed) > self._capacity or self._size > self._capacity * BYTES_OF_A_USER:
            self._forget(next(iter(self._parsed)))

    def _forget(self, user_id: str) -> None:
        known = self._parsed.pop(user_id, None)
        if known is not None:
            self._size -= known[1]

    def _hear(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if (
                change.topic is Topic.ACCOUNT_DATA
                and change.room_id is None
                and (change.detail is None or change.detail in self._types)
            ):
                self._changes_heard += 1
                if change.user_id is not None:
                    self._forget(change.user_id)

    def _heed_others(self, after: int, upto: int) -> None:
        """Another node wrote: where it has not said what, of whom is not known here."""
        told = self._streams.told(after, upto)
        if told is not None:
            self._hear(told)
            return
        self._changes_heard += 1
        self._parsed.clear()
        self._size = 0
