"""Users' push rules as the server applies them: compiled, with what they have made of ordinary messages over time.

Read once, then forgotten when the stream says that they have changed. For the reactor thread.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from federation.protocol.ids import UserID
from homeserver.services.push.kept_rules import PUSH_RULES
from homeserver.services.push.rule_sets import RuleCompiler, RuleSet
from storage.push_attention import AttentionHistory, PushAttentionStore
from storage.streams import Change, Streams, Topic


class UserRules(msgspec.Struct, frozen=True):
    """Of one user; one object for all who have changed nothing."""

    rule_set: RuleSet
    attention: AttentionHistory


class OwnRules:
    """By user."""

    def __init__(
        self,
        attention: PushAttentionStore,
        compiler: RuleCompiler,
        streams: Streams,
        *,
        capacity: int,
    ) -> None:
        """`capacity`: how many users' are kept."""
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
        """These users': one query for all that is not known."""
        found: dict[UserID, UserRules] = {}
        missing: list[UserID] = []
        for user_id in user_ids:
            known = self._known.get(user_id)
            if known is None:
                missing.append(user_id)
            else:
                self._known.move_to_end(user_id)
                found[user_id] = known
        while missing:
            heard = self._changes_heard
            kept = await self._attention.get_rules(missing)
            if heard != self._changes_heard:
                continue
            for user_id in missing:
                rules = self._default
                if user_id in kept:
                    content, history = kept[user_id]
                    rules = UserRules(self._compiler.compile(content), history)
                found[user_id] = self._known[user_id] = rules
            while len(self._known) > self._capacity:
                self._known.popitem(last=False)
            break
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
    """Whether the push rules of the change's user have changed: set, or gone with all that the user kept."""
    return change.topic is Topic.ACCOUNT_DATA and change.room_id is None and change.detail in (PUSH_RULES, None)
