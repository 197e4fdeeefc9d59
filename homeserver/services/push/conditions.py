"""Compiles each condition of a push rule to a function of an event and a user.

Laws:
- Total: every stored condition compiles; an unknown or invalid one never matches.
- Bounded: the work of one user's rules on one event is limited (`EvaluatedEvent.use_steps`).
  Conditions that would exceed the limit do not match. Ordinary rules stay far below it.

spec: client-server-api#conditions-1
"""

import re
from collections.abc import Callable
from typing import Final

from federation.protocol.globs import Glob
from homeserver.services.push.default_rules import Condition, TheUser
from homeserver.services.push.event_properties import BODY, EvaluatedEvent, Path, parse_path

Matcher = Callable[[EvaluatedEvent, str, str | None], bool]
"""Returns whether a condition matches an event for a user (ID, and display name in the room)."""

_COUNT: Final = re.compile(r"(==|<=|>=|<|>)?0*([0-9]+)")
_MAX_DIGITS: Final = 15
_MAX_INTEGER: Final = 2**53 - 1
_STEPS_TO_FIND: Final = 5
_STEPS_TO_COMPARE: Final = 30
"""The cost of comparing a value in a list, in character comparisons."""


UNMENTIONED: Final = ""
"""Stands for all users whom an event does not mention."""
DISPLAY_NAME: Final = "contains_display_name"
EVENT_MATCH: Final = "event_match"
PROPERTY_IS: Final = "event_property_is"
THREAD_SUBSCRIPTION: Final = frozenset(
    {"thread_subscription", "io.element.msc4306.thread_subscription"}
)
"""The names of the condition of MSC4306."""


def compile_condition(condition: Condition) -> Matcher:
    """Return the function of a condition."""
    kind, key = condition.get("kind"), condition.get("key")
    if kind == DISPLAY_NAME:
        return _contains_display_name
    if kind == "room_member_count":
        return _member_count(condition.get("is"))
    if kind in THREAD_SUBSCRIPTION:
        return _is_subscribed(condition.get("subscribed"))
    if not isinstance(key, str):
        return _no_match
    if kind == EVENT_MATCH:
        return _event_match(key, condition.get("pattern"))
    if kind == PROPERTY_IS:
        return _property_is(key, condition.get("value", ...))
    if kind == "event_property_contains":
        return _property_contains(key, condition.get("value", ...))
    if kind == "sender_notification_permission":
        return _permission(key)
    return _no_match


def body_matches(pattern: str) -> Matcher:
    """Return the only condition of a content rule."""
    return _event_match("content.body", pattern)


def in_room(room_id: str) -> Matcher:
    """Return the only condition of a room rule."""
    return lambda event, _user, _name: event.room_id == room_id


def sent_by(user_id: str) -> Matcher:
    """Return the only condition of a sender rule."""
    return lambda event, _user, _name: event.sender == user_id


def _no_match(_event: EvaluatedEvent, _user: str, _name: str | None) -> bool:
    return False


def _event_match(key: str, pattern: object) -> Matcher:
    path = parse_path(key)
    if pattern is TheUser.ID:
        # `UNMENTIONED` must not match an empty value in the event
        return lambda event, user, _name: user != UNMENTIONED and event.text(path) == user.lower()
    if not isinstance(pattern, str):
        return _no_match
    if path != BODY and "*" not in pattern and "?" not in pattern:
        plain = pattern.lower()
        return lambda event, _user, _name: event.text(path) == plain
    glob = Glob(pattern)
    matches = glob.match_words if path == BODY else glob.match

    def holds(event: EvaluatedEvent, _user: str, _name: str | None) -> bool:
        text = event.text(path)
        if text is None or glob.literal not in text:
            return False
        return event.use_steps(len(text) * glob.length) and matches(text)

    return holds


def _property_is(key: str, value: object) -> Matcher:
    path = parse_path(key)
    return (
        (lambda event, _user, _name: _is_equal(event.value(path), value))
        if _is_plain(value)
        else _no_match
    )


def _property_contains(key: str, value: object) -> Matcher:
    path = parse_path(key)
    if value is TheUser.ID:
        return lambda event, user, _name: user != UNMENTIONED and user in event.texts_in(path)
    if isinstance(value, str):
        return lambda event, _user, _name: value in event.texts_in(path)
    return (
        (lambda event, _user, _name: _contains(event, path, value))
        if _is_plain(value)
        else _no_match
    )


def _contains(event: EvaluatedEvent, path: Path, wanted: object) -> bool:
    values = event.value(path)
    if not isinstance(values, list | tuple) or not event.use_steps(_STEPS_TO_FIND * len(values)):
        return False
    if wanted not in values:
        return False
    return event.use_steps(_STEPS_TO_COMPARE * len(values)) and any(
        _is_equal(value, wanted) for value in values
    )


def _is_equal(found: object, wanted: object) -> bool:
    """Return whether two JSON values are equal; 1 and true differ."""
    return type(found) is type(wanted) and found == wanted


def _is_plain(value: object) -> bool:
    if type(value) is int:
        return -_MAX_INTEGER <= value <= _MAX_INTEGER
    return value is None or isinstance(value, str | bool)


def _contains_display_name(event: EvaluatedEvent, _user: str, name: str | None) -> bool:
    text = event.text(BODY) if name else None
    if text is None or not name:
        return False
    lower = name.lower()
    if lower not in text or not event.use_steps(len(text) * len(lower)):
        return False
    return re.search(rf"(?<![a-z0-9_]){re.escape(lower)}(?![a-z0-9_])", text) is not None


def _member_count(wanted: object) -> Matcher:
    found = _COUNT.fullmatch(wanted) if isinstance(wanted, str) else None
    if found is None:
        return _no_match
    digits = found[2]
    number = int(digits) if len(digits) <= _MAX_DIGITS else 10**_MAX_DIGITS
    if found[1] == "<":
        return lambda event, _user, _name: event.member_count < number
    if found[1] == ">":
        return lambda event, _user, _name: event.member_count > number
    if found[1] == "<=":
        return lambda event, _user, _name: event.member_count <= number
    if found[1] == ">=":
        return lambda event, _user, _name: event.member_count >= number
    return lambda event, _user, _name: event.member_count == number


def _is_subscribed(wanted: object) -> Matcher:
    if not isinstance(wanted, bool):
        return _no_match
    return lambda event, user, _name: (
        event.thread_root is not None and (user in event.subscribers) is wanted
    )


def _permission(group: str) -> Matcher:
    return lambda event, _user, _name: event.sender_may_notify(group)
