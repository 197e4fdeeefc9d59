"""Threads whose root was removed by retention or a purge can be read and marked as read while they
have visible replies."""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from storage.engine.database import Database
from tests.helpers.retention import DAY, RULES, SECRET, keep_for, purge
from tests.helpers.room_actions import create, join, ok, refused, relate, room_path, say
from tests.helpers.server import TestServer
from tests.helpers.sync_requests import sync

COUNTED = {"room": {"timeline": {"unread_thread_notifications": True}}}
GONE = (404, "M_NOT_FOUND")


class Thread:
    """A thread of Alice's, a day old except for its latest message."""

    def __init__(self, server: TestServer) -> None:
        self.server = server
        self.alice, self.bob = server.register("alice"), server.register("bob")
        self.room = create(self.alice, preset="public_chat")
        join(self.bob, self.room)
        keep_for(self.alice, self.room, DAY)
        self.root = say(self.alice, self.room, SECRET)
        self.old = relate(self.alice, self.room, self.root, "m.thread", SECRET)
        server.clock.advance(DAY - 60)
        self.new = relate(self.alice, self.room, self.root, "m.thread", "new")
        server.clock.advance(61)

    def roots(self) -> Any:
        return ok(self.bob.get(f"/_matrix/client/v1/rooms/{quote(self.room)}/threads"))["chunk"]

    def relations(self, *more: str) -> Any:
        parts = "/".join(map(quote, (self.root, *more)))
        return self.bob.get(f"/_matrix/client/v1/rooms/{quote(self.room)}/relations/{parts}")

    def unread(self) -> Any:
        return sync(self.bob, None, COUNTED)["rooms"]["join"][self.room].get(
            "unread_thread_notifications", {}
        )

    def event(self) -> Any:
        return self.bob.get(room_path(self.room, "event", self.root))


@pytest.fixture
def thread(tmp_path: Path, sqlite_database: Database) -> Thread:
    return Thread(TestServer(tmp_path, sqlite_database, RULES))


@pytest.mark.parametrize("is_purged", [False, True])
def test_a_thread_is_readable_while_a_reply_is_visible(thread: Thread, is_purged: bool) -> None:
    if is_purged:
        assert purge(thread.server) == 2
    (root,) = thread.roots()
    assert (root["event_id"], root["content"]) == (thread.root, {})
    assert root["unsigned"]["m.relations"]["m.thread"]["latest_event"]["event_id"] == thread.new
    for more in ((), ("m.thread",)):
        assert [event["event_id"] for event in ok(thread.relations(*more))["chunk"]] == [thread.new]
    assert ok(thread.event())["content"] == {}
    context = ok(thread.bob.get(room_path(thread.room, "context", thread.root)))
    assert context["event"]["content"] == {}
    assert SECRET not in str([root, context])
    shown = [
        event["event_id"]
        for event in ok(thread.bob.get(room_path(thread.room, "messages", dir="b")))["chunk"]
    ]
    assert thread.new in shown
    assert not {thread.root, thread.old} & set(shown)


@pytest.mark.parametrize("is_purged", [False, True])
def test_a_thread_disappears_with_its_last_reply(thread: Thread, is_purged: bool) -> None:
    thread.server.clock.advance(DAY)
    if is_purged:
        assert purge(thread.server) == 3
    assert thread.roots() == []
    assert refused(thread.relations("m.thread")) == refused(thread.event()) == GONE


def test_a_thread_without_root_is_marked_as_read(thread: Thread) -> None:
    assert purge(thread.server) == 2
    assert thread.unread()[thread.root]["notification_count"] == 1
    for event_id in (thread.old, thread.new):
        ok(
            thread.bob.post(
                room_path(thread.room, "receipt", "m.read", event_id), {"thread_id": thread.root}
            )
        )
    assert thread.unread() == {}


def test_an_invisible_root_is_not_shown_after_its_removal(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(tmp_path, sqlite_database, RULES)
    alice, bob = server.register("alice"), server.register("bob")
    visibility = {
        "type": "m.room.history_visibility",
        "state_key": "",
        "content": {"history_visibility": "joined"},
    }
    room_id = create(alice, preset="public_chat", initial_state=[visibility])
    keep_for(alice, room_id, DAY)
    root = say(alice, room_id, SECRET)
    server.clock.advance(DAY - 60)
    join(bob, room_id)
    relate(alice, room_id, root, "m.thread", "new")
    for seconds in (0, 61):
        server.clock.advance(seconds)
        purge(server)
        assert refused(bob.get(room_path(room_id, "event", root))) == GONE
    assert ok(alice.get(room_path(room_id, "event", root)))["content"] == {}
