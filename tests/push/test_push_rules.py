"""Push rules, as clients read and change them."""

import time
from typing import Any

import pytest

from federation.protocol.errors import TooLarge
from homeserver.services.push.default_rules import PushRule
from homeserver.services.push.rule_changes import (
    MAX_GENERAL_RULES,
    MAX_ROOM_CONDITIONS,
    MAX_ROOMS,
    MAX_RULES_PER_ROOM,
    RuleChanges,
)
from homeserver.services.push.stored_rules import StoredRules
from storage.account_data.account_data import AccountDataStore
from storage.engine.database import Database
from storage.push.push_rule_history import PushRuleHistoryStore
from tests.conftest import run_coroutine
from tests.helpers.server import TestServer, User

RULES = "/_matrix/client/v3/pushrules"
GLOBAL = RULES + "/global/"


def ids(user: User, kind: str) -> list[str]:
    return [rule["rule_id"] for rule in user.get(GLOBAL).json[kind]]


def synced(user: User, since: str | None = None) -> tuple[Any, str]:
    """The push rules in an answer of /sync, and its token."""
    answer = user.get("/_matrix/client/v3/sync" + (f"?since={since}" if since else "")).json
    found = [
        event["content"]
        for event in answer["account_data"]["events"]
        if event["type"] == "m.push_rules"
    ]
    assert len(found) <= 1
    return (found[0] if found else None), answer["next_batch"]


def test_a_new_user_has_the_default_rules(alice: User) -> None:
    rules = alice.get(RULES + "/").json
    assert list(rules) == ["global"]
    assert rules["global"] == alice.get(GLOBAL).json
    assert set(rules["global"]) == {
        "override",
        "content",
        "postcontent",
        "room",
        "sender",
        "underride",
    }
    assert ids(alice, "override") == [
        ".m.rule.master",
        ".org.matrix.msc4028.encrypted_event",
        ".m.rule.suppress_notices",
        ".m.rule.invite_for_me",
        ".m.rule.member_event",
        ".m.rule.is_user_mention",
        ".m.rule.is_room_mention",
        ".m.rule.tombstone",
        ".m.rule.reaction",
        ".m.rule.room.server_acl",
        ".org.matrix.msc3930.rule.poll_response",
        ".m.rule.suppress_edits",
    ]
    assert ids(alice, "underride") == [
        ".m.rule.call",
        ".m.rule.encrypted_room_one_to_one",
        ".m.rule.room_one_to_one",
        ".m.rule.message",
        ".m.rule.encrypted",
        ".org.matrix.msc3930.rule.poll_start_one_to_one",
        ".org.matrix.msc3930.rule.poll_start",
        ".org.matrix.msc3930.rule.poll_end_one_to_one",
        ".org.matrix.msc3930.rule.poll_end",
    ]
    assert alice.get(GLOBAL + "override/.m.rule.is_user_mention").json == {
        "rule_id": ".m.rule.is_user_mention",
        "default": True,
        "enabled": True,
        "conditions": [
            {
                "kind": "event_property_contains",
                "key": r"content.m\.mentions.user_ids",
                "value": alice.user_id,
            }
        ],
        "actions": [
            "notify",
            {"set_tweak": "sound", "value": "default"},
            {"set_tweak": "highlight"},
        ],
    }
    assert alice.get(GLOBAL + "override/.m.rule.master/enabled").json == {"enabled": False}


def test_a_rule_is_added_changed_and_removed(alice: User) -> None:
    path = GLOBAL + "content/cake"
    assert alice.put(path, {"pattern": "cake*lie", "actions": ["notify"]}).json == {}
    expected = {
        "rule_id": "cake",
        "default": False,
        "enabled": True,
        "actions": ["notify"],
        "pattern": "cake*lie",
    }
    assert alice.get(path).json == expected
    assert alice.get(GLOBAL).json["content"] == [expected]
    assert alice.put(path + "/enabled", {"enabled": False}).json == {}
    assert alice.put(path, {"pattern": "cake", "actions": []}).json == {}
    assert alice.get(path).json == {**expected, "pattern": "cake", "actions": [], "enabled": False}
    assert alice.put(path + "/actions", {"actions": ["notify"]}).json == {}
    assert alice.get(path + "/actions").json == {"actions": ["notify"]}
    assert alice.delete(path).json == {}
    for answer in (
        alice.get(path),
        alice.delete(path),
        alice.get(path + "/enabled"),
        alice.get(path + "/actions"),
    ):
        assert (answer.status, answer.errcode) == (404, "M_NOT_FOUND")


def test_rules_are_ordered_by_before_and_after(alice: User) -> None:
    def put(rule_id: str, query: str = "") -> int:
        return alice.put(
            f"{GLOBAL}override/{rule_id}{query}", {"actions": [], "conditions": []}
        ).status

    def own() -> list[str]:
        found = ids(alice, "override")
        assert found[0] == ".m.rule.master"
        assert found[-11:] == [rule_id for rule_id in found if rule_id.startswith(".")][1:]
        return found[1:-11]

    for rule_id in ("c", "b", "a"):
        assert put(rule_id) == 200
    assert own() == ["a", "b", "c"]
    assert put("b") == 200
    assert own() == ["a", "b", "c"]
    assert put("d", "?after=a") == 200
    assert own() == ["a", "d", "b", "c"]
    assert put("c", "?before=d") == 200
    assert own() == ["a", "c", "d", "b"]
    assert put("a", "?before=b&after=c") == 200
    assert own() == ["c", "d", "a", "b"]
    for query in ("?before=unknown", "?after=unknown", "?after=.m.rule.master"):
        answer = alice.put(f"{GLOBAL}override/b{query}", {"actions": []})
        assert (answer.status, answer.errcode) == (400, "M_INVALID_PARAM")
    assert own() == ["c", "d", "a", "b"]
    assert put("u") == 200
    assert alice.put(GLOBAL + "underride/u", {"actions": []}).status == 200
    assert ids(alice, "underride")[:2] == ["u", ".m.rule.call"]


def test_default_rules_can_be_changed_but_not_deleted(alice: User) -> None:
    path = GLOBAL + "underride/.m.rule.message"
    before = alice.get(path).json
    assert alice.put(path + "/enabled", {"enabled": False}).json == {}
    assert alice.put(path + "/actions", {"actions": ["dont_notify"]}).json == {}
    assert alice.get(path).json == {**before, "enabled": False, "actions": []}
    assert (alice.delete(path).status, alice.delete(path).errcode) == (404, "M_NOT_FOUND")
    assert alice.put(path, {"actions": []}).errcode == "M_INVALID_PARAM"
    assert (
        alice.put(GLOBAL + "override/.m.rule.message/enabled", {"enabled": True}).errcode
        == "M_NOT_FOUND"
    )


def test_historical_actions_are_dropped_and_unknown_conditions_kept(alice: User) -> None:
    conditions = [
        {"kind": "org.example.new", "x": 1},
        {"kind": "event_match", "key": "type", "pattern": "m.*"},
    ]
    body = {"actions": ["dont_notify", "notify", "coalesce"], "conditions": conditions}
    assert alice.put(GLOBAL + "underride/x", body).status == 200
    rule = alice.get(GLOBAL + "underride/x").json
    assert rule["actions"] == ["notify"]
    assert rule["conditions"] == conditions


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("override/.own", {"actions": []}),
        ("override/a%2Fb", {"actions": []}),
        ("override/a%5Cb", {"actions": []}),
        ("override/" + "x" * 256, {"actions": []}),
        ("overrides/x", {"actions": []}),
        ("content/x", {"actions": []}),
        ("room/!r:example.org", {"actions": [], "pattern": "x"}),
        ("room/!r:example.org", {"actions": [], "conditions": [{"kind": "event_match"}]}),
        ("override/x", {"actions": ["shout"]}),
        ("override/x", {"actions": [{"value": "x"}]}),
        ("override/x", {"actions": [], "conditions": [{"key": "type"}]}),
        ("override/x", {"actions": [], "conditions": [{"kind": "event_match", "pattern": 1}]}),
    ],
)
def test_invalid_rules_are_refused(alice: User, path: str, body: object) -> None:
    before = alice.get(GLOBAL).json
    answer = alice.put(GLOBAL + path, body)
    assert (answer.status, answer.errcode) == (400, "M_INVALID_PARAM")
    assert alice.get(GLOBAL).json == before


@pytest.mark.parametrize(
    "body", [{}, {"actions": "notify"}, {"actions": [1]}, {"actions": [], "conditions": ["x"]}]
)
def test_malformed_bodies_are_refused(alice: User, body: object) -> None:
    assert alice.put(GLOBAL + "override/x", body).errcode in ("M_BAD_JSON", "M_MISSING_PARAM")


def test_the_number_of_rules_is_limited(alice: User) -> None:
    body = {"actions": [{"set_tweak": "sound", "value": "x" * 60_000}], "pattern": "x"}
    answers = [alice.put(f"{GLOBAL}content/{number}", body).status for number in range(18)]
    assert answers == [200] * 17 + [413]


def test_sync_returns_push_rules_first_and_when_they_change(
    server: TestServer, alice: User
) -> None:
    bob = server.register("bob")
    rules, since = synced(alice)
    assert rules == alice.get(RULES + "/").json
    assert synced(alice, since)[0] is None
    _, since_of_bob = synced(bob)
    poll = alice.start("GET", f"/_matrix/client/v3/sync?since={since}&timeout=30000")
    assert not poll.done
    alice.put(GLOBAL + "room/!quiet:example.org", {"actions": []})
    server.clock.advance(0.1)
    assert [event["type"] for event in poll.answer.json["account_data"]["events"]] == [
        "m.push_rules"
    ]
    rules, since = synced(alice, since)
    assert [rule["rule_id"] for rule in rules["global"]["room"]] == ["!quiet:example.org"]
    assert (
        rules
        == alice.get(f"/_matrix/client/v3/user/{alice.user_id}/account_data/m.push_rules").json
    )
    assert synced(bob, since_of_bob)[0] is None
    alice.put(GLOBAL + "room/!quiet:example.org", {"actions": []})
    assert synced(alice, since)[0] is None, "nothing changed"
    wanted = '{"account_data":{"not_types":["m.push_rules"]}}'
    answer = alice.get(f"/_matrix/client/v3/sync?filter={wanted}").json
    assert answer["account_data"]["events"] == []


def test_push_rules_belong_to_their_user(server: TestServer, alice: User) -> None:
    alice.put(GLOBAL + "sender/@bob:example.org", {"actions": []})
    assert ids(server.register("bob"), "sender") == []
    assert server.get(RULES + "/").errcode == "M_MISSING_TOKEN"


def test_rules_evaluated_for_every_message_are_limited(alice: User) -> None:
    def put(path: str, **body: object) -> int:
        return alice.put(GLOBAL + path, {"actions": [], **body}).status

    assert [put(f"content/{number}", pattern="tea") for number in range(MAX_GENERAL_RULES)] == [
        200
    ] * MAX_GENERAL_RULES
    answer = alice.put(GLOBAL + "content/more", {"actions": [], "pattern": "tea"})
    assert (answer.status, answer.errcode) == (413, "M_TOO_LARGE")
    assert put("content/0", pattern="coffee") == 200, "those that there are can be changed"
    assert put("sender/@bob:example.org") == 413
    assert put("room/!one:example.org") == 200, "rules about rooms are counted by room"
    here = {"kind": "event_match", "key": "room_id", "pattern": "!one:example.org"}
    statuses = [
        put(f"override/{number}", conditions=[here]) for number in range(MAX_RULES_PER_ROOM)
    ]
    assert statuses == [*[200] * (MAX_RULES_PER_ROOM - 1), 413]
    assert put("override/x", conditions=[{**here, "pattern": "!two:example.org"}]) == 200


def test_the_number_of_rooms_with_rules_is_limited(sqlite_database: Database) -> None:
    changes = RuleChanges(
        account_data=AccountDataStore(sqlite_database),
        history=PushRuleHistoryStore(sqlite_database),
    )

    async def add(first: int, number: int) -> None:
        def change(kept: StoredRules) -> None:
            rules = kept.own.setdefault("room", [])
            rules += [PushRule(f"!{room}:example.org", []) for room in range(first, first + number)]

        await sqlite_database.write("set_push_rules", changes.change, "@alice:example.org", change)

    run_coroutine(add(0, MAX_ROOMS), None)
    with pytest.raises(TooLarge):
        run_coroutine(add(MAX_ROOMS, 1), None)


def test_a_change_of_many_room_rules_delays_other_writes_briefly(
    sqlite_database: Database,
) -> None:
    """Each change looks at all rooms that there are rules about, while all other writes wait."""
    changes = RuleChanges(
        account_data=AccountDataStore(sqlite_database),
        history=PushRuleHistoryStore(sqlite_database),
    )

    def of_type(number: int) -> PushRule:
        return PushRule(
            f"w{number}",
            [],
            conditions=[{"kind": "event_match", "key": "type", "pattern": f"t{number}"}],
        )

    def add(user: str, wide: int, rooms: int) -> None:
        def change(kept: StoredRules) -> None:
            kept.own.setdefault("override", []).extend(of_type(number) for number in range(wide))
            kept.own.setdefault("room", []).extend(
                PushRule(f"!{room}:example.org", []) for room in range(rooms)
            )

        run_coroutine(sqlite_database.write("set_push_rules", changes.change, user, change), None)

    began = time.process_time()
    add("@alice:example.org", MAX_GENERAL_RULES, MAX_ROOM_CONDITIONS // MAX_GENERAL_RULES - 1)
    assert time.process_time() - began < 1.5
    with pytest.raises(TooLarge):
        add("@bob:example.org", MAX_GENERAL_RULES, MAX_ROOMS - 1)
    add("@bob:example.org", 20, MAX_ROOMS - 1)


def test_the_length_of_texts_in_rules_is_limited(alice: User) -> None:
    long = "x" * 1025
    match = {"kind": "event_match", "key": "type", "pattern": long}
    for path, body in (
        ("content/x", {"pattern": long}),
        ("override/x", {"conditions": [match]}),
        (
            "override/x",
            {"conditions": [{"kind": "event_property_is", "key": "type", "value": long}]},
        ),
        ("override/x", {"conditions": [{"kind": "contains_display_name"}] * 21}),
    ):
        answer = alice.put(GLOBAL + path, {"actions": [], **body})
        assert (answer.status, answer.errcode) == (400, "M_INVALID_PARAM"), body
