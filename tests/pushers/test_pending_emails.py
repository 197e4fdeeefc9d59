"""E-mails that are pending while the mail server or the database is unavailable, and their delivery
afterwards."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from federation.protocol.ids import RoomID, UserID
from homeserver.services.email.smtp import DeliveryFailed
from homeserver.services.pushers.missed_messages import MissedEvents, MissedMessages
from storage.email.outbox import EmailOutbox, QueuedEmail
from storage.engine.database import Database, DatabaseUnavailable
from storage.maintenance.after_restore import repair_after_restore
from storage.push.pushers import PusherStore
from tests.helpers.clocks import pass_time, settle
from tests.helpers.databases import copy_sqlite, open_inline
from tests.helpers.email_addresses import add_email
from tests.helpers.email_notifications import (
    HOUR,
    MINUTE,
    plain_and_html,
    register_email_reader,
    set_email_pusher,
    start_with_email,
    unsubscribe_link,
)
from tests.helpers.notified_rooms import create_shared_room, send_private_receipt
from tests.helpers.push_gateway import PushGateway
from tests.helpers.room_actions import say
from tests.helpers.server import TestServer, User

V3 = "/_matrix/client/v3"
AWAY = DeliveryFailed("no connection", permanent=False)


@pytest.fixture
def server(tmp_path: Path, database: Database) -> TestServer:
    return start_with_email(tmp_path, database)


def test_an_email_pusher_gets_no_badges(tmp_path: Path, database: Database) -> None:
    gateway = PushGateway()
    server = start_with_email(tmp_path, database, web=gateway)
    alice, bob = register_email_reader(server), server.register("bob")
    say(bob, create_shared_room(alice, bob), "hello")
    pass_time(server, 12 * MINUTE, MINUTE)
    assert len(server.relay.emails) == 1
    assert set_email_pusher(alice, data={"url": "https://mallory.example.com/"}).status == 200
    pass_time(server, 2 * MINUTE, MINUTE)
    assert gateway.asked == []


def switch_off(alice: User, _bob: User, _room_id: RoomID) -> None:
    assert (
        set_email_pusher(alice, "alice@example.com", **{"org.matrix.msc3881.enabled": False}).status
        == 200
    )


def remove(alice: User, _bob: User, _room_id: RoomID) -> None:
    assert set_email_pusher(alice, kind=None).status == 200


def leave_room(alice: User, _bob: User, room_id: RoomID) -> None:
    assert alice.post(f"{V3}/rooms/{room_id}/leave").status == 200


def kick(alice: User, bob: User, room_id: RoomID) -> None:
    assert bob.post(f"{V3}/rooms/{room_id}/kick", {"user_id": alice.user_id}).status == 200


def ignore(alice: User, bob: User, _room_id: RoomID) -> None:
    path = f"{V3}/user/{alice.user_id}/account_data/m.ignored_user_list"
    assert alice.put(path, {"ignored_users": {bob.user_id: {}}}).status == 200


@pytest.mark.parametrize("how", [switch_off, remove, leave_room, kick, ignore])
def test_a_pending_email_is_dropped_when_its_reason_is_gone(
    server: TestServer, how: Callable[[User, User, RoomID], None]
) -> None:
    alice, bob = register_email_reader(server), server.register("bob")
    room_id = create_shared_room(alice, bob)
    server.relay.failure = AWAY
    say(bob, room_id, "zanjabil")
    pass_time(server, 12 * MINUTE, MINUTE)
    how(alice, bob, room_id)
    server.relay.failure = None
    pass_time(server, 4 * HOUR, 10 * MINUTE)
    assert server.relay.emails == []


def test_a_delayed_email_omits_messages_that_were_read_meanwhile(server: TestServer) -> None:
    alice, bob = register_email_reader(server), server.register("bob")
    room_id, other = (
        create_shared_room(alice, bob, name="Tea"),
        create_shared_room(alice, bob, name="Cake"),
    )
    server.relay.failure = AWAY
    event_id = say(bob, room_id, "zanjabil")
    say(bob, other, "cinnamon")
    pass_time(server, 12 * MINUTE, MINUTE)
    send_private_receipt(alice, room_id, event_id)
    server.relay.failure = None
    pass_time(server, 4 * HOUR, 10 * MINUTE)
    [(_, letter)] = server.relay.emails
    for text in plain_and_html(letter):
        assert "cinnamon" in text
        assert "zanjabil" not in text


def test_an_unread_message_is_emailed_when_the_mail_server_is_back(server: TestServer) -> None:
    alice, bob = register_email_reader(server), server.register("bob")
    room_id = create_shared_room(alice, bob)
    server.relay.failure = AWAY
    say(bob, room_id, "zanjabil")
    pass_time(server, 6 * HOUR, 10 * MINUTE)
    server.relay.failure = None
    pass_time(server, 2 * HOUR, 10 * MINUTE)
    [(_, letter)] = server.relay.emails
    assert "zanjabil" in plain_and_html(letter)[0]


def test_an_email_is_dropped_after_two_days(server: TestServer) -> None:
    alice, bob = register_email_reader(server), server.register("bob")
    server.relay.failure = AWAY
    say(bob, create_shared_room(alice, bob), "zanjabil")
    pass_time(server, 52 * HOUR, HOUR)
    server.relay.failure = None
    pass_time(server, 24 * HOUR, HOUR)
    assert server.relay.emails == []


@pytest.mark.parametrize("for_good", [False, True])
def test_the_admin_api_shows_emails_that_are_refused(server: TestServer, for_good: bool) -> None:
    root = server.register("root")
    server.run(server.app.user_data.accounts.do_set_flags(root.user_id, is_admin=True))
    alice, bob = register_email_reader(server), server.register("bob")
    room_id = create_shared_room(alice, bob)

    def look() -> tuple[tuple[int, object], tuple[object, object]]:
        [gateway] = root.get("/_mahalla/admin/v1/push_gateways").json["gateways"]
        assert (gateway["gateway"], gateway["pushers"]) == ("e-mail", 1)
        [pusher] = root.get(f"/_synapse/admin/v1/users/{alice.user_id}/pushers").json["pushers"]
        assert pusher["failing_since_ts"] == gateway["failing_since_ts"]
        return (gateway["failing"], gateway["success_ts"]), (pusher["error"], pusher["success_ts"])

    assert look() == ((0, None), (None, None))
    server.relay.failure = DeliveryFailed("550 no such user", permanent=for_good)
    say(bob, room_id, "zanjabil")
    pass_time(server, 12 * MINUTE, MINUTE)
    assert look() == ((1, None), ("550 no such user", None))
    server.relay.failure = None
    say(bob, room_id, "cinnamon")
    pass_time(server, 2 * HOUR, 10 * MINUTE)
    assert server.relay.emails
    (failing, sent), (error, success) = look()
    assert (failing, error) == (0, None)
    assert sent == success is not None


def test_a_short_database_outage_in_the_outbox_loses_no_email(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = register_email_reader(server), server.register("bob")

    async def fail(_: EmailOutbox, _now: int, _until: int, _limit: int) -> list[QueuedEmail]:
        raise DatabaseUnavailable("it is restarted")

    with monkeypatch.context() as patch:
        patch.setattr(EmailOutbox, "claim_due", fail)
        say(bob, create_shared_room(alice, bob), "zanjabil")
        pass_time(server, 12 * MINUTE, MINUTE)
        assert server.relay.emails == []
    pass_time(server, 2 * MINUTE, MINUTE)
    assert len(server.relay.emails) == 1


@pytest.mark.parametrize("where", ["relay", "look"])
def test_a_bug_in_sending_one_email_does_not_stop_others(
    server: TestServer, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    alice, bob = register_email_reader(server), server.register("bob")
    carol = server.register("carol")
    add_email(server, carol, "carol@example.com")
    assert set_email_pusher(carol, "carol@example.com").status == 200
    server.relay.emails.clear()
    outbox = server.app.email.outbox
    assert outbox is not None
    deliver, pushers = server.relay.deliver, list[int]()

    def fail_for_alice(sender: str, recipient: str, message: bytes) -> None:
        if recipient == "alice@example.com":
            raise ZeroDivisionError
        deliver(sender, recipient, message)

    async def fail_for_the_first(pusher_nid: int, _event_nids: Sequence[int]) -> bool:
        pushers.append(pusher_nid)
        if pusher_nid == pushers[0]:
            raise ZeroDivisionError
        return True

    if where == "relay":
        monkeypatch.setattr(server.relay, "deliver", fail_for_alice)
    else:
        outbox.use_unread_check(fail_for_the_first)
    room_id = create_shared_room(alice, bob)
    assert carol.post(f"{V3}/join/{room_id}").status == 200
    say(bob, room_id, "zanjabil")
    pass_time(server, 15 * MINUTE, MINUTE)
    assert len(server.relay.emails) == 1


@pytest.mark.parametrize("settles", [True, False])
def test_an_unsubscribe_link_from_before_a_restore_removes_no_later_pusher(
    tmp_path: Path, sqlite_template: Path, settles: bool
) -> None:
    """The backup lacks Alice's pusher, and after the restore another user sets one. Without the
    command her link would remove it."""
    folder = tmp_path / "of a backup"
    folder.mkdir()
    now = start_with_email(tmp_path, open_inline(copy_sqlite(sqlite_template, tmp_path)))
    alice, bob = register_email_reader(now), now.register("bob")
    say(bob, create_shared_room(alice, bob), "zanjabil")
    pass_time(now, 12 * MINUTE, MINUTE)
    link = unsubscribe_link(now.relay.emails[0][1])
    restored = open_inline(copy_sqlite(sqlite_template, folder))
    later = start_with_email(tmp_path, restored)
    if settles:
        later.run(restored.write("repair_after_restore", repair_after_restore))
    carol = later.register("carol")
    add_email(later, carol)
    assert set_email_pusher(carol).status == 200
    assert later.client.request("POST", link, body=b"List-Unsubscribe=One-Click").status == 200
    assert len(carol.get(f"{V3}/pushers").json["pushers"]) == settles


@pytest.mark.parametrize("is_restarted", [False, True])
def test_a_database_outage_while_the_due_time_is_stored_loses_no_email(
    tmp_path: Path, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch, is_restarted: bool
) -> None:
    server = start_with_email(tmp_path, sqlite_database)
    alice, bob = register_email_reader(server), server.register("bob")
    room_id = create_shared_room(alice, bob)

    async def be_away(_store: PusherStore, _noted: Mapping[int, int]) -> None:
        raise DatabaseUnavailable("it is restarted")

    with monkeypatch.context() as patched:
        patched.setattr(PusherStore, "set_due", be_away)
        say(bob, room_id, "zanjabil")
        settle(server)
    pass_time(server, MINUTE, MINUTE)
    if is_restarted:
        server.run(server.app.pushers.stop())
        server = start_with_email(tmp_path, sqlite_database, seed=2, now=server.clock.seconds())
    pass_time(server, 15 * MINUTE, MINUTE)
    assert len(server.relay.emails) == 1


def test_a_database_outage_while_an_email_is_written_delays_it(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, bob = register_email_reader(server), server.register("bob")
    say(bob, create_shared_room(alice, bob), "zanjabil")
    settle(server)

    async def be_away(_missed: MissedEvents, _user_id: UserID, _after: int) -> MissedMessages:
        raise DatabaseUnavailable("it is restarted")

    with monkeypatch.context() as patched:
        patched.setattr(MissedEvents, "get", be_away)
        pass_time(server, 12 * MINUTE, MINUTE)
    pass_time(server, 2 * MINUTE, MINUTE)
    assert len(server.relay.emails) == 1


def test_a_database_outage_after_an_email_was_written_does_not_lose_the_next(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next e-mail is about a message that arrived while the first one was written."""
    alice, bob = register_email_reader(server), server.register("bob")
    first, second = create_shared_room(alice, bob), create_shared_room(alice, bob)
    say(bob, first, "zanjabil")
    settle(server)
    get, set_due, noted = MissedEvents.get, PusherStore.set_due, list[Mapping[int, int]]()

    async def take_long(missed: MissedEvents, user_id: UserID, after: int) -> MissedMessages:
        found = await get(missed, user_id, after)
        if not noted:
            say(bob, second, "zarchava")
            settle(server)
        return found

    async def fail_once(store: PusherStore, due: Mapping[int, int]) -> None:
        noted.append(due)
        if len(noted) == 2:
            raise DatabaseUnavailable("it is restarted")
        await set_due(store, due)

    monkeypatch.setattr(MissedEvents, "get", take_long)
    monkeypatch.setattr(PusherStore, "set_due", fail_once)
    pass_time(server, 25 * MINUTE, MINUTE)
    assert len(noted) > 1
    assert len(server.relay.emails) == 2
