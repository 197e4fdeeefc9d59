"""Pushes to a large room, in batches or across a shutdown: every user gets each push once."""

from collections.abc import Collection, Mapping
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred

from federation.protocol.ids import RoomID, UserID
from federation.rooms.events import StoredEvent
from homeserver.services.push.actions import Actions
from homeserver.services.push.decisions import PushDecisions
from storage.engine.database import Database, DatabaseUnavailable
from storage.engine.transaction import WriteTransaction
from storage.push.pushers import PusherState, PusherStore
from tests.helpers.clocks import settle
from tests.helpers.federated_rooms import create_room
from tests.helpers.leases import allow_other_nodes, holds_lease
from tests.helpers.many_pushers import CROWD, room_with_pushers, shrink_batches
from tests.helpers.push_gateway import PushGateway, set_pusher, start
from tests.helpers.room_actions import say
from tests.helpers.server import TestServer, User

V3 = "/_matrix/client/v3"


@pytest.fixture
def server(
    tmp_path: Path, sqlite_database: Database, gateway: PushGateway, monkeypatch: pytest.MonkeyPatch
) -> TestServer:
    shrink_batches(monkeypatch)
    return start(tmp_path, sqlite_database, gateway)


def two_rooms(server: TestServer) -> tuple[User, User, RoomID, RoomID]:
    """Alice, who has a pusher, and Bob, in two rooms of his."""
    alice, bob = server.register("alice"), server.register("bob")
    first, second = create_room(bob), create_room(bob)
    for room_id in (first, second):
        assert alice.post(f"{V3}/join/{room_id}").status == 200
    assert set_pusher(alice).status == 200
    settle(server)
    return alice, bob, first, second


def pushed_keys(gateway: PushGateway, event_id: str) -> list[str]:
    """Return the pushkeys to which an event was pushed."""
    return sorted(
        each.pushkey for each in gateway.taken if each.notification.get("event_id") == event_id
    )


def keys() -> list[str]:
    return [f"key{number}" for number in range(CROWD)]


class SlowNotes:
    """Delays storing the state of the pushers until `gate` is called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate: Deferred[None] = Deferred()
        set_standings = PusherStore.set_states

        async def take_long(store: PusherStore, standings: Mapping[int, PusherState]) -> None:
            await set_standings(store, standings)
            await self.gate

        monkeypatch.setattr(PusherStore, "set_states", take_long)


def end(server: TestServer) -> Deferred[None]:
    """Begin to stop the pushers of the server, with `SlowNotes`."""
    stopping = Deferred.fromCoroutine(server.app.pushers.stop())
    assert not stopping.called
    return stopping


def restart(server: TestServer, folder: Path, gateway: PushGateway) -> TestServer:
    return start(folder, server.app.database, gateway, seed=2, now=server.clock.seconds() + 31)


def test_users_not_notified_before_a_shutdown_are_notified_after_the_restart(
    server: TestServer, gateway: PushGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bob, room_id = room_with_pushers(server)
    say(bob, room_id, "before")
    settle(server)
    slow, stoppings = SlowNotes(monkeypatch), list[Deferred[None]]()

    async def end_meanwhile(
        _: PushDecisions, _stored: StoredEvent, _users: Collection[UserID]
    ) -> Mapping[UserID, Actions]:
        """Stop the server at the first batch of users, and notify none of them."""
        stoppings.append(end(server))
        return {}

    with monkeypatch.context() as patched:
        patched.setattr(PushDecisions, "get_actions", end_meanwhile)
        event_id = say(bob, room_id, "hello")
        settle(server)
    assert len(stoppings) == 1
    assert pushed_keys(gateway, event_id) == []
    slow.gate.callback(None)
    assert stoppings[0].called
    settle(restart(server, tmp_path, gateway))
    assert pushed_keys(gateway, event_id) == keys()


def test_an_event_during_the_shutdown_is_pushed_after_the_restart(
    server: TestServer, gateway: PushGateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bob, room_id = room_with_pushers(server)
    say(bob, room_id, "before")
    settle(server)
    slow = SlowNotes(monkeypatch)
    stopping = end(server)
    event_id = say(bob, room_id, "hello")
    settle(server)
    slow.gate.callback(None)
    assert stopping.called
    settle(restart(server, tmp_path, gateway))
    assert pushed_keys(gateway, event_id) == keys()


def test_a_pusher_set_while_badges_are_sent_gets_later_events(
    server: TestServer, gateway: PushGateway
) -> None:
    bob, room_id = room_with_pushers(server)
    carol = server.register("carol")
    assert carol.post(f"{V3}/join/{room_id}").status == 200
    event_id = say(bob, room_id, "hello")
    settle(server)
    said = list[str]()

    def act() -> None:
        assert set_pusher(carol, "carol").status == 200
        said.append(say(bob, room_id, "for carol too"))

    assert bob.put(f"{V3}/rooms/{room_id}/redact/{event_id}/1", {}).status == 200
    server.clock.callLater(0, server.clock.callLater, 0, act)
    settle(server)
    assert pushed_keys(gateway, said[0]) == sorted(["carol", *keys()])


def test_pushes_are_sent_although_the_stream_keeps_growing(
    server: TestServer, gateway: PushGateway
) -> None:
    bob, room_id = room_with_pushers(server)
    said = list[str]()
    pushed = list[int]()

    def turn() -> None:
        said.append(say(bob, room_id, str(len(said))))
        pushed.append(len(pushed_keys(gateway, said[0])))
        if len(said) < 40:
            server.clock.callLater(0, turn)

    turn()
    server.clock.advance(0)
    assert pushed[20] == CROWD


def test_nobody_is_notified_twice_when_the_database_fails_between_batches(
    server: TestServer, gateway: PushGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    bob, room_id = room_with_pushers(server)
    gateway.held = []
    before = say(bob, room_id, "before")
    settle(server)
    asked, get_actions = list[int](), PushDecisions.get_actions

    async def fail_once(
        decisions: PushDecisions, stored: StoredEvent, users: Collection[UserID]
    ) -> Mapping[UserID, Actions]:
        asked.append(len(users))
        if len(asked) == 2:
            raise DatabaseUnavailable("it is away")
        return await get_actions(decisions, stored, users)

    monkeypatch.setattr(PushDecisions, "get_actions", fail_once)
    event_id = say(bob, room_id, "hello")
    settle(server)
    gateway.release()
    server.clock.advance(10)
    settle(server)
    assert pushed_keys(gateway, before) == keys()
    assert pushed_keys(gateway, event_id) == keys()


def take_over(server: TestServer) -> None:
    """Let another node take the lease, as if this one were gone, and push all events up to now."""
    upto = server.app.database.streams.current()

    def write(txn: WriteTransaction) -> None:
        sql = "UPDATE leases SET holder = 'another', position = ? WHERE name = 'push'"
        assert txn.execute(sql, (upto,)) == 1

    server.run(server.app.database.write("test", write))


def hand_lease(server: TestServer, holder: str, expires_ts: int) -> None:
    def write(txn: WriteTransaction) -> None:
        sql = "UPDATE leases SET holder = ?, expires_ts = ? WHERE name = 'push'"
        assert txn.execute(sql, (holder, expires_ts)) == 1

    server.run(server.app.database.write("test", write))


def lose_lease(server: TestServer) -> None:
    take_over(server)
    server.clock.advance(10)
    settle(server)
    assert not holds_lease(server.app.pushers.reading)


def take_again(server: TestServer) -> None:
    take_over(server)
    server.clock.advance(10)
    settle(server)
    assert holds_lease(server.app.pushers.reading)


def test_a_badge_accepted_after_the_lease_was_lost_is_not_taken_as_the_current_one(
    server: TestServer, gateway: PushGateway
) -> None:
    alice, bob, first, second = two_rooms(server)
    gateway.held = []
    say(bob, first, "it is told with the number one")
    settle(server)
    lose_lease(server)
    gateway.release()
    event_id = say(bob, second, "the other node tells it, with the number two")
    take_again(server)
    assert alice.post(f"{V3}/rooms/{second}/receipt/m.read.private/{event_id}", {}).status == 200
    settle(server)
    server.clock.advance(2)
    settle(server)
    assert gateway.badges == [1]


class LateDecisions:
    """Delays every push decision until `gate` is called, as a slow database does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.gate: Deferred[None] = Deferred()
        get_actions = PushDecisions.get_actions

        async def answer_late(
            decisions: PushDecisions, stored: StoredEvent, users: Collection[UserID]
        ) -> Mapping[UserID, Actions]:
            found = await get_actions(decisions, stored, users)
            if not self.gate.called:
                await self.gate
            return found

        monkeypatch.setattr(PushDecisions, "get_actions", answer_late)


def test_events_pushed_by_another_node_are_not_pushed_again(
    server: TestServer, gateway: PushGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    bob, room_id = room_with_pushers(server)
    say(bob, room_id, "before")
    settle(server)
    late = LateDecisions(monkeypatch)
    pushed_by_the_other = say(bob, room_id, "hello")
    settle(server)
    lose_lease(server)
    late.gate.callback(None)
    settle(server)
    take_again(server)
    event_id = say(bob, room_id, "hello again")
    settle(server)
    assert pushed_keys(gateway, pushed_by_the_other) == []
    assert pushed_keys(gateway, event_id) == keys()


def test_a_batch_begun_under_a_lost_lease_does_not_continue_under_the_next_lease(
    server: TestServer, gateway: PushGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the later push would hide that the pusher missed an earlier one."""
    bob, room_id = room_with_pushers(server)
    gateway.failure = 503
    first = say(bob, room_id, "hello")
    server.clock.advance(10)
    settle(server)
    late = LateDecisions(monkeypatch)
    second = say(bob, room_id, "hello again")
    settle(server)
    allow_other_nodes(server.app.pushers.reading)
    hand_lease(server, "another", 1 << 60)
    server.clock.advance(10)
    hand_lease(server, "another", 0)  # which has ended before it pushed anything
    server.clock.advance(10)
    late.gate.callback(None)
    gateway.failure = None
    for _ in range(6):
        server.clock.advance(10)
        settle(server)
    assert pushed_keys(gateway, first) == keys()
    assert pushed_keys(gateway, second) == keys()


def test_an_event_just_before_a_pusher_is_enabled_counts_in_its_badge(
    server: TestServer, gateway: PushGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event is processed after the badge was counted for the pusher."""
    alice, bob, first, second = two_rooms(server)
    gateway.held = []
    say(bob, first, "it is told with the number one")
    settle(server)
    late = LateDecisions(monkeypatch)
    say(bob, first, "this takes long")
    say(bob, second, "and this waits for it")
    for is_enabled in (False, True):
        assert set_pusher(alice, **{"org.matrix.msc3881.enabled": is_enabled}).status == 200
    settle(server)
    gateway.release()
    server.clock.advance(2)
    settle(server)
    late.gate.callback(None)
    settle(server)
    server.clock.advance(2)
    settle(server)
    assert [each.notification["counts"] for each in gateway.taken] == [{"unread": 1}, {"unread": 2}]
