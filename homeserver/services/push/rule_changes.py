"""Stores push rules and the user's attention to ordinary messages, in one transaction.

Unread counts depend on it: the push actions of an event are computed by the rules of the time when
it came (docs/developers/push.md). For the writer's thread.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Final

import msgspec

from federation.protocol.errors import TooLarge
from homeserver.services.push.rule_sets import RuleCompiler, room_of
from homeserver.services.push.stored_rules import PUSH_RULES, StoredRules, decode_stored
from storage.account_data.account_data import AccountDataStore
from storage.engine.transaction import WriteTransaction
from storage.push.push_rule_history import OTHER_ROOMS, PushRuleHistoryStore

_LARGEST: Final = 1024 * 1024
"""Bytes of the stored rules of one user."""
MOST_WIDE: Final = 500
"""Own rules that are not about one room: all of them are evaluated on the messages of all rooms of
the user.
"""
MOST_ABOUT_A_ROOM: Final = 20
MOST_ROOMS: Final = 2000
"""Rooms that one user has rules about: each change examines all of them while all other writes
wait.
"""
MOST_CONDITIONS_IN_ROOMS: Final = 100_000
"""The product of such rooms and the conditions of rules that are not about one room: each change
examines so many.
"""


class RuleChanges:
    """Changes the rules of users."""

    def __init__(self, *, account_data: AccountDataStore, attention: PushRuleHistoryStore) -> None:
        self._account_data = account_data
        self._attention = attention

    @cached_property
    def _compiler(self) -> RuleCompiler:
        """The writer's own compiler. It is created at the first change, since that takes longer
        than most steps of the start."""
        return RuleCompiler()

    def change(
        self, txn: WriteTransaction, user_id: str, change: Callable[[StoredRules], None]
    ) -> None:
        """Apply `change` to the stored rules of a user. Raises its errors, and `TooLarge`."""
        before = self._account_data.get_entry_in(txn, user_id, None, PUSH_RULES)
        kept = decode_stored(before)
        unchanged = msgspec.json.encode(kept)
        change(kept)
        content = msgspec.json.encode(kept)
        if len(content) > _LARGEST:
            raise TooLarge("Push rules may have at most 1 MiB in all")
        if content == unchanged:
            return
        _check_numbers(kept, decode_stored(before))
        position = self._account_data.set_entry(txn, user_id, None, PUSH_RULES, content)
        self._attention.set_levels(txn, user_id, position, self._wanted(content))

    def _wanted(self, content: bytes) -> Mapping[str, int]:
        general, of_rooms = self._compiler.compile(content).find_attentions()
        others = {room: attention for room, attention in of_rooms.items() if attention != general}
        return {OTHER_ROOMS: general, **others}


def _check_numbers(kept: StoredRules, before: StoredRules) -> None:
    """Check the limits. A user who exceeded one before may keep as many. Raises `TooLarge`."""
    had, has = _count(before), _count(kept)
    if len(has) > max(MOST_ROOMS, len(had)):
        raise TooLarge("There are push rules of your own about too many rooms")
    if len(has) * _wide_conditions(kept) > max(
        MOST_CONDITIONS_IN_ROOMS, len(had) * _wide_conditions(before)
    ):
        raise TooLarge(
            "There are push rules of your own about too many rooms, for so many that are not"
            " about one room"
        )
    for room, number in has.items():
        if number > max(MOST_WIDE if room is None else MOST_ABOUT_A_ROOM, had[room]):
            about = "that are not about one room" if room is None else "about one room"
            raise TooLarge(f"There are too many push rules of your own {about}")


def _count(kept: StoredRules) -> Counter[str | None]:
    rooms = (room_of(kind, rule) for kind, rules in kept.own.items() for rule in rules)
    return Counter(None if room is None else room.lower() for room in rooms)


def _wide_conditions(kept: StoredRules) -> int:
    """Return the number of conditions that are evaluated on messages of all rooms; a rule without
    any counts as one."""
    own = [(kind, rule) for kind, rules in kept.own.items() for rule in rules]
    return sum(
        max(1, len(rule.conditions or ())) for kind, rule in own if room_of(kind, rule) is None
    )
