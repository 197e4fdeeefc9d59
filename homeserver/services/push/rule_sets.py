"""Compiles a user's push rules and evaluates them on events.

Laws:
- The code does no I/O and keeps no state except caches.
- A rule that many users have is compiled once, and users with the same rules share one `RuleSet`;
  the predefined rules are one object for all.
- An event is evaluated once for all users of a set, with `UNMENTIONED` as the user ID. The result
  holds for every user whom the event does not mention (`mentioned_users`) and who does not
  subscribe to its thread. The rules are evaluated separately for each other user, and for each
  user of a set that looks at display names (`uses_display_names`).

spec: client-server-api#push-rules
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from heapq import merge
from typing import Any, Final
from weakref import WeakValueDictionary

import msgspec

from federation.protocol.events import Event
from federation.protocol.ids import UserID, is_user_id
from homeserver.services.push.actions import NOTHING, Actions
from homeserver.services.push.conditions import (
    DISPLAY_NAME,
    EVENT_MATCH,
    PROPERTY_IS,
    THREAD_SUBSCRIPTION,
    UNMENTIONED,
    Matcher,
    body_matches,
    compile_condition,
    in_room,
    sent_by,
)
from homeserver.services.push.default_rules import KINDS, Condition, PushRule, TheUser
from homeserver.services.push.event_properties import (
    MAX_STEPS,
    ROOM_ID,
    TYPE,
    EvaluatedEvent,
    parse_path,
)
from homeserver.services.push.stored_rules import decode_stored

_MEMBER: Final = "m.room.member"
_MESSAGE_TYPES: Final = ("m.room.message", "m.room.encrypted")
_SENDER: Final = "@somebody:elsewhere.invalid"
_MEMBER_COUNT: Final = 100


class NotificationLevel(IntEnum):
    """The effect of an ordinary message in a room on a user. Unread counts start from it; events
    with special properties may differ."""

    ALL = 0
    """Use the flags of the event, as the predefined rules do."""
    ROOM_MENTIONS = 1
    """Only events that mention the complete room."""
    NOTHING = 2
    """Nothing but events that match a user's own rules."""


class CompiledRule:
    """One compiled, enabled rule."""

    __slots__ = (
        "__weakref__",
        "actions",
        "conditions",
        "room",
        "room_id",
        "rule_id",
        "type",
        "uses_display_names",
        "uses_room_id",
        "uses_threads",
    )

    def __init__(self, *, kind: str, rule: PushRule) -> None:
        self.rule_id: Final = rule.rule_id
        self.actions: Final = Actions(rule.actions) if rule.actions else NOTHING
        self.conditions: Final = _conditions_of(kind, rule)
        self.room_id: Final = room_of(kind, rule)
        self.room: Final = None if self.room_id is None else self.room_id.lower()
        """The room of the rule; None if it may match anywhere."""
        self.type: Final = next(filter(None, map(_named_type, rule.conditions or ())), None)
        """The only event type that it may match, in lower case; None for any."""
        kinds = [condition.get("kind") for condition in rule.conditions or ()]
        self.uses_display_names: Final = DISPLAY_NAME in kinds
        self.uses_room_id: Final = any(map(_looks_at_room, rule.conditions or ()))
        self.uses_threads: Final = any(
            isinstance(kind, str) and kind in THREAD_SUBSCRIPTION for kind in kinds
        )

    def matches(self, event: EvaluatedEvent, user_id: str, display_name: str | None) -> bool:
        """Return whether all conditions match."""
        for condition_matches in self.conditions:  # a generator costs more than the conditions
            if not condition_matches(event, user_id, display_name):
                return False
        return True


class RuleSet:
    """All enabled rules of a user, most important first. A narrowed set has only those for one
    room."""

    __slots__ = (
        "__weakref__",
        "_by_type",
        "_of_any_type",
        "_of_rooms",
        "_types",
        "rules",
        "uses_display_names",
        "uses_threads",
    )

    def __init__(self, rules: Sequence[CompiledRule]) -> None:
        self.rules: Final = tuple(rules)
        self.uses_display_names: Final = any(rule.uses_display_names for rule in rules)
        self.uses_threads: Final = any(rule.uses_threads for rule in rules)
        self._types: Final = frozenset(rule.type for rule in rules if rule.type is not None)
        self._of_any_type: Final = tuple(rule for rule in rules if rule.type is None)
        self._by_type: Final[dict[str | None, tuple[CompiledRule, ...]]] = {}
        """The rules by event type, filled on demand: for all types it would be the product of rules
        and types."""
        self._of_rooms: dict[str | None, list[tuple[int, CompiledRule]]] | None = None

    def find(
        self, event: EvaluatedEvent, user_id: str = UNMENTIONED, display_name: str | None = None
    ) -> Actions:
        """Return the actions of the most important rule that matches. Does not check whether the
        event is the user's own."""
        event.steps_left = MAX_STEPS
        for rule in self._may_match(event.text(TYPE)):
            if rule.matches(event, user_id, display_name):
                return rule.actions
        return NOTHING

    def _may_match(self, type: str | None) -> Sequence[CompiledRule]:
        """Return the rules that may match events of a type, in lower case."""
        if type not in self._types:
            return self._of_any_type
        rules = self._by_type.get(type)
        if rules is None:
            rules = self._by_type[type] = tuple(
                rule for rule in self.rules if rule.type in (None, type)
            )
        return rules

    def find_levels(self) -> tuple[NotificationLevel, Mapping[str, NotificationLevel]]:
        """Return the level of rooms without rules of their own, and of each room with rules (room
        IDs in lower case)."""
        by_room = self._by_room()
        general = by_room.get(None, ())
        messages = [
            _SampleMessage(general=general, type=type, content={}) for type in _MESSAGE_TYPES
        ]
        room_mention = _SampleMessage(
            general=general, type=_MESSAGE_TYPES[0], content={"m.mentions": {"room": True}}
        )

        def find(own: _RankedRules) -> NotificationLevel:
            room_id = next((rule.room_id for _, rule in own if rule.room_id is not None), "")
            if any(each.find(room_id, own).notify for each in messages):
                return NotificationLevel.ALL
            return (
                NotificationLevel.ROOM_MENTIONS
                if room_mention.find(room_id, own).highlight
                else NotificationLevel.NOTHING
            )

        return find(()), {room: find(own) for room, own in by_room.items() if room is not None}

    @property
    def has_room_rules(self) -> bool:
        """Whether some rule is about one room."""
        return not self._by_room().keys() <= {None}

    def rules_in(self, room: str) -> Iterable[CompiledRule]:
        """Return the rules that are not about other rooms than this one (in lower case): muted
        rooms cost nothing elsewhere."""
        by_room = self._by_room()
        return (rule for _, rule in merge(by_room.get(None, ()), by_room.get(room, ())))

    def _by_room(self) -> Mapping[str | None, "_RankedRules"]:
        """Return the rules by their room, each with its place."""
        if self._of_rooms is None:
            self._of_rooms = {}
            for rank, rule in enumerate(self.rules):
                self._of_rooms.setdefault(rule.room, []).append((rank, rule))
        return self._of_rooms


_RankedRules = Sequence[tuple[int, CompiledRule]]
"""Rules of a set with their places in it."""


class _SampleMessage:
    """A message without special content from a sender who may mention the room. Rules without a
    room are evaluated on it once for all rooms, except those that look at the room ID."""

    def __init__(self, *, general: _RankedRules, type: str, content: Mapping[str, Any]) -> None:
        self._event = {"type": type, "content": content, "sender": _SENDER}
        self._using_room_id = [each for each in general if each[1].uses_room_id]
        self._first = self._find_first("", [each for each in general if not each[1].uses_room_id])

    def find(self, room_id: str, own: _RankedRules) -> Actions:
        """Return its actions in a room with these rules."""
        found = [
            each
            for each in (self._first, self._find_first(room_id, merge(own, self._using_room_id)))
            if each is not None
        ]
        return min(found)[1].actions if found else NOTHING

    def _find_first(
        self, room_id: str, rules: Iterable[tuple[int, CompiledRule]]
    ) -> tuple[int, CompiledRule] | None:
        event = EvaluatedEvent(
            properties={**self._event, "room_id": room_id},
            room_id=room_id,
            sender=_SENDER,
            member_count=_MEMBER_COUNT,
            may_notify=lambda _group: True,
        )
        return next((each for each in rules if each[1].matches(event, UNMENTIONED, None)), None)


class RuleCompiler:
    """Compiles rules; equal rules once while they are in use.

    No `LRU`: the weak maps make equal rules one object; the caches of rule sets limit them.
    """

    def __init__(self) -> None:
        self._rules: WeakValueDictionary[tuple[str, bytes], CompiledRule] = WeakValueDictionary()
        self._sets: WeakValueDictionary[tuple[int, ...], RuleSet] = WeakValueDictionary()
        self.default: Final = self.compile(None)
        """The rule set of users who have changed nothing."""

    def compile(self, stored: bytes | None) -> RuleSet:
        """Return the rule set of a user from their stored `m.push_rules`."""
        rules = decode_stored(stored)
        return self._intern(
            self._compile_rule(kind, rule)
            for kind in KINDS
            for rule in rules.rules(TheUser.ID, kind)
            if rule.enabled
        )

    def restrict_to_room(self, rule_set: RuleSet, room_id: str) -> RuleSet:
        """Return the set for one room, without the rules about other rooms."""
        return (
            self._intern(rule_set.rules_in(room_id.lower()))
            if rule_set.has_room_rules
            else rule_set
        )

    def _compile_rule(self, kind: str, rule: PushRule) -> CompiledRule:
        key = (kind, msgspec.json.encode(rule))
        compiled = self._rules.get(key)
        if compiled is None:
            compiled = self._rules[key] = CompiledRule(kind=kind, rule=rule)
        return compiled

    def _intern(self, rules: Iterable[CompiledRule]) -> RuleSet:
        chosen = tuple(rules)
        # a set keeps its rules alive, so their IDs stay valid while it exists
        key = tuple(map(id, chosen))
        known = self._sets.get(key)
        if known is None:
            known = self._sets[key] = RuleSet(chosen)
        return known


def mentioned_users(event: Event) -> frozenset[UserID]:
    """Return the users whom an event mentions, for whom the predefined rules may differ."""
    mentioned: set[str] = set()
    mentions = event.content.get("m.mentions")
    listed = mentions.get("user_ids") if isinstance(mentions, Mapping) else None
    if isinstance(listed, list | tuple):
        mentioned.update(user for user in listed if isinstance(user, str))
    if event.type == _MEMBER and event.state_key is not None:
        mentioned.update((event.state_key, event.state_key.lower()))
    return frozenset(UserID(user) for user in mentioned if is_user_id(user))


def _conditions_of(kind: str, rule: PushRule) -> tuple[Matcher, ...]:
    if kind == "content":
        return (body_matches(rule.pattern or ""),)
    if kind == "room":
        return (in_room(rule.rule_id),)
    if kind == "sender":
        return (sent_by(rule.rule_id),)
    return tuple(compile_condition(condition) for condition in rule.conditions or ())


def room_of(kind: str, rule: PushRule) -> str | None:
    """Return the room that a rule is about, if it is about one."""
    if kind == "room":
        return rule.rule_id
    if kind in ("override", "underride"):
        return next(filter(None, map(_named_room, rule.conditions or ())), None)
    return None


def _looks_at_room(condition: Condition) -> bool:
    """Return whether a condition looks at the room ID."""
    key = condition.get("key")
    return isinstance(key, str) and parse_path(key) == ROOM_ID


def _named_room(condition: Condition) -> str | None:
    return _named(condition, "room_id")


def _named_type(condition: Condition) -> str | None:
    value = condition.get("value")
    if (
        condition.get("kind") == PROPERTY_IS
        and condition.get("key") == "type"
        and isinstance(value, str)
    ):
        return value.lower()
    pattern = _named(condition, "type")
    return None if pattern is None else pattern.lower()


def _named(condition: Condition, key: str) -> str | None:
    """Return the only value that a condition allows for a property, if there is one."""
    pattern = condition.get("pattern")
    if condition.get("kind") != EVENT_MATCH or condition.get("key") != key:
        return None
    return pattern if isinstance(pattern, str) and not re.search(r"[*?]", pattern) else None
