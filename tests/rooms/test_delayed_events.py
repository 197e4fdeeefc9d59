"""Events that are sent later. MSC4140"""

from pathlib import Path
from typing import Any

import pytest

from homeserver.services.rooms.delayed_events import LEASE_MS
from storage.engine.database import Database, PostgresConfig, SQLiteConfig
from storage.rooms.delayed_events import DelayedEventStore
from tests.helpers.databases import QueryCounter, open_inline
from tests.helpers.executors import PausableExecutor
from tests.helpers.http import Answer
from tests.helpers.retention import keep_for, purge
from tests.helpers.room_actions import V3, ok, outcome, redact, refused, room_path
from tests.helpers.server import START, TestServer, User
from tests.helpers.sync_requests import Json, Rooms, bodies, sync

PREFIX = "/_matrix/client/unstable/org.matrix.msc4140"
CALL = "org.matrix.msc3401.call.member"
NOT_FOUND = (404, "M_NOT_FOUND")
FORBIDDEN = (403, "M_FORBIDDEN")
UNLIMITED = "rc_delayed_event_mgmt: {per_second: 10000, burst_count: 10000}\n"

rooms = Rooms()


@pytest.fixture
def server(tmp_path: Path, sqlite_database: Database) -> TestServer:
    return started(TestServer(tmp_path, sqlite_database, UNLIMITED))


@pytest.fixture
def room_id(alice: User) -> str:
    return rooms.create(alice)


def started(server: TestServer) -> TestServer:
    server.app.calls.delayed_events.start()
    return server


def wait(server: TestServer, seconds: float) -> None:
    server.clock.advance(seconds)
    for _ in range(3):
        server.clock.advance(0)


def later(
    user: User, room_id: str, delay: object = 10_000, txn: str = "t", **content: Any
) -> Answer:
    """Schedule a message as released clients do."""
    path = room_path(room_id, "send", "m.room.message", txn)
    return user.put(
        f"{path}?org.matrix.msc4140.delay={delay}",
        content or {"msgtype": "m.text", "body": "later"},
    )


def state_later(
    user: User, room_id: str, content: Json, key: str = "_device", delay: int = 10_000
) -> Answer:
    path = room_path(room_id, "state", CALL, key)
    return user.put(f"{path}?org.matrix.msc4140.delay={delay}", content)


def scheduled(answer: Answer) -> str:
    body = ok(answer)
    assert set(body) == {"delay_id"}
    return str(body["delay_id"])


def manage(server: TestServer, delay_id: str, action: str) -> Answer:
    """Without a token."""
    return server.post(f"{PREFIX}/delayed_events/{delay_id}/{action}", {})


def said(user: User, room_id: str) -> list[str]:
    return bodies(sync(user)["rooms"]["join"][room_id])


def test_a_message_is_sent_when_its_time_has_come(
    server: TestServer, alice: User, room_id: str
) -> None:
    delay_id = scheduled(later(alice, room_id))
    assert scheduled(later(alice, room_id)) == delay_id  # a retried request schedules nothing more
    other = scheduled(later(alice, room_id, txn="other"))
    assert other != delay_id
    wait(server, 9.9)
    assert said(alice, room_id) == []
    wait(server, 0.2)
    assert said(alice, room_id) == ["later", "later"]
    wait(server, 60)
    assert said(alice, room_id) == ["later", "later"]
    event = sync(alice)["rooms"]["join"][room_id]["timeline"]["events"][-1]
    assert event["origin_server_ts"] >= (START + 10) * 1000
    assert "transaction_id" not in event["unsigned"]
    ids = {delay_id, other}
    assert event["unsigned"]["org.matrix.msc4140.delay_id"] in ids
    bob = server.register("bob")
    rooms.join(bob, room_id)
    assert "delay_id" not in str(sync(bob))  # it is the sender's secret


def test_a_client_that_stops_restarting_leaves_its_call(
    server: TestServer, alice: User, room_id: str
) -> None:
    rooms.state(alice, room_id, CALL, {"in": "call"}, "_device")
    delay_id = scheduled(state_later(alice, room_id, {}))
    path = room_path(room_id, "state", CALL, "_device")
    for _ in range(5):
        wait(server, 5)
        assert ok(manage(server, delay_id, "restart")) == {}
    assert ok(alice.get(path)) == {"in": "call"}
    wait(server, 9.9)
    assert ok(alice.get(path)) == {"in": "call"}
    wait(server, 0.2)
    assert ok(alice.get(path)) == {}
    assert (
        refused(manage(server, delay_id, "restart")) == NOT_FOUND
    )  # the client then schedules another
    assert refused(manage(server, delay_id, "cancel")) == NOT_FOUND
    assert ok(manage(server, delay_id, "send")) == {}


def test_a_delayed_event_is_cancelled_or_sent_by_request(
    server: TestServer, alice: User, room_id: str
) -> None:
    first = scheduled(later(alice, room_id, txn="1", msgtype="m.text", body="first"))
    second = scheduled(later(alice, room_id, txn="2", msgtype="m.text", body="second"))
    for _ in range(2):
        assert ok(manage(server, first, "cancel")) == {}
        assert ok(manage(server, second, "send")) == {}
    assert said(alice, room_id) == ["second"]
    for action in ("send", "restart"):
        assert refused(manage(server, first, action)) == NOT_FOUND
    wait(server, 60)
    assert said(alice, room_id) == ["second"]


def test_all_forms_of_management_requests_are_accepted(
    server: TestServer, alice: User, room_id: str
) -> None:
    one = scheduled(later(alice, room_id, txn="1"))
    path = f"{PREFIX}/delayed_events/{one}"
    for token in (alice.token, None, "nobody's"):
        assert server.post(path, {"action": "restart"}, token=token).json == {}
        assert server.post(f"{path}/restart", {}, token=token).json == {}
    assert refused(server.post(path, {"action": "explode"})) == (400, "M_BAD_JSON")
    assert refused(server.post(path, {})) == (400, "M_BAD_JSON")
    assert server.post(f"{path}/explode", {}).status in (400, 404)
    for unknown in ("x", "%00", "a" * 3000):
        assert refused(manage(server, unknown, "restart"))[0] in (400, 404)
    assert ok(server.post(path, {"action": "cancel"})) == {}


def test_the_stable_paths_of_the_proposal_work(
    server: TestServer, alice: User, room_id: str
) -> None:
    body = {"delay_ms": 1000, "content": {"msgtype": "m.text", "body": "hello"}}
    one = scheduled(
        alice.put(f"/_matrix/client/v3/rooms/{room_id}/delayed_event/m.room.message/t", body)
    )
    every = "/_matrix/client/v1/delayed_events"
    assert [event["delay_id"] for event in ok(alice.get(every))["scheduled"]] == [one]
    assert ok(alice.get(f"{every}/{one}"))["delay_id"] == one
    assert ok(server.post(f"{every}/{one}/cancel", {})) == {}
    assert ok(alice.get(every))["scheduled"] == []
    two = scheduled(later(alice, room_id, txn="two"))
    for _ in range(2):
        assert ok(server.post(f"{every}/{one}/cancel", {})) == {}
        assert ok(server.post(f"{every}/{two}/send", {})) == {}
        for delay_id, action in (
            (one, "send"),
            (one, "restart"),
            (two, "cancel"),
            (two, "restart"),
        ):
            assert refused(server.post(f"{every}/{delay_id}/{action}", {})) == (409, "M_UNKNOWN")
        assert refused(server.post(f"{every}/unknown/send", {})) == NOT_FOUND
    assert said(alice, room_id) == ["later"]


def test_scheduled_and_finalised_events_are_listed_for_their_owner(
    server: TestServer, alice: User, room_id: str
) -> None:
    bob = server.register("bob")
    late = scheduled(later(alice, room_id, 20_000, "1"))
    early = scheduled(state_later(alice, room_id, {"a": 1}, delay=5_000))
    gone = scheduled(later(alice, room_id, txn="2"))
    ok(manage(server, gone, "cancel"))
    now = int(server.clock.seconds() * 1000)
    shown = {
        "delay_id": early,
        "room_id": room_id,
        "type": CALL,
        "state_key": "_device",
        "delay": 5000,
        "delay_ms": 5000,
        "running_since": now,
        "scheduled_at": now,
        "delayed_since_ts": now,
        "content": {"a": 1},
    }
    path = f"{PREFIX}/delayed_events"
    listed = ok(alice.get(path))
    assert listed["delayed_events"] == listed["scheduled"]
    assert listed["scheduled"][0] == shown
    assert [event["delay_id"] for event in listed["scheduled"]] == [early, late]
    assert "state_key" not in listed["scheduled"][1]
    (outcome,) = listed["finalised"]
    assert outcome["delayed_event"]["delay_id"] == gone
    assert (outcome["outcome"], outcome["reason"], outcome["origin_server_ts"]) == (
        "cancel",
        "action",
        now,
    )
    assert set(ok(alice.get(f"{path}?status=scheduled"))) == {"scheduled", "delayed_events"}
    assert set(ok(alice.get(f"{path}?status=finalised"))) == {"finalised"}
    assert len(ok(alice.get(f"{path}?delay_id={late}&delay_id=x"))["scheduled"]) == 1
    assert refused(alice.get(f"{path}?status=other"))[0] == 400
    assert ok(alice.get(f"{path}/{early}")) == shown
    assert refused(bob.get(f"{path}/{early}")) == NOT_FOUND
    assert ok(bob.get(path)) == {"delayed_events": [], "scheduled": [], "finalised": []}
    assert refused(server.get(path)) == (401, "M_MISSING_TOKEN")
    wait(server, 6)
    sent = ok(alice.get(f"{path}/{early}"))
    assert sent["event_id"].startswith("$")
    assert sent["finalised_ts"] == now + 6000
    assert sent["finalised"] == {"event_id": sent["event_id"], "finalised_ts": now + 6000}
    (latest, _) = ok(alice.get(f"{path}?status=finalised"))["finalised"]
    assert (latest["outcome"], latest["reason"], latest["event_id"]) == (
        "send",
        "delay",
        sent["event_id"],
    )


@pytest.mark.parametrize("how", ["redacted", "too old", "purged"])
def test_a_sent_delayed_event_does_not_keep_content_that_is_gone(
    tmp_path: Path, database: Database, how: str
) -> None:
    server = TestServer(tmp_path, database, UNLIMITED + "retention: {enabled: true}\n")
    server.app.calls.delayed_events.start()
    alice = server.register("alice")
    room_id = rooms.create(alice)
    keep_for(alice, room_id, 60)
    delay_id = scheduled(later(alice, room_id, 1000))
    wait(server, 1)
    path = f"{PREFIX}/delayed_events"

    def contents() -> list[Json]:
        (listed,) = ok(alice.get(f"{path}?status=finalised"))["finalised"]
        return [listed["delayed_event"]["content"], ok(alice.get(f"{path}/{delay_id}"))["content"]]

    assert contents() == [{"msgtype": "m.text", "body": "later"}] * 2
    if how == "redacted":
        ok(redact(alice, room_id, ok(alice.get(f"{path}/{delay_id}"))["event_id"]))
    else:
        server.clock.advance(61)
        assert how != "purged" or purge(server) == 1
    assert contents() == [{}, {}]
    kept = server.run(
        database.read("read", lambda txn: txn.query("SELECT content FROM delayed_events"))
    )
    assert [bytes(content) == b"{}" for (content,) in kept] == [how != "too old"]


def test_a_delayed_event_that_is_forbidden_when_due_is_not_sent(
    server: TestServer, alice: User, room_id: str
) -> None:
    bob = server.register("bob")
    rooms.join(bob, room_id)
    by_hand = scheduled(later(bob, room_id, txn="1"))
    by_time = scheduled(later(bob, room_id, txn="2"))
    rooms.act(alice, room_id, "kick", bob)
    assert refused(manage(server, by_hand, "send")) == FORBIDDEN
    assert (
        ok(bob.get(f"{PREFIX}/delayed_events/{by_hand}")).get("finalised_ts") is None
    )  # it may be allowed by then
    wait(server, 11)
    assert said(alice, room_id) == []
    for delay_id in (by_hand, by_time):
        shown = ok(bob.get(f"{PREFIX}/delayed_events/{delay_id}"))
        assert shown["error"]["errcode"] == "M_FORBIDDEN"
        assert "event_id" not in shown
        assert refused(manage(server, delay_id, "send")) == NOT_FOUND


def test_power_levels_are_checked_when_the_event_is_sent(
    server: TestServer, alice: User, room_id: str
) -> None:
    bob = server.register("bob")
    rooms.join(bob, room_id)
    scheduled(state_later(bob, room_id, {"in": "call"}))
    rooms.state(alice, room_id, "m.room.power_levels", {"events": {CALL: 0}})
    wait(server, 11)
    assert ok(alice.get(room_path(room_id, "state", CALL, "_device"))) == {"in": "call"}


def test_the_newer_scheduling_endpoint_works(server: TestServer, alice: User, room_id: str) -> None:
    path = f"{PREFIX}/rooms/{room_id}/delayed_event/m.room.message"
    body = {"delay_ms": 1000, "content": {"msgtype": "m.text", "body": "newer"}}
    first = scheduled(alice.put(f"{path}/t", body))
    assert scheduled(alice.put(f"{path}/t", body)) == first
    state = f"{PREFIX}/rooms/{room_id}/delayed_event/{CALL}"
    scheduled(alice.put(f"{state}/t", {"delay_ms": 1000, "state_key": "_x", "content": {"a": 1}}))
    wait(server, 1.1)
    assert said(alice, room_id) == ["newer"]
    assert ok(alice.get(room_path(room_id, "state", CALL, "_x"))) == {"a": 1}
    assert refused(alice.put(f"{path}/u", {**body, "delay_ms": 10**9})) == FORBIDDEN
    assert refused(alice.put(f"{path}/u", {**body, "delay_ms": 0})) == (400, "M_INVALID_PARAM")
    assert refused(alice.put(f"{path}/u", {"delay_ms": 1000})) == (400, "M_BAD_JSON")
    assert refused(alice.put(f"{path}/u", {**body, "content": []})) == (400, "M_BAD_JSON")


def test_malformed_requests_are_refused(server: TestServer, alice: User, room_id: str) -> None:
    for delay in ("0", "-5", "1.5", "x", "9" * 30):
        assert refused(later(alice, room_id, delay)) == (400, "M_INVALID_PARAM")
    too_long = later(alice, room_id, 86_400_001)
    assert refused(too_long) == (400, "M_UNKNOWN")
    assert too_long.json["org.matrix.msc4140.errcode"] == "M_MAX_DELAY_EXCEEDED"
    assert too_long.json["org.matrix.msc4140.max_delay"] == 86_400_000
    assert refused(later(alice, room_id, body="x" * 66_000)) == (413, "M_TOO_LARGE")
    bob = server.register("bob")
    assert refused(later(bob, room_id)) == FORBIDDEN
    assert refused(later(bob, "!unknown:example.org"))[0] in (403, 404)
    create_path = (
        room_path(room_id, "state", "m.room.create", "") + "?org.matrix.msc4140.delay=1000"
    )
    assert refused(alice.put(create_path, {})) == FORBIDDEN
    assert refused(state_later(alice, room_id, {}, key="k" * 256)) == (400, "M_INVALID_PARAM")
    assert (
        refused(
            alice.put(
                f"{room_path(room_id, 'send', 'm.x', 't')}?org.matrix.msc4140.delay=5&ts=5", {}
            )
        )
        == FORBIDDEN
    )
    wait(server, 60)
    assert said(alice, room_id) == []


def test_the_number_of_scheduled_events_of_a_user_is_limited(
    server: TestServer, alice: User, room_id: str
) -> None:
    first = scheduled(later(alice, room_id, txn="0"))
    for number in range(1, 100):
        scheduled(later(alice, room_id, 60_000, txn=str(number)))
    answer = later(alice, room_id, txn="more")
    assert refused(answer) == (400, "M_UNKNOWN")
    assert answer.json["org.matrix.msc4140.errcode"] == "M_MAX_DELAYED_EVENTS_EXCEEDED"
    path = f"{PREFIX}/rooms/{room_id}/delayed_event/m.room.message/more"
    answer = alice.put(path, {"delay_ms": 5, "content": {}})
    assert refused(answer) == (429, "M_LIMIT_EXCEEDED")
    assert answer.json["retry_after_ms"] == 10_000
    ok(manage(server, first, "cancel"))
    scheduled(later(alice, room_id, txn="more"))


def test_management_requests_are_rate_limited_by_the_owner(
    tmp_path: Path, sqlite_database: Database
) -> None:
    config = "rc_delayed_event_mgmt: {per_second: 1, burst_count: 3}\n"
    server = TestServer(tmp_path, sqlite_database, config)
    alice, bob = server.register("alice"), server.register("bob")
    room_id = rooms.create(alice, bob)
    hers, his = scheduled(later(alice, room_id)), scheduled(later(bob, room_id))
    for _ in range(3):
        ok(manage(server, hers, "restart"))
    assert refused(manage(server, hers, "restart")) == (429, "M_LIMIT_EXCEEDED")
    ok(manage(server, his, "restart"))
    server.clock.advance(1)
    ok(manage(server, hers, "restart"))


def test_delayed_events_can_be_disabled(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database, "max_event_delay_duration: null\n")
    alice = server.register("alice")
    assert refused(later(alice, rooms.create(alice))) == FORBIDDEN
    assert (
        "org.matrix.msc4140" not in ok(server.get("/_matrix/client/versions"))["unstable_features"]
    )
    assert (
        "org.matrix.msc4140.delayed_events"
        not in ok(alice.get(f"{V3}/capabilities"))["capabilities"]
    )


def test_support_and_limits_are_published(server: TestServer, alice: User) -> None:
    assert (
        ok(server.get("/_matrix/client/versions"))["unstable_features"]["org.matrix.msc4140"]
        is True
    )
    limits = ok(alice.get(f"{V3}/capabilities"))["capabilities"][
        "org.matrix.msc4140.delayed_events"
    ]
    assert limits == {"max_delay_ms": 86_400_000, "max_scheduled": 100}


def test_a_guest_leaves_its_call(server: TestServer, alice: User) -> None:
    room_id = rooms.create(alice)
    access = {"guest_access": "can_join"}
    rooms.state(alice, room_id, "m.room.guest_access", access)
    guest = User(server, ok(server.post(f"{V3}/register?kind=guest", {})))
    rooms.join(guest, room_id)
    scheduled(later(guest, room_id))
    assert len(ok(guest.get(f"{PREFIX}/delayed_events"))["scheduled"]) == 1
    wait(server, 11)
    assert said(alice, room_id) == ["later"]


def test_delayed_events_survive_a_restart(tmp_path: Path, database: Database) -> None:
    before = started(TestServer(tmp_path, database))
    alice = before.register("alice")
    room_id = rooms.create(alice)
    scheduled(later(alice, room_id, 20_000, "1", msgtype="m.text", body="second"))
    scheduled(later(alice, room_id, 10_000, "2", msgtype="m.text", body="first"))
    scheduled(later(alice, room_id, 100_000, "3", msgtype="m.text", body="third"))
    scheduled(later(alice, room_id, 110_000, "4", msgtype="m.text", body="fourth"))
    after = started(TestServer(tmp_path, database, seed=2, now=before.clock.seconds() + 50))
    alice.server = after
    wait(after, 0)
    assert said(alice, room_id) == ["first", "second"]
    wait(after, 51)
    assert said(alice, room_id) == ["first", "second", "third"]
    wait(after, 10)
    assert said(alice, room_id) == ["first", "second", "third", "fourth"]
    events = sync(alice)["rooms"]["join"][room_id]["timeline"]["events"]
    assert ["org.matrix.msc4140.delay_id" in event["unsigned"] for event in events][-4:] == [
        True
    ] * 4


def test_only_one_of_several_nodes_sends_a_delayed_event(
    tmp_path: Path, database: Database
) -> None:
    nodes = [started(TestServer(tmp_path, database, seed=seed)) for seed in (1, 2)]
    alice = nodes[0].register("alice")
    room_id = rooms.create(alice)
    delay_id = scheduled(later(alice, room_id))
    ok(manage(nodes[1], delay_id, "restart"))  # now both have a timer
    for node in reversed(nodes):
        wait(node, 11)
    assert said(alice, room_id) == ["later"]


@pytest.mark.parametrize("first", ["request", "timer"])
@pytest.mark.parametrize("is_allowed", [True, False])
def test_a_request_during_the_sending_gets_its_outcome(
    tmp_path: Path, database_config: SQLiteConfig | PostgresConfig, first: str, is_allowed: bool
) -> None:
    writer = PausableExecutor()
    server = started(TestServer(tmp_path, open_inline(database_config, writer=writer), UNLIMITED))
    alice, bob = server.register("alice"), server.register("bob")
    room_id = rooms.create(alice, bob)
    delay_id = scheduled(later(bob, room_id))
    if not is_allowed:
        rooms.act(alice, room_id, "kick", bob)
    writer.is_held = True
    if first == "timer":
        wait(server, 10)
    path = f"/_matrix/client/v1/delayed_events/{delay_id}"
    asked = {
        action: [server.client.start("POST", f"{path}/{action}", json={}) for _ in range(3)]
        for action in ("send", "cancel", "restart")
    }
    for _ in range(20):
        writer.run_queued()
        wait(server, 0.05)
    writer.is_held = False
    writer.run()
    wait(server, 1)
    answers = {
        action: [outcome(each.answer) for each in pending] for action, pending in asked.items()
    }
    conflict, done = (409, "M_UNKNOWN"), (200, None)
    if is_allowed:
        assert answers == {"send": [done] * 3, "cancel": [conflict] * 3, "restart": [conflict] * 3}
    elif first == "timer":
        assert answers == {"send": [conflict] * 3, "cancel": [done] * 3, "restart": [conflict] * 3}
    else:  # it stays scheduled, and in turn each of the others is done with it
        assert set(answers["send"]) <= {FORBIDDEN, conflict}
        assert answers["send"][0] == FORBIDDEN
        assert answers["cancel"] == [done] * 3
    assert said(alice, room_id) == (["later"] if is_allowed else [])


@pytest.mark.parametrize("action", ["send", "cancel", "restart"])
def test_a_request_writes_nothing_while_another_node_sends_the_delayed_event(
    tmp_path: Path, database_config: SQLiteConfig | PostgresConfig, action: str
) -> None:
    counter = QueryCounter()
    database = open_inline(database_config, counter)
    server = TestServer(tmp_path, database, UNLIMITED)
    alice = server.register("alice")
    room_id = rooms.create(alice)
    delay_id = scheduled(later(alice, room_id))
    now = int(server.clock.seconds() * 1000)
    server.run(
        database.write(
            "take", DelayedEventStore(database).take_lease, delay_id, now, now + LEASE_MS
        )
    )
    counter.clear()
    asking = server.client.start(
        "POST", f"/_matrix/client/v1/delayed_events/{delay_id}/{action}", json={}
    )
    for _ in range(90):
        server.clock.advance(0.2)
    assert (asking.done, sum(counter.writes.values())) == (False, 0)
    server.clock.advance(3)
    assert refused(asking.answer) == (429, "M_LIMIT_EXCEEDED")
    server.clock.advance(40)  # that node has died
    assert ok(server.post(f"/_matrix/client/v1/delayed_events/{delay_id}/{action}", {})) == {}
    assert said(alice, room_id) == (["later"] if action == "send" else [])
