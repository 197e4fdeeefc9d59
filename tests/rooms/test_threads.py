"""Threads: aggregations of roots, and the list of a room's threads. spec:
client-server-api#threading"""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from storage.engine.database import Database
from tests.helpers.room_actions import (
    aggregations,
    create,
    edit,
    ignore,
    join,
    leave,
    ok,
    put_event,
    redact,
    refused,
    relate,
    say,
    set_state,
)
from tests.helpers.server import TestServer, User

pytestmark = pytest.mark.usefixtures("compared")


@pytest.fixture
def room(alice: User, bob: User) -> str:
    room = create(alice, preset="public_chat")
    join(bob, room)
    return room


def path(room: str, query: str = "") -> str:
    return f"/_matrix/client/v1/rooms/{quote(room)}/threads{query}"


def roots(user: User, room: str, query: str = "") -> list[str]:
    return [event["event_id"] for event in ok(user.get(path(room, query)))["chunk"]]


def test_a_root_has_the_aggregation_of_its_thread(alice: User, bob: User, room: str) -> None:
    carol = alice.server.register("carol")
    join(carol, room)
    root = say(alice, room, "root")
    first = relate(bob, room, root, "m.thread", "first")
    second = relate(bob, room, root, "m.thread", "second")
    correction = edit(bob, room, second, "corrected")
    received = aggregations(alice, room, root)["m.thread"]
    assert received["count"] == 2
    assert received["current_user_participated"] is True
    assert received["latest_event"]["event_id"] == second
    assert (
        received["latest_event"]["unsigned"]["m.relations"]["m.replace"]["event_id"] == correction
    )
    assert aggregations(bob, room, root)["m.thread"]["current_user_participated"] is True
    assert aggregations(carol, room, root)["m.thread"]["current_user_participated"] is False
    ok(redact(bob, room, second))
    received = aggregations(alice, room, root)["m.thread"]
    assert (received["count"], received["latest_event"]["event_id"]) == (1, first)


def test_threads_are_ordered_by_their_latest_events(alice: User, bob: User, room: str) -> None:
    one, two, three = (say(alice, room, text) for text in ("one", "two", "three"))
    say(alice, room, "no root")
    assert roots(bob, room) == []
    for root in (one, two, three, one):
        relate(alice, room, root, "m.thread")
    assert roots(bob, room) == [one, three, two]
    (first, *_) = ok(bob.get(path(room)))["chunk"]
    assert first["unsigned"]["m.relations"]["m.thread"]["count"] == 2
    unstable = f"/_matrix/client/unstable/org.matrix.msc3856/rooms/{quote(room)}/threads"
    assert ok(bob.get(unstable)) == ok(bob.get(path(room)))


def test_threads_are_paged(alice: User, room: str) -> None:
    sent = [say(alice, room, str(number)) for number in range(5)]
    for root in sent * 2:
        relate(alice, room, root, "m.thread")
    found: list[str] = []
    page: Any = ok(alice.get(path(room, "?limit=2")))
    found += [event["event_id"] for event in page["chunk"]]
    while "next_batch" in page:
        page = ok(alice.get(path(room, f"?limit=2&from={page['next_batch']}")))
        found += [event["event_id"] for event in page["chunk"]]
    assert found == sent[::-1]
    assert refused(alice.get(path(room, "?from=x"))) == (400, "M_INVALID_PARAM")
    assert refused(alice.get(path(room, "?include=some"))) == (400, "M_INVALID_PARAM")


def test_threads_can_be_filtered_by_participation(alice: User, bob: User, room: str) -> None:
    own = say(bob, room, "own")
    answered = say(alice, room, "answered")
    other = say(alice, room, "other")
    relate(alice, room, own, "m.thread")
    relate(bob, room, answered, "m.thread")
    relate(alice, room, other, "m.thread")
    assert roots(bob, room, "?include=participated") == [answered, own]
    assert roots(bob, room, "?include=all") == [other, answered, own]


def test_messages_of_ignored_users_are_hidden_in_threads(alice: User, bob: User, room: str) -> None:
    theirs = say(bob, room, "theirs")
    only_theirs = say(alice, room, "only theirs")
    mine = say(alice, room, "mine")
    relate(alice, room, theirs, "m.thread")
    relate(alice, room, mine, "m.thread")
    relate(bob, room, theirs, "m.thread")
    relate(bob, room, only_theirs, "m.thread")
    ignore(alice, bob)
    first, second = ok(alice.get(path(room)))["chunk"]
    assert [first["event_id"], second["event_id"]] == [mine, theirs]
    assert (first["content"]["body"], second["content"]) == ("mine", {})
    assert roots(bob, room) == [only_theirs, theirs, mine]


def test_a_redacted_root_keeps_its_thread_unless_all_replies_are_redacted(
    alice: User, room: str
) -> None:
    root = say(alice, room, "root")
    reply = relate(alice, room, root, "m.thread")
    ok(redact(alice, room, root))
    assert roots(alice, room) == [root]
    assert aggregations(alice, room, root)["m.thread"]["latest_event"]["event_id"] == reply
    ok(redact(alice, room, reply))
    assert roots(alice, room) == []


def test_non_members_see_no_threads(server: TestServer, alice: User) -> None:
    private = create(alice, preset="private_chat")
    eve = server.register("eve")
    assert refused(eve.get(path(private))) == (403, "M_FORBIDDEN")


def test_former_members_see_threads_as_of_their_leave(alice: User, bob: User, room: str) -> None:
    old, going_on, later = (say(alice, room, text) for text in ("old", "going on", "later"))
    for number, root in enumerate((going_on, old)):
        relate(alice, room, root, "m.thread", f"r{number}")
    leave(bob, room)
    for number in range(6):
        relate(alice, room, going_on, "m.thread", f"more {number}")
    relate(alice, room, later, "m.thread", "new")
    assert roots(alice, room) == [later, going_on, old]
    assert roots(bob, room) == [old, going_on]
    assert roots(bob, room, "?limit=1") == [old]


def test_former_members_see_the_count_as_of_their_leave(tmp_path: Path, database: Database) -> None:
    server = TestServer(tmp_path, database)
    alice, bob = server.register("alice"), server.register("bob")
    room = create(alice, preset="public_chat")
    join(bob, room)
    root, quiet, opened = (say(alice, room, text) for text in ("root", "quiet", "opened"))
    replies = [relate(alice, room, root, "m.thread", f"r{number}") for number in range(2)]
    first_edit = edit(alice, room, quiet, "first")
    leave(bob, room)
    for number in range(7):
        relate(alice, room, root, "m.thread", f"later {number}")
        edit(alice, room, quiet, f"later {number}")
    relate(alice, room, opened, "m.thread", "later")
    received = aggregations(bob, room, root)["m.thread"]
    assert (received["count"], received["latest_event"]["event_id"]) == (2, replies[1])
    (shown,) = ok(bob.get(path(room)))["chunk"]
    assert shown["unsigned"]["m.relations"]["m.thread"]["count"] == 2
    assert aggregations(bob, room, quiet)["m.replace"]["event_id"] == first_edit
    assert aggregations(bob, room, opened) == {}
    assert aggregations(alice, room, root)["m.thread"]["count"] == 9
    join(bob, room)
    assert aggregations(bob, room, root)["m.thread"]["count"] == 9
    set_state(alice, room, "m.room.history_visibility", {"history_visibility": "world_readable"})
    leave(bob, room)
    last = relate(alice, room, root, "m.thread", "for all the world")
    received = aggregations(bob, room, root)["m.thread"]
    assert (received["count"], received["latest_event"]["event_id"]) == (10, last)


def test_a_reply_cannot_be_a_thread_root(alice: User, room: str) -> None:
    root = say(alice, room, "root")
    reply = relate(alice, room, root, "m.thread")
    content = {"body": "nested", "m.relates_to": {"rel_type": "m.thread", "event_id": reply}}
    assert refused(put_event(alice, room, "m.room.message", content)) == (400, "M_UNKNOWN")


def test_sending_to_a_thread_does_not_reveal_invisible_events(alice: User, bob: User) -> None:
    """Neither that it exists nor that it relates to another event."""
    room = create(alice, preset="public_chat")
    set_state(alice, room, "m.room.history_visibility", {"history_visibility": "joined"})
    root = say(alice, room, "root")
    unseen = [
        root,
        relate(alice, room, root, "m.thread"),
        "$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    ]
    join(bob, room)
    seen = relate(alice, room, root, "m.thread")

    def send(target: str) -> int:
        content = {"body": "x", "m.relates_to": {"rel_type": "m.thread", "event_id": target}}
        return put_event(bob, room, "m.room.message", content).status

    assert [send(target) for target in unseen] == [200, 200, 200]
    assert send(seen) == 400
