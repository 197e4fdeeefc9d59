"""Stores a user's changed push rules. The same transaction records the new notification levels of
rooms in the user's history of levels.

Unread counts need this history, because an event counts by the rules that applied when it arrived
(docs/developers/push.md). Use this module only on the writer's thread.
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

_MAX_BYTES: Final = 1024 * 1024
"""Bytes of the stored rules of one user."""
MAX_GENERAL_RULES: Final = 500
"""Own rules that are not about one room: all of them are evaluated on the messages of all rooms of
the user.
"""
MAX_RULES_PER_ROOM: Final = 20
MAX_ROOMS: Final = 2000
"""Rooms that one user has rules about: each change examines all of them while all other writes
wait.
"""
MAX_ROOM_CONDITIONS: Final = 100_000
"""The product of such rooms and the conditions of rules that are not about one room: each change
examines so many.
"""


class RuleChanges:
    """Changes the rules of users."""

    def __init__(self, *, account_data: AccountDataStore, history: PushRuleHistoryStore) -> None:
        self._account_data = account_data
        self._history = history

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
        rules = decode_stored(before)
        unchanged = msgspec.json.encode(rules)
        change(rules)
        content = msgspec.json.encode(rules)
        if len(content) > _MAX_BYTES:
            raise TooLarge("Push rules may have at most 1 MiB in all")
        if content == unchanged:
            return
        _check_numbers(rules, decode_stored(before))
        position = self._account_data.set_entry(txn, user_id, None, PUSH_RULES, content)
        self._history.set_levels(txn, user_id, position, self._find_levels(content))

    def _find_levels(self, content: bytes) -> Mapping[str, int]:
        general, of_rooms = self._compiler.compile(content).find_levels()
        others = {room: history for room, history in of_rooms.items() if history != general}
        return {OTHER_ROOMS: general, **others}


def _check_numbers(rules: StoredRules, before: StoredRules) -> None:
    """Check the limits. A user who exceeded one before may keep as many. Raises `TooLarge`."""
    old, new = _count(before), _count(rules)
    if len(new) > max(MAX_ROOMS, len(old)):
        raise TooLarge("There are push rules of your own about too many rooms")
    if len(new) * _count_general_conditions(rules) > max(
        MAX_ROOM_CONDITIONS, len(old) * _count_general_conditions(before)
    ):
        raise TooLarge(
            "There are push rules of your own about too many rooms, for so many that are not"
            " about one room"
        )
    for room, number in new.items():
        if number > max(MAX_GENERAL_RULES if room is None else MAX_RULES_PER_ROOM, old[room]):
            about = "that are not about one room" if room is None else "about one room"
            raise TooLarge(f"There are too many push rules of your own {about}")


def _count(stored: StoredRules) -> Counter[str | None]:
    rooms = (room_of(kind, rule) for kind, rules in stored.own.items() for rule in rules)
    return Counter(None if room is None else room.lower() for room in rooms)


def _count_general_conditions(stored: StoredRules) -> int:
    """Return the number of conditions that are evaluated on messages of all rooms; a rule without
    any counts as one."""
    own = [(kind, rule) for kind, rules in stored.own.items() for rule in rules]
    return sum(
        max(1, len(rule.conditions or ())) for kind, rule in own if room_of(kind, rule) is None
    )
