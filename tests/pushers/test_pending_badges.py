"""Badges that are pending or under way during a failure: none is lost, and nothing that was pushed
is pushed again."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred

from federation.http_client.errors import OutboundError
from federation.protocol.ids import UserID
from homeserver.services.account_data.ignored_users import IGNORED_USERS
from homeserver.services.pushers import deliveries as deliveries_module
from homeserver.services.pushers import stream_reader as reading_module
from homeserver.services.pushers.badges import BadgeCounts
from homeserver.services.pushers.deliveries import MAX_WAITING
from homeserver.services.pushers.pusher_users import PusherUsers
from storage.engine.database import Database, DatabaseUnavailable
from storage.push.push_stream import PushStream, PushStreamBatch
from storage.push.pushers import PusherRow
from tests.helpers.clocks import pass_time, settle
from tests.helpers.notified_rooms import (
    create_shared_room,
    invite_to_new_room,
    register_alice_with_pusher,
    send_private_receipt,
    set_account_data,
)
from tests.helpers.push_gateway import PushGateway, crash, set_pusher, start
from tests.helpers.room_actions import leave, say
from tests.helpers.server import TestServer

V3 = "/_matrix/client/v3"


@pytest.fixture
def server(tmp_path: Path, database: Database, gateway: PushGateway) -> TestServer:
    return start(tmp_path, database, gateway)


def test_a_round_counts_a_bounded_number_of_badges_and_leaves_the_rest_to_the_next(
    server: TestServer, gateway: PushGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = register_alice_with_pusher(server)
    room_id, other = create_shared_room(alice, bob), create_shared_room(bob, alice)
    for user in (alice, bob):
        for key in range(3):
            assert set_pusher(user, f"{user.user_id}{key}").status == 200
    events = say(bob, room_id, "hello"), say(alice, other, "hello")
    pass_time(server, 5, 1)
    gateway.failure = OutboundError("it is down")
    send_private_receipt(alice, room_id, events[0])
    pass_time(server, 3, 1)
    send_private_receipt(bob, other, events[1])
    settle(server)
    deliveries = server.app.pushers.deliveries
    monkeypatch.setattr(deliveries_module, "MAX_COUNTED", 1)
    pushers = server.app.accounts.stores.pushers
    assert len(server.run(pushers.get_failing())) < 4
    stored = []
    for _ in range(7):
        server.run(deliveries.store_states(all_states=False))
        stored.append(len(server.run(pushers.get_failing())))
    assert stored[0] < stored[-1] == 7


@pytest.mark.parametrize("failure", [OutboundError("it is down"), 503])
def test_pushed_events_are_not_pushed_again_when_only_a_badge_is_pending(
    server: TestServer, gateway: PushGateway, tmp_path: Path, failure: OutboundError | int
) -> None:
    alice, bob = register_alice_with_pusher(server)
    first, second = create_shared_room(alice, bob), create_shared_room(alice, bob)
    pushed = [say(bob, room_id, "hello") for room_id in (first, first, second)]
    pass_time(server, 5, 1)
    third = invite_to_new_room(alice, bob)
    pass_time(server, 5, 1)
    leave(alice, third)
    pass_time(server, 5, 1)
    gateway.failure = failure
    send_private_receipt(alice, second, pushed[-1])
    pass_time(server, 30, 1)
    gateway.failure = None
    pass_time(crash(server, tmp_path, gateway), 60, 1)
    assert [event_id for event_id in gateway.events if event_id in pushed] == pushed
    assert gateway.badges == [2, 1]


@pytest.mark.parametrize("stretches", [0, 1])
def test_pending_events_are_pushed_after_a_second_crash_during_the_replay(
    server: TestServer,
    gateway: PushGateway,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stretches: int,
) -> None:
    """The stream is long, and the server is killed again before it has read up to the position that
    the other pushers have reached."""
    alice, bob = register_alice_with_pusher(server)
    room_id = create_shared_room(alice, bob)
    gateway.failure = 503
    pushed = [say(bob, room_id, text) for text in ("one", "two")]
    pass_time(server, 31, 1)
    gateway.failure = None

    get, asked = PushStream.get_batch, []

    async def take_long(stream: PushStream, after: int, upto: int, limit: int) -> PushStreamBatch:
        asked.append(after)
        return await (
            get(stream, after, upto, limit)
            if len(asked) <= stretches
            else Deferred[PushStreamBatch]()
        )

    with monkeypatch.context() as patched:
        patched.setattr(PushStream, "get_batch", take_long)
        patched.setattr(reading_module, "READ_BATCH", 1)
        long = crash(server, tmp_path, gateway)
        pass_time(long, 60, 1)
        assert gateway.events == pushed[:stretches]
    restarted = crash(long, tmp_path, gateway)
    pass_time(restarted, 60, 1)
    assert gateway.events == pushed


def test_a_badge_under_way_when_the_server_is_killed_is_sent_after_the_restart(
    server: TestServer, gateway: PushGateway, tmp_path: Path
) -> None:
    alice, bob = register_alice_with_pusher(server)
    room_id = create_shared_room(alice, bob)
    event_id = say(bob, room_id, "hello")
    pass_time(server, 5, 1)
    gateway.held = []
    send_private_receipt(alice, room_id, event_id)
    pass_time(server, 12, 1)
    later = crash(server, tmp_path, gateway)
    gateway.held = None
    pass_time(later, 5, 1)
    assert gateway.badges == [0]


def test_a_badge_that_keeps_changing_at_a_slow_gateway_causes_no_repeated_pushes(
    server: TestServer, gateway: PushGateway, tmp_path: Path
) -> None:
    """Mallory's gateway is slow, and Mallory's badge has changed whenever it answers."""
    alice, bob = register_alice_with_pusher(server)
    room_id, mallory = create_shared_room(alice, bob), server.register("mallory")
    set_pusher(mallory, "slow")
    invite_to_new_room(mallory, bob)
    pass_time(server, 5, 1)
    pushed: list[str] = []
    for number in range(8):
        set_account_data(
            mallory, IGNORED_USERS, {"ignored_users": {} if number % 2 else {bob.user_id: {}}}
        )
        pushed.append(say(bob, room_id, "hello"))
        settle(server)
        gateway.release()
        gateway.held = []
        pass_time(server, 3, 1)
    assert gateway.badges == [0, 1, 0, 1, 0, 1, 0], "and the last is under way"
    pass_time(server, 7, 1)
    gateway.release()
    later = crash(server, tmp_path, gateway)
    pass_time(later, 5, 1)
    assert set(gateway.events) >= set(pushed)
    assert len(gateway.events) - len(set(gateway.events)) <= 1, (
        "but what was told while the last number is under way"
    )


@pytest.mark.parametrize("later", [False, True])
def test_a_badge_that_comes_due_or_changes_while_it_is_counted_is_sent(
    server: TestServer, gateway: PushGateway, monkeypatch: pytest.MonkeyPatch, later: bool
) -> None:
    """A round counts the badge to see whether it is pending, and the gateway is back meanwhile.
    `later`: the badge changes meanwhile."""
    alice, bob = register_alice_with_pusher(server)
    room_id, other = create_shared_room(alice, bob), create_shared_room(bob, alice)
    event_id = say(bob, room_id, "hello")
    pass_time(server, 2, 1)
    set_pusher(bob, "bob")
    gateway.failure = OutboundError("it is down")
    own = say(alice, other, "hello")
    pass_time(server, 2, 1)
    send_private_receipt(alice, other if later else room_id, own if later else event_id)
    deliveries = server.app.pushers.deliveries
    gate, count = Deferred[None](), BadgeCounts.get

    async def count_slowly(badges: BadgeCounts, user_id: UserID) -> int:
        number = await count(badges, user_id)
        await gate
        return number

    pass_time(server, 3, 1)
    monkeypatch.setattr(BadgeCounts, "get", count_slowly)
    noted: list[None] = []
    Deferred.fromCoroutine(deliveries.store_states(all_states=False)).addCallback(noted.append)
    assert noted == []
    monkeypatch.setattr(BadgeCounts, "get", count)
    if later:
        send_private_receipt(alice, room_id, event_id)
        settle(server)
    else:
        gateway.failure = None
        pass_time(server, 60, 1)
    gate.callback(None)
    assert noted == [None]
    gateway.failure = None
    pass_time(server, 60, 1)
    pushed = [
        push.notification["counts"]["unread"] for push in gateway.taken if push.pushkey == "key"
    ]
    assert pushed == [1, 0]


def test_a_badge_whose_count_fails_with_the_database_is_sent_later(
    server: TestServer, gateway: PushGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = register_alice_with_pusher(server)
    room_id = create_shared_room(alice, bob)
    event_id = say(bob, room_id, "hello")
    pass_time(server, 5, 1)

    async def be_away(_: BadgeCounts, _user_id: UserID) -> int:
        raise DatabaseUnavailable("it is away")

    with monkeypatch.context() as patched:
        patched.setattr(BadgeCounts, "get", be_away)
        send_private_receipt(alice, room_id, event_id)
        pass_time(server, 5, 1)
    pass_time(server, 5, 1)
    assert gateway.badges == [0]


def test_a_pusher_replaced_while_a_badge_is_under_way_sends_one_push_at_a_time(
    server: TestServer, gateway: PushGateway
) -> None:
    alice, bob = register_alice_with_pusher(server)
    room_id = create_shared_room(alice, bob)
    event_id = say(bob, room_id, "hello")
    pass_time(server, 5, 1)
    gateway.held = held = list[Deferred[None]]()
    send_private_receipt(alice, room_id, event_id)
    pass_time(server, 3, 1)
    assert (
        set_pusher(alice, data={"url": "https://other.example.com/_matrix/push/v1/notify"}).status
        == 200
    )
    say(bob, room_id, "hello")
    pass_time(server, 3, 1)
    assert len(held) == 1
    gateway.release()
    pass_time(server, 5, 1)
    assert gateway.taken[-1].url.startswith("https://other.example.com/")
    assert len(gateway.events) == 2


def test_a_badge_pending_when_its_pusher_is_replaced_is_sent_after_a_crash(
    server: TestServer, gateway: PushGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server stores the position of the pushers in these seconds, and is then killed."""
    alice, bob = register_alice_with_pusher(server)
    room_id = create_shared_room(alice, bob)
    event_id = say(bob, room_id, "hello")
    pass_time(server, 9, 1)
    send_private_receipt(alice, room_id, event_id)
    settle(server)
    assert set_pusher(alice).status == 200
    deliveries, rounds = server.app.pushers.deliveries, list[bool]()
    store_states = deliveries.store_states

    async def record_round(*, all_states: bool) -> None:
        rounds.append(all_states)
        await store_states(all_states=all_states)

    monkeypatch.setattr(deliveries, "store_states", record_round)
    pass_time(server, 1, 1)
    assert len(rounds) == 1
    pass_time(crash(server, tmp_path, gateway), 5, 1)
    assert gateway.badges == [0]


@pytest.mark.parametrize("failure", [OutboundError("it is down"), 503])
def test_a_pusher_with_a_full_queue_gets_the_newest_events_and_the_complete_badge(
    server: TestServer, gateway: PushGateway, failure: OutboundError | int
) -> None:
    alice, bob = register_alice_with_pusher(server)
    rooms = [create_shared_room(alice, bob) for _ in range(4)]
    gateway.failure = failure
    events = [
        say(bob, room_id, str(number)) for room_id in rooms for number in range(MAX_WAITING // 2)
    ]
    pass_time(server, 60, 1)
    gateway.failure = None
    pass_time(server, 3600, 1)
    assert len(gateway.events) == MAX_WAITING
    assert gateway.events[-1] == events[-1]
    assert {push.notification["counts"]["unread"] for push in gateway.taken} == {len(rooms)}


@pytest.mark.parametrize("failure", [OutboundError("it is down"), 503])
@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_pusher_that_failed_for_a_day_gets_the_badge(
    server: TestServer,
    gateway: PushGateway,
    tmp_path: Path,
    failure: OutboundError | int,
    is_restarted: bool,
) -> None:
    """Events older than a day are not pushed any more."""
    alice, bob = register_alice_with_pusher(server)
    rooms = [create_shared_room(alice, bob) for _ in range(2)]
    pass_time(server, 5, 1)
    say(bob, rooms[0], "hello")
    pass_time(server, 5, 1)
    gateway.failure = failure
    say(bob, rooms[1], "hello")
    for _ in range(25 * 6):
        server.clock.advance(600)
        settle(server)
    if is_restarted:
        server = crash(server, tmp_path, gateway)
    gateway.failure = None
    pass_time(server, 3600, 1)
    assert len(gateway.events) == 1
    assert gateway.badges == [2]


def test_a_dropped_event_counts_in_the_badge_although_no_queued_event_is_pushed(
    server: TestServer, gateway: PushGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries_module, "MAX_WAITING", 1)
    alice, bob = register_alice_with_pusher(server)
    rooms = [create_shared_room(alice, bob) for _ in range(2)]
    pass_time(server, 5, 1)
    gateway.failure = 503
    say(bob, rooms[0], "hello")
    settle(server)
    last = say(bob, rooms[1], "hello")
    settle(server)
    assert bob.put(f"{V3}/rooms/{rooms[1]}/redact/{last}/1", {}).status == 200
    gateway.failure = None
    pass_time(server, 60, 1)
    assert gateway.events == []
    assert gateway.badges == [1]


def test_a_bug_in_sending_a_badge_does_not_stop_later_pushes(
    server: TestServer, gateway: PushGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = register_alice_with_pusher(server)
    room_id, carol = create_shared_room(alice, bob), server.register("carol")
    assert set_pusher(carol, "carol").status == 200
    pass_time(server, 5, 1)
    get = PusherUsers.get

    async def fail(
        roster: PusherUsers, user_ids: Iterable[str]
    ) -> Mapping[str, Sequence[PusherRow]]:
        if carol.user_id in (users := list(user_ids)):
            raise ValueError("a fault")
        return await get(roster, users)

    monkeypatch.setattr(PusherUsers, "get", fail)
    leave(carol, invite_to_new_room(carol, bob))
    settle(server)
    event_id = say(bob, room_id, "hello")
    pass_time(server, 5, 1)
    assert gateway.events == [event_id]
