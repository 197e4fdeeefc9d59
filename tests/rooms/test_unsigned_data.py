"""An event's `unsigned` is the same however it is read. spec:
client-server-api#definition-clientevent_unsigneddata"""

from collections.abc import Callable
from typing import Any

import pytest

from tests.helpers.event_search import begin_jobs, search, settle
from tests.helpers.logins import password_auth
from tests.helpers.room_actions import (
    create,
    invite,
    join,
    leave,
    messages,
    ok,
    put_event,
    redact,
    room_path,
    say,
    set_state,
)
from tests.helpers.server import TestServer, User
from tests.helpers.sliding_client import SlidingClient, a_list
from tests.helpers.sync_requests import events_in, sync

Events = dict[str, dict[str, Any]]


class Room:
    """A room whose events have all fields of `unsigned`."""

    def __init__(self, server: TestServer) -> None:
        begin_jobs(server)
        self.server = server
        self.alice, self.bob = server.register("alice"), server.register("bob")
        self.room_id = create(self.alice, preset="public_chat")
        self.early = say(self.alice, self.room_id, "word early")
        invite(self.alice, self.room_id, self.bob)
        self.meanwhile = say(self.alice, self.room_id, "word meanwhile")
        join(self.bob, self.room_id)
        self.root = say(self.bob, self.room_id, "word root")
        self.topics = [
            set_state(self.alice, self.room_id, "m.room.topic", {"topic": text})
            for text in ("a", "b")
        ]
        content = {
            "msgtype": "m.text",
            "body": "word own",
            "m.relates_to": {"rel_type": "m.thread", "event_id": self.root},
        }
        self.own = str(
            ok(put_event(self.bob, self.room_id, "m.room.message", content, "txn-1"))["event_id"]
        )
        self.gone = say(self.alice, self.room_id, "word gone")
        self.why = str(ok(redact(self.alice, self.room_id, self.gone, reason="spam"))["event_id"])
        settle(server)

    def path(self, *rest: str, **query: object) -> str:
        return room_path(self.room_id, *rest, **query)

    def all_ids(self) -> list[str]:
        return [self.early, self.meanwhile, self.root, *self.topics, self.own, self.gone]


def by_sync(_: Room, user: User) -> object:
    return sync(user, filter={"room": {"include_leave": True, "timeline": {"limit": 1000}}})


def by_sliding_sync(room: Room, user: User) -> object:
    answer = SlidingClient(user, lists={"all": a_list([0, 9], limit=1000)}).sync()
    return answer["rooms"][room.room_id].get("timeline", [])


def by_messages(room: Room, user: User) -> object:
    return messages(user, room.room_id, "b", limit=1000)


def by_event(room: Room, user: User) -> object:
    return [ok(user.get(room.path("event", event_id))) for event_id in room.all_ids()]


def by_event_of_any_room(room: Room, user: User) -> object:
    return [ok(user.get(f"/_matrix/client/v3/events/{event_id}")) for event_id in room.all_ids()]


def by_context(room: Room, user: User) -> object:
    context = ok(user.get(room.path("context", room.root, limit=1000)))
    return [*context["events_before"], context["event"], *context["events_after"]]


def by_room_initial_sync(room: Room, user: User) -> object:
    return ok(user.get(room.path("initialSync", limit=100)))["messages"]


def by_relations(room: Room, user: User) -> object:
    return ok(user.get(f"/_matrix/client/v1/rooms/{room.room_id}/relations/{room.root}"))["chunk"]


def by_threads(room: Room, user: User) -> object:
    return ok(user.get(f"/_matrix/client/v1/rooms/{room.room_id}/threads"))["chunk"]


def by_search(_: Room, user: User) -> object:
    return search(user, "word", event_context={"before_limit": 50, "after_limit": 50})["results"]


TIMELINES: tuple[Callable[[Room, User], object], ...] = (
    by_sync,
    by_sliding_sync,
    by_messages,
    by_event,
    by_event_of_any_room,
    by_context,
    by_room_initial_sync,
    by_search,
)
"""Ways to read that return all events."""
SOME: tuple[Callable[[Room, User], object], ...] = (by_relations, by_threads)
"""Ways to read that return some events."""


@pytest.fixture
def room(server: TestServer) -> Room:
    return Room(server)


def read(way: Callable[[Room, User], object], room: Room, user: User) -> Events:
    return {event["event_id"]: event for event in events_in(way(room, user)) if "unsigned" in event}


@pytest.mark.parametrize("way", TIMELINES, ids=lambda way: str(way.__name__))
def test_unsigned_data_are_the_same_in_every_endpoint(
    room: Room, way: Callable[[Room, User], object]
) -> None:
    events = read(way, room, room.bob)
    assert set(room.all_ids()) <= set(events)
    memberships = [
        events[each]["unsigned"]["membership"] for each in (room.early, room.meanwhile, room.root)
    ]
    assert memberships == ["leave", "invite", "join"]
    first, second = (events[topic]["unsigned"] for topic in room.topics)
    assert "prev_content" not in first
    assert (second["prev_content"], second["replaces_state"]) == ({"topic": "a"}, room.topics[0])
    because = events[room.gone]["unsigned"]["redacted_because"]
    assert (because["event_id"], because["content"]["reason"]) == (room.why, "spam")
    assert events[room.gone]["content"] == {}
    assert all(isinstance(event["unsigned"]["age"], int) for event in events.values())


@pytest.mark.parametrize("way", [*TIMELINES, *SOME], ids=lambda way: str(way.__name__))
def test_only_the_sending_device_gets_the_transaction_id(
    room: Room, way: Callable[[Room, User], object]
) -> None:
    assert read(way, room, room.bob)[room.own]["unsigned"]["transaction_id"] == "txn-1"
    body = password_auth("bob")
    phone = User(room.server, ok(room.server.post("/_matrix/client/v3/login", body)))
    for other in (phone, room.alice):
        assert "transaction_id" not in read(way, room, other)[room.own]["unsigned"]


@pytest.mark.parametrize("way", TIMELINES[2:-1], ids=lambda way: str(way.__name__))
def test_former_members_do_not_see_later_redactions(
    room: Room, way: Callable[[Room, User], object]
) -> None:
    leave(room.bob, room.room_id)
    ok(redact(room.alice, room.room_id, room.early, reason="said after you left"))
    assert "said after you left" not in str(way(room, room.bob))
