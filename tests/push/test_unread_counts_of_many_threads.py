"""Unread counts of a user who reads more threads of a room than receipts are stored for."""

from pathlib import Path
from typing import Any

import pytest

from homeserver.services.rooms import receipt_cache
from storage.engine.database import Database
from storage.rooms import receipts
from tests.helpers.room_actions import create, join, ok, relate, room_path, say
from tests.helpers.server import TestServer
from tests.helpers.sync_requests import sync

COUNTED = {"room": {"timeline": {"unread_thread_notifications": True}}}
KEPT = 3


class Reader:
    """Bob, in a room of many threads of Alice's."""

    def __init__(self, server: TestServer, number: int) -> None:
        self.server = server
        self.alice, self.bob = server.register("alice"), server.register("bob")
        self.room = create(self.alice, preset="public_chat")
        join(self.bob, self.room)
        self.roots = [say(self.alice, self.room, f"root {each}") for each in range(number)]
        self.answers = [
            relate(self.alice, self.room, root, "m.thread", "answer") for root in self.roots
        ]
        self.main = say(self.alice, self.room, "in no thread")

    def read(self, event_id: str, thread: str, kind: str = "m.read") -> None:
        ok(self.bob.post(room_path(self.room, "receipt", kind, event_id), {"thread_id": thread}))

    def read_threads(self, numbers: Any, kind: str = "m.read") -> None:
        for each in numbers:
            self.read(self.answers[each], self.roots[each], kind)

    def unread(self) -> dict[str, int]:
        """By thread ("" for what is in none), as /sync says; and all the others agree."""
        room = sync(self.bob, None, COUNTED)["rooms"]["join"][self.room]
        threads = room.get("unread_thread_notifications", {})
        found = {root: each["notification_count"] for root, each in threads.items()}
        found[""] = room["unread_notifications"]["notification_count"]
        whole = sync(self.bob)["rooms"]["join"][self.room]["unread_notifications"][
            "notification_count"
        ]
        listed = ok(self.bob.get("/_matrix/client/v3/notifications?limit=100"))["notifications"]
        sliding = {"timeline_limit": 1, "required_state": []}
        body = {"lists": {"all": {"ranges": [[0, 9]], **sliding}}}
        answer = ok(
            self.bob.post("/_matrix/client/unstable/org.matrix.simplified_msc3575/sync", body)
        )
        count = answer["rooms"][self.room]["notification_count"]
        assert whole == count == sum(found.values()) == sum(not each["read"] for each in listed)
        return {thread: number for thread, number in found.items() if number}

    def forget_counts(self) -> None:
        """Drop the cached counts, so that they are counted again."""
        self.server.app.notifications.unread.cache.clear()


@pytest.fixture
def reader(tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch) -> Reader:
    monkeypatch.setattr(receipts, "MAX_THREADS", KEPT)
    monkeypatch.setattr(receipt_cache, "MAX_CACHED_PER_ROOM", KEPT - 1)  # always less than that
    return Reader(TestServer(tmp_path, database), 8)


def test_a_room_with_cached_receipts_has_fewer_than_the_limit() -> None:
    assert receipt_cache.MAX_CACHED_PER_ROOM < receipts.MAX_THREADS


@pytest.mark.parametrize("kind", ["m.read", "m.read.private"])
def test_threads_read_first_stay_read(reader: Reader, kind: str) -> None:
    reader.read(reader.main, "main", kind)
    reader.read_threads(range(KEPT - 1), kind)
    assert reader.unread() == dict.fromkeys(reader.roots[KEPT - 1 :], 1)
    reader.read_threads(range(KEPT - 1, 7), kind)
    assert reader.unread() == {reader.roots[7]: 1}
    reader.forget_counts()
    assert reader.unread() == {reader.roots[7]: 1}
    new_reply = relate(
        reader.alice, reader.room, reader.roots[0], "m.thread", "what comes then is news"
    )
    assert reader.unread() == {reader.roots[0]: 1, reader.roots[7]: 1}
    reader.read(new_reply, reader.roots[0], kind)
    assert reader.unread() == {reader.roots[7]: 1}


def test_reading_an_old_thread_again_keeps_all_others_read(reader: Reader) -> None:
    """In whatever order they are read."""
    reader.read(reader.main, "main")
    reader.read_threads((5, 4, 6, 3, 1, 2, 7, 0, 1))
    assert reader.unread() == {}
    reader.read_threads((0,))
    reader.forget_counts()
    assert reader.unread() == {}


def test_reading_threads_does_not_read_the_main_timeline(reader: Reader) -> None:
    before = len(reader.roots) + 1
    reader.read_threads(range(8))
    assert reader.unread() == {"": before}
    reader.read(reader.roots[3], "main")
    assert reader.unread() == {"": 5}


def test_only_events_before_the_stored_receipts_count_as_read(reader: Reader) -> None:
    reader.read(reader.main, "main")
    reader.read_threads((0, 1, 2, 4, 6))
    assert reader.unread() == {reader.roots[5]: 1, reader.roots[7]: 1}
