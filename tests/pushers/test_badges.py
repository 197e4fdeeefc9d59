"""Badge counts: every change of the unread count reaches the app, also without a new message."""

from collections.abc import Callable
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred

from federation.http_client.errors import OutboundError
from federation.protocol.ids import RoomID, UserID
from homeserver.services.account_data.ignored_users import IGNORED_USERS
from homeserver.services.account_data.invite_permissions import CONFIG_TYPES
from homeserver.services.pushers.badges import BadgeCounts
from homeserver.services.pushers.pusher_users import PusherUsers
from storage.engine.database import Database, DatabaseUnavailable
from storage.push.push_stream import FILTER_TYPES
from tests.helpers.clocks import pass_time, settle
from tests.helpers.databases import QueryCounter, copy_sqlite, open_inline
from tests.helpers.notified_rooms import (
    create_shared_room,
    invite_to_new_room,
    register_alice_with_pusher,
    send_private_receipt,
    set_account_data,
)
from tests.helpers.push_gateway import PushGateway, crash, set_pusher, start
from tests.helpers.room_actions import say
from tests.helpers.server import TestServer, User, move_user

V3 = "/_matrix/client/v3"
ENABLED = "org.matrix.msc3881.enabled"


@pytest.fixture
def server(tmp_path: Path, database: Database, gateway: PushGateway) -> TestServer:
    return start(tmp_path, database, gateway)


def accept(alice: User, _bob: User, room_id: RoomID) -> None:
    assert alice.post(f"{V3}/join/{room_id}").status == 200


def decline(alice: User, _bob: User, room_id: RoomID) -> None:
    assert alice.post(f"{V3}/rooms/{room_id}/leave").status == 200


def withdraw(alice: User, bob: User, room_id: RoomID) -> None:
    assert bob.post(f"{V3}/rooms/{room_id}/kick", {"user_id": alice.user_id}).status == 200


def ignore(alice: User, bob: User, _room_id: RoomID) -> None:
    set_account_data(alice, IGNORED_USERS, {"ignored_users": {bob.user_id: {}}})


def take_no_invites(alice: User, bob: User, _room_id: RoomID) -> None:
    set_account_data(
        alice, "org.matrix.msc4155.invite_permission_config", {"ignored_users": [bob.user_id]}
    )


@pytest.mark.parametrize("how", [accept, decline, withdraw, ignore, take_no_invites])
def test_an_invite_counts_until_it_is_answered(
    server: TestServer, gateway: PushGateway, how: Callable[[User, User, RoomID], None]
) -> None:
    alice, bob = register_alice_with_pusher(server)
    room_id = invite_to_new_room(alice, bob)
    pass_time(server, 5, 1)
    assert [push.notification["counts"] for push in gateway.taken] == [{"unread": 1}]
    how(alice, bob, room_id)
    pass_time(server, 5, 1)
    assert gateway.badges == [0]


@pytest.mark.parametrize("how", [withdraw, ignore, take_no_invites])
def test_a_withdrawn_or_ignored_invite_is_not_pushed(
    server: TestServer, gateway: PushGateway, how: Callable[[User, User, RoomID], None]
) -> None:
    alice, bob = register_alice_with_pusher(server)
    gateway.failure = 503
    room_id = invite_to_new_room(alice, bob)
    pass_time(server, 5, 1)
    how(alice, bob, room_id)
    gateway.failure = None
    pass_time(server, 60, 1)
    assert gateway.events == []


@pytest.mark.parametrize("how", [decline, withdraw, ignore])
def test_pending_pushes_are_dropped_when_the_user_leaves_or_ignores_the_sender(
    server: TestServer, gateway: PushGateway, how: Callable[[User, User, RoomID], None]
) -> None:
    alice, bob = register_alice_with_pusher(server)
    room_id = create_shared_room(alice, bob)
    gateway.failure = 503
    say(bob, room_id, "hello")
    pass_time(server, 5, 1)
    how(alice, bob, room_id)
    gateway.failure = None
    pass_time(server, 60, 1)
    assert gateway.events == []


def test_pushes_pending_before_a_leave_and_rejoin_are_dropped(
    server: TestServer, gateway: PushGateway
) -> None:
    alice, bob = register_alice_with_pusher(server)
    room_id = create_shared_room(alice, bob)
    gateway.failure = 503
    say(bob, room_id, "before")
    pass_time(server, 5, 1)
    decline(alice, bob, room_id)
    accept(alice, bob, room_id)
    after = say(bob, room_id, "after")
    gateway.failure = None
    pass_time(server, 60, 1)
    assert gateway.events == [after]


def test_a_pusher_that_is_enabled_again_gets_the_badge_that_changed_meanwhile(
    server: TestServer, gateway: PushGateway
) -> None:
    alice, bob = register_alice_with_pusher(server)
    room_id = create_shared_room(alice, bob)
    event_id = say(bob, room_id, "hello")
    pass_time(server, 5, 1)
    set_pusher(alice, **{ENABLED: False})
    send_private_receipt(alice, room_id, event_id)
    pass_time(server, 5, 1)
    assert gateway.badges == []
    set_pusher(alice, **{ENABLED: True})
    pass_time(server, 5, 1)
    assert gateway.badges == [0]
    set_pusher(alice)
    pass_time(server, 5, 1)
    assert gateway.badges == [0], (
        "an app that sets it anew each time it starts is not told the same again"
    )


def test_a_pusher_that_is_enabled_while_the_database_is_away_gets_the_badge(
    server: TestServer, gateway: PushGateway, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    alice, bob = register_alice_with_pusher(server)
    room_id = create_shared_room(alice, bob)
    event_id = say(bob, room_id, "hello")
    pass_time(server, 70, 1)
    set_pusher(alice, **{ENABLED: False})
    later = crash(server, tmp_path, gateway)
    alice = move_user(later, alice)
    send_private_receipt(alice, room_id, event_id)
    pass_time(later, 5, 1)

    async def be_away(*_: object) -> None:
        raise DatabaseUnavailable("it is away")

    with monkeypatch.context() as patched:
        patched.setattr(PusherUsers, "refresh", be_away)
        set_pusher(alice, **{ENABLED: True})
        settle(later)
    pass_time(later, 15, 1)
    assert gateway.badges == [0]


def test_a_pusher_that_is_enabled_after_a_restart_gets_the_badge(
    server: TestServer, gateway: PushGateway, tmp_path: Path
) -> None:
    alice, bob = register_alice_with_pusher(server)
    room_id = create_shared_room(alice, bob)
    event_id = say(bob, room_id, "hello")
    pass_time(server, 70, 1)
    set_pusher(alice, **{ENABLED: False})
    send_private_receipt(alice, room_id, event_id)
    pass_time(server, 5, 1)
    later = crash(server, tmp_path, gateway)
    set_pusher(move_user(later, alice), **{ENABLED: True})
    pass_time(later, 5, 1)
    assert gateway.badges == [0]


@pytest.mark.parametrize("how", ["crash", "stop"])
def test_an_enabled_pusher_gets_the_badge_although_the_server_ends_before_it_is_sent(
    server: TestServer, gateway: PushGateway, tmp_path: Path, how: str
) -> None:
    alice, bob = register_alice_with_pusher(server)
    room_id = create_shared_room(alice, bob)
    event_id = say(bob, room_id, "hello")
    pass_time(server, 70, 1)
    set_pusher(alice, **{ENABLED: False})
    send_private_receipt(alice, room_id, event_id)
    pass_time(server, 30, 1)
    set_pusher(alice, **{ENABLED: True})
    pass_time(server, 1, 1)
    assert gateway.badges == []
    if how == "stop":
        server.run(server.app.pushers.stop())
        later = start(tmp_path, server.app.database, gateway, seed=2, now=server.clock.seconds())
    else:
        later = crash(server, tmp_path, gateway)
    pass_time(later, 5, 1)
    assert gateway.badges == [0]


def test_messages_read_while_there_was_no_pusher_do_not_count_for_a_new_one(
    server: TestServer, gateway: PushGateway
) -> None:
    alice, bob = register_alice_with_pusher(server)
    first, second = create_shared_room(alice, bob), create_shared_room(alice, bob)
    event_id = say(bob, first, "hello")
    pass_time(server, 5, 1)
    remove = {"kind": None, "app_id": "org.example.app", "pushkey": "key"}
    assert alice.post(f"{V3}/pushers/set", remove).status == 200
    send_private_receipt(alice, first, event_id)
    pass_time(server, 5, 1)
    set_pusher(alice, "new")
    say(bob, second, "hello")
    pass_time(server, 5, 1)
    assert [push.notification["counts"] for push in gateway.taken] == [{"unread": 1}] * 2


@pytest.mark.parametrize("how", ["crash", "stop"])
@pytest.mark.parametrize("is_down", [True, False])
def test_a_badge_that_could_not_be_sent_is_sent_after_a_restart(
    server: TestServer, gateway: PushGateway, tmp_path: Path, how: str, is_down: bool
) -> None:
    alice, bob = register_alice_with_pusher(server)
    room_id = create_shared_room(alice, bob)
    event_id = say(bob, room_id, "hello")
    pass_time(server, 5, 1)
    gateway.failure = OutboundError("it is down") if is_down else None
    send_private_receipt(alice, room_id, event_id)
    pass_time(server, 60 if is_down else 1, 1)
    if how == "stop":
        server.run(server.app.pushers.stop())
    gateway.failure = None
    assert gateway.badges == []
    if how == "stop":
        later = start(
            tmp_path, server.app.database, gateway, seed=2, now=server.clock.seconds() + 31
        )
    else:
        later = crash(server, tmp_path, gateway)
    pass_time(later, 60, 1)
    assert gateway.badges == [0]
    assert gateway.events == [event_id]


def test_an_unchanged_badge_is_no_failure_when_the_gateway_is_unreachable(
    server: TestServer, gateway: PushGateway
) -> None:
    """Bob has read the room, because he writes. His phone shows no badge and needs no push."""
    alice, bob = register_alice_with_pusher(server)
    room_id = create_shared_room(alice, bob)
    set_pusher(bob, "bob")
    settle(server)
    gateway.failure = OutboundError("it is down")
    say(bob, room_id, "hello")
    pass_time(server, 30, 1)
    failing = {row.pushkey for row in server.run(server.app.accounts.stores.pushers.get_failing())}
    assert failing == {"key"}


def test_a_new_display_name_causes_no_badge_count(
    gateway: PushGateway, tmp_path: Path, sqlite_template: Path
) -> None:
    counter = QueryCounter()
    server = start(tmp_path, open_inline(copy_sqlite(sqlite_template, tmp_path), counter), gateway)
    alice, bob = register_alice_with_pusher(server)
    for _ in range(3):
        say(bob, create_shared_room(alice, bob), "hello")
    pass_time(server, 5, 1)
    assert (
        alice.put(f"{V3}/profile/{alice.user_id}/displayname", {"displayname": "Alice"}).status
        == 200
    )
    counter.clear()
    pass_time(server, 5, 1)
    assert counter.reads["get_push_counts"] == 0


def test_a_pusher_deleted_while_its_push_is_built_gets_nothing(
    server: TestServer, gateway: PushGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = register_alice_with_pusher(server)
    room_id = create_shared_room(alice, bob)
    gate, count = Deferred[None](), BadgeCounts.get

    async def count_slowly(badges: BadgeCounts, user_id: UserID) -> int:
        await gate
        return await count(badges, user_id)

    monkeypatch.setattr(BadgeCounts, "get", count_slowly)
    say(bob, room_id, "hello")
    settle(server)
    assert alice.post(f"{V3}/logout").status == 200
    settle(server)
    gate.callback(None)
    pass_time(server, 5, 1)
    assert gateway.asked == []


def test_the_account_data_that_hides_users_is_that_of_the_services() -> None:
    assert set(FILTER_TYPES) == {IGNORED_USERS, *CONFIG_TYPES}
