"""The newest events of rooms are put together once for all who begin with these rooms; what is kept
for that has an end."""

from pathlib import Path
from typing import Any

import msgspec
import pytest

from federation.protocol.ids import UserID
from homeserver.services.sync.timeline_pages import LARGEST_SHARE, NewestPages, Page
from storage.engine.database import Database
from storage.engine.streams import Change, Topic
from tests.helpers.both_ways import begun_plainly, both_ways
from tests.helpers.server import TestServer, User
from tests.http.sliding import SlidingClient, a_list, act, create, texts

V3 = "/_matrix/client/v3"
STATE = [
    ["m.room.name", ""],
    ["m.room.member", "$LAZY"],
    ["m.room.member", "$ME"],
    ["m.space.child", "*"],
]


def speak(user: User, room_id: str, text: str) -> None:
    """Send a message."""
    path = f"{V3}/rooms/{room_id}/send/m.room.message/{text[:5].replace(' ', '').replace('%', '')}"
    assert user.put(path, {"msgtype": "m.text", "body": text}).status == 200


def a_room(server: TestServer, *, messages: int = 5) -> tuple[list[User], str]:
    """A room in which three people have been for a while."""
    people = [server.register(name) for name in ("alice", "bob", "carol")]
    room_id = create(people[0], preset="public_chat", name="Tea")
    for user in people[1:]:
        act(user, room_id, "join")
    for number in range(messages):
        speak(people[number % 2], room_id, f"{number} is 100%")
    return people, room_id


def begin(user: User, number: int, *, limit: int = 4) -> dict[str, Any]:
    """What a client that begins is told of its only room."""
    client = SlidingClient(
        user, f"{number}", lists={"all": a_list([0, 9], limit=limit, state=STATE)}
    )
    entry: dict[str, Any]
    (entry,) = client.sync()["rooms"].values()
    return entry


def test_those_who_begin_with_a_room_get_what_was_put_together_for_others(
    server: TestServer,
) -> None:
    people, room_id = a_room(server)
    with both_ways() as compared, begun_plainly() as begun:
        for number in range(3):
            for user in people:
                entry = begin(user, number)
                assert texts(entry) == [f"{at} is 100%" for at in range(1, 5)]
                own = {
                    event["state_key"]
                    for event in entry["required_state"]
                    if event["type"] == "m.room.member"
                }
                assert own == {people[0].user_id, people[1].user_id, user.user_id}
        # who sent something is told so; Carol sent nothing, and of the others other devices did not
        assert any(isinstance(entry["timeline"], msgspec.Raw) for entry in begun)
        assert (
            len(compared) >= 6
        )  # of those who never counted what is unread the first is told in the longer way
        speak(people[2], room_id, "and mine")
        assert texts(begin(people[0], 3))[-1] == "and mine"


@pytest.mark.parametrize("what", ["redact", "react", "rename", "ignore"])
def test_what_becomes_of_an_event_is_told_to_who_begins_afterwards(
    server: TestServer, what: str
) -> None:
    (alice, _, carol), room_id = a_room(server)
    for number in range(3):
        begin(carol, number)
    (target,) = [
        event
        for event in begin(carol, 3)["timeline"]
        if event["content"].get("body") == "4 is 100%"
    ]
    room, event_id = f"{V3}/rooms/{room_id}", target["event_id"]
    with both_ways():
        if what == "redact":
            alice.put(f"{room}/redact/{event_id}/r", {})
            (told,) = [
                event for event in begin(carol, 4)["timeline"] if event["event_id"] == event_id
            ]
            assert told["content"] == {}
        elif what == "react":
            relation = {"rel_type": "m.thread", "event_id": event_id}
            alice.put(
                f"{room}/send/m.room.message/t",
                {"msgtype": "m.text", "body": "so", "m.relates_to": relation},
            )
            (told,) = [
                event for event in begin(carol, 4)["timeline"] if event["event_id"] == event_id
            ]
            assert told["unsigned"]["m.relations"]["m.thread"]["count"] == 1
        elif what == "rename":
            alice.put(f"{room}/state/m.room.name/", {"name": "Coffee"})
            assert begin(carol, 4)["name"] == "Coffee"
        else:
            ignored: dict[str, Any] = {"ignored_users": {alice.user_id: {}}}
            carol.put(f"{V3}/user/{carol.user_id}/account_data/m.ignored_user_list", ignored)
            assert set(texts(begin(carol, 4))) == {"1 is 100%", "3 is 100%"}


def test_what_is_heard_of_an_event_holds_for_a_page_though_nothing_arrives_in_the_room(
    tmp_path: Path, sqlite_database: Database
) -> None:
    """What was purged has no redaction, and what comes late from another server is not news."""
    server = TestServer(tmp_path, sqlite_database)
    (_, _, carol), room_id = a_room(server)
    for number in range(3):
        begin(carol, number)
    pages, streams = server.app.rooms.sliding.entries._parts.pages, sqlite_database.streams
    ((_, page),) = pages._pages.items()
    room_nid, limit = page.key
    event, head = page.events[-1], streams.current()

    def found() -> Page | None:
        return pages.find(room_nid, streams.current(), limit)

    def told() -> object:
        return pages.present(UserID(carol.user_id), None, page)

    assert found() is page
    assert isinstance(told(), msgspec.Raw)
    streams.publish(
        [Change(head + 1, Topic.RELATED, room_id, None, event.event.event_id)], head + 1
    )
    assert found() is page
    assert told() is None
    streams.publish([Change(head + 2, Topic.REDACTED, room_id, None, event.nid)], head + 2)
    assert found() is None
    begin(carol, 3)
    assert found() not in (None, page)


def test_pages_are_bounded_by_bytes(
    tmp_path: Path, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[NewestPages] = []
    begin_pages = NewestPages.__init__

    def watch(self: NewestPages, *parts: Any, **_: int) -> None:
        begin_pages(self, *parts, capacity=LARGEST_SHARE * 20_000)
        made.append(self)

    monkeypatch.setattr(NewestPages, "__init__", watch)
    server = TestServer(tmp_path, sqlite_database)
    people, _ = a_room(server, messages=12)
    (pages,) = made
    weights = set()
    for limit in (1, 2, 3, 4, 5, 6, 30):
        for number in range(3):
            assert begin(people[2], number, limit=limit)["initial"]
            weights.add(pages.weight)
            assert 0 <= pages.weight <= LARGEST_SHARE * 20_000
            assert pages.weight == sum(page.weight for _, page in pages._pages.items())
            for page in pages._pages.values():
                of_events = sum(event.weight for event in page.events)
                assert (
                    page.weight == of_events + len(page.form or b"") + page.beside_weight <= 20_000
                )
    assert max(weights) > 3000


def test_a_page_that_takes_a_large_share_pushes_nothing_out(
    tmp_path: Path, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever fills a room with large messages does not take from others what is kept for them."""
    made: list[NewestPages] = []
    begin_pages = NewestPages.__init__

    def watch(self: NewestPages, *parts: Any, **_: int) -> None:
        begin_pages(self, *parts, capacity=640_000)
        made.append(self)

    monkeypatch.setattr(NewestPages, "__init__", watch)
    server = TestServer(tmp_path, sqlite_database)
    (alice, bob, carol), room_id = a_room(server)
    begin(carol, 0)
    begin(carol, 1)
    (pages,) = made
    (kept,) = pages._pages.values()
    other = create(bob, preset="public_chat", name="Pool")
    act(alice, other, "join")
    for _ in range(2):
        for number in range(5):
            speak(bob, other, f"{number}" + "x" * 60_000)
        for number in range(3):
            entry = SlidingClient(
                alice, f"{number}", lists={"all": a_list([0, 0], limit=4, state=STATE)}
            ).sync()
            assert len(texts(entry["rooms"][other])) == 4
    assert list(pages._pages.values()) == [kept]
    assert pages.weight == kept.weight
    hits, misses = pages.hits, pages.misses
    begin(carol, 2)
    assert (pages.hits, pages.misses) == (hits + 1, misses)
    speak(alice, room_id, "new")
    begin(carol, 3)
    assert (pages.hits, pages.misses) == (hits + 1, misses + 1)
    assert len(pages) == 1
