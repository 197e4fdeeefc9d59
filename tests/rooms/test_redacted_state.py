"""A redacted state event comes with its redaction in every way to read the state, for readers who
may see it. spec: client-server-api#redactions"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.helpers.room_actions import create, join, leave, ok, redact, room_path, say, set_state
from tests.helpers.server import TestServer, User
from tests.helpers.sliding_client import STABLE, SlidingClient, a_list
from tests.helpers.sync_requests import sync

TOPIC = "m.room.topic"


def by_state(user: User, room_id: str) -> Any:
    return ok(user.get(room_path(room_id, "state")))


def by_entry(user: User, room_id: str) -> Any:
    return [ok(user.get(room_path(room_id, "state", TOPIC, format="event")))]


def by_context(user: User, room_id: str) -> Any:
    last = ok(user.get(room_path(room_id, "messages", dir="b", limit=1)))["chunk"][0]
    return ok(user.get(room_path(room_id, "context", last["event_id"])))["state"]


def by_sync(user: User, room_id: str) -> Any:
    rooms = sync(user, filter={"room": {"include_leave": True, "timeline": {"limit": 1}}})["rooms"]
    return next(each[room_id] for each in rooms.values() if room_id in each)["state"]["events"]


def by_sliding_sync(user: User, room_id: str) -> Any:
    wanted = {room_id: {"timeline_limit": 0, "required_state": [[TOPIC, ""]]}}
    return SlidingClient(user, room_subscriptions=wanted).sync()["rooms"][room_id]["required_state"]


def by_accepted_sliding_sync(user: User, room_id: str) -> Any:
    wanted = {room_id: {"timeline_limit": 0, "required_state": {"include": [{"type": TOPIC}]}}}
    return ok(user.post(STABLE, {"room_subscriptions": wanted}))["rooms"][room_id]["required_state"]


WAYS = (by_state, by_entry, by_context, by_sync, by_sliding_sync, by_accepted_sliding_sync)


def reasons(way: Callable[[User, str], Any], user: User, room_id: str) -> Iterator[str | None]:
    """Return the redactions of the topic."""
    for event in way(user, room_id):
        if event["type"] == TOPIC:
            assert event["content"] == {}
            because = event.get("unsigned", {}).get("redacted_because")
            yield None if because is None else because["content"]["reason"]


@pytest.mark.parametrize("way", WAYS)
def test_redacted_state_has_its_redaction(
    server: TestServer, way: Callable[[User, str], Any]
) -> None:
    alice = server.register("alice")
    room_id = create(alice)
    topic = set_state(alice, room_id, TOPIC, {"topic": "secret"})
    ok(redact(alice, room_id, topic, reason="oops"))
    say(alice, room_id, "hello")
    assert list(reasons(way, alice, room_id)) == ["oops"]


@pytest.mark.parametrize("way", WAYS)
def test_earlier_former_members_do_not_see_the_redaction(
    server: TestServer, way: Callable[[User, str], Any]
) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice, preset="public_chat")
    topic = set_state(alice, room_id, TOPIC, {"topic": "secret"})
    join(bob, room_id)
    leave(bob, room_id)
    by_state(alice, room_id)
    ok(redact(alice, room_id, topic, reason="oops"))
    assert list(reasons(by_state, alice, room_id)) == ["oops"]
    assert list(reasons(way, bob, room_id)) == [None]


@pytest.mark.parametrize("way", WAYS)
def test_later_members_see_the_redaction_if_they_may_see_history(
    server: TestServer, way: Callable[[User, str], Any]
) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    for visibility, received in (("shared", "oops"), ("joined", None)):
        room_id = create(alice, preset="public_chat")
        set_state(alice, room_id, "m.room.history_visibility", {"history_visibility": visibility})
        topic = set_state(alice, room_id, TOPIC, {"topic": "secret"})
        ok(redact(alice, room_id, topic, reason="oops"))
        join(bob, room_id)
        assert list(reasons(way, bob, room_id)) == [received]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("visibility", ["joined", "invited"])
def test_members_of_that_time_always_see_the_redaction(
    server: TestServer, way: Callable[[User, str], Any], visibility: str
) -> None:
    alice, bob, carol = (server.register(name) for name in ("alice", "bob", "carol"))
    room_id = create(alice, preset="public_chat")
    set_state(alice, room_id, "m.room.history_visibility", {"history_visibility": visibility})
    join(carol, room_id)
    topic = set_state(alice, room_id, TOPIC, {"topic": "secret"})
    ok(redact(alice, room_id, topic, reason="oops"))
    join(bob, room_id)
    for _ in range(2):
        assert [list(reasons(way, user, room_id)) for user in (bob, alice, carol)] == [
            [None],
            ["oops"],
            ["oops"],
        ]
    leave(carol, room_id)
    assert list(reasons(way, carol, room_id)) == ["oops"]


def test_redacted_memberships_have_their_redaction(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice, preset="public_chat")
    joined = ok(bob.post(room_path(room_id, "join")))
    assert joined == {"room_id": room_id}
    own = ok(bob.get(room_path(room_id, "state", "m.room.member", bob.user_id, format="event")))[
        "event_id"
    ]
    ok(redact(alice, room_id, own, reason="rude"))
    for path in (room_path(room_id, "members"), room_path(room_id, "members", membership="join")):
        for reader in (alice, bob):
            [member] = [
                each for each in ok(reader.get(path))["chunk"] if each["state_key"] == bob.user_id
            ]
            assert member["unsigned"]["redacted_because"]["content"] == {
                "reason": "rude",
                "redacts": own,
            }
    lazily = SlidingClient(
        alice, lists={"all": a_list([0, 9], limit=5, state=[["m.room.member", "$LAZY"]])}
    ).sync()
    received = {each["state_key"]: each for each in lazily["rooms"][room_id]["required_state"]}
    assert received[bob.user_id]["unsigned"]["redacted_because"]["sender"] == alice.user_id
