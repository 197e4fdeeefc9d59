"""Lists of ignored users, whose messages and invites are hidden from the user who ignores them.
spec: client-server-api#ignoring-users"""

from collections.abc import Iterable, Mapping, Set
from typing import Final

import msgspec

from federation.protocol.ids import UserID
from federation.rooms.visibility import VisibleEvent
from homeserver.services.account_data.parsed_account_data import ParsedAccountDataCache
from storage.account_data.account_data import AccountDataStore
from storage.cache import StreamCache
from storage.engine.streams import Streams

IGNORED_USERS: Final = "m.ignored_user_list"
NO_USERS: Final[frozenset[str]] = frozenset()
MAX_IGNORED: Final = 500
"""Entries of a user's list that count; further ones are not ignored."""


class IgnoredUsers:
    """Reads the lists through a cache. Used only on the reactor thread."""

    def __init__(self, *, account_data: AccountDataStore, streams: Streams, capacity: int) -> None:
        """`capacity`: users whose lists are cached."""
        self._lists = ParsedAccountDataCache(
            account_data=account_data,
            streams=streams,
            types=[IGNORED_USERS],
            parse=_parse,
            capacity=capacity,
        )

    @property
    def cache(self) -> StreamCache[UserID, tuple[frozenset[str], int]]:
        """The lists by user, for metrics."""
        return self._lists.cache

    async def of_user(self, user_id: UserID) -> Set[str]:
        """Return the users whom a user ignores."""
        return await self._lists.of_user(user_id)

    def get_cached(self, user_id: UserID) -> Set[str] | None:
        """Return the users whom a user ignores if that is cached."""
        return self._lists.get_cached(user_id)

    @property
    def version(self) -> int:
        """Changes whenever a list may have changed. Read it before reading a user's account data,
        and pass it to `add`."""
        return self._lists.version

    def add(self, user_id: UserID, account_data: Mapping[str, bytes], version: int) -> Set[str]:
        """Return the users whom a user ignores, and cache them. `account_data`: all global account
        data of the user, read when `version` had this value."""
        return self._lists.add(user_id, account_data, version)

    async def of_users(self, user_ids: Iterable[UserID]) -> Mapping[UserID, Set[str]]:
        """Return the users whom each of these users ignores, with at most one query."""
        return await self._lists.of_users(user_ids)


def without_ignored(seen: Iterable[VisibleEvent], ignored: Set[str]) -> list[VisibleEvent]:
    """Return the events without those that ignored users sent. State events stay."""
    if not ignored:
        return list(seen)
    return [
        each
        for each in seen
        if each.event.event.sender not in ignored or each.event.event.state_key is not None
    ]


def _parse(contents: Mapping[str, bytes], user_id: UserID) -> frozenset[str]:
    content = contents.get(IGNORED_USERS)
    named = None if content is None else msgspec.json.decode(content).get("ignored_users")
    if not isinstance(named, dict):
        return NO_USERS
    return frozenset(list(named)[:MAX_IGNORED]) - {user_id}
