"""Compiles a user's push rules and evaluates them on events.

Laws:
- Pure but for its caches: rules in, actions out.
- A rule that many users have is compiled once, and users with the same rules share one `RuleSet`;
  the predefined rules are one object for all. So an event is evaluated once for each different set.
- The result of a set for `NOBODY` holds for all users whom the event does not mention
  (`named_users`) and who do not follow its thread, unless the set looks at display names
  (`asks_for_names`).

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
    NOBODY,
    PROPERTY_IS,
    THREAD_SUBSCRIPTION,
    Holds,
    body_matches,
    compile_condition,
    in_room,
    sent_by,
)
from homeserver.services.push.default_rules import KINDS, Condition, PushRule, TheUser
from homeserver.services.push.event_properties import (
    MOST_STEPS,
    ROOM_ID,
    TYPE,
    EvaluatedEvent,
    parse_path,
)
from homeserver.services.push.stored_rules import decode_stored

_MEMBER: Final = "m.room.member"
_ORDINARY: Final = ("m.room.message", "m.room.encrypted")
_SOMEBODY: Final = "@somebody:elsewhere.invalid"
_MANY: Final = 100


class Attention(IntEnum):
    """The effect of an ordinary message of a room for a user: the base of counting, before
    properties of a single event."""

    ALL = 0
    """Use the flags of the event, as the predefined rules do."""
    CALLS = 1
    """Only events that mention the complete room."""
    NOTHING = 2
    """Nothing but events that match a user's own rules."""


class CompiledRule:
    """One compiled, enabled rule."""

    __slots__ = (
        "__weakref__",
        "actions",
        "asks_for_names",
        "asks_for_room",
        "asks_for_threads",
        "conditions",
        "room",
        "room_id",
        "rule_id",
        "type",
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
        self.asks_for_names: Final = DISPLAY_NAME in kinds
        self.asks_for_room: Final = any(map(_looks_at_room, rule.conditions or ()))
        self.asks_for_threads: Final = any(
            isinstance(kind, str) and kind in THREAD_SUBSCRIPTION for kind in kinds
        )

    def matches(self, occasion: EvaluatedEvent, user_id: str, display_name: str | None) -> bool:
        """Return whether all conditions match."""
        for holds in self.conditions:  # noqa: SIM110  # a generator costs more than the conditions
            if not holds(occasion, user_id, display_name):
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
        "asks_for_names",
        "asks_for_threads",
        "rules",
    )

    def __init__(self, rules: Sequence[CompiledRule]) -> None:
        self.rules: Final = tuple(rules)
        self.asks_for_names: Final = any(rule.asks_for_names for rule in rules)
        self.asks_for_threads: Final = any(rule.asks_for_threads for rule in rules)
        self._types: Final = frozenset(rule.type for rule in rules if rule.type is not None)
        self._of_any_type: Final = tuple(rule for rule in rules if rule.type is None)
        self._by_type: Final[dict[str | None, tuple[CompiledRule, ...]]] = {}
        """The rules by event type, filled on demand: for all types it would be the product of rules
        and types."""
        self._of_rooms: dict[str | None, list[tuple[int, CompiledRule]]] | None = None

    def find(
        self, occasion: EvaluatedEvent, user_id: str = NOBODY, display_name: str | None = None
    ) -> Actions:
        """Return the actions of the most important rule that matches. Does not check whether the
        event is the user's own."""
        occasion.steps_left = MOST_STEPS
        for rule in self._may_match(occasion.text(TYPE)):
            if rule.matches(occasion, user_id, display_name):
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

    def find_attentions(self) -> tuple[Attention, Mapping[str, Attention]]:
        """Return the attention to ordinary messages in rooms without rules, and in each room with
        rules (room IDs in lower case)."""
        by_room = self._by_room()
        wide = by_room.get(None, ())
        ordinary = [_Probe(wide=wide, type=type, content={}) for type in _ORDINARY]
        call = _Probe(wide=wide, type=_ORDINARY[0], content={"m.mentions": {"room": True}})

        def find(own: _Placed) -> Attention:
            room_id = next((rule.room_id for _, rule in own if rule.room_id is not None), "")
            if any(each.find(room_id, own).notify for each in ordinary):
                return Attention.ALL
            return Attention.CALLS if call.find(room_id, own).highlight else Attention.NOTHING

        return find(()), {room: find(own) for room, own in by_room.items() if room is not None}

    @property
    def names_rooms(self) -> bool:
        """Whether some rule is about one room."""
        return not self._by_room().keys() <= {None}

    def rules_in(self, room: str) -> Iterable[CompiledRule]:
        """Return the rules that are not about other rooms than this one (in lower case): muted
        rooms cost nothing elsewhere."""
        by_room = self._by_room()
        return (rule for _, rule in merge(by_room.get(None, ()), by_room.get(room, ())))

    def _by_room(self) -> Mapping[str | None, "_Placed"]:
        """Return the rules by their room, each with its place."""
        if self._of_rooms is None:
            self._of_rooms = {}
            for place, rule in enumerate(self.rules):
                self._of_rooms.setdefault(rule.room, []).append((place, rule))
        return self._of_rooms


_Placed = Sequence[tuple[int, CompiledRule]]
"""Rules of a set with their places in it."""


class _Probe:
    """A message without special content from a sender who may mention the room. Rules without a
    room are evaluated on it once for all rooms, except those that look at the room ID."""

    def __init__(self, *, wide: _Placed, type: str, content: Mapping[str, Any]) -> None:
        self._event = {"type": type, "content": content, "sender": _SOMEBODY}
        self._looking = [each for each in wide if each[1].asks_for_room]
        self._first = self._find_first("", [each for each in wide if not each[1].asks_for_room])

    def find(self, room_id: str, own: _Placed) -> Actions:
        """Return its actions in a room with these rules."""
        found = [
            each
            for each in (self._first, self._find_first(room_id, merge(own, self._looking)))
            if each is not None
        ]
        return min(found)[1].actions if found else NOTHING

    def _find_first(
        self, room_id: str, rules: Iterable[tuple[int, CompiledRule]]
    ) -> tuple[int, CompiledRule] | None:
        occasion = EvaluatedEvent(
            properties={**self._event, "room_id": room_id},
            room_id=room_id,
            sender=_SOMEBODY,
            member_count=_MANY,
            may_notify=lambda _group: True,
        )
        return next((each for each in rules if each[1].matches(occasion, NOBODY, None)), None)


class RuleCompiler:
    """Compiles rules; equal rules once while they are in use.

    No `LRU`: the weak maps make equal rules one object; the caches of rule sets limit them.
    """

    def __init__(self) -> None:
        self._rules: WeakValueDictionary[tuple[str, bytes], CompiledRule] = WeakValueDictionary()
        self._sets: WeakValueDictionary[tuple[int, ...], RuleSet] = WeakValueDictionary()
        self.default: Final = self.compile(None)
        """The rule set of users who have changed nothing."""

    def compile(self, kept: bytes | None) -> RuleSet:
        """Return the rule set of a user from their stored `m.push_rules`."""
        rules = decode_stored(kept)
        return self._intern(
            self._compile_rule(kind, rule)
            for kind in KINDS
            for rule in rules.rules(TheUser.ID, kind)
            if rule.enabled
        )

    def narrow(self, rule_set: RuleSet, room_id: str) -> RuleSet:
        """Return the set for one room, without the rules about other rooms."""
        return (
            self._intern(rule_set.rules_in(room_id.lower())) if rule_set.names_rooms else rule_set
        )

    def _compile_rule(self, kind: str, rule: PushRule) -> CompiledRule:
        key = (kind, msgspec.json.encode(rule))
        compiled = self._rules.get(key)
        if compiled is None:
            compiled = self._rules[key] = CompiledRule(kind=kind, rule=rule)
        return compiled

    def _intern(self, rules: Iterable[CompiledRule]) -> RuleSet:
        chosen = tuple(rules)
        key = tuple(
            map(id, chosen)
        )  # a set keeps its rules alive, so their ids stay valid while it exists
        known = self._sets.get(key)
        if known is None:
            known = self._sets[key] = RuleSet(chosen)
        return known


def named_users(event: Event) -> frozenset[UserID]:
    """Return the users whom an event mentions, for whom the predefined rules may differ."""
    named: set[str] = set()
    mentions = event.content.get("m.mentions")
    listed = mentions.get("user_ids") if isinstance(mentions, Mapping) else None
    if isinstance(listed, list | tuple):
        named.update(user for user in listed if isinstance(user, str))
    if event.type == _MEMBER and event.state_key is not None:
        named.update((event.state_key, event.state_key.lower()))
    return frozenset(UserID(user) for user in named if is_user_id(user))


def _conditions_of(kind: str, rule: PushRule) -> tuple[Holds, ...]:
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
