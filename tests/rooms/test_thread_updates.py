"""Threads with new events. Proposal: MSC4360"""

from typing import Any
from urllib.parse import quote

import pytest

from tests.helpers.room_actions import create, join, leave, ok, refused, reply, say
from tests.helpers.server import TestServer, User
from tests.helpers.sliding_client import STABLE, SlidingClient, a_list, finish_poll

EXTENSION = "io.element.msc4360.threads"
PAGES = "/_matrix/client/unstable/io.element.msc4360/thread_updates"
Updates = dict[str, dict[str, dict[str, Any]]]


@pytest.fixture
def shared(alice: User, bob: User) -> tuple[str, str]:
    """A room and a message in it."""
    room_id = create(alice, preset="public_chat")
    join(bob, room_id)
    return room_id, say(alice, room_id, "root")


def client_of(user: User, *, window: int = 9, limit: int = 5, **more: Any) -> SlidingClient:
    wanted = {"enabled": True, **more}
    return SlidingClient(
        user, lists={"all": a_list([0, window], limit=limit)}, extensions={EXTENSION: wanted}
    )


def threads(answer: dict[str, Any]) -> Updates:
    received: Updates = answer["extensions"].get(EXTENSION, {"updates": {}})["updates"]
    return received


def replies(user: User, room_id: str, root: str, token: str) -> list[str]:
    path = (
        f"/_matrix/client/v1/rooms/{quote(room_id)}/relations/{quote(root)}/m.thread?dir=b"
        f"&from={token}"
    )
    return [event["content"]["body"] for event in ok(user.get(path))["chunk"]]


def test_updates_in_a_timeline_are_not_sent_again(
    alice: User, bob: User, shared: tuple[str, str]
) -> None:
    room_id, root = shared
    client = client_of(alice, limit=2)
    reply(bob, room_id, root, "old")
    assert EXTENSION not in client.sync()["extensions"]  # who begins has missed nothing
    reply(bob, room_id, root, "one")
    assert EXTENSION not in client.sync()["extensions"]
    for text in ("two", "three", "four"):
        reply(bob, room_id, root, text)
    received = threads(client.sync())[room_id]
    assert received.keys() == {root}
    assert received[root].keys() == {"prev_batch"}
    assert replies(alice, room_id, root, received[root]["prev_batch"])[:2] == ["three", "two"]
    assert EXTENSION not in client.sync()["extensions"]
    # of one reply the timeline has no room for: there is nothing before it that is new
    reply(bob, room_id, root, "five")
    for text in ("a", "b"):
        say(bob, room_id, text)
    pos = client.pos
    assert threads(client.sync()) == {room_id: {root: {}}}
    client.pos = pos  # that answer got lost
    assert threads(client.sync()) == {room_id: {root: {}}}


def test_thread_updates_have_the_root_and_the_latest_reply(
    alice: User, bob: User, shared: tuple[str, str]
) -> None:
    room_id, root = shared
    client = client_of(alice, include_roots=True)
    client.sync()
    for text in ("one", "two"):
        reply(bob, room_id, root, text)
    update = threads(client.sync())[room_id][root]
    assert update["thread_root"]["event_id"] == root
    bundled = update["thread_root"]["unsigned"]["m.relations"]["m.thread"]
    assert (bundled["count"], bundled["latest_event"]["content"]["body"]) == (2, "two")
    assert replies(alice, room_id, root, update["prev_batch"]) == ["one"]
    last = reply(bob, room_id, root, "three")
    assert threads(client.sync())[room_id][root].keys() == {"thread_root"}
    ok(bob.put(f"/_matrix/client/v3/rooms/{room_id}/redact/{last}/1", {}))
    assert threads(client.sync()) == {}


def test_thread_updates_outside_the_lists_end_a_long_poll(
    server: TestServer, alice: User, bob: User, shared: tuple[str, str]
) -> None:
    room_id, root = shared
    create(alice)
    create(alice)
    client = SlidingClient(alice, room_subscriptions={}, extensions={EXTENSION: {"enabled": True}})
    client.sync()
    pending = client.wait()
    say(bob, room_id, "hello")
    assert not pending.done
    reply(bob, room_id, root)
    answer = finish_poll(server, pending)
    assert (threads(answer), answer["rooms"]) == ({room_id: {root: {}}}, {})


def test_more_thread_updates_than_fit_are_paged(
    alice: User, bob: User, shared: tuple[str, str]
) -> None:
    room_id, root = shared
    other = create(alice, preset="public_chat")
    join(bob, other)
    roots = [(other, say(alice, other, f"r{n}")) for n in range(4)]
    client = client_of(alice, include_roots=True, limit=2)
    client.body["extensions"][EXTENSION]["limit"] = 2
    reply(bob, *roots[0], "before")
    client.sync()
    since = client.pos
    for at in [(room_id, root), *roots, (room_id, root)]:
        reply(bob, *at)
    said = client.sync()["extensions"][EXTENSION]
    assert {room: set(received) for room, received in said["updates"].items()} == {
        room_id: {root},
        other: {roots[3][1]},
    }
    reply(bob, *roots[1], "meanwhile")
    received: list[Updates] = []
    token = said["prev_batch"]
    while token is not None:
        page = ok(alice.get(f"{PAGES}?dir=b&limit=2&from={token}&to={since}"))
        received.append(page["chunk"])
        token = page.get("next_batch")
    assert [{room: set(each) for room, each in page.items()} for page in received] == [
        {other: {roots[2][1], roots[1][1]}},
        {other: {roots[0][1]}},
    ]
    assert received[1][other][roots[0][1]].keys() == {
        "thread_root"
    }  # what came before the stretch is not new
    everything = ok(alice.get("/_matrix/client/v1/thread_updates?dir=b"))
    assert {room: set(each) for room, each in everything["chunk"].items()} == {
        room_id: {root},
        other: {each for _, each in roots},
    }
    assert "next_batch" not in everything


def test_invisible_threads_are_not_sent(
    server: TestServer, alice: User, bob: User, shared: tuple[str, str]
) -> None:
    room_id, _ = shared
    path = f"/_matrix/client/v3/rooms/{room_id}/state/m.room.history_visibility/"
    ok(alice.put(path, {"history_visibility": "joined"}))
    root = say(alice, room_id, "hidden")
    carol = server.register("carol")
    client = client_of(carol, limit=0, include_roots=True)
    client.sync()
    reply(bob, room_id, root, "secret")
    join(carol, room_id)
    assert threads(client.sync()) == ok(carol.get(f"{PAGES}?dir=b"))["chunk"] == {}
    reply(bob, room_id, root, "shown")
    # she does not see the root, and cannot open the thread: with roots requested, no thread is sent
    # without one
    assert threads(client.sync()) == ok(carol.get(f"{PAGES}?dir=b"))["chunk"] == {}
    client.body["extensions"][EXTENSION]["include_roots"] = False
    reply(bob, room_id, root, "shown too")
    assert threads(client.sync()) == {room_id: {root: {}}}
    client.body["extensions"][EXTENSION]["include_roots"] = True
    ignored: dict[str, Any] = {"ignored_users": {bob.user_id: {}}}
    ok(
        carol.put(
            f"/_matrix/client/v3/user/{carol.user_id}/account_data/m.ignored_user_list", ignored
        )
    )
    client.sync()
    reply(bob, room_id, root, "ignored")
    assert threads(client.sync()) == {}
    leave(carol, room_id)
    reply(alice, room_id, root, "later")
    assert threads(client.sync()) == {}


def test_bad_tokens_are_refused(alice: User) -> None:
    for query in (
        "dir=f",
        "dir=b&limit=0",
        "dir=b&from=x",
        "dir=b&from=s1_1",
        "dir=b&to=t1_1",
        "dir=b&to=x",
        "",
    ):
        assert refused(alice.get(f"{PAGES}?{query}")) in {
            (400, "M_INVALID_PARAM"),
            (400, "M_MISSING_PARAM"),
        }


def test_thread_updates_are_in_the_accepted_form_of_sliding_sync(
    alice: User, bob: User, shared: tuple[str, str]
) -> None:
    room_id, root = shared
    body: dict[str, Any] = {"extensions": {"threads": {"enabled": True, "include_roots": True}}}
    pos = ok(alice.post(STABLE, body))["pos"]
    reply(bob, room_id, root)
    received = ok(alice.post(STABLE, {**body, "pos": pos}))["extensions"]["threads"]
    assert received["updates"][room_id][root]["thread_root"]["event_id"] == root
