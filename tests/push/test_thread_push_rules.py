"""The effect of push rules on threads that one follows, and on others (MSC4306): counts, pushes,
the list of notifications."""

from pathlib import Path
from typing import Any

import pytest

from storage.engine.database import Database, SQLiteConfig
from tests.conftest import run_coroutine
from tests.helpers.clocks import settle
from tests.helpers.databases import QueryCounter, open_inline
from tests.helpers.push_gateway import PushGateway, set_pusher
from tests.helpers.room_actions import create, join, ok, put_event, refused, reply, say
from tests.helpers.server import TestServer, User
from tests.helpers.thread_subscriptions import subscription_path

V3 = "/_matrix/client/v3"
RULES = f"{V3}/pushrules/global/postcontent"
FOLLOWED = ".io.element.msc4306.rule.subscribed_thread"
OTHERS = ".io.element.msc4306.rule.unsubscribed_thread"
LIMITED = '{"room":{"timeline":{"limit":1,"unread_thread_notifications":true}}}'


class ThreadScenario:
    """Bob talks in two threads, of which Alice follows one; Carol has rules as everybody."""

    def __init__(self, server: TestServer) -> None:
        self.server = server
        self.alice, self.bob, self.carol = (
            server.register(name) for name in ("alice", "bob", "carol")
        )
        self.room = create(self.bob, preset="public_chat")
        for user in (self.alice, self.carol):
            join(user, self.room)
        self.root, self.other = (say(self.bob, self.room, text) for text in ("root", "other"))
        ok(self.alice.put(subscription_path(self.room, self.root), {}))

    def switch(self, *rule_ids: str, on: bool = True) -> None:
        for rule_id in rule_ids:
            ok(self.alice.put(f"{RULES}/{rule_id}/enabled", {"enabled": on}))

    def mute(self) -> None:
        ok(self.alice.put(f"{V3}/pushrules/global/room/{self.room}", {"actions": []}))

    def read(self) -> None:
        latest = say(self.bob, self.room, "read")
        for user in (self.alice, self.carol):
            ok(user.post(f"{V3}/rooms/{self.room}/receipt/m.read/{latest}"))

    def counts(self, user: User) -> dict[str, int]:
        """The unread counts by thread; "" is the main timeline."""
        found = ok(user.get(f"{V3}/sync?filter={LIMITED}"))["rooms"]["join"][self.room]
        threads = found.get("unread_thread_notifications", {})
        counts = {root: each["notification_count"] for root, each in threads.items()}
        return {"": found["unread_notifications"]["notification_count"]} | counts


@pytest.fixture
def scenario(server: TestServer) -> ThreadScenario:
    return ThreadScenario(server)


def test_the_rules_exist_and_are_disabled(scenario: ThreadScenario) -> None:
    rules = ok(scenario.alice.get(f"{V3}/pushrules/"))["global"]
    assert list(rules) == ["override", "content", "postcontent", "room", "sender", "underride"]
    assert [
        (rule["rule_id"], rule["enabled"], rule["default"]) for rule in rules["postcontent"]
    ] == [
        (OTHERS, False, True),
        (FOLLOWED, False, True),
    ]
    assert [rule["conditions"] for rule in rules["postcontent"]] == [
        [{"kind": "io.element.msc4306.thread_subscription", "subscribed": False}],
        [{"kind": "io.element.msc4306.thread_subscription", "subscribed": True}],
    ]
    scenario.read()
    for root in (scenario.root, scenario.other):
        reply(scenario.bob, scenario.room, root)
    everything = {"": 0, scenario.root: 1, scenario.other: 1}
    assert scenario.counts(scenario.alice) == scenario.counts(scenario.carol) == everything


def test_users_cannot_add_rules_of_that_kind(scenario: ThreadScenario) -> None:
    body: dict[str, Any] = {"actions": [], "conditions": []}
    assert refused(scenario.alice.put(f"{RULES}/mine", body)) == (400, "M_INVALID_PARAM")
    assert refused(scenario.alice.delete(f"{RULES}/mine")) == (404, "M_NOT_FOUND")


@pytest.mark.parametrize("muted", [False, True])
def test_only_followed_threads_count_even_in_a_muted_room(
    scenario: ThreadScenario, muted: bool
) -> None:
    scenario.switch(FOLLOWED, OTHERS)
    if muted:
        scenario.mute()
    scenario.read()
    followed = [reply(scenario.bob, scenario.room, scenario.root) for _ in range(2)]
    reply(scenario.bob, scenario.room, scenario.other)
    say(scenario.bob, scenario.room, "beside the threads")
    assert scenario.counts(scenario.alice) == {"": 0 if muted else 1, scenario.root: 2}
    assert scenario.counts(scenario.carol) == {"": 1, scenario.root: 2, scenario.other: 1}
    listed = ok(scenario.alice.get(f"{V3}/notifications?limit=10"))["notifications"]
    assert [each["event"]["event_id"] for each in listed if not each["read"]][-2:] == followed[::-1]

    ok(scenario.alice.delete(subscription_path(scenario.room, scenario.root)))
    scenario.read()
    reply(scenario.bob, scenario.room, scenario.root)
    assert scenario.counts(scenario.alice) == {"": 0}


def test_a_mention_in_a_thread_notifies_though_the_user_does_not_follow_it(
    scenario: ThreadScenario,
) -> None:
    scenario.switch(FOLLOWED, OTHERS)
    scenario.read()
    relation = {"rel_type": "m.thread", "event_id": scenario.other}
    content: dict[str, Any] = {"msgtype": "m.text", "body": "alice!", "m.relates_to": relation}
    ok(
        put_event(
            scenario.bob,
            scenario.room,
            "m.room.message",
            {**content, "m.mentions": {"user_ids": [scenario.alice.user_id]}},
        )
    )
    assert scenario.counts(scenario.alice) == {"": 0, scenario.other: 1}


def test_pushes_follow_the_subscriptions(tmp_path: Path, sqlite_database: Database) -> None:
    gateway = PushGateway()
    server = TestServer(tmp_path, sqlite_database, web=gateway)
    server.app.pushers.start()
    settle(server)
    scenario = ThreadScenario(server)
    scenario.switch(FOLLOWED, OTHERS)
    scenario.mute()
    set_pusher(scenario.alice)
    settle(server)
    gateway.taken.clear()
    for root in (scenario.other, scenario.root):
        sent = reply(scenario.bob, scenario.room, root)
        settle(server)
    assert gateway.events == [sent], "of the thread that she does not follow nothing is pushed"
    (notified,) = gateway.taken
    assert notified.notification["devices"][0]["tweaks"] == {"sound": "default"}


def test_users_without_the_rules_cost_no_query(tmp_path: Path, sqlite: SQLiteConfig) -> None:
    counter = QueryCounter()
    database = open_inline(sqlite, counter)
    scenario = ThreadScenario(TestServer(tmp_path, database))
    reply(scenario.bob, scenario.room, scenario.root)
    counter.clear()
    reply(scenario.bob, scenario.room, scenario.root)
    assert counter.reads["get_thread_followers"] == 0
    scenario.switch(FOLLOWED)
    counter.clear()
    say(scenario.bob, scenario.room, "in no thread")
    assert counter.reads["get_thread_followers"] == 0
    reply(scenario.bob, scenario.room, scenario.root)
    assert counter.reads["get_thread_followers"] == 1
    run_coroutine(database.close(), None)
