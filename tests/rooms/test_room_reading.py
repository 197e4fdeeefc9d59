"""Reading rooms: pages of the timeline, context, state, members, and visibility. spec:
client-server-api#getting-events-for-a-room, client-server-api#room-history-visibility"""

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from homeserver.services.rooms import reading
from storage.engine.database import Database
from tests.helpers.room_actions import (
    V3,
    all_texts,
    bodies,
    create,
    full_state,
    get_state,
    invite,
    join,
    leave,
    membership,
    messages,
    ok,
    put_event,
    refused,
    room_path,
    say,
    set_state,
)
from tests.helpers.server import TestServer, User

FORBIDDEN = (403, "M_FORBIDDEN")


def open_room(user: User, visibility: str = "shared") -> str:
    state = [{"type": "m.room.history_visibility", "content": {"history_visibility": visibility}}]
    return create(user, preset="public_chat", initial_state=state)


def pages(user: User, room_id: str, dir: str, **query: object) -> list[list[dict[str, Any]]]:
    """Return every page up to the end."""
    found: list[list[dict[str, Any]]] = []
    for _ in range(50):
        page = messages(user, room_id, dir, **query)
        found.append(page["chunk"])
        if "end" not in page:
            return found
        query["from_"] = page["end"]
    raise AssertionError("the pages have no end")


def test_pages_in_both_directions_have_each_event_once(tmp_path: Path, database: Database) -> None:
    alice = TestServer(tmp_path, database).register("alice")
    room_id = create(alice)
    said = [str(number) for number in range(23)]
    for text in said:
        say(alice, room_id, text)
    for limit in (1, 5, 29, 100):
        back = [event for page in pages(alice, room_id, "b", limit=limit) for event in page]
        there = [event for page in pages(alice, room_id, "f", limit=limit) for event in page]
        assert bodies(there) == said
        assert [event["event_id"] for event in back] == [event["event_id"] for event in there][::-1]
        assert len({event["event_id"] for event in there}) == 29


@pytest.mark.parametrize("direction", ["b", "f"])
def test_pages_of_large_events_are_short(
    alice: User, monkeypatch: pytest.MonkeyPatch, direction: str
) -> None:
    monkeypatch.setattr(reading, "EVENTS_PER_READ", 2)
    monkeypatch.setattr(reading, "MAX_PAGE_BYTES", 5000)
    room_id = create(alice)
    texts = [f"{number} {'x' * 1000}" for number in range(13)]
    ids = [say(alice, room_id, text) for text in texts]

    said: list[str] = []
    pages: list[int] = []
    place: str | None = None
    while True:
        page = messages(alice, room_id, direction, limit=1000, from_=place)
        said += bodies(page["chunk"])
        pages.append(len(bodies(page["chunk"])))
        if page.get("end") in (None, place):
            break
        place = page["end"]

    assert said == (texts[::-1] if direction == "b" else texts)
    assert max(pages) <= 6
    around = ok(alice.get(room_path(room_id, "context", ids[6], limit=100)))
    before, after = bodies(around["events_before"]), bodies(around["events_after"])
    assert (before, after) == (texts[5:1:-1], texts[7:11])
    assert bodies(messages(alice, room_id, "b", limit=1, from_=around["start"])["chunk"]) == [
        texts[1]
    ]
    assert bodies(messages(alice, room_id, "f", limit=1, from_=around["end"])["chunk"]) == [
        texts[11]
    ]


def test_sync_tokens_can_start_pages(alice: User) -> None:
    room_id = create(alice)
    for number in range(10):
        say(alice, room_id, str(number))
    filter_ = quote('{"room":{"timeline":{"limit":3}}}')
    first = ok(alice.get(f"{V3}/sync?filter={filter_}"))
    timeline = first["rooms"]["join"][room_id]["timeline"]
    assert bodies(timeline["events"]) == ["7", "8", "9"]
    before = messages(alice, room_id, "b", from_=timeline["prev_batch"], limit=4)
    assert before["start"] == timeline["prev_batch"]
    assert bodies(before["chunk"]) == ["6", "5", "4", "3"]
    say(alice, room_id, "10")
    assert bodies(messages(alice, room_id, "f", from_=first["next_batch"])["chunk"]) == ["10"]
    between = messages(
        alice, room_id, "f", from_=before["end"], to=timeline["prev_batch"], limit=100
    )
    assert bodies(between["chunk"]) == ["3", "4", "5", "6"]
    backwards = messages(
        alice, room_id, "b", from_=timeline["prev_batch"], to=before["end"], limit=100
    )
    assert bodies(backwards["chunk"]) == ["6", "5", "4", "3"]
    assert "end" not in backwards


def test_the_newest_page_forwards_can_be_continued_later(alice: User) -> None:
    room_id = create(alice)
    token = messages(alice, room_id, "b", limit=1)["start"]
    nothing = messages(alice, room_id, "f", from_=token)
    assert nothing["chunk"] == []
    assert "end" not in nothing
    say(alice, room_id, "new")
    assert bodies(messages(alice, room_id, "f", from_=nothing["start"])["chunk"]) == ["new"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({}, (400, "M_MISSING_PARAM")),
        ({"dir": "x"}, (400, "M_INVALID_PARAM")),
        ({"dir": "b", "from_": "nonsense"}, (400, "M_INVALID_PARAM")),
        ({"dir": "b", "to": "t1"}, (400, "M_INVALID_PARAM")),
        ({"dir": "b", "limit": "many"}, (400, "M_INVALID_PARAM")),
        ({"dir": "b", "filter": "{"}, (400, "M_BAD_JSON")),
        ({"dir": "b", "filter": '{"types": 1}'}, (400, "M_BAD_JSON")),
    ],
)
def test_invalid_requests_are_refused(
    alice: User, query: dict[str, object], expected: tuple[int, str]
) -> None:
    assert refused(alice.get(room_path(create(alice), "messages", **query))) == expected


def test_the_limit_is_bounded(alice: User) -> None:
    room_id = create(alice)
    assert len(messages(alice, room_id, "b", limit=0)["chunk"]) <= 1
    assert len(messages(alice, room_id, "b", limit=2**40)["chunk"]) == 6
    assert len(messages(alice, room_id, "b", limit=-5)["chunk"]) <= 1


def test_messages_can_be_filtered(alice: User, bob: User) -> None:
    room_id = create(alice, preset="public_chat")
    join(bob, room_id)
    say(alice, room_id, "a")
    say(bob, room_id, "b")
    ok(put_event(bob, room_id, "m.room.message", {"body": "picture", "url": "mxc://example.org/1"}))
    for wanted, expected in (
        ({"types": ["m.room.message"]}, ["picture", "b", "a"]),
        ({"types": ["m.room.*"], "not_senders": [alice.user_id]}, ["picture", "b"]),
        ({"senders": [alice.user_id]}, ["a"]),
        ({"not_types": ["m.room.message"]}, []),
        ({"contains_url": True}, ["picture"]),
        ({"contains_url": False}, ["b", "a"]),
        ({"rooms": ["!other:example.org"]}, []),
        ({"not_rooms": [room_id]}, []),
    ):
        chunk = messages(alice, room_id, "b", limit=50, filter=json.dumps(wanted))["chunk"]
        assert bodies(chunk) == expected, wanted


def test_a_filter_for_rare_events_reads_several_pages(alice: User) -> None:
    room_id = create(alice)
    ok(put_event(alice, room_id, "org.example.rare", {}))
    for number in range(30):
        say(alice, room_id, str(number))
    wanted = json.dumps({"types": ["org.example.rare"]})
    found = pages(alice, room_id, "b", limit=2, filter=wanted)
    assert [event["type"] for page in found for event in page] == ["org.example.rare"]


def test_lazy_loading_returns_the_members_who_sent_events(alice: User, bob: User) -> None:
    room_id = create(alice, preset="public_chat")
    join(bob, room_id)
    say(bob, room_id, "a")
    lazy = json.dumps({"lazy_load_members": True})
    page = messages(alice, room_id, "b", limit=1, filter=lazy)
    assert [event["state_key"] for event in page["state"]] == [bob.user_id]
    assert "state" not in messages(alice, room_id, "b", limit=1)
    event_id = page["chunk"][0]["event_id"]
    context = ok(alice.get(room_path(room_id, "context", event_id, limit=0, filter=lazy)))
    assert [event["state_key"] for event in context["state"]] == [bob.user_id]


# what Bob sees of messages before his invite, while invited, while joined, and after he left
SEEN = {
    "world_readable": ["before", "invited", "joined", "left"],
    "shared": ["before", "invited", "joined"],
    "invited": ["invited", "joined"],
    "joined": ["joined"],
}


@pytest.mark.parametrize("visibility", SEEN)
def test_history_visibility_limits_each_reader(alice: User, bob: User, visibility: str) -> None:
    room_id = open_room(alice, visibility)
    spoken = {"before": say(alice, room_id, "before")}
    if visibility != "world_readable":
        assert refused(bob.get(room_path(room_id, "messages", dir="b"))) == FORBIDDEN
    invite(alice, room_id, bob)
    spoken["invited"] = say(alice, room_id, "invited")
    if visibility != "world_readable":
        # an invited user sees only the stripped state
        assert refused(bob.get(room_path(room_id, "messages", dir="b"))) == FORBIDDEN
        assert refused(bob.get(room_path(room_id, "state"))) == FORBIDDEN
    join(bob, room_id)
    spoken["joined"] = say(alice, room_id, "joined")
    assert (
        all_texts(bob, room_id) == SEEN[visibility][:3]
        if visibility == "world_readable"
        else SEEN[visibility]
    )
    leave(bob, room_id)
    spoken["left"] = say(alice, room_id, "left")
    assert all_texts(bob, room_id) == SEEN[visibility]
    assert bodies(messages(bob, room_id, "f", limit=100)["chunk"]) == SEEN[visibility]
    for name, event_id in spoken.items():
        answers = (
            bob.get(room_path(room_id, "event", event_id)),
            bob.get(room_path(room_id, "context", event_id)),
        )
        for answer in answers:
            assert answer.status == (200 if name in SEEN[visibility] else 404)
    context = ok(bob.get(room_path(room_id, "context", spoken["joined"], limit=100)))
    around = [*context["events_before"][::-1], context["event"], *context["events_after"]]
    assert bodies(around) == SEEN[visibility]


def test_events_have_the_readers_membership(alice: User, bob: User) -> None:
    room_id = open_room(alice)
    say(alice, room_id, "before")
    invite(alice, room_id, bob)
    say(alice, room_id, "invited")
    join(bob, room_id)
    say(alice, room_id, "joined")
    chunk = messages(bob, room_id, "b", limit=100)["chunk"]
    received = {
        event["content"]["body"]: event["unsigned"]["membership"]
        for event in chunk
        if event["type"] == "m.room.message"
    }
    assert received == {"before": "leave", "invited": "invite", "joined": "join"}


def test_former_members_see_the_room_as_they_left_it(alice: User, bob: User) -> None:
    room_id = open_room(alice, "joined")
    set_state(alice, room_id, "m.room.topic", {"topic": "old"})
    join(bob, room_id)
    leave(bob, room_id)
    set_state(alice, room_id, "m.room.topic", {"topic": "new"})
    set_state(alice, room_id, "org.example.new", {"x": 1})
    assert get_state(bob, room_id, "m.room.topic") == {"topic": "old"}
    assert get_state(bob, room_id, "org.example.new") is None
    assert (
        full_state(bob, room_id)["m.room.member", bob.user_id]["content"]["membership"] == "leave"
    )
    assert refused(bob.get(room_path(room_id, "joined_members"))) == FORBIDDEN
    # a new invite shows nothing from the time in between
    invite(alice, room_id, bob)
    assert get_state(bob, room_id, "m.room.topic") == {"topic": "old"}
    ok(membership(alice, room_id, "ban", bob))
    assert get_state(bob, room_id, "m.room.topic") == {"topic": "old"}


def test_anyone_reads_world_readable_rooms(server: TestServer, alice: User, bob: User) -> None:
    room_id = open_room(alice, "shared")
    say(alice, room_id, "hidden")
    set_state(alice, room_id, "m.room.history_visibility", {"history_visibility": "world_readable"})
    event_id = say(alice, room_id, "open")
    guest = User(server, ok(server.post(f"{V3}/register?kind=guest", {})))
    for peeker in (bob, guest):
        assert all_texts(peeker, room_id) == ["open"]
        assert get_state(peeker, room_id, "m.room.history_visibility") == {
            "history_visibility": "world_readable"
        }
        assert (
            ok(peeker.get(room_path(room_id, "event", event_id)))["unsigned"]["membership"]
            == "leave"
        )
        assert len(ok(peeker.get(room_path(room_id, "members")))["chunk"]) == 1
        assert refused(peeker.get(room_path(room_id, "joined_members")))[0] == 403
        assert refused(put_event(peeker, room_id, "m.room.message", {"body": "x"})) == FORBIDDEN
    set_state(alice, room_id, "m.room.history_visibility", {"history_visibility": "shared"})
    assert refused(bob.get(room_path(room_id, "messages", dir="b"))) == FORBIDDEN


@pytest.mark.parametrize(
    "rest",
    [
        "messages?dir=b",
        "state",
        "state/m.room.name",
        "members",
        "joined_members",
        "context/$x",
        "aliases",
    ],
)
def test_non_members_see_nothing(alice: User, bob: User, rest: str) -> None:
    room_id = create(alice)
    for unseen in (room_id, "!nowhere:example.org"):
        assert refused(bob.get(f"{V3}/rooms/{unseen}/{rest}")) == FORBIDDEN


def test_an_invisible_event_is_not_found(alice: User, bob: User) -> None:
    room_id = create(alice)
    event_id = say(alice, room_id, "x")
    assert refused(bob.get(room_path(room_id, "event", event_id))) == (404, "M_NOT_FOUND")
    assert refused(alice.get(room_path(room_id, "event", "$none"))) == (404, "M_NOT_FOUND")
    assert refused(alice.get(room_path(create(alice), "event", event_id))) == (404, "M_NOT_FOUND")
    assert refused(alice.get(room_path(room_id, "event", "nonsense"))) == (400, "M_INVALID_PARAM")


def test_context_returns_events_around_an_event(alice: User) -> None:
    room_id = create(alice)
    event_ids = [say(alice, room_id, str(number)) for number in range(9)]
    set_state(alice, room_id, "m.room.topic", {"topic": "later"})
    context = ok(alice.get(room_path(room_id, "context", event_ids[4], limit=4)))
    assert context["event"]["event_id"] == event_ids[4]
    assert bodies(context["events_before"]) == ["3", "2"]
    assert bodies(context["events_after"]) == ["5", "6"]
    assert "m.room.topic" not in {event["type"] for event in context["state"]}
    assert bodies(messages(alice, room_id, "b", from_=context["start"], limit=2)["chunk"]) == [
        "1",
        "0",
    ]
    assert bodies(messages(alice, room_id, "f", from_=context["end"], limit=2)["chunk"]) == [
        "7",
        "8",
    ]
    alone = ok(alice.get(room_path(room_id, "context", event_ids[4], limit=0)))
    assert alone["events_before"] == alone["events_after"] == []


def test_members_can_be_filtered_by_membership(alice: User, bob: User) -> None:
    room_id = create(alice, preset="public_chat")
    since = ok(alice.get(f"{V3}/sync"))["next_batch"]
    join(bob, room_id)
    invite(alice, room_id, carol := alice.server.register("carol"))

    def members(**query: object) -> set[str]:
        chunk = ok(alice.get(room_path(room_id, "members", **query)))["chunk"]
        assert all(
            event["type"] == "m.room.member" and event["room_id"] == room_id for event in chunk
        )
        return {event["state_key"] for event in chunk}

    a, b, c = alice.user_id, bob.user_id, carol.user_id
    assert members() == {a, b, c}
    assert members(membership="join") == {a, b}
    assert members(not_membership="join") == {c}
    assert members(membership="leave") == set()
    # the two parameters are combined with "or"
    assert members(membership="join", not_membership="leave") == {a, b, c}
    assert members(membership="invite", not_membership="join") == {c}
    assert members(at=since) == {a}
    token = messages(alice, room_id, "b", limit=1)["end"]
    assert members(at=token) == {a, b}
    leave(bob, room_id)
    assert members(not_membership="leave") == {a, c}
    assert refused(alice.get(room_path(room_id, "members", at="x"))) == (400, "M_INVALID_PARAM")
    assert refused(alice.get(room_path(room_id, "members", membership="x"))) == (
        400,
        "M_INVALID_PARAM",
    )


def test_older_paths_work(alice: User) -> None:
    room_id = create(alice)
    assert ok(alice.get(f"/_matrix/client/r0/rooms/{room_id}/messages?dir=b"))["chunk"]
    assert ok(
        alice.put(f"/_matrix/client/r0/rooms/{room_id}/send/m.room.message/1", {"body": "x"})
    )["event_id"]
    assert ok(alice.get(f"/_matrix/client/r0/rooms/{room_id}/state/m.room.create"))
