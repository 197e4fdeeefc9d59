"""Push rules as the text of the specification says them, word by word and as slowly as it likes:
what the compiled ones are compared with. It takes rules in the form that clients see, and events as
JSON objects.

spec: client-server-api#push-rules, client-server-api#conditions-1, appendices#glob-style-matching
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]

KINDS = ("override", "content", "room", "sender", "underride")
ABSENT = object()
WORD = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")


@dataclass(frozen=True)
class Surroundings:
    """The user, room and power levels that an evaluation depends on."""

    user_id: str
    display_name: str | None
    member_count: int
    sender_level: int
    notification_levels: Mapping[str, int]


def evaluate(
    ruleset: Mapping[str, Sequence[Json]], event: Json, around: Surroundings
) -> Sequence[Any]:
    """Return the actions of the first rule that matches, or none."""
    for kind in KINDS:
        for rule in ruleset.get(kind, ()):
            if rule["enabled"] and rule_matches(kind, rule, event, around):
                return [
                    action
                    for action in rule["actions"]
                    if action not in ("dont_notify", "coalesce")
                ]
    return []


def rule_matches(kind: str, rule: Json, event: Json, around: Surroundings) -> bool:
    if kind == "content":
        body = property_at(event, "content.body")
        return isinstance(body, str) and matches_words(rule["pattern"], body)
    if kind == "room":
        return bool(event["room_id"] == rule["rule_id"])
    if kind == "sender":
        return bool(event["sender"] == rule["rule_id"])
    return all(
        condition_holds(condition, event, around) for condition in rule.get("conditions", ())
    )


def condition_holds(condition: Json, event: Json, around: Surroundings) -> bool:
    kind = condition.get("kind")
    if kind == "event_match":
        key, pattern = condition.get("key"), condition.get("pattern")
        if not isinstance(key, str) or not isinstance(pattern, str):
            return False
        found = property_at(event, key)
        if not isinstance(found, str):
            return False
        return matches_words(pattern, found) if key == "content.body" else matches(pattern, found)
    if kind == "event_property_is":
        if not isinstance(condition.get("key"), str) or "value" not in condition:
            return False
        found = property_at(event, condition["key"])
        return (
            is_simple(found) and is_simple(condition["value"]) and same(found, condition["value"])
        )
    if kind == "event_property_contains":
        if not isinstance(condition.get("key"), str) or "value" not in condition:
            return False
        found = property_at(event, condition["key"])
        if not isinstance(found, list) or not is_simple(condition["value"]):
            return False
        return any(is_simple(each) and same(each, condition["value"]) for each in found)
    if kind == "contains_display_name":
        body, name = property_at(event, "content.body"), around.display_name
        if not isinstance(body, str) or not name:
            return False
        return any(
            body[start : start + len(name)].lower() == name.lower()
            for start in range(len(body) - len(name) + 1)
            if at_bounds(body, start, start + len(name))
        )
    if kind == "room_member_count":
        return isinstance(condition.get("is"), str) and counted(
            condition["is"], around.member_count
        )
    if kind == "sender_notification_permission":
        if not isinstance(condition.get("key"), str):
            return False
        return around.sender_level >= around.notification_levels.get(condition["key"], 50)
    return False


def property_at(event: Json, key: str) -> Any:
    names, name, rest = [], "", key
    while rest:
        if rest[:2] in ("\\.", "\\\\"):
            name, rest = name + rest[1], rest[2:]
        elif rest[0] == ".":
            names.append(name)
            name, rest = "", rest[1:]
        else:
            name, rest = name + rest[0], rest[1:]
    value: Any = event
    for part in [*names, name]:
        if not isinstance(value, dict) or part not in value:
            return ABSENT
        value = value[part]
    return value


def is_simple(value: Any) -> bool:
    if isinstance(value, bool):
        return True
    if isinstance(value, int):
        return -(2**53) + 1 <= value <= 2**53 - 1
    return value is None or isinstance(value, str)


def same(one: Any, other: Any) -> bool:
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def counted(wanted: str, count: int) -> bool:
    for prefix in ("==", "<=", ">=", "<", ">", ""):
        if wanted.startswith(prefix):
            digits = wanted[len(prefix) :]
            break
    if not digits or any(digit not in "0123456789" for digit in digits):
        return False
    number = int(digits)
    return {
        "": count == number,
        "==": count == number,
        "<": count < number,
        ">": count > number,
        "<=": count <= number,
        ">=": count >= number,
    }[prefix]


def matches(pattern: str, text: str) -> bool:
    """`*` for any characters, none too; `?` for one; case does not count."""
    return _glob(pattern.lower(), text.lower())


def _glob(pattern: str, text: str) -> bool:
    reachable = {0}
    for letter in pattern:
        if letter == "*":
            reachable = set(range(min(reachable), len(text) + 1)) if reachable else set()
        else:
            reachable = {at + 1 for at in reachable if at < len(text) and letter in ("?", text[at])}
    return len(text) in reachable


def matches_words(pattern: str, text: str) -> bool:
    """Match any part of the text that begins and ends at a word boundary."""
    return any(
        matches(pattern, text[start:end])
        for start in range(len(text) + 1)
        for end in range(start, len(text) + 1)
        if at_bounds(text, start, end)
    )


def at_bounds(text: str, start: int, end: int) -> bool:
    return (start == 0 or text[start - 1] not in WORD) and (
        end == len(text) or text[end] not in WORD
    )
