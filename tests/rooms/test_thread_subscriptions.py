"""Thread subscriptions. Proposals: MSC4306, MSC4308"""

from typing import Any

import pytest

from tests.helpers.room_actions import create, join, leave, ok, refused, reply, say
from tests.helpers.server import TestServer, User
from tests.helpers.sliding_client import SlidingClient, finish_poll
from tests.helpers.thread_subscriptions import UNSTABLE, subscription_path

STABLE = "/_matrix/client/v1"
EXTENSION = "io.element.msc4308.thread_subscriptions"
PAGES = "/_matrix/client/unstable/io.element.msc4308/thread_subscriptions"


@pytest.mark.parametrize("prefix", [STABLE, UNSTABLE])
def test_a_thread_is_subscribed_and_unsubscribed(alice: User, prefix: str) -> None:
    room_id = create(alice)
    path = subscription_path(room_id, say(alice, room_id, "root"), prefix)
    assert refused(alice.get(path)) == (404, "M_NOT_FOUND")
    assert ok(alice.delete(path)) == {}
    assert ok(alice.put(path, {})) == {}
    assert ok(alice.get(path)) == {"automatic": False}
    assert ok(alice.delete(path)) == ok(alice.delete(path)) == {}
    assert refused(alice.get(path)) == (404, "M_NOT_FOUND")


def test_automatic_subscriptions_respect_later_unsubscribes(
    server: TestServer, alice: User
) -> None:
    bob = server.register("bob")
    room_id = create(alice, preset="public_chat")
    join(bob, room_id)
    root, other = say(alice, room_id, "root"), say(alice, room_id, "other")
    path = subscription_path(room_id, root)
    called = reply(bob, room_id, root)
    assert ok(alice.put(path, {"automatic": called})) == {}
    assert ok(alice.get(path)) == {"automatic": True}
    ok(alice.put(path, {}))
    ok(alice.put(path, {"automatic": called}))
    assert ok(alice.get(path)) == {"automatic": False}

    ok(alice.delete(path))
    refusal = refused(alice.put(path, {"automatic": called}))
    assert refusal == (409, "IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION")
    stable = subscription_path(room_id, root, STABLE)
    assert refused(alice.put(stable, {"automatic": called})) == (
        409,
        "M_CONFLICTING_UNSUBSCRIPTION",
    )
    ok(alice.put(path, {"automatic": reply(bob, room_id, root, "later")}))
    assert ok(alice.get(path)) == {"automatic": True}

    for cause in (other, root, reply(bob, room_id, other), "$unknown", "no id"):
        assert refused(alice.put(path, {"automatic": cause})) == (
            400,
            "IO.ELEMENT.MSC4306.M_NOT_IN_THREAD",
        )
    assert refused(alice.put(stable, {"automatic": other})) == (400, "M_NOT_IN_THREAD")
    assert refused(alice.put(path, {"automatic": True})) == (400, "M_BAD_JSON")


def test_invisible_threads_are_not_found(server: TestServer, alice: User) -> None:
    bob = server.register("bob")
    room_id = create(alice)
    root = say(alice, room_id, "root")
    for each in (
        subscription_path(room_id, root),
        subscription_path(room_id, "$unknown"),
        subscription_path("!unknown:example.org", root),
    ):
        for method in ("GET", "PUT", "DELETE"):
            answer = bob.server.client.request(
                method, each, token=bob.token, json={} if method == "PUT" else None
            )
            assert refused(answer) == (404, "M_NOT_FOUND")


def test_sliding_sync_has_subscriptions(server: TestServer, alice: User) -> None:
    room_id = create(alice)
    first, second = say(alice, room_id, "one"), say(alice, room_id, "two")
    ok(alice.put(subscription_path(room_id, first), {}))
    client = SlidingClient(alice, extensions={EXTENSION: {"enabled": True}})
    received = client.sync()["extensions"][EXTENSION]
    assert received == {
        "subscribed": {
            room_id: {first: {"automatic": False, "bump_stamp": stamp(received, room_id, first)}}
        }
    }
    assert client.sync()["extensions"][EXTENSION] == {}
    pending = client.wait()
    ok(alice.put(subscription_path(room_id, second), {"automatic": reply(alice, room_id, second)}))
    answer = finish_poll(server, pending)
    client.pos = answer["pos"]
    assert answer["extensions"][EXTENSION]["subscribed"][room_id][second]["automatic"] is True
    ok(alice.delete(subscription_path(room_id, first)))
    received = client.sync()["extensions"][EXTENSION]
    assert list(received) == ["unsubscribed"]
    assert list(received["unsubscribed"][room_id]) == [first]
    client.body["extensions"] = {"thread_subscriptions": {"enabled": True}}
    assert client.sync()["extensions"] == {"thread_subscriptions": {}}


def stamp(received: dict[str, Any], room_id: str, root: str) -> int:
    bump = received["subscribed"][room_id][root]["bump_stamp"]
    assert isinstance(bump, int)
    return bump


def test_subscriptions_beyond_the_limit_of_sliding_sync_are_in_pages(alice: User) -> None:
    room_id = create(alice)
    client = SlidingClient(alice, extensions={EXTENSION: {"enabled": True, "limit": 2}})
    client.sync()
    before = say(alice, room_id, "before")
    ok(alice.put(subscription_path(room_id, before), {}))
    client.sync()
    to = client.pos
    roots = [say(alice, room_id, f"root {number}") for number in range(6)]
    for root in roots:
        ok(alice.put(subscription_path(room_id, root), {}))
    received = client.sync()["extensions"][EXTENSION]
    assert set(received["subscribed"][room_id]) == set(roots[4:])
    pages: list[set[str]] = []
    token: str | None = received["prev_batch"]
    while token is not None:
        page = ok(alice.get(f"{PAGES}?dir=b&from={token}&to={to}&limit=3"))
        pages.append(set(page["subscribed"][room_id]))
        token = page.get("end")
    assert pages == [set(roots[1:4]), {roots[0]}]
    whole = ok(alice.get(f"{STABLE}/thread_subscriptions?dir=b"))
    assert set(whole["subscribed"][room_id]) == {before, *roots}


@pytest.mark.parametrize(
    "query", ["", "dir=f", "dir=b&limit=0", "dir=b&from=x", "dir=b&to=t1_1", "dir=b&to=x"]
)
def test_invalid_pages_are_refused(alice: User, query: str) -> None:
    assert alice.get(f"{PAGES}?{query}").status == 400


def test_former_members_can_unsubscribe(server: TestServer, alice: User) -> None:
    bob = server.register("bob")
    room_id = create(alice, preset="public_chat")
    join(bob, room_id)
    path = subscription_path(room_id, say(alice, room_id, "root"))
    ok(bob.put(path, {}))
    leave(bob, room_id)
    assert ok(bob.get(path)) == {"automatic": False}
    assert ok(bob.delete(path)) == {}


def test_the_feature_is_announced(server: TestServer) -> None:
    assert (
        server.get("/_matrix/client/versions").json["unstable_features"]["org.matrix.msc4306"]
        is True
    )
