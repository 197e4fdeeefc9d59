"""Typing notifications and ignored users. spec: client-server-api#typing-notifications,
#ignoring-users"""

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from federation.protocol.ids import RoomID, ServerName, UserID
from tests.helpers.server import TestServer, User
from tests.helpers.sliding_client import SlidingClient, a_list
from tests.helpers.sync_requests import Rooms, poll, sync

pytestmark = pytest.mark.usefixtures("compared")

rooms = Rooms()


def ephemeral(answer: Any, room_id: str, kind: str) -> Any:
    room = answer.get("rooms", {}).get("join", {}).get(room_id, {"ephemeral": {"events": []}})
    found = [event["content"] for event in room["ephemeral"]["events"] if event["type"] == kind]
    return found[0] if found else None


def typing(answer: Any, room_id: str) -> Any:
    content = ephemeral(answer, room_id, "m.typing")
    return None if content is None else content["user_ids"]


@pytest.mark.parametrize("verb", ["leave", "kick", "ban"])
def test_a_user_who_leaves_stops_typing(
    server: TestServer, alice: User, bob: User, verb: str
) -> None:
    carol = server.register("carol")
    room_id = rooms.create(alice, bob, carol)
    rooms.type(bob, room_id)
    rooms.type(carol, room_id)
    answer = sync(alice)
    assert typing(answer, room_id) == [bob.user_id, carol.user_id]
    since = answer["next_batch"]
    if verb == "leave":
        rooms.act(bob, room_id, "leave")
    else:
        rooms.act(alice, room_id, verb, bob)
    assert typing(sync(alice, since), room_id) == [carol.user_id]


@pytest.mark.parametrize("goes_on", [False, True])
def test_a_returning_user_gets_current_typing(alice: User, bob: User, *, goes_on: bool) -> None:
    """The client got no update while it was away: it may have old state, or start again with the
    room."""
    room_id = rooms.create(bob, alice)
    extensions = {"typing": {"enabled": True}}
    sliding = SlidingClient(alice, lists={"all": a_list([0, 9])}, extensions=extensions)
    rooms.type(bob, room_id)
    since = sync(alice)["next_batch"]
    sliding.sync()
    rooms.act(alice, room_id, "leave")
    rooms.act(alice, room_id, "join")
    if not goes_on:
        rooms.type(bob, room_id, typing=False)
    received = [bob.user_id] if goes_on else []
    assert typing(sync(alice, since), room_id) == received
    answer = sliding.sync()
    assert answer["rooms"][room_id]["initial"]
    assert answer["extensions"]["typing"]["rooms"][room_id]["content"]["user_ids"] == received


def test_a_changed_name_does_not_end_typing(alice: User, bob: User) -> None:
    room_id = rooms.create(alice, bob)
    rooms.type(bob, room_id)
    rooms.state(
        bob, room_id, "m.room.member", {"membership": "join", "displayname": "Bobby"}, bob.user_id
    )
    assert typing(sync(alice), room_id) == [bob.user_id]


def test_typing_of_ignored_users_is_not_sent(alice: User, bob: User, server: TestServer) -> None:
    carol = server.register("carol")
    room_id = rooms.create(alice, bob, carol)
    extensions = {"typing": {"enabled": True}, "receipts": {"enabled": True}}
    sliding = SlidingClient(alice, lists={"all": a_list([0, 9], limit=5)}, extensions=extensions)
    event_id = rooms.say(alice, room_id)
    sliding.sync()
    rooms.keep(alice, "m.ignored_user_list", {"ignored_users": {bob.user_id: {}}})
    since = sync(alice)["next_batch"]
    for user in (bob, carol):
        rooms.type(user, room_id)
        rooms.read(user, room_id, event_id)
    for answer in (sync(alice), sync(alice, since)):
        assert typing(answer, room_id) == [carol.user_id]
        assert set(ephemeral(answer, room_id, "m.receipt")[event_id]["m.read"]) == {carol.user_id}
    new_client = SlidingClient(alice, "other", lists=sliding.body["lists"], extensions=extensions)
    for client in (sliding, new_client):
        received = client.sync()["extensions"]
        assert received["typing"]["rooms"][room_id]["content"]["user_ids"] == [carol.user_id]
        assert set(received["receipts"]["rooms"][room_id]["content"][event_id]["m.read"]) == {
            carol.user_id
        }
    seen_by_carol = sync(carol)
    assert typing(seen_by_carol, room_id) == [bob.user_id, carol.user_id]
    assert set(ephemeral(seen_by_carol, room_id, "m.receipt")[event_id]["m.read"]) == {
        bob.user_id,
        carol.user_id,
    }


def test_a_read_receipt_of_an_ignored_user_does_not_wake(
    server: TestServer, alice: User, bob: User
) -> None:
    room_id = rooms.create(alice, bob)
    event_id = rooms.say(alice, room_id)
    rooms.keep(alice, "m.ignored_user_list", {"ignored_users": {bob.user_id: {}}})
    waiting = poll(alice, sync(alice)["next_batch"])
    rooms.read(bob, room_id, event_id)
    for _ in range(3):
        server.clock.advance(0)
    assert not waiting.done


def test_typing_of_remote_users_is_sent(server: TestServer, alice: User, bob: User) -> None:
    service = server.app.presence.typing
    typing_changes: list[tuple[int, str, bool]] = []
    service.subscribe(lambda *what: typing_changes.append(what))
    room_id = rooms.create(alice)
    nids: list[int] = []
    Deferred.fromCoroutine(server.app.room_engine.engine.get_snapshot(RoomID(room_id))).addCallback(
        lambda snapshot: nids.append(snapshot.room.room_nid)
    )
    rooms.type(alice, room_id)
    rooms.type(alice, room_id, typing=False)
    assert typing_changes == [(nids[0], alice.user_id, True), (nids[0], alice.user_id, False)]

    def receive(origin: str, user_id: str) -> None:
        Deferred.fromCoroutine(
            service.receive(ServerName(origin), nids[0], UserID(user_id), is_typing=True)
        )

    receive("other.example", "@zoe:other.example")  # a user who is not in the room
    receive("other.example", alice.user_id)  # a user of another server
    receive("example.org", bob.user_id)
    assert typing(sync(alice), room_id) is None
    receive("example.org", alice.user_id)
    assert typing(sync(alice), room_id) == [alice.user_id]
    assert len(typing_changes) == 2
