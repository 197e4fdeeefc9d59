"""Compiled rules give the same actions as literal ones."""

import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from homeserver.services.push.actions import Actions
from homeserver.services.push.event_properties import EvaluatedEvent
from homeserver.services.push.push_rules import ruleset
from homeserver.services.push.rule_changes import MAX_GENERAL_RULES
from homeserver.services.push.rule_sets import NotificationLevel, RuleCompiler, RuleSet
from tests.push.literal_rules import Surroundings, evaluate

BOB = "@bob:a.test"
ROOMS = ("!one:a.test", "!two:a.test")

texts = st.text(st.sampled_from("ab_ .-B0\n"), max_size=8)
globs = st.text(st.sampled_from("ab*?_ B."), max_size=5)
simple = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 2),
    st.just(2**53),
    texts,
    st.sampled_from([BOB, "m.notice"]),
)
values = st.one_of(
    simple, st.lists(simple, max_size=3), st.dictionaries(st.sampled_from(["a", "b.c"]), simple)
)
keys = st.sampled_from(
    [
        "content.body",
        "content.msgtype",
        "content.a",
        "content.a.b",
        r"content.b\.c",
        r"content.b\\c",
        r"content.a.b\.c",
        "content",
        "type",
        "state_key",
        "sender",
        "room_id",
        "content.m\\.mentions.user_ids",
        "nothing",
        "",
    ]
)
conditions = st.one_of(
    st.fixed_dictionaries(
        {
            "kind": st.just("event_match"),
            "key": keys,
            "pattern": st.one_of(globs, st.sampled_from([*ROOMS, BOB, "m.*"])),
        }
    ),
    st.fixed_dictionaries({"kind": st.just("event_property_is"), "key": keys, "value": values}),
    st.fixed_dictionaries(
        {"kind": st.just("event_property_contains"), "key": keys, "value": simple}
    ),
    st.fixed_dictionaries(
        {
            "kind": st.just("room_member_count"),
            "is": st.builds(
                "".join,
                st.tuples(
                    st.sampled_from(["", "==", "<", ">", "<=", ">=", "=", "!"]),
                    st.sampled_from(["1", "02", "3", "", "x"]),
                ),
            ),
        }
    ),
    st.fixed_dictionaries(
        {"kind": st.just("sender_notification_permission"), "key": st.sampled_from(["room", "x"])}
    ),
    st.sampled_from(
        [
            {"kind": "contains_display_name"},
            {"kind": "unknown"},
            {"kind": "event_match", "key": "type"},
            {"kind": "event_match", "pattern": "*"},
            {"kind": "event_property_is", "key": "type"},
            {"kind": "room_member_count"},
            {"kind": "sender_notification_permission"},
        ]
    ),
)
actions = st.lists(
    st.sampled_from(
        [
            "notify",
            {"set_tweak": "highlight"},
            {"set_tweak": "highlight", "value": False},
            {"set_tweak": "sound", "value": "x"},
        ]
    ),
    max_size=2,
)


def own_rules(
    ids: st.SearchStrategy[str], **more: st.SearchStrategy[Any]
) -> st.SearchStrategy[Any]:
    rule = st.fixed_dictionaries(
        {"rule_id": ids, "actions": actions, "enabled": st.booleans(), **more}
    )
    return st.lists(rule, max_size=3, unique_by=lambda each: each["rule_id"])


default_ids = st.sampled_from(
    [rule["rule_id"] for kind in ("override", "underride") for rule in ruleset(BOB, None)[kind]]
)
changes = st.fixed_dictionaries({}, optional={"enabled": st.booleans(), "actions": actions})
names = st.sampled_from("xyz")
kept_rules = st.fixed_dictionaries(
    {
        "own": st.fixed_dictionaries(
            {},
            optional={
                "override": own_rules(names, conditions=st.lists(conditions, max_size=2)),
                "content": own_rules(names, pattern=globs),
                "room": own_rules(st.sampled_from(ROOMS)),
                "sender": own_rules(st.sampled_from(["@alice:a.test", "@carol:b.test"])),
                "underride": own_rules(names, conditions=st.lists(conditions, max_size=2)),
            },
        ),
        "changed": st.dictionaries(default_ids, changes, max_size=3),
    }
)
contents = st.fixed_dictionaries(
    {},
    optional={
        "body": st.one_of(texts, simple),
        "msgtype": st.sampled_from(["m.text", "m.notice", "M.NOTICE"]),
        "membership": st.sampled_from(["invite", "join"]),
        "a": values,
        "b.c": simple,
        "b\\c": simple,
        "m.mentions": st.fixed_dictionaries(
            {},
            optional={
                "user_ids": st.one_of(st.lists(st.sampled_from([BOB, "@x:y", "", 1])), texts),
                "room": simple,
            },
        ),
        "m.relates_to": st.fixed_dictionaries(
            {}, optional={"rel_type": st.sampled_from(["m.replace", "m.thread"])}
        ),
    },
)
events = st.fixed_dictionaries(
    {
        "type": st.sampled_from(
            [
                "m.room.message",
                "m.room.encrypted",
                "m.room.member",
                "m.reaction",
                "m.room.tombstone",
                "m.call.invite",
            ]
        ),
        "sender": st.sampled_from(["@alice:a.test", "@carol:b.test"]),
        "room_id": st.sampled_from(ROOMS),
        "content": contents,
    },
    optional={"state_key": st.sampled_from(["", BOB, "@x:y"])},
)
surroundings = st.builds(
    Surroundings,
    user_id=st.just(BOB),
    display_name=st.one_of(st.none(), texts),
    member_count=st.integers(1, 4),
    sender_level=st.sampled_from([0, 50, 100]),
    notification_levels=st.dictionaries(
        st.sampled_from(["room", "x"]), st.sampled_from([0, 50, 75])
    ),
)


def occasion_of(event: Any, around: Surroundings) -> EvaluatedEvent:
    return EvaluatedEvent(
        properties=event,
        room_id=event["room_id"],
        sender=event["sender"],
        member_count=around.member_count,
        may_notify=lambda group: around.sender_level >= around.notification_levels.get(group, 50),
    )


@given(kept_rules, events, surroundings)
def test_compiled_rules_give_the_same_actions_as_literal_ones(
    kept: Any, event: Any, around: Surroundings
) -> None:
    stored = msgspec.json.encode(kept)
    expected = evaluate(ruleset(BOB, stored), event, around)
    compiler = RuleCompiler()
    rules = compiler.compile(stored)
    occasion = occasion_of(event, around)
    assert list(rules.find(occasion, BOB, around.display_name).raw) == expected
    narrowed = compiler.restrict_to_room(rules, event["room_id"])
    assert list(narrowed.find(occasion, BOB, around.display_name).raw) == expected, (
        "rules about other rooms are no loss"
    )


@given(kept_rules, events, surroundings)
def test_rules_give_one_result_for_all_users_whom_the_event_does_not_name(
    kept: Any, event: Any, around: Surroundings
) -> None:
    """A rule set is evaluated once for all its users, except those whom the event names."""
    mentions = event["content"].get("m.mentions", {})
    listed = mentions.get("user_ids", ())
    rules = RuleCompiler().compile(msgspec.json.encode(kept))
    if (
        (isinstance(listed, list) and BOB in listed)
        or event.get("state_key") == BOB
        or rules.uses_display_names
    ):
        return
    occasion = occasion_of(event, around)
    assert rules.find(occasion) is rules.find(occasion, BOB, around.display_name)


def test_an_empty_user_id_in_an_event_matches_nobody() -> None:
    rules = RuleCompiler().default
    mentions = {"content": {"body": "", "m.mentions": {"user_ids": [""]}}}
    invite = {"type": "m.room.member", "state_key": "", "content": {"membership": "invite"}}
    for event in ({"type": "m.room.message", **mentions}, invite):
        happened = {"sender": "@alice:a.test", "room_id": ROOMS[0], **event}
        assert not rules.find(occasion_of(happened, Surroundings(BOB, None, 3, 0, {}))).highlight
    assert not rules.find(occasion_of(happened, Surroundings(BOB, None, 3, 0, {}))).notify


def test_equal_rules_are_one_object() -> None:
    compiler = RuleCompiler()
    assert compiler.compile(None) is compiler.default
    muted = [
        {
            "rule_id": room,
            "actions": [],
            "conditions": [{"kind": "event_match", "key": "room_id", "pattern": room}],
        }
        for room in ROOMS
    ]
    one = compiler.compile(json.dumps({"own": {"override": muted[:1]}}).encode())
    both = compiler.compile(json.dumps({"own": {"override": muted}}).encode())
    assert one is not both
    assert compiler.restrict_to_room(one, ROOMS[0]) is compiler.restrict_to_room(both, ROOMS[0])
    assert compiler.restrict_to_room(one, ROOMS[1]) is compiler.default


NOTHING_FITS = [
    pytest.param({"pattern": "?" * 1023 + "x"}, {"body": "." * 60_000}, id="one of any letters"),
    pytest.param(
        {"pattern": "." * 999 + "x"}, {"body": "." * 60_000 + "." * 999}, id="nearly everywhere"
    ),
    pytest.param(
        {"key": "content.topic", "pattern": "*" + "?" * 1000 + "x*"},
        {"topic": "." * 60_000},
        id="amid",
    ),
    pytest.param({"kind": "contains_display_name"}, {"body": "_" + "." * 60_000}, id="a long name"),
    pytest.param(
        {"kind": "event_property_contains", "key": "content.list", "value": "x"},
        {"list": [0] * 32_000},
        id="a long list",
    ),
    pytest.param(
        {"kind": "event_property_contains", "key": "content.list", "value": 1},
        {"list": [True] * 12_000},
        id="alike",
    ),
]
"""Conditions, each with an event that nearly matches it in as many places as possible."""


@pytest.mark.parametrize(("condition", "content"), NOTHING_FITS)
def test_costly_rules_are_evaluated_quickly(condition: dict[str, str], content: Any) -> None:
    """The rules of the recipients block the sender and every other request while they are
    evaluated."""
    asked = {"kind": "event_match", "key": "content.body", **condition}
    own = [
        {"rule_id": str(number), "actions": [], "conditions": [asked]}
        for number in range(MAX_GENERAL_RULES)
    ]
    rules = RuleCompiler().compile(json.dumps({"own": {"override": own}}).encode())
    occasion = occasion_of(message(content), Surroundings(BOB, None, 3, 0, {}))
    began = time.process_time()
    rules.find(occasion, BOB, "." * 255 + "b")
    assert time.process_time() - began < 0.5


def test_mentions_of_thousands_of_users_are_evaluated_quickly() -> None:
    people = [f"@person{number}:a.test" for number in range(3000)]
    occasion = occasion_of(
        message({"body": "all", "m.mentions": {"user_ids": people}}),
        Surroundings(BOB, None, 9000, 0, {}),
    )
    rules = RuleCompiler().default
    began = time.process_time()
    assert all(rules.find(occasion, person).highlight for person in people)
    assert not rules.find(occasion, BOB).highlight
    assert time.process_time() - began < 0.25


def test_every_keyword_is_found_in_a_long_text() -> None:
    words = [f"keyword{number:03}" for number in range(MAX_GENERAL_RULES)]
    own = [{"rule_id": word, "actions": ["notify", word], "pattern": word} for word in words]
    rules = RuleCompiler().compile(json.dumps({"own": {"content": own}}).encode())
    near = " ".join(f"{word}s" for word in words[:15])
    occasion = occasion_of(
        message({"body": f"{near} {'tea and cake ' * 4500} keyword499"}),
        Surroundings(BOB, None, 3, 0, {}),
    )
    assert list(rules.find(occasion, BOB).raw) == ["notify", "keyword499"]


def message(content: Any) -> Any:
    return {"type": "m.text", "content": content, "sender": "@alice:a.test", "room_id": ROOMS[0]}


def level_in(rules: RuleSet, room: str) -> NotificationLevel:
    elsewhere, of_rooms = rules.find_levels()
    return of_rooms.get(room.lower(), elsewhere)


@given(kept_rules)
def test_the_level_of_rooms_agrees_with_the_rules_for_one_message(kept: Any) -> None:
    """It holds although most rules are evaluated once for all rooms."""
    compiler = RuleCompiler()
    rules = compiler.compile(json.dumps(kept).encode())

    def says(room: str, type: str, content: Any) -> Actions:
        event = {
            "type": type,
            "content": content,
            "room_id": room,
            "sender": "@somebody:elsewhere.invalid",
        }
        occasion = EvaluatedEvent(
            properties=event,
            room_id=room,
            sender=str(event["sender"]),
            member_count=100,
            may_notify=lambda _group: True,
        )
        return rules.find(occasion)

    for room in rules.find_levels()[1].keys() & {*ROOMS}:
        if any(says(room, type, {}).notify for type in ("m.room.message", "m.room.encrypted")):
            expected = NotificationLevel.ALL
        else:
            is_call = says(room, "m.room.message", {"m.mentions": {"room": True}}).highlight
            expected = NotificationLevel.ROOM_MENTIONS if is_call else NotificationLevel.NOTHING
        assert level_in(rules, room) == expected


def test_the_level_of_a_room_follows_the_rules_of_the_user() -> None:
    compiler = RuleCompiler()
    here = ROOMS[0]
    muted = {
        "rule_id": here,
        "actions": [],
        "conditions": [{"kind": "event_match", "key": "room_id", "pattern": here}],
    }
    rules = {
        "muted": {"own": {"override": [muted]}},
        "mentions only": {"own": {"room": [{"rule_id": here, "actions": []}]}},
        "all off": {"changed": {".m.rule.master": {"enabled": True}}},
        "keyword": {
            "own": {"content": [{"rule_id": "tea", "actions": ["notify"], "pattern": "tea"}]}
        },
    }
    compiled = {name: compiler.compile(json.dumps(kept).encode()) for name, kept in rules.items()}
    found = {name: tuple(level_in(each, room) for room in ROOMS) for name, each in compiled.items()}
    assert found == {
        "muted": (NotificationLevel.NOTHING, NotificationLevel.ALL),
        "mentions only": (NotificationLevel.ROOM_MENTIONS, NotificationLevel.ALL),
        "all off": (NotificationLevel.NOTHING, NotificationLevel.NOTHING),
        "keyword": (NotificationLevel.ALL, NotificationLevel.ALL),
    }
