"""Metrics of pushes, and the pushers of a user and the state of gateways in the admin API."""

from pathlib import Path

import pytest
from twisted.logger import capturedLogs

from federation.protocol.ids import RoomID
from storage.engine.database import Database
from tests.helpers.clocks import settle
from tests.helpers.federated_rooms import create_room
from tests.helpers.push_gateway import PushGateway, set_pusher
from tests.helpers.room_actions import say
from tests.helpers.server import TestServer, User, make_admin

V3 = "/_matrix/client/v3"
CONFIG = """
enable_metrics: true
listeners: [{port: 8008, type: http, resources: [{names: [client, metrics]}]}]
"""
OTHER_URL = "https://other.example.com:8443/_matrix/push/v1/notify"


@pytest.fixture
def server(tmp_path: Path, database: Database, gateway: PushGateway) -> TestServer:
    made = TestServer(tmp_path, database, CONFIG, web=gateway)
    made.app.pushers.start()
    made.app.jobs.start()
    settle(made)
    return made


def metrics(server: TestServer) -> list[str]:
    return [
        line
        for line in server.get("/metrics").body.decode().splitlines()
        if not line.startswith("#")
    ]


def two(server: TestServer) -> tuple[User, User, RoomID]:
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create_room(bob)
    assert alice.post(f"{V3}/join/{room_id}").status == 200
    return alice, bob, room_id


def test_metrics_count_pushes_by_gateway_and_pending_pushes(
    server: TestServer, gateway: PushGateway
) -> None:
    alice, bob, room_id = two(server)
    set_pusher(alice)
    set_pusher(alice, "second", data={"url": OTHER_URL})
    settle(server)
    gateway.failing_hosts = {"other.example.com"}
    say(bob, room_id, "x")
    settle(server)
    reported = metrics(server)
    assert 'mahalla_pushes_total{gateway="https://push.example.com",outcome="sent"} 1.0' in reported
    assert 'mahalla_pushes_total{gateway="other",outcome="failed"} 1.0' in reported, (
        "a name counts once it took a push"
    )
    assert "mahalla_push_waiting 1.0" in reported
    assert "mahalla_push_pushers_failing 1.0" in reported
    assert "mahalla_push_gateways_failing 1.0" in reported
    assert "mahalla_push_seconds_count 1.0" in reported
    gateway.failing_hosts = set()
    server.clock.advance(60)
    settle(server)
    reported = metrics(server)
    assert (
        'mahalla_pushes_total{gateway="https://other.example.com:8443",outcome="sent"} 1.0'
        in reported
    )
    assert "mahalla_push_waiting 0.0" in reported
    assert "mahalla_push_gateways_failing 0.0" in reported


def test_a_gateway_with_unreadable_answers_is_logged_once_a_day(
    server: TestServer, gateway: PushGateway
) -> None:
    alice, bob, room_id = two(server)
    set_pusher(alice)
    settle(server)
    gateway.answer = lambda _: b"OK"
    with capturedLogs() as logged:
        for number in range(3):
            say(bob, room_id, str(number))
            settle(server)
        reported = [event for event in logged if "answers are unreadable" in event["log_format"]]
        assert [event["origin"] for event in reported] == ["https://push.example.com"]
        server.clock.advance(24 * 3600)
        settle(server)
        say(bob, room_id, "a day later")
        settle(server)
        assert (
            len([event for event in logged if "answers are unreadable" in event["log_format"]]) == 2
        )
    line = 'mahalla_pushes_total{gateway="https://push.example.com",outcome="unreadable"} 4.0'
    assert line in metrics(server)


def test_the_number_of_gateways_in_metrics_is_bounded(
    server: TestServer, gateway: PushGateway
) -> None:
    alice, bob, room_id = two(server)
    for number in range(40):
        url = f"https://push{number}.example.com/_matrix/push/v1/notify"
        set_pusher(alice, f"key{number}", data={"url": url})
    settle(server)
    say(bob, room_id, "x")
    settle(server)
    assert len(gateway.taken) == 40
    reported = [line for line in metrics(server) if line.startswith("mahalla_pushes_total")]
    assert len(reported) == 31
    assert 'mahalla_pushes_total{gateway="other",outcome="sent"} 10.0' in reported


def test_metrics_count_pushers_and_to_device_messages(
    server: TestServer, gateway: PushGateway
) -> None:
    alice, bob, room_id = two(server)
    set_pusher(alice)
    gateway.failure = 500
    say(bob, room_id, "x")
    far = {"@far:elsewhere.example": {"ONE": {"hello": 1}, "TWO": {"hello": 1}}}
    body = {"messages": {alice.user_id: {"*": {"hello": 1}}, **far}}
    assert bob.put(f"{V3}/sendToDevice/org.example.hello/1", body).status == 200
    for _ in range(40):
        server.clock.advance(10)
        settle(server)
    reported = metrics(server)
    assert 'mahalla_pushers{kind="http",state="failing"} 1.0' in reported
    assert 'mahalla_pushers{kind="email",state="working"} 0.0' in reported
    assert 'mahalla_to_device_waiting{where="local"} 1.0' in reported
    assert 'mahalla_to_device_waiting{where="remote"} 1.0' in reported, (
        "an EDU for a server that does not answer"
    )


def test_the_time_of_the_last_success_stays_while_pushes_fail(
    server: TestServer, gateway: PushGateway
) -> None:
    root = make_admin(server)
    alice, bob, room_id = two(server)
    set_pusher(alice)

    def stand() -> dict[str, object]:
        for _ in range(7):
            server.clock.advance(10)
            settle(server)
        [pusher] = root.get(f"/_synapse/admin/v1/users/{alice.user_id}/pushers").json["pushers"]
        return {name: pusher[name] for name in ("success_ts", "failing_since_ts", "error")}

    settle(server)
    say(bob, room_id, "x")
    settle(server)
    taken = stand()
    assert taken["success_ts"] is not None
    gateway.failure = 500
    say(bob, room_id, "y")
    settle(server)
    for _ in range(2):
        failing = stand()
        assert failing["error"] == "it answered 500"
        assert failing["success_ts"] == taken["success_ts"]


def test_an_administrator_sees_pushers_and_gateways(
    server: TestServer, gateway: PushGateway
) -> None:
    root = make_admin(server)
    alice, bob, room_id = two(server)
    set_pusher(alice)
    set_pusher(alice, "second", data={"url": OTHER_URL})
    set_pusher(bob, "third", data={"url": OTHER_URL})
    settle(server)
    gateway.failing_hosts = {"other.example.com"}
    say(bob, room_id, "x")
    settle(server)
    for _ in range(7):
        server.clock.advance(10)
        settle(server)
    found = root.get(f"/_synapse/admin/v1/users/{alice.user_id}/pushers").json
    assert found["total"] == 2
    first, second = found["pushers"]
    assert (first["pushkey"], first["kind"], first["error"]) == ("key", "http", None)
    assert first["success_ts"] is not None
    assert (second["error"], second["success_ts"]) == ("the push gateway is down", None)
    gateways = root.get("/_mahalla/admin/v1/push_gateways").json["gateways"]
    assert [(each["gateway"], each["pushers"], each["failing"]) for each in gateways] == [
        ("https://other.example.com:8443", 2, 1),
        ("https://push.example.com", 1, 0),
    ]
    assert gateways[0]["failing_since_ts"] == second["failing_since_ts"]
    assert alice.get("/_mahalla/admin/v1/push_gateways").errcode == "M_FORBIDDEN"
    assert alice.get(f"/_synapse/admin/v1/users/{bob.user_id}/pushers").errcode == "M_FORBIDDEN"
