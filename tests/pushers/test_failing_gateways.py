"""Gateways that refuse, hang, are down or reject a pusher, also across restarts."""

from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from federation.http_client.errors import OutboundError, ResponseTooLong
from federation.protocol.ids import RoomID
from homeserver.services.pushers import deliveries as deliveries_module
from homeserver.services.pushers.deliveries import MAX_WAITING
from homeserver.services.pushers.display_names import EventNames, EventToPush
from homeserver.services.pushers.notification import NotificationNames
from storage.engine.database import Database, DatabaseUnavailable
from tests.helpers.clocks import pass_time, settle
from tests.helpers.federated_rooms import create_room
from tests.helpers.push_gateway import PushGateway, crash, set_pusher, start
from tests.helpers.room_actions import say
from tests.helpers.server import TestServer, User, move_user

V3 = "/_matrix/client/v3"
OTHER_URL = "https://other.example.com/_matrix/push/v1/notify"
DOWN = OutboundError("it is down")


@pytest.fixture
def server(tmp_path: Path, database: Database, gateway: PushGateway) -> TestServer:
    return start(tmp_path, database, gateway)


def two(server: TestServer, **options: Any) -> tuple[User, User, RoomID]:
    """Alice, who has a pusher, and Bob, in a room of his."""
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create_room(bob, **options)
    assert alice.post(f"{V3}/join/{room_id}").status == 200
    assert set_pusher(alice).status == 200
    settle(server)
    return alice, bob, room_id


@pytest.mark.parametrize("failure", [DOWN, 500, 404, 429])
def test_a_failed_push_is_retried_with_backoff(
    server: TestServer, gateway: PushGateway, failure: OutboundError | int
) -> None:
    _, bob, room_id = two(server)
    gateway.failure = failure
    events = [say(bob, room_id, "1"), say(bob, room_id, "2")]
    settle(server)
    assert len(gateway.asked) == 1
    pass_time(server, 60, 10)
    in_a_minute = len(gateway.asked)
    assert 3 <= in_a_minute <= 5
    pass_time(server, 7200, 60)
    assert len(gateway.asked) - in_a_minute <= 20
    gateway.failure = None
    pass_time(server, 3600, 60)
    assert gateway.events == events
    assert server.run(server.app.accounts.stores.pushers.get_failing()) == []


@pytest.mark.parametrize("most_bytes", [1000, 100])
@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_push_that_is_refused_for_its_content_blocks_nothing(
    server: TestServer, gateway: PushGateway, most_bytes: int, status: int
) -> None:
    """The event is pushed without content, or dropped; the next one is pushed at once."""
    _, bob, room_id = two(server)
    gateway.most_bytes, gateway.refusal = most_bytes, status
    large = say(bob, room_id, "x" * 2000)
    settle(server)
    gateway.most_bytes = 1000
    small = say(bob, room_id, "small")
    settle(server)
    assert gateway.events == ([large, small] if most_bytes == 1000 else [small])
    pushed = [each.notification for each in gateway.taken]
    assert ["content" in each for each in pushed] == [each["event_id"] == small for each in pushed]
    pass_time(server, 20, 10)
    assert server.run(server.app.accounts.stores.pushers.get_failing()) == []


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_gateway_that_refuses_everything_is_backed_off(
    server: TestServer, gateway: PushGateway, status: int
) -> None:
    """The content is not the reason then: only the few pushes that were tried are dropped."""
    _, bob, room_id = two(server)
    gateway.failure = status
    sent = [say(bob, room_id, str(number)) for number in range(20)]
    settle(server)
    assert [each.notification["event_id"] for each in gateway.asked] == [sent[0]] * 2 + [
        sent[1]
    ] * 2
    pass_time(server, 6, step=1)
    assert len(gateway.asked) == 6
    pass_time(server, 10, step=1)
    assert len(gateway.asked) == 6, "the pause grows"
    gateway.failure = None
    pass_time(server, 60, 10)
    assert gateway.events == sent[3:]
    assert server.run(server.app.accounts.stores.pushers.get_failing()) == []


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 502])
def test_an_error_about_the_pusher_or_the_gateway_drops_no_push(
    server: TestServer, gateway: PushGateway, status: int
) -> None:
    _, bob, room_id = two(server)
    gateway.failure = status
    sent = [say(bob, room_id, str(number)) for number in range(2)]
    pass_time(server, 30, 10)
    assert {each.notification["event_id"] for each in gateway.asked} == {sent[0]}
    assert all("content" in each.notification for each in gateway.asked)
    gateway.failure = None
    pass_time(server, 60, 10)
    assert gateway.events == sent


@pytest.mark.parametrize("moves", [True, False])
def test_a_gateway_can_reject_only_pushers_that_still_point_to_it(
    server: TestServer, gateway: PushGateway, moves: bool
) -> None:
    """An app that moved to another gateway keeps its pusher, even if the old one rejects it."""
    alice, bob, room_id = two(server)
    gateway.held = []
    gateway.answer = lambda each: (
        b'{"rejected":[]}' if each.url == OTHER_URL else b'{"rejected":["key"]}'
    )
    event_id = say(bob, room_id, "1")
    settle(server)
    if moves:
        assert set_pusher(alice, data={"url": OTHER_URL}).status == 200
        settle(server)
    gateway.release()
    settle(server)
    assert len(alice.get(f"{V3}/pushers").json["pushers"]) == moves
    pushed = [
        (each.url, each.notification["event_id"]) for each in gateway.taken if each.url == OTHER_URL
    ]
    assert pushed == [(OTHER_URL, event_id)] * moves


def test_a_push_is_dropped_after_a_day_and_the_pusher_stays(
    server: TestServer, gateway: PushGateway
) -> None:
    alice, bob, room_id = two(server)
    gateway.failure = 502
    say(bob, room_id, "old")
    pass_time(server, 25 * 3600, 600)
    gateway.failure = None
    new = say(bob, room_id, "new")
    pass_time(server, 2 * 3600, 600)
    assert gateway.events == [new]
    assert len(alice.get(f"{V3}/pushers").json["pushers"]) == 1


def test_an_event_older_than_a_day_is_not_pushed_after_a_restart(
    tmp_path: Path, server: TestServer, gateway: PushGateway
) -> None:
    _, bob, room_id = two(server)
    gateway.failure = 502
    say(bob, room_id, "old")
    pass_time(server, 60, 10)
    server = crash(server, tmp_path, gateway, 25 * 3600)
    gateway.failure = None
    new = say(move_user(server, bob), room_id, "new")
    pass_time(server, 2 * 3600, 600)
    assert gateway.events == [new]


def test_the_position_of_a_pusher_moves_past_dropped_pushes(
    server: TestServer, gateway: PushGateway
) -> None:
    alice, bob, room_id = two(server)
    gateway.failure = 502
    say(bob, room_id, "old")
    upto = server.app.database.streams.current()
    pass_time(server, 27 * 3600, 600)
    [row] = server.run(server.app.accounts.stores.pushers.get_failing())
    assert row.user_id == alice.user_id
    assert row.position >= upto


def test_a_short_database_outage_loses_no_push(
    server: TestServer, gateway: PushGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, bob, room_id = two(server)

    async def fail(_: EventNames, _told: EventToPush) -> NotificationNames:
        raise DatabaseUnavailable("it is restarted")

    with monkeypatch.context() as patch:
        patch.setattr(EventNames, "get", fail)
        events = [say(bob, room_id, "1"), say(bob, room_id, "2")]
        settle(server)
        assert gateway.asked == []
        pass_time(server, 20, 10)
    pass_time(server, 120, 10)
    assert gateway.events == events
    assert server.app.pushers.deliveries.get_figures()["pushers_failing"] == 0


def test_a_rejected_pusher_is_deleted(server: TestServer, gateway: PushGateway) -> None:
    alice, bob, room_id = two(server)
    set_pusher(alice, "second")
    gateway.rejected = {"key", "of somebody else"}
    say(bob, room_id, "x")
    settle(server)
    assert [each["pushkey"] for each in alice.get(f"{V3}/pushers").json["pushers"]] == ["second"]
    gateway.asked.clear()
    say(bob, room_id, "y")
    settle(server)
    assert [push.pushkey for push in gateway.asked] == ["second"]


@pytest.mark.parametrize(
    "answer",
    [
        b"OK",
        b"<html>",
        b"[]",
        b'{"rejected": 1}',
        b'{"rejected": [1]}',
        b'{"rejected": ["\xff"]}',
        b'{"more":' + b"[" * 20_000,
    ],
)
def test_an_unreadable_success_counts_and_rejects_no_pusher(
    server: TestServer, gateway: PushGateway, answer: bytes
) -> None:
    alice, bob, room_id = two(server)
    gateway.answer = lambda _: answer
    events = [say(bob, room_id, "x"), say(bob, room_id, "y")]
    pass_time(server, 3600, 60)
    assert gateway.events == events
    assert server.app.pushers.deliveries.get_figures()["pushers_failing"] == 0
    assert len(alice.get(f"{V3}/pushers").json["pushers"]) == 1


@pytest.mark.parametrize(
    "failure",
    [
        ResponseTooLong("its answer is too long", 200),
        OutboundError("the connection broke", status=200),
    ],
)
def test_a_truncated_success_counts_as_one(
    server: TestServer, gateway: PushGateway, failure: OutboundError
) -> None:
    _, bob, room_id = two(server)
    gateway.failure = failure
    event_id = say(bob, room_id, "x")
    pass_time(server, 3600, 60)
    assert [each.notification["event_id"] for each in gateway.asked] == [event_id]


@pytest.mark.parametrize(
    "failure",
    [
        ResponseTooLong("its answer is too long", 404),
        ResponseTooLong("its answer is too long", 502),
        OutboundError("the connection broke", status=502),
    ],
)
def test_a_push_with_a_long_or_broken_error_answer_is_retried(
    server: TestServer, gateway: PushGateway, failure: OutboundError
) -> None:
    """A proxy may send a long page with its error when the gateway is down."""
    _, bob, room_id = two(server)
    gateway.failure = failure
    event_id = say(bob, room_id, "x")
    pass_time(server, 10, 10)
    gateway.failure = None
    pass_time(server, 60, 10)
    assert gateway.events == [event_id]


def test_a_gateway_at_a_denied_address_is_not_retried(
    server: TestServer, gateway: PushGateway
) -> None:
    _, bob, room_id = two(server)
    gateway.failure = OutboundError(
        "its address is one that this server does not contact", retryable=False
    )
    say(bob, room_id, "x")
    pass_time(server, 7200, 60)
    assert len(gateway.asked) == 1
    [row] = server.run(server.app.accounts.stores.pushers.get_failing())
    assert row.error == "its address is one that this server does not contact"


def test_a_gateway_that_is_down_delays_no_other_and_is_retried_with_one_push(
    server: TestServer, gateway: PushGateway
) -> None:
    bob = server.register("bob")
    room_id = create_room(bob)
    people = [server.register(f"user{number}") for number in range(12)]
    for number, user in enumerate(people):
        user.post(f"{V3}/join/{room_id}")
        set_pusher(user, f"key{number}", **({"data": {"url": OTHER_URL}} if number % 2 else {}))
    settle(server)
    gateway.failing_hosts = {"other.example.com"}
    say(bob, room_id, "x")
    settle(server)
    assert {push.pushkey for push in gateway.taken} == {
        f"key{number}" for number in range(0, 12, 2)
    }
    server.clock.advance(6)
    settle(server)
    at_first = [push.url for push in gateway.asked].count(OTHER_URL)
    assert at_first <= 2, "whoever waits for that gateway waits for the one that tries it"
    gateway.failing_hosts = set()
    pass_time(server, 60, 10)
    assert len(gateway.taken) == 12


def test_concurrent_pushes_to_one_gateway_are_bounded(
    server: TestServer, gateway: PushGateway
) -> None:
    bob = server.register("bob")
    room_id = create_room(bob)
    for number in range(20):
        user = server.register(f"user{number}")
        user.post(f"{V3}/join/{room_id}")
        set_pusher(user, f"key{number}")
    settle(server)
    gateway.held = []
    say(bob, room_id, "x")
    settle(server)
    assert len(gateway.asked) == 8
    gateway.release()
    settle(server)
    assert len(gateway.taken) == 20


def test_a_pusher_sends_one_push_at_a_time_in_order(
    server: TestServer, gateway: PushGateway
) -> None:
    _, bob, room_id = two(server)
    gateway.held = []
    events = [say(bob, room_id, str(number)) for number in range(4)]
    settle(server)
    assert len(gateway.asked) == 1
    gateway.release()
    settle(server)
    assert gateway.events == events


def test_pushes_pending_at_a_crash_are_sent_after_it(
    server: TestServer, gateway: PushGateway, tmp_path: Path
) -> None:
    _, bob, room_id = two(server)
    pass_time(server, 60, 10)
    done = say(bob, room_id, "done")
    pass_time(server, 60, 10)
    gateway.held = []
    events = [say(bob, room_id, str(number)) for number in range(3)]
    settle(server)
    gateway.held = None
    gateway.taken.clear()
    later = crash(server, tmp_path, gateway)
    settle(later)
    assert gateway.events == events
    assert done not in gateway.events


def test_only_a_failing_pusher_is_sent_old_events_after_a_crash(
    server: TestServer, gateway: PushGateway, tmp_path: Path
) -> None:
    alice, bob, room_id = two(server)
    carol = server.register("carol")
    carol.post(f"{V3}/join/{room_id}")
    set_pusher(carol, "carol", data={"url": OTHER_URL})
    settle(server)
    gateway.failing_hosts = {"push.example.com"}
    events = [say(bob, room_id, str(number)) for number in range(3)]
    pass_time(server, 60, 10)
    assert gateway.events == events  # Carol's
    gateway.failing_hosts = set()
    gateway.taken.clear()
    later = crash(server, tmp_path, gateway)
    pass_time(later, 600, 10)
    assert [(push.pushkey, push.notification["event_id"]) for push in gateway.taken] == [
        ("key", event_id) for event_id in events
    ]
    gateway.taken.clear()
    once_more = crash(later, tmp_path, gateway)
    pass_time(once_more, 600, 10)
    assert gateway.taken == []
    assert move_user(once_more, alice).get(f"{V3}/pushers").status == 200


def test_events_sent_while_a_pusher_was_disabled_are_not_pushed(
    server: TestServer, gateway: PushGateway, tmp_path: Path
) -> None:
    alice, bob, room_id = two(server)
    set_pusher(alice, **{"org.matrix.msc3881.enabled": False})
    say(bob, room_id, "off")
    settle(server)
    set_pusher(alice, **{"org.matrix.msc3881.enabled": True})
    event_id = say(bob, room_id, "on")
    settle(server)
    later = crash(server, tmp_path, gateway)
    settle(later)
    assert set(gateway.events) == {event_id}


def test_pending_pushes_are_dropped_with_the_pusher(
    server: TestServer, gateway: PushGateway
) -> None:
    alice, bob, room_id = two(server)
    gateway.failure = 500
    say(bob, room_id, "x")
    settle(server)
    assert alice.post(f"{V3}/logout").status == 200
    settle(server)
    gateway.failure = None
    pass_time(server, 3600, 60)
    assert gateway.taken == []
    assert set(server.app.pushers.deliveries.get_figures().values()) == {0}


def test_a_pusher_replaced_with_another_address_is_retried_at_once(
    server: TestServer, gateway: PushGateway
) -> None:
    alice, bob, room_id = two(server)
    gateway.failing_hosts = {"push.example.com"}
    event_id = say(bob, room_id, "x")
    pass_time(server, 3600, 60)
    set_pusher(alice, data={"url": OTHER_URL})
    say(bob, room_id, "y")
    pass_time(server, 60, 10)
    assert gateway.events[0] == event_id


def test_a_full_queue_drops_the_oldest_pushes(server: TestServer, gateway: PushGateway) -> None:
    _, bob, room_id = two(server)
    gateway.failure = 500
    events = [say(bob, room_id, str(number)) for number in range(60)]
    settle(server)
    gateway.failure = None
    pass_time(server, 3600, 60)
    assert gateway.events[-50:] == events[-50:]
    assert len(gateway.events) <= 51


def test_a_full_queue_keeps_mentions_and_the_last_message_of_each_room(
    server: TestServer, gateway: PushGateway
) -> None:
    alice, bob, busy = two(server)
    quiet, calling = create_room(bob), create_room(bob)
    for room_id in (quiet, calling):
        assert alice.post(f"{V3}/join/{room_id}").status == 200
    gateway.failure = OutboundError("it is down")
    content = {"msgtype": "m.text", "body": "Alice!", "m.mentions": {"user_ids": [alice.user_id]}}
    called = bob.put(f"{V3}/rooms/{calling}/send/m.room.message/call", content).json["event_id"]
    say(bob, calling, "and further")
    said = [say(bob, quiet, str(number)) for number in range(2)]
    further = [say(bob, busy, str(number)) for number in range(MAX_WAITING + 10)]
    gateway.failure = None
    pass_time(server, 700, 10)
    pushed = gateway.events
    assert len(pushed) == MAX_WAITING
    assert pushed[0] == called
    assert said[1] in pushed
    assert said[0] not in pushed
    assert pushed[-1] == further[-1]


def test_a_full_queue_keeps_a_mention_rather_than_the_last_message_of_its_room(
    server: TestServer, gateway: PushGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries_module, "MAX_WAITING", 3)
    alice, bob = server.register("alice"), server.register("bob")
    rooms = [create_room(bob) for _ in range(3)]
    for room_id in rooms:
        assert alice.post(f"{V3}/join/{room_id}").status == 200
    assert set_pusher(alice).status == 200
    settle(server)
    gateway.failure = 503
    mention = {"msgtype": "m.text", "body": "alice", "m.mentions": {"user_ids": [alice.user_id]}}
    calling = bob.put(f"{V3}/rooms/{rooms[0]}/send/m.room.message/1", mention).json["event_id"]
    settle(server)
    _, *kept = [say(bob, room_id, "hello") for room_id in rooms]
    settle(server)
    gateway.failure = None
    for _ in range(60):
        server.clock.advance(1)
        settle(server)
    assert gateway.events == [calling, *kept]


@pytest.mark.parametrize(
    ("wait", "seconds"), [("120", 120), ("9000", 3600), ("soon", 5), ("-1", 5), ("9" * 50, 5)]
)
def test_a_retry_after_in_seconds_is_respected_up_to_an_hour(
    server: TestServer, gateway: PushGateway, wait: str, seconds: int
) -> None:
    """An hour at most; a value that is neither seconds nor a date is ignored."""
    _, bob, room_id = two(server)
    gateway.failure, gateway.wait = 429, wait
    say(bob, room_id, "1")
    pass_time(server, seconds - 1, 1)
    assert len(gateway.asked) == 1
    pass_time(server, 2, 1)
    assert len(gateway.asked) == 2


@pytest.mark.parametrize(("after", "seconds"), [(120, 120), (9000, 3600), (-60, 5)])
def test_a_retry_after_with_a_date_is_respected_up_to_an_hour(
    server: TestServer, gateway: PushGateway, after: int, seconds: int
) -> None:
    _, bob, room_id = two(server)
    gateway.failure, gateway.wait = 429, formatdate(server.clock.seconds() + after, usegmt=True)
    say(bob, room_id, "1")
    pass_time(server, seconds - 2, 1)
    assert len(gateway.asked) == 1
    pass_time(server, 3, 1)
    assert len(gateway.asked) == 2
