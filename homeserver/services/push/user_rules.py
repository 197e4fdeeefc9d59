"""A cache of users' push rules. An entry has the compiled rules of one user and the history of the
user's notification levels by room.

Use this module only on the reactor thread.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from federation.protocol.ids import UserID
from homeserver.services.push.rule_sets import RuleCompiler, RuleSet
from homeserver.services.push.stored_rules import PUSH_RULES
from storage.cache import StreamCache
from storage.engine.streams import Change, Streams, Topic
from storage.push.push_rule_history import PushRuleHistory, PushRuleHistoryStore

USERS_PER_READ: Final = 25
"""Users whose rules are read and compiled in one turn of the reactor. A user takes half a
millisecond, and more with many rules."""


class UserRules(msgspec.Struct, frozen=True):
    """The rules of one user. Users who have changed nothing share one object."""

    rule_set: RuleSet
    history: PushRuleHistory


class UserRuleCache:
    """Push rules by user."""

    def __init__(
        self,
        *,
        clock: IReactorTime,
        history: PushRuleHistoryStore,
        compiler: RuleCompiler,
        streams: Streams,
        capacity: int,
    ) -> None:
        """`capacity`: the number of cached users."""
        self._clock = clock
        self._history = history
        self._compiler = compiler
        self._default: Final = UserRules(compiler.default, PushRuleHistory())
        self._cache: StreamCache[UserID, UserRules] = StreamCache(
            streams, Topic.ACCOUNT_DATA, load=self._load, keys_of=_users_of, max_entries=capacity
        )

    @property
    def cache(self) -> StreamCache[UserID, UserRules]:
        """The rules by user, for metrics."""
        return self._cache

    async def of_user(self, user_id: UserID) -> UserRules:
        """Return the rules of one user."""
        return await self._cache.get(user_id)

    def find_cached(self, user_id: UserID) -> UserRules | None:
        """Return the rules of one user if they are cached, else None."""
        return self._cache.find(user_id)

    async def of_users(self, user_ids: Iterable[UserID]) -> dict[UserID, UserRules]:
        """Return the current rules of some users. One query for each `USERS_PER_READ` users that
        are not cached, each in a turn of the reactor of its own."""
        found: dict[UserID, UserRules] = {}
        missing: list[UserID] = []
        for user_id in user_ids:
            rules = self._cache.find(user_id)
            if rules is None:
                missing.append(user_id)
            else:
                found[user_id] = rules
        for at in range(0, len(missing), USERS_PER_READ):
            if at:
                await deferLater(self._clock, 0)
            found |= await self._cache.get_many(missing[at : at + USERS_PER_READ])
        return found

    async def _load(self, user_ids: Sequence[UserID]) -> Mapping[UserID, UserRules]:
        own = await self._history.get_rules(user_ids)
        found = dict.fromkeys(user_ids, self._default)
        for user_id in user_ids:
            if user_id in own:
                content, history = own[user_id]
                found[user_id] = UserRules(self._compiler.compile(content), history)
        return found


def _users_of(change: Change) -> Sequence[UserID]:
    return (
        (UserID(change.user_id),) if change.user_id is not None and concerns_rules(change) else ()
    )


def concerns_rules(change: Change) -> bool:
    """Return whether the change sets the user's push rules or removes them with the account."""
    return (
        change.topic is Topic.ACCOUNT_DATA
        and change.room_id is None
        and change.detail in (PUSH_RULES, None)
    )
