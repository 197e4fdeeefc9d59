"""E-mails contain what matters to their reader, however many other messages and rooms there are."""

from pathlib import Path

import pytest

from homeserver.services.email.smtp import DeliveryFailed
from homeserver.services.pushers.missed_messages import MAX_ROOMS
from storage.engine.database import Database
from tests.helpers.clocks import pass_time, settle
from tests.helpers.email_notifications import (
    HOUR,
    MINUTE,
    plain_and_html,
    register_email_reader,
    start_with_email,
)
from tests.helpers.notified_rooms import create_shared_room
from tests.helpers.room_actions import V3, say
from tests.helpers.server import TestServer, User


@pytest.fixture
def server(tmp_path: Path, database: Database) -> TestServer:
    return start_with_email(tmp_path, database)


def test_an_email_contains_a_mention_however_many_messages_follow(server: TestServer) -> None:
    alice, bob = register_email_reader(server), server.register("bob")
    room_id = create_shared_room(alice, bob, name="Busy")
    assert alice.put(f"{V3}/pushrules/global/room/{room_id}", {"actions": []}).status == 200
    settle(server)
    mention = {
        "msgtype": "m.text",
        "body": "URGENT alice",
        "m.mentions": {"user_ids": [alice.user_id]},
    }
    assert bob.put(f"{V3}/rooms/{room_id}/send/m.room.message/urgent", mention).status == 200
    settle(server)
    for number in range(45):
        say(bob, room_id, f"chatter {number}")
    settle(server)
    pass_time(server, 11 * MINUTE, MINUTE)
    [(_, letter)] = server.relay.emails
    assert "URGENT" in plain_and_html(letter)[0]
    assert "chatter" not in plain_and_html(letter)[0]


def test_an_email_contains_a_message_however_many_reactions_follow(server: TestServer) -> None:
    alice, bob = register_email_reader(server), server.register("bob")
    room_id = create_shared_room(alice, bob, name="Busy")
    event_id = say(bob, room_id, "URGENT")
    for number in range(45):
        reaction = {
            "m.relates_to": {"rel_type": "m.annotation", "event_id": event_id, "key": f"k{number}"}
        }
        assert bob.put(f"{V3}/rooms/{room_id}/send/m.reaction/r{number}", reaction).status == 200
    settle(server)
    pass_time(server, 11 * MINUTE, MINUTE)
    [(_, letter)] = server.relay.emails
    assert "URGENT" in plain_and_html(letter)[0]


def test_the_first_unread_message_decides_when_the_email_is_sent(server: TestServer) -> None:
    alice, bob = register_email_reader(server), server.register("bob")
    room_id = create_shared_room(alice, bob, name="Busy")
    for number in range(12):
        say(bob, room_id, f"number {number}")
        pass_time(server, MINUTE, MINUTE)
    [(_, letter)] = server.relay.emails
    assert "Further messages: " in plain_and_html(letter)[0]


def test_an_email_counts_the_rooms_it_leaves_out(server: TestServer) -> None:
    alice, bob = register_email_reader(server), server.register("bob")
    for number in range(MAX_ROOMS + 3):
        say(bob, create_shared_room(alice, bob, name=f"Room {number}"), "hello")
    settle(server)
    pass_time(server, 11 * MINUTE, MINUTE)
    [(_, letter)] = server.relay.emails
    plain, html = plain_and_html(letter)
    assert plain.count("== Room") == MAX_ROOMS
    assert "Further rooms: 3" in plain
    assert "Further rooms: 3" in html


def test_events_that_only_wake_clients_are_in_no_email(server: TestServer) -> None:
    """MSC4028: a user whose clients are woken by every encrypted event gets no e-mails about
    them."""
    alice, bob = register_email_reader(server), server.register("bob")
    room_id = create_shared_room(alice, bob)
    rule = f"{V3}/pushrules/global/override/.org.matrix.msc4028.encrypted_event/enabled"
    assert alice.put(rule, {"enabled": True}).status == 200
    content = {"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "AwgA", "session_id": "s"}
    bob.put(f"{V3}/rooms/{room_id}/send/m.room.encrypted/1", content)
    pass_time(server, 11 * MINUTE, MINUTE)
    assert server.relay.emails == []
    say(bob, room_id, "in the clear")
    pass_time(server, 11 * MINUTE, MINUTE)
    [(_, letter)] = server.relay.emails
    plain, _ = plain_and_html(letter)
    assert "in the clear" in plain
    assert "Encrypted message" not in plain


def edit(user: User, room_id: str, event_id: str, text: str, **further: object) -> str:
    content = {
        **further,
        "msgtype": "m.text",
        "body": f"* {text}",
        "m.new_content": {"msgtype": "m.text", "body": text},
        "m.relates_to": {"rel_type": "m.replace", "event_id": event_id},
    }
    answer = user.put(f"{V3}/rooms/{room_id}/send/m.room.message/{text}", content)
    assert answer.status == 200
    return str(answer.json["event_id"])


def test_an_email_shows_the_latest_edit_of_a_message(server: TestServer) -> None:
    alice, bob = register_email_reader(server), server.register("bob")
    room_id = create_shared_room(alice, bob)
    event_id = say(bob, room_id, "my password is zanjabil")
    edit(bob, room_id, event_id, "second")
    edit(bob, room_id, event_id, "third")
    pass_time(server, 11 * MINUTE, MINUTE)
    [(_, letter)] = server.relay.emails
    for text in plain_and_html(letter):
        assert "third" in text
        assert "second" not in text
        assert "zanjabil" not in text


def test_an_email_shows_the_edit_of_an_unread_thread_message_when_the_main_timeline_is_read(
    server: TestServer,
) -> None:
    alice, bob = register_email_reader(server), server.register("bob")
    room_id = create_shared_room(alice, bob)
    thread = {"rel_type": "m.thread", "event_id": say(bob, room_id, "root")}
    content = {"msgtype": "m.text", "body": "zanjabil", "m.relates_to": thread}
    event_id = bob.put(f"{V3}/rooms/{room_id}/send/m.room.message/1", content).json["event_id"]
    edit(bob, room_id, event_id, "corrected")
    last = say(bob, room_id, "last")
    receipt = f"{V3}/rooms/{room_id}/receipt/m.read.private/{last}"
    assert alice.post(receipt, {"thread_id": "main"}).status == 200
    pass_time(server, 11 * MINUTE, MINUTE)
    [(_, letter)] = server.relay.emails
    assert "corrected" in plain_and_html(letter)[0]
    assert "zanjabil" not in plain_and_html(letter)[0]


def test_an_edit_with_a_mention_is_in_no_email_once_it_was_read(server: TestServer) -> None:
    alice, bob = register_email_reader(server), server.register("bob")
    room_id = create_shared_room(alice, bob)
    first = say(bob, room_id, "first")
    receipt = f"{V3}/rooms/{room_id}/receipt/m.read.private"
    assert alice.post(f"{receipt}/{first}", {}).status == 200
    server.relay.failure = DeliveryFailed("no connection", permanent=False)
    calling = edit(bob, room_id, first, "alice", **{"m.mentions": {"user_ids": [alice.user_id]}})
    pass_time(server, 12 * MINUTE, MINUTE)
    [pusher] = server.run(server.app.accounts.stores.pushers.get_pushers([alice.user_id]))[
        alice.user_id
    ]
    assert pusher.error == "no connection", "an e-mail is retried"
    assert alice.post(f"{receipt}/{calling}", {}).status == 200
    server.relay.failure = None
    pass_time(server, 4 * HOUR, 10 * MINUTE)
    assert server.relay.emails == []


def test_a_redacted_edit_is_in_no_email(server: TestServer) -> None:
    alice, bob = register_email_reader(server), server.register("bob")
    room_id = create_shared_room(alice, bob)
    server.relay.failure = DeliveryFailed("no connection", permanent=False)
    event_id = say(bob, room_id, "first")
    taken_back = edit(bob, room_id, event_id, "zanjabil")
    pass_time(server, 12 * MINUTE, MINUTE)
    assert bob.put(f"{V3}/rooms/{room_id}/redact/{taken_back}/1", {}).status == 200
    server.relay.failure = None
    pass_time(server, 4 * HOUR, 10 * MINUTE)
    [(_, letter)] = server.relay.emails
    assert "first" in plain_and_html(letter)[0]
    assert "zanjabil" not in plain_and_html(letter)[0]
