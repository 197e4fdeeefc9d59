"""Whom users do not want to hear of: read once, then kept up by the stream. For the reactor thread.

spec: client-server-api#ignoring-users
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence, Set
from typing import Final

import msgspec

from federation.protocol.ids import UserID
from federation.rooms.visible import Seen
from storage.account_data import AccountDataStore
from storage.streams import Change, Streams, Topic

IGNORED_USERS: Final = "m.ignored_user_list"
NOBODY: Final[frozenset[str]] = frozenset()
MAX_IGNORED: Final = 500
"""Of a user; what is named beyond that is not ignored."""


class IgnoredUsers:
    """The lists of users."""

    def __init__(self, account_data: AccountDataStore, streams: Streams, *, capacity: int) -> None:
        """`capacity`: how many users' lists are kept."""
        self._account_data = account_data
        self._capacity = capacity
        self._lists: OrderedDict[str, frozenset[str]] = OrderedDict()
        self._changes_heard = 0
        streams.subscribe(self._hear)
        streams.watch(self._heed_others)

    async def of_user(self, user_id: UserID) -> Set[str]:
        """Whom the user ignores."""
        known = self._lists.get(user_id)
        if known is not None:
            self._lists.move_to_end(user_id)
            return known
        while True:
            heard = self._changes_heard
            content = await self._account_data.get_entry(user_id, None, IGNORED_USERS)
            if heard == self._changes_heard:
                break
        ignored = NOBODY if content is None else _parse(content, user_id)
        self._lists[user_id] = ignored
        if len(self._lists) > self._capacity:
            self._lists.popitem(last=False)
        return ignored

    def _hear(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.topic is Topic.ACCOUNT_DATA and change.room_id is None:
                self._changes_heard += 1
                if change.user_id is not None:
                    self._lists.pop(change.user_id, None)

    def _heed_others(self, _after: int, _upto: int) -> None:
        """Another node wrote: of whom is not known here."""
        self._changes_heard += 1
        self._lists.clear()


def without_ignored(seen: Iterable[Seen], ignored: Set[str]) -> list[Seen]:
    """The events without those that ignored users sent; their state events are shown."""
    return [each for each in seen if each.event.event.sender not in ignored or each.event.event.state_key is not None]


def _parse(content: bytes, user_id: UserID) -> frozenset[str]:
    named = msgspec.json.decode(content).get("ignored_users")
    if not isinstance(named, dict):
        return NOBODY
    return frozenset(list(named)[:MAX_IGNORED]) - {user_id}
