"""The predefined push rules, by kind, most important first. Some are those of MSC3930, MSC4028 and
MSC4306.

spec: client-server-api#predefined-rules
"""

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

import msgspec

Action = str | dict[str, Any]
Condition = dict[str, Any]

KINDS: Final = ("override", "content", "postcontent", "room", "sender", "underride")
"""The kinds of rules in the order of evaluation."""

ONLY_DEFAULT: Final = "postcontent"
"""The kind that has only predefined rules (MSC4306)."""

MASTER: Final = ".m.rule.master"
"""The one predefined rule that comes before a user's own."""

DONT_EMAIL: Final = "org.matrix.msc4062.dont_email"
"""The tweak that excludes an event from e-mails."""


class TheUser(Enum):
    """A placeholder for the user's own ID in predefined rules that all users share."""

    ID = "the user"


class PushRule(msgspec.Struct, frozen=True, omit_defaults=True):
    """A rule in its stored form, without default values."""

    rule_id: str
    actions: list[Action]
    enabled: bool = True
    conditions: list[Condition] | None = None
    pattern: str | None = None


def _match(key: str, pattern: str | TheUser) -> Condition:
    return {"kind": "event_match", "key": key, "pattern": pattern}


def _is(key: str, value: str | bool) -> Condition:
    return {"kind": "event_property_is", "key": key, "value": value}


_OF_TWO: Final[Condition] = {"kind": "room_member_count", "is": "2"}
_POLL: Final = "org.matrix.msc3381.poll"
_THREADS: Final = "io.element.msc4306"
_HIGHLIGHT: Final[Action] = {"set_tweak": "highlight"}


def _sound(name: str) -> Action:
    return {"set_tweak": "sound", "value": name}


def _thread_subscription(*, subscribed: bool) -> Condition:
    return {"kind": f"{_THREADS}.thread_subscription", "subscribed": subscribed}


def _poll_rules(what: str) -> tuple[PushRule, PushRule]:
    """Return the rules of MSC3930, with the event types that clients send (MSC3381)."""
    is_poll = _is("type", f"{_POLL}.{what}")
    rule_id = f".org.matrix.msc3930.rule.poll_{what}"
    return (
        PushRule(
            f"{rule_id}_one_to_one", ["notify", _sound("default")], conditions=[_OF_TWO, is_poll]
        ),
        PushRule(rule_id, ["notify"], conditions=[is_poll]),
    )


def default_rules(user_id: str | TheUser) -> Mapping[str, tuple[PushRule, ...]]:
    """Return the predefined rules of a user by kind, without kinds that have none."""
    mentioned = {
        "kind": "event_property_contains",
        "key": r"content.m\.mentions.user_ids",
        "value": user_id,
    }
    may_call_room = {"kind": "sender_notification_permission", "key": "room"}
    invited = [
        _match("type", "m.room.member"),
        _match("content.membership", "invite"),
        _match("state_key", user_id),
    ]
    return {
        "override": (
            PushRule(MASTER, [], enabled=False, conditions=[]),
            # MSC4028: pushes all encrypted events, once a client has enabled it
            PushRule(
                ".org.matrix.msc4028.encrypted_event",
                ["notify", {"set_tweak": DONT_EMAIL}],
                enabled=False,
                conditions=[_is("type", "m.room.encrypted")],
            ),
            PushRule(
                ".m.rule.suppress_notices", [], conditions=[_match("content.msgtype", "m.notice")]
            ),
            PushRule(".m.rule.invite_for_me", ["notify", _sound("default")], conditions=invited),
            PushRule(".m.rule.member_event", [], conditions=[_match("type", "m.room.member")]),
            PushRule(
                ".m.rule.is_user_mention",
                ["notify", _sound("default"), _HIGHLIGHT],
                conditions=[mentioned],
            ),
            PushRule(
                ".m.rule.is_room_mention",
                ["notify", _HIGHLIGHT],
                conditions=[_is(r"content.m\.mentions.room", True), may_call_room],
            ),
            PushRule(
                ".m.rule.tombstone",
                ["notify", _HIGHLIGHT],
                conditions=[_match("type", "m.room.tombstone"), _match("state_key", "")],
            ),
            PushRule(".m.rule.reaction", [], conditions=[_match("type", "m.reaction")]),
            PushRule(
                ".m.rule.room.server_acl",
                [],
                conditions=[_match("type", "m.room.server_acl"), _match("state_key", "")],
            ),
            PushRule(
                ".org.matrix.msc3930.rule.poll_response",
                [],
                conditions=[_is("type", f"{_POLL}.response")],
            ),
            PushRule(
                ".m.rule.suppress_edits",
                [],
                conditions=[_is(r"content.m\.relates_to.rel_type", "m.replace")],
            ),
        ),
        # MSC4306: events in threads, for subscribers of the thread and for others, once a client
        # has enabled them
        "postcontent": (
            PushRule(
                f".{_THREADS}.rule.unsubscribed_thread",
                [],
                enabled=False,
                conditions=[_thread_subscription(subscribed=False)],
            ),
            PushRule(
                f".{_THREADS}.rule.subscribed_thread",
                ["notify", _sound("default")],
                enabled=False,
                conditions=[_thread_subscription(subscribed=True)],
            ),
        ),
        "underride": (
            PushRule(
                ".m.rule.call",
                ["notify", _sound("ring")],
                conditions=[_match("type", "m.call.invite")],
            ),
            PushRule(
                ".m.rule.encrypted_room_one_to_one",
                ["notify", _sound("default")],
                conditions=[_OF_TWO, _match("type", "m.room.encrypted")],
            ),
            PushRule(
                ".m.rule.room_one_to_one",
                ["notify", _sound("default")],
                conditions=[_OF_TWO, _match("type", "m.room.message")],
            ),
            PushRule(".m.rule.message", ["notify"], conditions=[_match("type", "m.room.message")]),
            PushRule(
                ".m.rule.encrypted", ["notify"], conditions=[_match("type", "m.room.encrypted")]
            ),
            *_poll_rules("start"),
            *_poll_rules("end"),
        ),
    }
