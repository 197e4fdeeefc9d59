"""Requests to push gateways: which events cause one, what it contains, and how often."""

from pathlib import Path
from typing import Any

import pytest

from federation.http_client.errors import OutboundError
from federation.protocol.ids import RoomID, UserID
from homeserver.services.pushers.notification import MAX_CONTENT_BYTES
from storage.engine.database import Database
from tests.helpers.clocks import settle
from tests.helpers.federated_rooms import create_room
from tests.helpers.push_gateway import URL, PushGateway, set_pusher
from tests.helpers.room_actions import say, send_receipt, set_state
from tests.helpers.server import TestServer, User

V3 = "/_matrix/client/v3"


@pytest.fixture
def server(tmp_path: Path, database: Database, gateway: PushGateway) -> TestServer:
    return started(TestServer(tmp_path, database, web=gateway))


def started(server: TestServer) -> TestServer:
    server.app.pushers.start()
    settle(server)
    return server


def two(server: TestServer, **options: Any) -> tuple[User, User, RoomID]:
    """Alice, who has a pusher, and Bob, in a room of his; and Carol, so that it is no talk of
    two."""
    alice, bob, carol = server.register("alice"), server.register("bob"), server.register("carol")
    room_id = create_room(bob, **options)
    for user in (alice, carol):
        assert user.post(f"{V3}/join/{room_id}").status == 200
    assert set_pusher(alice).status == 200
    settle(server)
    return alice, bob, room_id


def test_a_push_contains_every_field_of_the_specification(
    server: TestServer, gateway: PushGateway
) -> None:
    _, bob, room_id = two(server, name="Tea", room_alias_name="tea")
    assert (
        bob.put(f"{V3}/profile/{bob.user_id}/displayname", {"displayname": "Bob B."}).status == 200
    )
    settle(server)
    event_id = say(bob, room_id, "hello")
    settle(server)
    [push] = gateway.taken
    assert push.url == URL
    assert push.notification == {
        "event_id": event_id,
        "room_id": room_id,
        "type": "m.room.message",
        "sender": bob.user_id,
        "sender_display_name": "Bob B.",
        "room_name": "Tea",
        "room_alias": "#tea:example.org",
        "user_is_target": False,
        "prio": "low",
        "content": {"msgtype": "m.text", "body": "hello"},
        "counts": {"unread": 1},
        "devices": [
            {
                "app_id": "org.example.app",
                "pushkey": "key",
                "pushkey_ts": int(server.clock.seconds()),
                "data": {},
                "tweaks": {},
            }
        ],
    }


def test_very_long_names_are_truncated(server: TestServer, gateway: PushGateway) -> None:
    _, bob, room_id = two(server, name="Tea")
    set_state(bob, room_id, "m.room.name", {"name": "茶" * 5000})
    settle(server)
    gateway.taken.clear()
    say(bob, room_id, "hello")
    settle(server)
    [push] = gateway.taken
    assert push.notification["room_name"] == "茶" * 256
    assert push.notification["content"] == {"msgtype": "m.text", "body": "hello"}


def test_own_messages_and_rooms_without_membership_are_not_pushed(
    server: TestServer, gateway: PushGateway
) -> None:
    alice, bob, room_id = two(server)
    say(alice, room_id, "mine")
    say(bob, create_room(bob), "elsewhere")
    alice.post(f"{V3}/rooms/{room_id}/leave")
    say(bob, room_id, "gone")
    settle(server)
    assert gateway.asked == []


@pytest.mark.parametrize("is_named", [False, True])
def test_the_format_event_id_only_omits_the_content(
    server: TestServer, gateway: PushGateway, *, is_named: bool
) -> None:
    """spec: push-gateway-api#homeserver-behaviour"""
    alice, bob, room_id = two(server)
    data = {
        "url": URL,
        "format": "event_id_only",
        "default_payload": {"aps": {"mutable-content": 1}},
    }
    set_pusher(alice, data=data)
    mentions = {"m.mentions": {"user_ids": [alice.user_id]}} if is_named else {}
    content = {"msgtype": "m.text", "body": "secret", **mentions}
    event_id = bob.put(f"{V3}/rooms/{room_id}/send/m.room.message/1", content).json["event_id"]
    settle(server)
    [push] = gateway.taken
    [device] = push.notification.pop("devices")
    assert push.notification == {
        "event_id": event_id,
        "room_id": room_id,
        "prio": "high" if is_named else "low",
        "counts": {"unread": 1},
    }
    assert device["data"] == {
        "format": "event_id_only",
        "default_payload": {"aps": {"mutable-content": 1}},
    }
    assert device.keys() == {"app_id", "pushkey", "pushkey_ts", "data"}, "no tweaks"


def test_a_mention_is_pushed_with_a_highlight(server: TestServer, gateway: PushGateway) -> None:
    alice, bob, room_id = two(server)
    content = {"msgtype": "m.text", "body": "Alice!", "m.mentions": {"user_ids": [alice.user_id]}}
    bob.put(f"{V3}/rooms/{room_id}/send/m.room.message/1", content)
    settle(server)
    [push] = gateway.taken
    assert push.notification["prio"] == "high"
    assert push.notification["devices"][0]["tweaks"] == {"highlight": True, "sound": "default"}


def test_an_encrypted_message_has_high_priority_and_no_ciphertext(
    server: TestServer, gateway: PushGateway
) -> None:
    _, bob, room_id = two(server)
    content = {
        "algorithm": "m.megolm.v1.aes-sha2",
        "ciphertext": "AwgA",
        "session_id": "s",
        "sender_key": "k",
    }
    bob.put(f"{V3}/rooms/{room_id}/send/m.room.encrypted/1", content)
    settle(server)
    [push] = gateway.taken
    assert push.notification["prio"] == "high"
    assert push.notification["type"] == "m.room.encrypted"
    assert "content" not in push.notification


def test_content_too_large_for_a_vendor_is_omitted(
    server: TestServer, gateway: PushGateway
) -> None:
    _, bob, room_id = two(server)
    event_id = say(bob, room_id, "x" * MAX_CONTENT_BYTES)
    settle(server)
    [push] = gateway.taken
    assert push.notification["event_id"] == event_id
    assert "content" not in push.notification


def test_content_is_omitted_when_the_operator_disables_it(
    tmp_path: Path, database: Database, gateway: PushGateway
) -> None:
    server = started(TestServer(tmp_path, database, "push: {include_content: false}", web=gateway))
    _, bob, room_id = two(server)
    say(bob, room_id, "secret")
    settle(server)
    assert "content" not in gateway.taken[0].notification


def test_an_invite_is_pushed_to_the_invited_user(server: TestServer, gateway: PushGateway) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    set_pusher(alice)
    room_id = create_room(bob, name="Tea", preset="private_chat")
    assert bob.post(f"{V3}/rooms/{room_id}/invite", {"user_id": alice.user_id}).status == 200
    settle(server)
    [push] = gateway.taken
    assert (push.notification["type"], push.notification["user_is_target"]) == (
        "m.room.member",
        True,
    )
    assert push.notification["content"]["membership"] == "invite"
    assert push.notification["counts"] == {"unread": 1}


def test_the_badge_counts_rooms(gateway: PushGateway, server: TestServer) -> None:
    alice, bob, room_id = two(server)
    other = create_room(bob)
    alice.post(f"{V3}/join/{other}")
    for room in (room_id, room_id, other):
        say(bob, room, "x")
        settle(server)
    assert [push.notification["counts"]["unread"] for push in gateway.taken] == [1, 1, 2]


def test_the_badge_counts_messages(
    tmp_path: Path, database: Database, gateway: PushGateway
) -> None:
    server = started(
        TestServer(tmp_path, database, "push: {group_unread_count_by_room: false}", web=gateway)
    )
    _, bob, room_id = two(server)
    for _ in range(3):
        say(bob, room_id, "x")
        settle(server)
    assert [push.notification["counts"]["unread"] for push in gateway.taken] == [1, 2, 3]


def test_reading_at_another_device_clears_the_badge(
    server: TestServer, gateway: PushGateway
) -> None:
    alice, bob, room_id = two(server)
    event_id = say(bob, room_id, "x")
    settle(server)
    send_receipt(alice, room_id, event_id)
    settle(server)
    server.clock.advance(3)
    settle(server)
    assert gateway.badges == [0]
    assert set(gateway.taken[-1].notification) == {"prio", "counts", "devices"}
    send_receipt(alice, room_id, event_id, "m.read.private")
    settle(server)
    server.clock.advance(3)
    settle(server)
    assert gateway.badges == [0], "a badge that stays is told once"


def test_a_client_that_disables_badge_counts_gets_none(
    server: TestServer, gateway: PushGateway
) -> None:
    alice, bob, room_id = two(server)
    set_pusher(alice, **{"org.matrix.msc4076.disable_badge_count": True})
    event_id = say(bob, room_id, "x")
    settle(server)
    assert "counts" not in gateway.taken[0].notification
    send_receipt(alice, room_id, event_id)
    settle(server)
    server.clock.advance(3)
    settle(server)
    assert gateway.badges == []


def test_a_message_read_before_the_retry_is_not_pushed(
    server: TestServer, gateway: PushGateway
) -> None:
    alice, bob, room_id = two(server)
    gateway.failure = OutboundError("it is down")
    first, second = say(bob, room_id, "1"), say(bob, room_id, "2")
    settle(server)
    send_receipt(alice, room_id, first)
    settle(server)
    gateway.failure = None
    server.clock.advance(3600)
    settle(server)
    assert gateway.events == [second]


def test_reading_one_event_of_a_thread_does_not_drop_other_pushes(
    server: TestServer, gateway: PushGateway
) -> None:
    alice, bob, room_id = two(server)
    root = say(bob, room_id, "root")
    settle(server)
    gateway.failure = OutboundError("it is down")
    in_thread = []
    for number in range(2):
        relation = {"rel_type": "m.thread", "event_id": root}
        content = {"msgtype": "m.text", "body": "x", "m.relates_to": relation}
        answer = bob.put(f"{V3}/rooms/{room_id}/send/m.room.message/t{number}", content)
        in_thread.append(answer.json["event_id"])
    outside = say(bob, room_id, "outside")
    settle(server)
    send_receipt(alice, room_id, in_thread[0], thread=root)
    settle(server)
    gateway.failure = None
    gateway.taken.clear()
    server.clock.advance(3600)
    settle(server)
    assert gateway.events == [in_thread[1], outside]


def test_a_redacted_message_is_not_pushed(server: TestServer, gateway: PushGateway) -> None:
    _, bob, room_id = two(server)
    gateway.failure = OutboundError("it is down")
    gone, stays = say(bob, room_id, "oops"), say(bob, room_id, "fine")
    settle(server)
    assert bob.put(f"{V3}/rooms/{room_id}/redact/{gone}/1", {}).status == 200
    gateway.failure = None
    server.clock.advance(3600)
    settle(server)
    assert gateway.events == [stays]


def test_a_badge_is_sent_although_the_push_that_would_carry_it_is_dropped(
    server: TestServer, gateway: PushGateway
) -> None:
    alice, bob, room_id = two(server)
    other = create_room(bob)
    alice.post(f"{V3}/join/{other}")
    event_id = say(bob, room_id, "x")
    settle(server)
    assert gateway.taken[-1].notification["counts"] == {"unread": 1}
    gateway.failure = OutboundError("it is down")
    gone = say(bob, other, "oops")
    settle(server)
    assert bob.put(f"{V3}/rooms/{other}/redact/{gone}/1", {}).status == 200
    send_receipt(alice, room_id, event_id)
    gateway.failure = None
    for _ in range(60):
        server.clock.advance(10)
        settle(server)
    assert gateway.events == [event_id]
    assert gateway.badges == [0]


def test_pushes_are_delayed_by_the_configured_jitter(
    tmp_path: Path, database: Database, gateway: PushGateway
) -> None:
    server = started(TestServer(tmp_path, database, "push: {jitter_delay: 10s}", web=gateway))
    _, bob, room_id = two(server)
    say(bob, room_id, "x")
    settle(server)
    assert gateway.asked == []
    server.clock.advance(10)
    settle(server)
    assert len(gateway.taken) == 1


def test_nothing_is_pushed_when_push_is_disabled(
    tmp_path: Path, database: Database, gateway: PushGateway
) -> None:
    server = started(TestServer(tmp_path, database, "push: {enabled: false}", web=gateway))
    _, bob, room_id = two(server)
    say(bob, room_id, "x")
    server.clock.advance(60)
    settle(server)
    assert gateway.asked == []


def test_ordinary_state_events_are_not_pushed(server: TestServer, gateway: PushGateway) -> None:
    _, bob, room_id = two(server)
    set_state(bob, room_id, "m.room.topic", {"topic": "tea"})
    settle(server)
    assert gateway.asked == []


def test_a_locked_user_gets_no_pushes(server: TestServer, gateway: PushGateway) -> None:
    alice, bob, room_id = two(server)

    def lock(locked: bool) -> None:
        server.run(server.app.user_data.accounts.do_set_flags(alice.user_id, locked=locked))
        settle(server)

    gateway.failure = OutboundError("it is down")
    say(bob, room_id, "waits")
    settle(server)
    lock(True)
    gateway.failure = None
    say(bob, room_id, "secret")
    server.clock.advance(3600)
    settle(server)
    assert gateway.taken == []
    lock(False)
    event_id = say(bob, room_id, "hello again")
    settle(server)
    assert gateway.events == [event_id]


def test_an_expired_account_gets_no_pushes(
    tmp_path: Path, database: Database, gateway: PushGateway
) -> None:
    day = 24 * 3600
    validity = "account_validity: {enabled: true, period: 100d}\n"
    server = started(TestServer(tmp_path, database, validity, web=gateway))
    alice, bob, room_id = two(server)
    renewals = server.app.accounts.renewals

    def set_end(user: User, days: int) -> None:
        end = int((server.clock.seconds() + days * day) * 1000)
        server.run(
            renewals.do_set_expiry(
                user.user_id, end, sends_email=False, by=UserID("@root:example.org")
            )
        )

    set_end(alice, 10)
    set_end(bob, 1000)
    server.clock.advance(10 * day)
    assert server.run(renewals.do_mark_expired(10)) == 1
    assert server.run(renewals.do_mark_expired(10)) == 0
    settle(server)
    say(bob, room_id, "secret")
    settle(server)
    assert gateway.taken == []
    set_end(alice, 10)
    settle(server)
    event_id = say(bob, room_id, "hello again")
    settle(server)
    assert gateway.events == [event_id]


def test_a_user_who_replies_has_read_the_messages_before(
    server: TestServer, gateway: PushGateway
) -> None:
    alice, bob, room_id = two(server)
    gateway.failure = OutboundError("it is down")
    say(bob, room_id, "question")
    settle(server)
    say(alice, room_id, "answer")
    later = say(bob, room_id, "thanks")
    settle(server)
    gateway.failure = None
    server.clock.advance(3600)
    settle(server)
    assert gateway.events == [later]


def test_a_change_of_rules_or_of_ignored_users_applies_to_the_next_push(
    server: TestServer, gateway: PushGateway
) -> None:
    alice, bob, room_id = two(server)
    carol_room = create_room(bob)
    alice.post(f"{V3}/join/{carol_room}")
    say(bob, room_id, "x")
    settle(server)
    assert gateway.taken[-1].notification["counts"] == {"unread": 1}
    assert alice.put(f"{V3}/pushrules/global/room/{room_id}", {"actions": []}).status == 200
    say(bob, room_id, "muted")
    say(bob, carol_room, "y")
    settle(server)
    assert len(gateway.events) == 2
    ignored: dict[str, Any] = {"ignored_users": {bob.user_id: {}}}
    alice.put(f"{V3}/user/{alice.user_id}/account_data/m.ignored_user_list", ignored)
    say(bob, carol_room, "ignored")
    settle(server)
    assert len(gateway.events) == 2


@pytest.mark.parametrize(
    "how", ["m.ignored_user_list", "org.matrix.msc4155.invite_permission_config"]
)
def test_an_invite_by_an_ignored_user_is_neither_pushed_nor_counted(
    how: str, server: TestServer, gateway: PushGateway
) -> None:
    alice, bob, room_id = two(server)
    dave = server.register("dave")
    invited = create_room(dave, preset="private_chat")
    ignored = {dave.user_id: {}} if how == "m.ignored_user_list" else [dave.user_id]
    alice.put(f"{V3}/user/{alice.user_id}/account_data/{how}", {"ignored_users": ignored})
    dave.post(f"{V3}/rooms/{invited}/invite", {"user_id": alice.user_id})
    settle(server)
    assert "invite" not in alice.get(f"{V3}/sync").json["rooms"]
    assert alice.get(f"{V3}/notifications").json["notifications"] == []
    assert gateway.taken == []
    say(bob, room_id, "x")
    settle(server)
    assert gateway.taken[-1].notification["counts"] == {"unread": 1}
