"""Push rules compiled: what a user's rules say of an event.

Laws:
- Pure but for its caches: rules in, actions out.
- A rule that many users have is compiled once, and users with the same rules share one `RuleSet`:
  the default rules are one object for everybody. So who evaluates an event for many users does it
  once for each different set.
- What is asked of a set for nobody in particular (`NOBODY`) holds for all users whom the event does
  not name (`named_users`) and who do not follow its thread, unless the set asks for display names
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
    Occasion,
    parse_path,
)
from homeserver.services.push.stored_rules import decode_kept

_MEMBER: Final = "m.room.member"
_ORDINARY: Final = ("m.room.message", "m.room.encrypted")
_SOMEBODY: Final = "@somebody:elsewhere.invalid"
_MANY: Final = 100


class Attention(IntEnum):
    """What an ordinary message of a room is to a user: where counting starts from, before what is
    special to an event."""

    ALL = 0
    """As the default rules have it: the flags of the event hold."""
    CALLS = 1
    """Only what calls the whole room."""
    NOTHING = 2
    """Nothing, but for what the user's own rules pick out."""


class CompiledRule:
    """One enabled rule."""

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

    def __init__(self, kind: str, rule: PushRule) -> None:
        self.rule_id: Final = rule.rule_id
        self.actions: Final = Actions(rule.actions) if rule.actions else NOTHING
        self.conditions: Final = _conditions_of(kind, rule)
        self.room_id: Final = room_of(kind, rule)
        self.room: Final = None if self.room_id is None else self.room_id.lower()
        """The room that it is about; None: it may match anywhere."""
        self.type: Final = next(filter(None, map(_named_type, rule.conditions or ())), None)
        """The only type of events that it may match, in lower case; None: any."""
        kinds = [condition.get("kind") for condition in rule.conditions or ()]
        self.asks_for_names: Final = DISPLAY_NAME in kinds
        self.asks_for_room: Final = any(map(_looks_at_room, rule.conditions or ()))
        self.asks_for_threads: Final = any(
            isinstance(kind, str) and kind in THREAD_SUBSCRIPTION for kind in kinds
        )

    def matches(self, occasion: Occasion, user_id: str, display_name: str | None) -> bool:
        """Whether all its conditions hold."""
        for holds in self.conditions:  # noqa: SIM110  # a generator costs more than the conditions
            if not holds(occasion, user_id, display_name):
                return False
        return True


class RuleSet:
    """All enabled rules of a user, the most important first; of a user in one room, where it was
    narrowed."""

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
        """Of types that were asked for: for all together it would be the product of rules and
        types."""
        self._of_rooms: dict[str | None, list[tuple[int, CompiledRule]]] | None = None

    def find(
        self, occasion: Occasion, user_id: str = NOBODY, display_name: str | None = None
    ) -> Actions:
        """The actions of the most important rule that matches. That nobody is told of their own
        events is not looked at."""
        occasion.steps_left = MOST_STEPS
        for rule in self._may_match(occasion.text(TYPE)):
            if rule.matches(occasion, user_id, display_name):
                return rule.actions
        return NOTHING

    def _may_match(self, type: str | None) -> Sequence[CompiledRule]:
        """The rules that may match events of a type, in lower case."""
        if type not in self._types:
            return self._of_any_type
        rules = self._by_type.get(type)
        if rules is None:
            rules = self._by_type[type] = tuple(
                rule for rule in self.rules if rule.type in (None, type)
            )
        return rules

    def find_attentions(self) -> tuple[Attention, Mapping[str, Attention]]:
        """What ordinary messages are to the user in rooms that no rule is about, and in each that
        some are (in lower case)."""
        by_room = self._by_room()
        wide = by_room.get(None, ())
        ordinary = [_Probe(wide, type, {}) for type in _ORDINARY]
        call = _Probe(wide, _ORDINARY[0], {"m.mentions": {"room": True}})

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
        """Those that are not about other rooms than this one (in lower case): what others are muted
        costs nothing here."""
        by_room = self._by_room()
        return (rule for _, rule in merge(by_room.get(None, ()), by_room.get(room, ())))

    def _by_room(self) -> Mapping[str | None, "_Placed"]:
        """The rules by what room they are about, each with its place."""
        if self._of_rooms is None:
            self._of_rooms = {}
            for place, rule in enumerate(self.rules):
                self._of_rooms.setdefault(rule.room, []).append((place, rule))
        return self._of_rooms


_Placed = Sequence[tuple[int, CompiledRule]]
"""Rules of a set with their places in it."""


class _Probe:
    """A message of no particular content from somebody who may call the room. Rules that are about
    no room are asked about it once, however many rooms it is asked for, but for those that look at
    the id of the room."""

    def __init__(self, wide: _Placed, type: str, content: Mapping[str, Any]) -> None:
        self._event = {"type": type, "content": content, "sender": _SOMEBODY}
        self._looking = [each for each in wide if each[1].asks_for_room]
        self._first = self._find_first("", [each for each in wide if not each[1].asks_for_room])

    def find(self, room_id: str, own: _Placed) -> Actions:
        """What it is to do in a room that these rules are about."""
        found = [
            each
            for each in (self._first, self._find_first(room_id, merge(own, self._looking)))
            if each is not None
        ]
        return min(found)[1].actions if found else NOTHING

    def _find_first(
        self, room_id: str, rules: Iterable[tuple[int, CompiledRule]]
    ) -> tuple[int, CompiledRule] | None:
        occasion = Occasion(
            {**self._event, "room_id": room_id},
            room_id=room_id,
            sender=_SOMEBODY,
            member_count=_MANY,
            may_notify=lambda _group: True,
        )
        return next((each for each in rules if each[1].matches(occasion, NOBODY, None)), None)


class RuleCompiler:
    """Compiles rules; equal rules once, as long as they are in use.

    No `LRU`: the weak maps make equal rules one object; the caches of rule sets bound them.
    """

    def __init__(self) -> None:
        self._rules: WeakValueDictionary[tuple[str, bytes], CompiledRule] = WeakValueDictionary()
        self._sets: WeakValueDictionary[tuple[int, ...], RuleSet] = WeakValueDictionary()
        self.default: Final = self.compile(None)
        """The set of everybody who has changed nothing."""

    def compile(self, kept: bytes | None) -> RuleSet:
        """The set of a user, of what is kept as their `m.push_rules`."""
        rules = decode_kept(kept)
        return self._intern(
            self._compile_rule(kind, rule)
            for kind in KINDS
            for rule in rules.rules(TheUser.ID, kind)
            if rule.enabled
        )

    def narrow(self, rule_set: RuleSet, room_id: str) -> RuleSet:
        """The same for one room: without the rules that are about other rooms."""
        return (
            self._intern(rule_set.rules_in(room_id.lower())) if rule_set.names_rooms else rule_set
        )

    def _compile_rule(self, kind: str, rule: PushRule) -> CompiledRule:
        key = (kind, msgspec.json.encode(rule))
        compiled = self._rules.get(key)
        if compiled is None:
            compiled = self._rules[key] = CompiledRule(kind, rule)
        return compiled

    def _intern(self, rules: Iterable[CompiledRule]) -> RuleSet:
        chosen = tuple(rules)
        key = tuple(
            map(id, chosen)
        )  # a set keeps its rules alive, so their ids are theirs as long as it is here
        known = self._sets.get(key)
        if known is None:
            known = self._sets[key] = RuleSet(chosen)
        return known


def named_users(event: Event) -> frozenset[UserID]:
    """Whom an event names, so that the default rules may say something else to them than to the
    others."""
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
    """The one room that a rule is about, if it is about one."""
    if kind == "room":
        return rule.rule_id
    if kind in ("override", "underride"):
        return next(filter(None, map(_named_room, rule.conditions or ())), None)
    return None


def _looks_at_room(condition: Condition) -> bool:
    """Whether it is about the id of the room, of one or of some."""
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
    """The one value that a condition asks of a property, if it does."""
    pattern = condition.get("pattern")
    if condition.get("kind") != EVENT_MATCH or condition.get("key") != key:
        return None
    return pattern if isinstance(pattern, str) and not re.search(r"[*?]", pattern) else None
