"""Users' push rules as the server applies them: compiled, with what they have made of ordinary
messages over time.

Read once, then forgotten when the stream says that they have changed. For the reactor thread.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from federation.protocol.ids import UserID
from homeserver.services.push.rule_sets import RuleCompiler, RuleSet
from homeserver.services.push.stored_rules import PUSH_RULES
from storage.engine.streams import Change, Streams, Topic
from storage.push.push_rule_history import AttentionHistory, PushAttentionStore

READ_AT_ONCE: Final = 25
"""Users whose rules are read and compiled in one go: half a millisecond for each, and more where
they have many."""


class UserRules(msgspec.Struct, frozen=True):
    """Of one user; one object for all who have changed nothing."""

    rule_set: RuleSet
    attention: AttentionHistory


class OwnRules:
    """By user."""

    def __init__(
        self,
        clock: IReactorTime,
        attention: PushAttentionStore,
        compiler: RuleCompiler,
        streams: Streams,
        *,
        capacity: int,
    ) -> None:
        """`capacity`: how many users' are kept."""
        self._clock = clock
        self._streams = streams
        self._attention = attention
        self._compiler = compiler
        self._capacity = capacity
        self._default: Final = UserRules(compiler.default, AttentionHistory())
        self._known: OrderedDict[str, UserRules] = OrderedDict()
        self._changes_heard = 0
        streams.subscribe(self._hear, Topic.ACCOUNT_DATA)
        streams.watch(self._heed_others)

    async def of_user(self, user_id: UserID) -> UserRules:
        """One user's."""
        known = self._known.get(user_id)
        if known is None:
            return (await self.of_users([user_id]))[user_id]
        self._known.move_to_end(user_id)
        return known

    def known_of(self, user_id: UserID) -> UserRules | None:
        """The same as far as it is in memory."""
        return self._known.get(user_id)

    async def of_users(self, user_ids: Iterable[UserID]) -> dict[UserID, UserRules]:
        """These users', each as they were since this was asked: a query for each `READ_AT_ONCE`
        that are not known, with the reactor served between."""
        found: dict[UserID, UserRules] = {}
        missing: list[UserID] = []
        for user_id in user_ids:
            known = self._known.get(user_id)
            if known is None:
                missing.append(user_id)
            else:
                self._known.move_to_end(user_id)
                found[user_id] = known
        for at in range(0, len(missing), READ_AT_ONCE):
            if at:
                await deferLater(self._clock, 0)
            found |= await self._read(missing[at : at + READ_AT_ONCE])
        return found

    async def _read(self, user_ids: Sequence[UserID]) -> dict[UserID, UserRules]:
        while True:
            heard = self._changes_heard
            kept = await self._attention.get_rules(user_ids)
            if heard == self._changes_heard:
                break
        found: dict[UserID, UserRules] = {}
        for user_id in user_ids:
            rules = self._default
            if user_id in kept:
                content, history = kept[user_id]
                rules = UserRules(self._compiler.compile(content), history)
            found[user_id] = self._known[user_id] = rules
        while len(self._known) > self._capacity:
            self._known.popitem(last=False)
        return found

    def _hear(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if concerns_rules(change):
                self._changes_heard += 1
                self._known.pop(change.user_id or "", None)

    def _heed_others(self, after: int, upto: int) -> None:
        """Another node wrote: where it has not said what, of whom is not known here."""
        told = self._streams.told(after, upto)
        self._changes_heard += 1
        if told is None:
            self._known.clear()
            return
        for change in told:
            if change.topic is Topic.ACCOUNT_DATA:  # of which type is not said
                self._known.pop(change.user_id or "", None)


def concerns_rules(change: Change) -> bool:
    """Whether the push rules of the change's user have changed: set, or gone with all that the user
    kept."""
    return (
        change.topic is Topic.ACCOUNT_DATA
        and change.room_id is None
        and change.detail in (PUSH_RULES, None)
    )
