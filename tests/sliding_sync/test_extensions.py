"""Sliding sync: the extensions."""

from typing import Any
from urllib.parse import quote

import pytest

from tests.helpers.room_actions import create, ok, put_event, redact, say
from tests.helpers.server import TestServer, User
from tests.helpers.sliding_client import SlidingClient, a_list, act, finish_poll

pytestmark = pytest.mark.usefixtures("compared")

ON: dict[str, Any] = {"enabled": True}


def send_to(user: User, to: User, number: int) -> None:
    body = {"messages": {to.user_id: {to.device_id: {"number": number}}}}
    assert user.put(f"/_matrix/client/v3/sendToDevice/org.example/{number}", body).status == 200


def numbers(answer: dict[str, Any]) -> list[int]:
    return [event["content"]["number"] for event in answer["extensions"]["to_device"]["events"]]


def test_the_to_device_extension_returns_messages(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    client = SlidingClient(
        alice, "encryption", extensions={"to_device": {"enabled": True, "limit": 2}}
    )
    wanted = client.body["extensions"]["to_device"]
    assert numbers(client.sync()) == []
    for number in range(3):
        send_to(bob, alice, number)
    answer = client.sync()
    assert numbers(answer) == numbers(client.sync()) == [0, 1]  # not acknowledged: they come again
    wanted["since"] = answer["extensions"]["to_device"]["next_batch"]
    answer = client.sync()
    assert numbers(answer) == [2]
    wanted["since"] = answer["extensions"]["to_device"]["next_batch"]
    assert numbers(client.sync()) == []


def test_acknowledged_messages_are_deleted(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    client = SlidingClient(alice, "encryption", extensions={"to_device": dict(ON)})
    send_to(bob, alice, 1)
    answer = client.sync()
    send_to(bob, alice, 2)
    client.body["extensions"]["to_device"]["since"] = answer["extensions"]["to_device"][
        "next_batch"
    ]
    assert numbers(client.sync()) == [2]
    del client.body["extensions"]["to_device"]["since"]
    client.pos = None
    assert numbers(client.sync()) == [2]


def test_a_to_device_message_ends_a_long_poll(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    client = SlidingClient(alice, "encryption", extensions={"to_device": dict(ON), "e2ee": ON})
    client.sync()
    pending = client.wait()
    send_to(bob, alice, 7)
    assert numbers(finish_poll(server, pending)) == [7]


def test_other_connections_do_not_take_messages(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    rooms = SlidingClient(alice, lists={"all": a_list([0, 9])}, extensions={"e2ee": ON})
    encryption = SlidingClient(alice, "encryption", extensions={"to_device": dict(ON)})
    rooms.sync()
    send_to(bob, alice, 1)
    create(alice)
    rooms.sync()
    rooms.sync()
    assert numbers(encryption.sync()) == [1]


def test_messages_reach_a_client_with_a_token_from_before_a_restore(server: TestServer) -> None:
    """It was restored from a backup, so that the token is ahead of all there is."""
    alice, bob = server.register("alice"), server.register("bob")
    client = SlidingClient(alice, "encryption", extensions={"to_device": {**ON, "since": "5000"}})
    send_to(bob, alice, 1)
    answer = client.sync()
    assert numbers(answer) == [1]
    client.body["extensions"]["to_device"]["since"] = answer["extensions"]["to_device"][
        "next_batch"
    ]
    assert numbers(client.sync()) == []
    send_to(bob, alice, 2)
    assert numbers(client.sync()) == [2]


def test_the_e2ee_extension_returns_device_lists_and_key_counts(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    algorithm = {
        "type": "m.room.encryption",
        "state_key": "",
        "content": {"algorithm": "m.megolm.v1.aes-sha2"},
    }
    room_id = create(alice, preset="public_chat", initial_state=[algorithm])
    client = SlidingClient(alice, "encryption", extensions={"e2ee": ON})
    answer = client.sync()["extensions"]["e2ee"]
    assert answer["device_unused_fallback_key_types"] == []
    assert "device_lists" not in answer
    keys = {"one_time_keys": {"curve25519:A": "x"}}
    assert alice.post("/_matrix/client/v3/keys/upload", keys).status == 200
    answer = client.sync()["extensions"]["e2ee"]
    assert answer["device_one_time_keys_count"]["curve25519"] == 1
    assert answer["device_lists"] == {"changed": [], "left": []}
    pending = client.wait()
    act(bob, room_id, "join")
    answer = finish_poll(server, pending)["extensions"]["e2ee"]
    assert answer["device_lists"]["changed"] == [bob.user_id]


def test_key_counts_end_no_long_poll(server: TestServer) -> None:
    alice = server.register("alice")
    client = SlidingClient(alice, "encryption", extensions={"e2ee": ON})
    client.sync()
    pending = client.wait()
    keys = {"one_time_keys": {"curve25519:A": "x"}}
    assert alice.post("/_matrix/client/v3/keys/upload", keys).status == 200
    server.clock.advance(1)
    assert not pending.done


def test_the_account_data_extension_returns_global_and_room_data(server: TestServer) -> None:
    alice = server.register("alice")
    data = f"/_matrix/client/v3/user/{alice.user_id}"
    first, second = create(alice), create(alice)
    assert alice.put(f"{data}/account_data/org.example", {"a": 1}).status == 200
    for room_id in (first, second):
        assert alice.put(f"{data}/rooms/{room_id}/tags/u.x", {}).status == 200
    client = SlidingClient(alice, lists={"all": a_list([0, 0])}, extensions={"account_data": ON})
    answer = client.sync()["extensions"]["account_data"]
    assert {"type": "org.example", "content": {"a": 1}} in answer["global"]
    (rules,) = (event["content"] for event in answer["global"] if event["type"] == "m.push_rules")
    assert any(rule["rule_id"] == ".m.rule.master" for rule in rules["global"]["override"])
    assert answer["rooms"] == {second: [{"type": "m.tag", "content": {"tags": {"u.x": {}}}}]}
    assert client.sync()["extensions"]["account_data"] == {"global": [], "rooms": {}}
    pending = client.wait()
    assert alice.put(f"{data}/account_data/org.example", {"a": 2}).status == 200
    received = finish_poll(server, pending)
    assert received["extensions"]["account_data"]["global"] == [
        {"type": "org.example", "content": {"a": 2}}
    ]
    client.pos = received["pos"]
    client.body["lists"]["all"]["ranges"] = [[0, 9]]
    assert list(client.sync()["extensions"]["account_data"]["rooms"]) == [first]
    client.body["lists"]["all"]["ranges"] = [[0, 0]]
    assert alice.put(f"{data}/rooms/{first}/account_data/org.example", {"b": 1}).status == 200
    assert client.sync()["extensions"]["account_data"]["rooms"] == {}
    client.sync()
    client.body["lists"]["all"]["ranges"] = [[0, 9]]
    missed = {first: [{"type": "org.example", "content": {"b": 1}}]}
    assert client.sync()["extensions"]["account_data"]["rooms"] == missed
    assert client.sync()["extensions"]["account_data"]["rooms"] == {}


def test_the_receipts_extension_returns_receipts(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice, preset="public_chat")
    act(bob, room_id, "join")
    rooms = f"/_matrix/client/v3/rooms/{room_id}/receipt"
    old, new = say(alice, room_id, "old"), say(alice, room_id, "new")
    assert alice.post(f"{rooms}/m.read.private/{old}").status == 200
    assert bob.post(f"{rooms}/m.read/{new}").status == 200
    assert bob.post(f"{rooms}/m.read.private/{new}").status == 200
    client = SlidingClient(
        alice, lists={"all": a_list([0, 9])}, extensions={"receipts": {**ON, "rooms": ["*"]}}
    )
    event = client.sync()["extensions"]["receipts"]["rooms"][room_id]
    assert event["type"] == "m.receipt"
    assert {
        id: {type: list(users) for type, users in types.items()}
        for id, types in event["content"].items()
    } == {
        old: {"m.read.private": [alice.user_id]},
        new: {"m.read": [bob.user_id]},
    }
    assert client.sync()["extensions"]["receipts"]["rooms"] == {}
    newest = say(alice, room_id, "newest")
    client.sync()
    pending = client.wait()
    assert bob.post(f"{rooms}/m.read/{newest}").status == 200
    received = finish_poll(server, pending)
    assert received["rooms"] == {}
    assert list(received["extensions"]["receipts"]["rooms"][room_id]["content"]) == [newest]


def test_receipts_requested_later_than_the_room_are_sent(server: TestServer) -> None:
    alice, bob, carol = (server.register(name) for name in ("alice", "bob", "carol"))
    room_id = create(alice, preset="public_chat")
    for user in (bob, carol):
        act(user, room_id, "join")
    old, _, new = (say(alice, room_id, text) for text in ("old", "one", "two"))
    client = SlidingClient(alice, lists={"all": a_list([0, 9], limit=2)})
    client.sync()
    for user, event_id in ((alice, old), (bob, new), (carol, old)):
        assert (
            user.post(f"/_matrix/client/v3/rooms/{room_id}/receipt/m.read/{event_id}").status == 200
        )
    client.sync()
    client.body["extensions"] = {"receipts": ON}
    received = client.sync()["extensions"]["receipts"]["rooms"][room_id]["content"]
    # what others read of what the client has of the room, and what one has read oneself
    assert {id: list(types["m.read"]) for id, types in received.items()} == {
        old: [alice.user_id],
        new: [bob.user_id],
    }
    assert client.sync()["extensions"]["receipts"]["rooms"] == {}


def in_two_threads(user: User, room_id: str) -> tuple[str, str]:
    """A thread's root, and an event that is in the thread and in the main timeline: a reply that
    was redacted."""
    root = say(user, room_id, "root")
    relation = {"m.relates_to": {"rel_type": "m.thread", "event_id": root}}
    reply = str(
        ok(put_event(user, room_id, "m.room.message", {"body": "reply", **relation}))["event_id"]
    )
    ok(redact(user, room_id, reply))
    return root, reply


def test_an_unthreaded_receipt_wins_over_threaded_ones_at_the_same_event(
    server: TestServer,
) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice, preset="public_chat")
    act(bob, room_id, "join")
    root, event_id = in_two_threads(alice, room_id)
    for body in ({"thread_id": "main"}, {}, {"thread_id": root}):
        assert (
            bob.post(f"/_matrix/client/v3/rooms/{room_id}/receipt/m.read/{event_id}", body).status
            == 200
        )
    client = SlidingClient(
        alice, lists={"all": a_list([0, 9], limit=9)}, extensions={"receipts": ON}
    )
    received = client.sync()["extensions"]["receipts"]["rooms"][room_id]["content"][event_id][
        "m.read"
    ]
    assert list(received[bob.user_id]) == ["ts"]


@pytest.mark.parametrize("reader", ["alice", "bob"])
@pytest.mark.parametrize("is_new", [False, True])
def test_receipts_of_two_threads_at_the_same_event_are_both_sent(
    server: TestServer, reader: str, *, is_new: bool
) -> None:
    """A redacted reply is read in the main timeline and in its thread: one event has room for one
    of these receipts, and the next answer comes at once."""
    people = {name: server.register(name) for name in ("alice", "bob")}
    alice, user = people["alice"], people[reader]
    room_id = create(alice, preset="public_chat")
    act(people["bob"], room_id, "join")
    root, event_id = in_two_threads(alice, room_id)
    client = SlidingClient(
        alice, lists={"all": a_list([0, 9], limit=9)}, extensions={"receipts": ON}
    )
    if not is_new:
        client.sync()
    for thread_id in ("main", root):
        body = {"thread_id": thread_id}
        assert (
            user.post(f"/_matrix/client/v3/rooms/{room_id}/receipt/m.read/{event_id}", body).status
            == 200
        )
    threads = []
    for answer in (client.sync(), finish_poll(server, client.wait())):
        content = answer["extensions"]["receipts"]["rooms"][room_id]["content"]
        assert list(content) == [event_id]
        threads.append(content[event_id]["m.read"][user.user_id]["thread_id"])
        client.pos = answer["pos"]
    assert threads == ["main", root]
    assert client.sync()["extensions"]["receipts"]["rooms"] == {}


def test_receipts_missed_outside_the_window_are_sent(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice, preset="public_chat")
    act(bob, room_id, "join")
    event_id = say(alice, room_id, "one")
    client = SlidingClient(alice, lists={"all": a_list([0, 0])}, extensions={"receipts": ON})
    client.sync()
    create(alice)
    client.sync()
    assert bob.post(f"/_matrix/client/v3/rooms/{room_id}/receipt/m.read/{event_id}").status == 200
    assert client.sync()["extensions"]["receipts"]["rooms"] == {}
    client.sync()
    client.body["lists"]["all"]["ranges"] = [[0, 1]]
    assert list(client.sync()["extensions"]["receipts"]["rooms"]) == [room_id]


def test_the_typing_extension_returns_typing_users(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id, other = create(alice, preset="public_chat"), create(alice, preset="public_chat")
    for each in (room_id, other):
        act(bob, each, "join")

    def typing(each: str, is_typing: bool) -> None:
        path = f"/_matrix/client/v3/rooms/{each}/typing/{bob.user_id}"
        assert bob.put(path, {"typing": is_typing, "timeout": 20000}).status == 200

    typing(room_id, True)
    client = SlidingClient(
        alice,
        lists={"all": a_list([0, 9]), "none": a_list([0, 9])},
        extensions={"typing": {**ON, "lists": ["all"], "rooms": []}},
    )
    assert client.sync()["extensions"]["typing"]["rooms"] == {
        room_id: {"type": "m.typing", "content": {"user_ids": [bob.user_id]}}
    }
    pending = client.wait()
    typing(room_id, False)
    received = finish_poll(server, pending)
    assert received["extensions"]["typing"]["rooms"][room_id]["content"] == {"user_ids": []}
    client.pos = received["pos"]
    client.body["extensions"]["typing"]["lists"] = []
    typing(other, True)
    assert client.sync()["extensions"]["typing"]["rooms"] == {}


def test_typing_is_sent_when_a_room_returns_to_the_window(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id, other = create(alice, preset="public_chat"), create(alice, preset="public_chat")
    act(bob, room_id, "join")
    say(alice, other, "newest")
    path = f"/_matrix/client/v3/rooms/{room_id}/typing/{bob.user_id}"
    client = SlidingClient(alice, lists={"all": a_list([0, 9])}, extensions={"typing": ON})

    def received() -> dict[str, Any]:
        rooms: dict[str, Any] = client.sync()["extensions"]["typing"]["rooms"]
        return {each: event["content"]["user_ids"] for each, event in rooms.items()}

    assert received() == {}
    for typing, shown in ((True, [bob.user_id]), (False, [])):
        client.body["lists"]["all"]["ranges"] = [[0, 0]]
        assert received() == {}
        assert bob.put(path, {"typing": typing, "timeout": 20000}).status == 200
        assert received() == {}
        client.body["lists"]["all"]["ranges"] = [[0, 9]]
        assert received() == {room_id: shown}
        assert received() == {}


def test_the_end_of_typing_is_sent_to_a_client_that_did_not_ask_for_a_while(
    server: TestServer,
) -> None:
    """For such a client the server no longer stores in which rooms it was sent who types."""
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice, preset="public_chat")
    act(bob, room_id, "join")
    other = create(alice)
    path = f"/_matrix/client/v3/rooms/{room_id}/typing/{bob.user_id}"
    client = SlidingClient(alice, lists={"all": a_list([0, 1])}, extensions={"typing": ON})
    client.sync()
    assert bob.put(path, {"typing": True, "timeout": 20000}).status == 200
    assert room_id in client.sync()["extensions"]["typing"]["rooms"]
    client.body["lists"]["all"]["ranges"] = [[0, 0]]
    client.body["extensions"] = {}
    say(alice, other, "newest")
    client.sync()
    client.body["extensions"] = {"typing": ON}
    client.sync()
    assert bob.put(path, {"typing": False}).status == 200
    client.sync()
    client.body["lists"]["all"]["ranges"] = [[0, 1]]
    received = client.sync()["extensions"]["typing"]["rooms"]
    assert received == {room_id: {"type": "m.typing", "content": {"user_ids": []}}}


def test_typing_is_sent_again_when_a_room_comes_back(server: TestServer) -> None:
    """Clients give up what they knew of who types in a room that leaves their windows. Proposal:
    MSC4508."""
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice, preset="public_chat")
    act(bob, room_id, "join")
    create(alice)
    path = f"/_matrix/client/v3/rooms/{room_id}/typing/{bob.user_id}"
    assert bob.put(path, {"typing": True, "timeout": 20000}).status == 200
    name = "org.matrix.msc4508.typing"
    client = SlidingClient(alice, lists={"all": a_list([0, 1])}, extensions={name: ON})
    for _ in range(2):
        client.body["lists"]["all"]["ranges"] = [[0, 1]]
        rooms = client.sync()["extensions"][name]["rooms"]
        assert rooms == {room_id: {"type": "m.typing", "content": {"user_ids": [bob.user_id]}}}
        assert client.sync()["extensions"] == {name: {"rooms": {}}}
        client.body["lists"]["all"]["ranges"] = [[0, 0]]
        assert client.sync()["extensions"] == {name: {"rooms": {}}}


def test_a_room_that_is_joined_again_sends_its_account_data_again(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(bob, preset="public_chat")
    act(alice, room_id, "join")
    path = f"/_matrix/client/v3/user/{alice.user_id}/rooms/{quote(room_id)}"
    assert alice.put(f"{path}/tags/m.favourite", {"order": 0.5}).status == 200
    client = SlidingClient(alice, lists={"all": a_list([0, 9])}, extensions={"account_data": ON})
    received = client.sync()["extensions"]["account_data"]["rooms"]
    assert [event["type"] for event in received[room_id]] == ["m.tag"]
    act(alice, room_id, "leave")
    assert client.sync()["extensions"]["account_data"]["rooms"] == {}
    act(alice, room_id, "join")
    answer = client.sync()
    assert answer["rooms"][room_id]["initial"] is True
    assert answer["extensions"]["account_data"]["rooms"] == received
    assert client.sync()["extensions"]["account_data"]["rooms"] == {}


def test_data_that_arrive_while_an_extension_is_off_are_not_lost(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice, preset="public_chat")
    act(bob, room_id, "join")
    event_id = say(alice, room_id, "one")
    wanted = {"account_data": ON, "receipts": ON}
    client = SlidingClient(alice, lists={"all": a_list([0, 9])}, extensions=wanted)
    client.sync()
    client.body["extensions"] = {}
    path = f"/_matrix/client/v3/user/{alice.user_id}/account_data/org.example"
    assert alice.put(path, {"a": 1}).status == 200
    assert bob.post(f"/_matrix/client/v3/rooms/{room_id}/receipt/m.read/{event_id}").status == 200
    client.sync()
    client.sync()
    client.body["extensions"] = wanted
    received = client.sync()["extensions"]
    assert received["account_data"]["global"] == [{"type": "org.example", "content": {"a": 1}}]
    assert list(received["receipts"]["rooms"]) == [room_id]
