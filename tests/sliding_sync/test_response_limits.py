"""Sliding sync: responses are bounded, whatever is requested, and nothing is lost by that."""

from pathlib import Path
from urllib.parse import quote

import pytest

from homeserver.services.sliding_sync import batches, room_json
from storage.engine.database import Database
from tests.helpers.room_actions import create, say
from tests.helpers.server import TestServer, User
from tests.helpers.sliding_client import STABLE, SlidingClient, a_list, finish_poll, texts


def put_text(user: User, room_id: str, text: str) -> None:
    path = f"/_matrix/client/v3/rooms/{room_id}/send/m.room.message/{text[:1]}{len(text)}"
    assert user.put(path, {"msgtype": "m.text", "body": text}).status == 200


def test_the_operator_limits_the_events_of_a_room(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(tmp_path, sqlite_database, "filter_timeline_limit: 2\n")
    alice = server.register("alice")
    room_id = create(alice)
    for text in "abc":
        say(alice, room_id, text)
    client = SlidingClient(alice, lists={"all": a_list([0, 9], limit=50)})
    room = client.sync()["rooms"][room_id]
    assert (texts(room), room["limited"]) == (["b", "c"], True)
    assert client.sync()["rooms"] == {}
    stable = alice.post(STABLE, {"room_subscriptions": {room_id: {"timeline_limit": 50}}}).json
    assert texts(stable["rooms"][room_id]) == ["b", "c"]


def test_a_long_timeline_is_cut(server: TestServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room_json, "MAX_TIMELINE_BYTES", 5000)
    alice = server.register("alice")
    room_id = create(alice)
    client = SlidingClient(alice, lists={"all": a_list([0, 9], limit=20)})
    client.sync()
    large = [letter * 1500 for letter in "abcd"]
    for text in large:
        put_text(alice, room_id, text)
    room = client.sync()["rooms"][room_id]
    assert (texts(room), room["limited"]) == (large[2:], True)
    page = alice.get(
        f"/_matrix/client/v3/rooms/{room_id}/messages?dir=b&from={room['prev_batch']}&limit=2"
    ).json
    assert [event["content"]["body"] for event in page["chunk"]] == [large[1], large[0]]
    assert client.sync()["rooms"] == {}
    put_text(alice, room_id, "x" * 20_000)  # one event is sent however large it is
    room = client.sync()["rooms"][room_id]
    assert (texts(room), room.get("limited")) == (["x" * 20_000], None)


def test_rooms_that_do_not_fit_come_in_the_next_responses(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MAX_EVENTS_PER_BATCH", 2)
    monkeypatch.setattr(batches, "MAX_RESPONSE_BYTES", 5000)
    alice = server.register("alice")
    old, older, *oldest = ids = [create(alice) for _ in range(5)]
    for room_id in ids:
        path = (
            f"/_matrix/client/v3/user/{alice.user_id}/rooms/{quote(room_id)}/account_data"
            f"/org.example.x"
        )
        assert alice.put(path, {"of": room_id}).status == 200
    for room_id in reversed(ids):
        put_text(alice, room_id, "a" * 6000)
    extensions = {
        name: {"enabled": True} for name in ("account_data", "receipts", "typing", "e2ee")
    }
    client = SlidingClient(alice, lists={"all": a_list([0, 9])}, extensions=extensions)
    answer = client.sync()
    assert answer["lists"]["all"]["count"] == 5
    assert list(answer["rooms"]) == [old, older]
    assert answer["extensions"]["account_data"]["rooms"].keys() == {old, older}
    answers = [finish_poll(server, client.wait())]  # at once
    client.pos = answers[0]["pos"]
    answers.append(client.sync())
    assert [list(each["rooms"]) for each in answers] == [oldest[:2], oldest[2:]]
    assert [each["extensions"]["account_data"]["rooms"].keys() for each in answers] == [
        {*oldest[:2]},
        {*oldest[2:]},
    ]
    assert client.sync()["rooms"] == {}

    for room_id in reversed(ids):
        put_text(alice, room_id, "b" * 6000)
    first = client.sync()
    put_text(alice, oldest[-1], "c" * 6000)
    later = [client.sync() for _ in range(3)]
    assert [list(each["rooms"]) for each in (first, *later)] == [
        [old, older],
        [oldest[2], oldest[0]],
        [oldest[1]],
        [],
    ]
    assert later[0]["rooms"][oldest[2]]["limited"] is True
    assert [texts(later[0]["rooms"][oldest[0]]), "initial" in later[0]["rooms"][oldest[0]]] == [
        ["b" * 6000],
        False,
    ]


def test_subscribed_rooms_come_first(server: TestServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MAX_EVENTS_PER_BATCH", 1)
    monkeypatch.setattr(batches, "MAX_RESPONSE_BYTES", 100)
    alice = server.register("alice")
    opened, old, new = (create(alice) for _ in range(3))
    subscription = {"timeline_limit": 1, "required_state": []}
    client = SlidingClient(
        alice, lists={"all": a_list([0, 9])}, room_subscriptions={opened: subscription}
    )
    assert [list(client.sync()["rooms"]) for _ in range(4)] == [[opened], [new], [old], []]
    for room_id in (opened, new, old):
        say(alice, room_id, "hello")
    assert [list(client.sync()["rooms"]) for _ in range(4)] == [[opened], [old], [new], []]
