"""Unread counts in /sync. spec: client-server-api#receiving-notifications"""

import pytest

from tests.helpers.server import TestServer, User
from tests.helpers.sync_requests import Json, Rooms, sync, token

pytestmark = pytest.mark.usefixtures("compared")

rooms = Rooms()


class Following:
    """Two clients of a user: one that has been there all the time, and one that comes new."""

    def __init__(self, user: User, room: str) -> None:
        self.user = user
        self.room = room
        self.since = token(user)
        self.counts = self._counts(sync(user)["rooms"]["join"][room])

    def counted(self) -> tuple[int, int]:
        """(notifications, highlights), the same for both."""
        answer = sync(self.user, self.since)
        self.since = answer["next_batch"]
        update = answer.get("rooms", {}).get("join", {}).get(self.room)
        if update is not None:
            self.counts = self._counts(update)
        assert self.counts == self._counts(sync(self.user)["rooms"]["join"][self.room])
        return self.counts

    def _counts(self, room: Json) -> tuple[int, int]:
        counts = room["unread_notifications"]
        return counts["notification_count"], counts["highlight_count"]


@pytest.fixture
def room(alice: User, bob: User) -> str:
    return rooms.create(alice, bob)


@pytest.fixture
def bobs(bob: User, room: str) -> Following:
    return Following(bob, room)


@pytest.mark.parametrize("kind", ["m.read", "m.read.private"])
def test_messages_count_until_they_are_read(
    alice: User, bob: User, room: str, bobs: Following, kind: str
) -> None:
    assert bobs.counted() == (0, 0)
    rooms.say(bob, room)
    assert bobs.counted() == (0, 0), "one's own do not count"
    first = rooms.say(alice, room)
    rooms.say(alice, room)
    assert bobs.counted() == (2, 0)
    rooms.read(bob, room, first, kind)
    assert bobs.counted() == (1, 0)
    rooms.say(alice, room)
    assert bobs.counted() == (2, 0)
    rooms.read(bob, room, rooms.say(alice, room), kind)
    assert bobs.counted() == (0, 0)


def test_state_reactions_and_edits_do_not_count(alice: User, room: str, bobs: Following) -> None:
    target = rooms.say(alice, room)
    relation = {"rel_type": "m.replace", "event_id": target}
    rooms.say(alice, room, more={"m.relates_to": relation})
    rooms.send(
        alice,
        room,
        "m.reaction",
        {"m.relates_to": {"rel_type": "m.annotation", "event_id": target, "key": "x"}},
    )
    rooms.state(alice, room, "m.room.topic", {"topic": "tea"})
    assert bobs.counted() == (1, 0)


def test_redacted_messages_no_longer_count(
    alice: User, bob: User, room: str, bobs: Following
) -> None:
    sent = rooms.say(alice, room, more={"m.mentions": {"user_ids": [bob.user_id]}})
    rooms.say(alice, room)
    assert bobs.counted() == (2, 1)
    rooms.redact(alice, room, sent)
    assert bobs.counted() == (1, 0)


def test_mentions_by_display_name_highlight(
    server: TestServer, alice: User, bob: User, room: str, bobs: Following
) -> None:
    carol = server.register("carol")
    rooms.join(carol, room)
    carols = Following(carol, room)
    rooms.say(alice, room, more={"m.mentions": {"user_ids": [bob.user_id, "nonsense"]}})
    assert bobs.counted() == (1, 1)
    assert carols.counted() == (1, 0)
    rooms.say(bob, room, more={"m.mentions": {"user_ids": [bob.user_id]}})
    assert bobs.counted() == (0, 0)


def test_sending_a_message_marks_the_room_as_read(
    alice: User, bob: User, room: str, bobs: Following
) -> None:
    root = rooms.say(alice, room)
    thread = {"m.relates_to": {"rel_type": "m.thread", "event_id": root}}
    rooms.say(alice, room, more=thread)
    assert bobs.counted() == (2, 0)
    rooms.send(
        bob,
        room,
        "m.reaction",
        {"m.relates_to": {"rel_type": "m.annotation", "event_id": root, "key": "x"}},
    )
    rooms.state(bob, room, "m.room.member", {"membership": "join", "displayname": "B"}, bob.user_id)
    assert bobs.counted() == (2, 0), "only what is news to others tells that one has read"
    rooms.say(bob, room)
    assert bobs.counted() == (1, 0), "but not what stands in a thread"
    rooms.say(alice, room)
    rooms.say(bob, room, more=thread)
    assert bobs.counted() == (1, 0), "and who writes in a thread has read the thread"


def test_only_users_with_the_power_can_notify_the_room(
    alice: User, bob: User, room: str, bobs: Following
) -> None:
    alices = Following(alice, room)
    rooms.say(alice, room, more={"m.mentions": {"room": True}})
    assert bobs.counted() == (1, 1)
    rooms.say(bob, room, more={"m.mentions": {"room": True}})
    assert alices.counted() == (1, 0), "Bob has not the power to"


def test_messages_before_the_join_or_during_an_absence_do_not_count(
    alice: User, bob: User, room: str, bobs: Following
) -> None:
    rooms.read(bob, room, rooms.say(alice, room))
    rooms.act(bob, room, "leave")
    rooms.say(alice, room)
    rooms.join(bob, room)
    assert bobs.counted() == (0, 0)
    rooms.say(alice, room)
    rooms.state(bob, room, "m.room.member", {"membership": "join", "displayname": "B"}, bob.user_id)
    assert bobs.counted() == (1, 0), "a new name is no new joining"


def test_threads_are_counted_and_read_separately(
    alice: User, bob: User, room: str, bobs: Following
) -> None:
    root = rooms.say(alice, room)
    thread = {"m.relates_to": {"rel_type": "m.thread", "event_id": root}}
    in_thread = rooms.say(alice, room, more=thread)
    rooms.say(alice, room, more={**thread, "m.mentions": {"user_ids": [bob.user_id]}})
    last = rooms.say(alice, room)
    by_thread = {"room": {"timeline": {"unread_thread_notifications": True}}}

    def counts() -> tuple[Json, Json]:
        joined = sync(bob, filter=by_thread)["rooms"]["join"][room]
        return joined["unread_notifications"], joined.get("unread_thread_notifications", {})

    assert counts() == (
        {"notification_count": 2, "highlight_count": 0},
        {root: {"notification_count": 2, "highlight_count": 1}},
    )
    assert bobs.counted() == (4, 1)
    rooms.read(bob, room, last, thread="main")
    assert counts() == (
        {"notification_count": 0, "highlight_count": 0},
        {root: {"notification_count": 2, "highlight_count": 1}},
    )
    rooms.read(bob, room, in_thread, thread=root)
    assert counts()[1] == {root: {"notification_count": 1, "highlight_count": 1}}
    assert bobs.counted() == (1, 1)
    rooms.read(bob, room, last)
    assert counts() == ({"notification_count": 0, "highlight_count": 0}, {})


def test_thread_counts_are_also_sent_under_the_unstable_name(
    alice: User, bob: User, room: str
) -> None:
    root = rooms.say(alice, room)
    rooms.say(alice, room, more={"m.relates_to": {"rel_type": "m.thread", "event_id": root}})
    name = "org.matrix.msc3773.unread_thread_notifications"
    joined = sync(bob, filter={"room": {"timeline": {name: True}}})["rooms"]["join"][room]
    assert joined[name] == {root: {"notification_count": 1, "highlight_count": 0}}
    assert joined["unread_notifications"]["notification_count"] == 1
    assert "unread_thread_notifications" not in joined


def test_a_long_backlog_is_counted_the_same_way(alice: User, room: str, bobs: Following) -> None:
    for number in range(70):
        rooms.say(alice, room)
        if number == 3:
            assert bobs.counted() == (4, 0)
    assert bobs.counted() == (70, 0)
