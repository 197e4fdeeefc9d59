"""The input of the transcribed authorization rules: an event, the state, levels and creators.

Part of the oracle in `tests/federation/protocol/oracle_auth.py`. It uses nothing of the code under
test.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

Json = Mapping[str, Any]


class Allow(Exception):
    """The page says: allow."""


class Reject(Exception):
    """The page says: reject. The argument is the number of the point that says so."""


@dataclass(frozen=True)
class Question:
    """An event and all that the rules look at."""

    version: str
    event: Json
    event_id: str
    create: Json
    create_id: str
    state: Mapping[tuple[str, str], Json]
    """The room state, the create event left out (it is `create`)."""
    auth_events: Sequence[tuple[str, Json]] = ()
    """(id, event) of what the event names."""
    rejected: frozenset[str] = frozenset()
    signed_by: frozenset[str] = frozenset()
    prev_events: Sequence[str] = ()

    @property
    def numbers(self) -> "Numbers":
        return READINGS[self.version]

    @property
    def type(self) -> str:
        return str(self.event["type"])

    @property
    def sender(self) -> str:
        return str(self.event["sender"])

    @property
    def content(self) -> Json:
        return self.event["content"]  # type: ignore[no-any-return]

    @property
    def target(self) -> str:
        return str(self.event["state_key"])

    def current(self, type: str, key: str = "") -> Json | None:
        return self.state.get((type, key))

    def membership(self, user: str) -> str | None:
        """The user's current membership state; None if there is none."""
        event = self.current("m.room.member", user)
        membership = None if event is None else event["content"].get("membership")
        return membership if isinstance(membership, str) else None

    def join_rule(self) -> object:
        """OPEN: a room without join rules is as one with `invite`."""
        event = self.current("m.room.join_rules")
        return "invite" if event is None else event["content"].get("join_rule", "invite")

    # ---- power levels; OPEN: a current value that is no level is as if it were absent

    def power_content(self) -> Json | None:
        event = self.current("m.room.power_levels")
        return None if event is None else event["content"]

    def default_level(self, name: str, default: int) -> int:
        content = self.power_content()
        level = None if content is None else self.numbers(content.get(name))
        return default if level is None else level

    def power(self, user: str) -> float:
        if self.numbers.creators_are_infinite and user in creators_v12(self.create):
            return math.inf
        content = self.power_content()
        if content is None:
            is_creator = not self.numbers.creators_are_infinite and user == self.numbers.creator(
                self.create
            )
            return 100 if is_creator else 0
        level = self.numbers(entries(content, "users").get(user))
        return self.default_level("users_default", 0) if level is None else level

    def required_level(self) -> int:
        content = self.power_content() or {}
        level = self.numbers(entries(content, "events").get(self.type))
        if level is not None:
            return level
        if "state_key" in self.event:
            return self.default_level("state_default", 50)
        return self.default_level("events_default", 0)

    def invite_level(self) -> int:
        return self.default_level("invite", 0)

    def kick_level(self) -> int:
        return self.default_level("kick", 50)

    def ban_level(self) -> int:
        return self.default_level("ban", 50)

    def redact_level(self) -> int:
        return self.default_level("redact", 50)


@dataclass(frozen=True)
class Numbers:
    """Reads power levels and the creator as a room version page defines them."""

    strings: bool
    floats: bool
    creator: Callable[[Json], object]
    creators_are_infinite: bool = False

    def __call__(self, value: object) -> int | None:
        if isinstance(value, bool) or value is None:
            return None
        if isinstance(value, int):
            return value
        if isinstance(value, float) and self.floats and math.isfinite(value):
            return int(
                Decimal(repr(value))
            )  # "exponential notation is applied … truncated at the decimal point"
        if isinstance(value, str) and self.strings:
            digits = value.strip()
            if digits[:1] in ("+", "-"):
                digits = digits[1:]
            if digits and all(digit in "0123456789" for digit in digits):
                sign = -1 if value.strip().startswith("-") else 1
                # OPEN: strings beyond a double are refused as floats beyond it are
                return sign * int(Decimal(digits)) if Decimal(digits) < Decimal("1.8E308") else None
        return None


def content_creator(create: Json) -> object:
    return create["content"].get("creator")


def sender_creator(create: Json) -> object:
    return create["sender"]


def creators_v12(create: Json) -> set[str]:
    return {create["sender"], *create["content"].get("additional_creators", [])}


def domain(identifier: str) -> str:
    return identifier.split(":", 1)[1] if ":" in identifier else ""


def is_user_id(value: object) -> bool:
    """Return whether the value fits the tests' ids: sigil, colon, domain of `[a-z0-9.-]`."""
    if (
        not isinstance(value, str)
        or not value.startswith("@")
        or ":" not in value
        or len(value) > 255
    ):
        return False
    return domain(value) != "" and all(
        character.isalnum() or character in ".-" for character in domain(value)
    )


def entries(content: Json, name: str) -> Json:
    """OPEN: what should be an object and is not has no entries."""
    value = content.get(name)
    return value if isinstance(value, dict) else {}


_OLD = Numbers(strings=True, floats=True, creator=content_creator)
_STRICT = Numbers(strings=True, floats=False, creator=content_creator)
_INTEGERS = Numbers(strings=False, floats=False, creator=content_creator)
_V11 = Numbers(strings=False, floats=False, creator=sender_creator)
_V12 = Numbers(strings=False, floats=False, creator=sender_creator, creators_are_infinite=True)

READINGS: Mapping[str, Numbers] = {
    "1": _OLD,
    "2": _OLD,
    "3": _OLD,
    "4": _OLD,
    "5": _OLD,
    "6": _STRICT,
    "7": _STRICT,
    "8": _STRICT,
    "9": _STRICT,
    "10": _INTEGERS,
    "11": _V11,
    "12": _V12,
}
