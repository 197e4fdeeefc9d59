"""/sync that waits: which changes end the wait, and which do not. spec: client-server-
api#syncing"""

from collections.abc import Callable

import pytest

from federation.rooms.memberships import Memberships
from storage.engine.interface import DatabaseUnavailable
from tests.helpers.clocks import settle
from tests.helpers.server import TestServer, User
from tests.helpers.sliding_follower import UNSTABLE
from tests.helpers.sync_requests import Json, Rooms, bodies, poll, sync, token

rooms = Rooms()
PROFILES: Json = {
    "lists": {"all": {"timeline_limit": 1, "ranges": [[0, 9]]}},
    "extensions": {"org.matrix.msc4262.profiles": {"enabled": True, "fields": ["org.example.x"]}},
}


def wake(what: str, alice: User, bob: User, room: str) -> str:
    """Do something that concerns Alice; the part of the room's answer in which she has to be
    told."""
    match what:
        case "message":
            rooms.say(bob, room)
        case "own message":
            rooms.say(alice, room)
        case "state":
            rooms.state(alice, room, "m.room.topic", {"topic": "tea"})
        case "receipt":
            rooms.read(bob, room, rooms.say(alice, room))
            return "ephemeral"
        case "typing":
            rooms.type(bob, room)
            return "ephemeral"
        case _:
            rooms.keep(alice, "a.b", {"n": 1}, room)
            return "account_data"
    return "timeline"


@pytest.mark.parametrize(
    "what", ["message", "own message", "state", "receipt", "typing", "account data"]
)
def test_new_events_of_a_room_end_the_wait(server: TestServer, what: str) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room = rooms.create(alice, bob)
    waiting = poll(alice, token(alice))
    assert not waiting.done
    section = wake(what, alice, bob, room)
    settle(server)
    assert waiting.answer.json["rooms"]["join"][room][section]["events"]


@pytest.mark.parametrize(
    "path", ["send/m.room.message/own", "state/m.room.topic/", "redact/{root}/own", "send/thread"]
)
def test_a_sender_is_answered_before_waiting_clients(server: TestServer, path: str) -> None:
    """A client that sees its event in /sync first has to guess that it is its own."""
    alice = server.register("alice")
    room = rooms.create(alice)
    root = rooms.say(alice, room)
    waiting = poll(alice, token(alice))
    content: Json = {"msgtype": "m.text", "body": "hello", "topic": "tea"}
    if path == "send/thread":
        path, content["m.relates_to"] = (
            "send/m.room.message/own",
            {"rel_type": "m.thread", "event_id": root},
        )
    answered = alice.start(
        "PUT", f"/_matrix/client/v3/rooms/{room}/{path.format(root=root)}", content
    )
    assert (answered.done, waiting.done) == (True, False)
    settle(server)
    events = waiting.answer.json["rooms"]["join"][room]["timeline"]["events"]
    assert events[-1]["event_id"] == answered.answer.json["event_id"]


def test_global_account_data_wakes_all_devices_of_the_user_and_nobody_else(
    server: TestServer,
) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    rooms.create(alice, bob)
    since = token(alice)
    waiting, other, bobs = poll(alice, since), poll(alice, since), poll(bob, since)
    rooms.keep(alice, "a.b", {"n": 1})
    settle(server)
    for answer in (waiting.answer, other.answer):
        assert answer.json["account_data"]["events"] == [{"type": "a.b", "content": {"n": 1}}]
    assert not bobs.done


def test_changes_of_the_own_membership_end_the_wait(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room = rooms.create(alice, preset="private_chat")

    def wait_for(do: Callable[[], None]) -> Json:
        waiting = poll(bob, token(bob))
        do()
        settle(server)
        return dict(waiting.answer.json["rooms"])

    assert room in wait_for(lambda: rooms.act(alice, room, "invite", bob))["invite"]
    assert room in wait_for(lambda: rooms.act(bob, room, "leave"))["leave"]
    rooms.act(alice, room, "invite", bob)
    assert room in wait_for(lambda: rooms.join(bob, room))["join"]
    assert room in wait_for(lambda: rooms.act(alice, room, "kick", bob))["leave"]
    assert room in wait_for(lambda: rooms.act(alice, room, "ban", bob))["leave"]


def test_without_changes_the_response_comes_after_the_timeout(server: TestServer) -> None:
    alice = server.register("alice")
    rooms.create(alice)
    since = token(alice)
    waiting = poll(alice, since, timeout=5000)
    server.clock.advance(4.9)
    assert not waiting.done
    server.clock.advance(0.1)
    assert waiting.answer.status == 200
    assert "rooms" not in waiting.answer.json
    assert waiting.answer.json["next_batch"] == since


def test_filtered_events_do_not_end_the_wait(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room = rooms.create(alice, bob)
    silent = {
        "account_data": {"types": []},
        "room": {"timeline": {"types": ["a.b"]}, "ephemeral": {"types": []}},
    }
    waiting = poll(alice, token(alice), silent)
    rooms.keep(alice, "c.d", {})
    rooms.type(bob, room)
    rooms.send(bob, room, "c.d", {})
    settle(server)
    assert not waiting.done
    wanted = rooms.send(bob, room, "a.b", {})
    settle(server)
    events = waiting.answer.json["rooms"]["join"][room]["timeline"]["events"]
    assert [event["event_id"] for event in events] == [wanted]


def test_a_private_receipt_wakes_only_its_user(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room = rooms.create(alice, bob)
    event_id = rooms.say(alice, room)
    alices, bobs = poll(alice, token(alice)), poll(bob, token(bob))
    rooms.read(bob, room, event_id, "m.read.private")
    settle(server)
    (receipt,) = bobs.answer.json["rooms"]["join"][room]["ephemeral"]["events"]
    assert receipt["content"][event_id]["m.read.private"].keys() == {bob.user_id}
    assert not alices.done
    assert "rooms" not in sync(alice, token(alice))


def test_a_disconnected_client_is_removed(server: TestServer) -> None:
    alice = server.register("alice")
    room = rooms.create(alice)
    waiting = poll(alice, token(alice))
    waiting.disconnect()
    rooms.say(alice, room)
    settle(server)
    assert not waiting.done
    assert not server.clock.getDelayedCalls() or all(
        call.getTime() > server.clock.seconds() for call in server.clock.getDelayedCalls()
    )


def test_many_waiting_clients_all_wake(server: TestServer) -> None:
    alice = server.register("alice")
    room = rooms.create(alice)
    since = token(alice)
    waiting = [poll(alice, since) for _ in range(60)]
    rooms.say(alice, room)
    settle(server)
    assert all(bodies(each.answer.json["rooms"]["join"][room]) == ["hello"] for each in waiting)


def test_typing_ends_after_its_timeout(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room = rooms.create(alice, bob)
    rooms.type(bob, room)
    first = sync(alice)
    (typing,) = first["rooms"]["join"][room]["ephemeral"]["events"]
    assert typing == {"type": "m.typing", "content": {"user_ids": [bob.user_id]}}
    waiting = poll(alice, first["next_batch"])
    server.clock.advance(10)
    settle(server)
    (typing,) = waiting.answer.json["rooms"]["join"][room]["ephemeral"]["events"]
    assert typing["content"]["user_ids"] == []


def test_waiting_clients_are_woken_after_a_short_database_outage(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was asked who shares a room with somebody whose profile has changed."""
    alice, bob = server.register("alice"), server.register("bob")
    rooms.create(alice, bob)
    pos = alice.post(UNSTABLE, PROFILES).json["pos"]
    waiting = alice.start("POST", f"{UNSTABLE}?pos={pos}&timeout=30000", PROFILES)
    settle(server)

    async def be_away(*_: object) -> object:
        raise DatabaseUnavailable("restarting")

    with monkeypatch.context() as patch:
        patch.setattr(Memberships, "of_user", be_away)
        path = f"/_matrix/client/v3/profile/{bob.user_id}/org.example.x"
        assert bob.put(path, {"org.example.x": 1}).status == 200
        settle(server)
        assert not waiting.done
    server.clock.advance(1)
    settle(server)
    users = waiting.answer.json["extensions"]["org.matrix.msc4262.profiles"]["users"]
    assert users == {bob.user_id: {"updated": {"org.example.x": 1}}}
