"""Messages of ignored users are hidden in every endpoint; their state events are shown, since they
belong to the room.

spec: client-server-api#ignoring-users
"""

from collections.abc import Callable

import pytest

from tests.helpers.event_search import begin_jobs, search, settle
from tests.helpers.room_actions import (
    create,
    invite,
    join,
    messages,
    ok,
    put_event,
    room_path,
    say,
    set_state,
)
from tests.helpers.server import TestServer
from tests.helpers.sliding_client import SlidingClient, a_list
from tests.helpers.sync_requests import Rooms, events_in, sync, sync_path

pytestmark = pytest.mark.usefixtures("compared")


class Room:
    """Alice ignores troll, who sends everything in a room of theirs."""

    def __init__(self, server: TestServer) -> None:
        begin_jobs(server)
        self.server = server
        self.alice, self.bob, self.troll = (
            server.register(name) for name in ("alice", "bob", "troll")
        )
        Rooms().keep(self.alice, "m.ignored_user_list", {"ignored_users": {self.troll.user_id: {}}})
        self.room_id = create(
            self.bob, preset="public_chat", power_level_content_override={"state_default": 0}
        )
        join(self.alice, self.room_id)
        join(self.troll, self.room_id)
        self.since = str(sync(self.alice)["next_batch"])
        self.root = say(self.bob, self.room_id, "word of bob")
        for rel_type in ("m.thread", "m.reference"):
            for user in (self.bob, self.troll):
                relation = {"rel_type": rel_type, "event_id": self.root}
                content = {
                    "msgtype": "m.text",
                    "body": f"word from {user.user_id}",
                    "m.relates_to": relation,
                }
                ok(put_event(user, self.room_id, "m.room.message", content))
        say(self.troll, self.room_id, "word of troll")
        self.topic = set_state(self.troll, self.room_id, "m.room.topic", {"topic": "set by troll"})
        settle(server)

    def path(self, *rest: str, **query: object) -> str:
        return room_path(self.room_id, *rest, **query)


@pytest.fixture
def room(server: TestServer) -> Room:
    return Room(server)


def by_first_sync(room: Room) -> object:
    return sync(room.alice, filter={"room": {"timeline": {"limit": 100}}})


def by_later_sync(room: Room) -> object:
    return sync(room.alice, room.since, {"room": {"timeline": {"limit": 100}}})


def by_sliding_sync(room: Room) -> object:
    return SlidingClient(room.alice, lists={"all": a_list([0, 9], limit=100)}).sync()["rooms"]


def by_messages_back(room: Room) -> object:
    return messages(room.alice, room.room_id, "b", limit=100)


def by_messages_forth(room: Room) -> object:
    return messages(room.alice, room.room_id, "f", limit=100)


def by_context(room: Room) -> object:
    return ok(room.alice.get(room.path("context", room.root, limit=100)))


def by_room_initial_sync(room: Room) -> object:
    return ok(room.alice.get(room.path("initialSync", limit=100)))


def by_initial_sync(room: Room) -> object:
    return ok(room.alice.get("/_matrix/client/v3/initialSync?limit=100"))


def by_events(room: Room) -> object:
    return ok(room.alice.get(f"/_matrix/client/v3/events?from={room.since}&timeout=0"))


def by_relations(room: Room) -> object:
    return ok(
        room.alice.get(f"/_matrix/client/v1/rooms/{room.room_id}/relations/{room.root}?limit=100")
    )


def by_threads(room: Room) -> object:
    return ok(room.alice.get(f"/_matrix/client/v1/rooms/{room.room_id}/threads"))


def by_search(room: Room) -> object:
    return search(room.alice, "word", event_context={"before_limit": 50, "after_limit": 50})[
        "results"
    ]


WITH_STATE: tuple[Callable[[Room], object], ...] = (
    by_first_sync,
    by_later_sync,
    by_sliding_sync,
    by_messages_back,
    by_messages_forth,
    by_context,
    by_room_initial_sync,
    by_initial_sync,
    by_events,
)
WAYS = [*WITH_STATE, by_relations, by_threads, by_search]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: str(way.__name__))
def test_messages_of_ignored_users_are_hidden(room: Room, way: Callable[[Room], object]) -> None:
    events = list(events_in(way(room)))
    shown = {event["content"]["body"] for event in events if event["type"] == "m.room.message"}
    assert shown
    assert not [body for body in shown if "troll" in body]
    if way in WITH_STATE:
        assert room.topic in {event["event_id"] for event in events}


def test_relations_by_ignored_users_are_hidden(room: Room) -> None:
    event = ok(room.alice.get(room.path("event", room.root)))
    relations = event["unsigned"]["m.relations"]
    assert relations["m.thread"]["count"] == 1
    assert relations["m.thread"]["latest_event"]["sender"] == room.bob.user_id
    assert len(relations["m.reference"]["chunk"]) == 1


def test_receipts_typing_and_invites_of_ignored_users_are_hidden(room: Room) -> None:
    rooms = Rooms()
    rooms.read(room.troll, room.room_id, room.root)
    rooms.type(room.troll, room.room_id)
    other = create(room.troll)
    invite(room.troll, other, room.alice)
    for answer in (sync(room.alice), sync(room.alice, room.since)):
        assert room.troll.user_id not in str(answer["rooms"]["join"][room.room_id]["ephemeral"])
        assert "invite" not in answer["rooms"]
    client = SlidingClient(
        room.alice,
        lists={"all": a_list([0, 9])},
        extensions={"receipts": {"enabled": True}, "typing": {"enabled": True}},
    )
    answer = client.sync()
    assert list(answer["rooms"]) == [room.room_id]
    assert room.troll.user_id not in str(answer["extensions"])
    assert [
        each["room_id"] for each in ok(room.alice.get("/_matrix/client/v3/initialSync"))["rooms"]
    ] == [room.room_id]
    old = ok(room.alice.get(f"/_matrix/client/v3/events?from={room.since}&timeout=0"))["chunk"]
    assert [
        each
        for each in old
        if each["type"] in ("m.typing", "m.receipt") and room.troll.user_id in str(each)
    ] == []


def test_messages_of_ignored_users_neither_wake_nor_count(room: Room) -> None:
    Rooms().read(room.alice, room.room_id, say(room.bob, room.room_id, "up to here"))
    since = str(sync(room.alice)["next_batch"])
    pending = room.alice.start("GET", sync_path(since, timeout=5000))
    say(room.troll, room.room_id, f"for {room.alice.user_id}")
    for _ in range(3):
        room.server.clock.advance(0)
    assert not pending.done
    counts = sync(room.alice)["rooms"]["join"][room.room_id]["unread_notifications"]
    assert counts == {"notification_count": 0, "highlight_count": 0}
    room.server.clock.advance(6)
    assert (
        "rooms" not in pending.answer.json
        or room.room_id not in pending.answer.json["rooms"]["join"]
    )


def test_a_user_who_is_no_longer_ignored_is_shown_again(room: Room) -> None:
    Rooms().keep(room.alice, "m.ignored_user_list", {"ignored_users": {}})
    since = str(sync(room.alice)["next_batch"])
    say(room.troll, room.room_id, "once more")
    (event,) = sync(room.alice, since)["rooms"]["join"][room.room_id]["timeline"]["events"]
    assert event["content"]["body"] == "once more"


def test_a_request_for_one_event_returns_an_ignored_users_event(room: Room) -> None:
    event_id = say(room.troll, room.room_id, "as you like")
    assert room.alice.get(room.path("event", event_id)).status == 200
