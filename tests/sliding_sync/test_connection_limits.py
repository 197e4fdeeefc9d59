"""Sliding sync: the stored state of connections of one client is bounded, in number and in
bytes."""

from pathlib import Path
from typing import Any

import pytest

from federation.protocol.ids import DeviceID, UserID
from homeserver.services.sliding_sync.connection_cache import ConnectionCache
from homeserver.services.sliding_sync.sent_typing import (
    ENTRY_BYTES,
    ROOM_BYTES,
    SentTyping,
    TypingView,
)
from homeserver.services.streams.sync_tokens import SyncToken
from homeserver.services.sync.lazy_members import LazyMembers
from storage.engine.database import Database
from storage.engine.streams import Streams
from storage.sync.sliding_connections import MAX_DEVICE_CONNECTIONS, SlidingConnectionKey
from tests.helpers.logins import password_auth
from tests.helpers.room_actions import create, say
from tests.helpers.server import TestServer, User
from tests.helpers.sliding_client import UNSTABLE, SlidingClient, a_list, act, finish_poll

SMALL, OTHER = ({pos: TypingView(frozenset(), {})} for pos in ("1", "2"))


def key_of(device: str, conn_id: str = "") -> SlidingConnectionKey:
    return SlidingConnectionKey("@alice:example.org", device, conn_id)


def test_the_cache_holds_as_many_connections_of_a_device_as_the_database() -> None:
    cache = ConnectionCache[Any](streams=Streams(), capacity=1 << 30)
    for number in range(MAX_DEVICE_CONNECTIONS + 1):
        cache.put(key_of("PHONE", str(number)), SMALL, 10)
    cache.put(key_of("TABLET"), OTHER, 10)
    assert cache.get(key_of("PHONE", "0")) is None
    assert cache.get(key_of("PHONE", "1")) == (SMALL, 10)
    assert cache.get(key_of("TABLET")) == (OTHER, 10)
    cache.put(key_of("TABLET"), SMALL, 10)
    assert cache.weight == (MAX_DEVICE_CONNECTIONS + 1) * 10


def test_a_cache_of_connections_is_bounded_by_bytes() -> None:
    cache = ConnectionCache[Any](streams=Streams(), capacity=100)
    for number in range(10):
        cache.put(key_of(f"D{number}"), SMALL, 30)
        assert cache.weight <= 100
    assert cache.get(key_of("D6")) is None
    assert cache.get(key_of("D9")) is not None
    cache.put(key_of("HUGE"), "x", 100)
    assert (len(cache), cache.weight) == (1, 100)
    cache.put(key_of("D9"), "x", 30)
    cache.put(key_of("HUGE"), "x", 101)
    cache.put(key_of("HUGE", "other"), "x", 101)
    assert cache.get(key_of("HUGE")) is None
    assert (len(cache), cache.weight) == (1, 30), "a value without room evicts no other"


def test_the_connection_that_was_idle_longest_is_evicted() -> None:
    streams = Streams()
    cache = ConnectionCache[Any](streams=streams, capacity=3)
    for conn_id in ("a", "b", "c"):
        cache.put(key_of("PHONE", conn_id), conn_id, 1)
    assert cache.get(key_of("PHONE", "a")) == ("a", 1)
    cache.put(key_of("TABLET"), "d", 1)
    assert cache.get(key_of("PHONE", "b")) is None
    cache.remove(key_of("PHONE", "c"))
    cache.remove(key_of("PHONE", "unknown"))
    assert (len(cache), cache.weight) == (2, 2)


def test_the_number_of_cached_connections_of_a_device_is_bounded(server: TestServer) -> None:
    alice = server.register("alice")
    create(alice)
    clients = [
        SlidingClient(alice, str(number), lists={"all": a_list([0, 1])}) for number in range(18)
    ]
    for client in clients:
        client.sync()
        server.clock.advance(1)
    answers = [alice.post(client.path(), client.body) for client in clients]
    assert [answer.status for answer in answers] == [400] * 2 + [200] * MAX_DEVICE_CONNECTIONS
    assert answers[0].errcode == "M_UNKNOWN_POS"


def test_room_configs_of_a_state_with_added_rooms_count_in_the_size(
    tmp_path: Path, sqlite_database: Database
) -> None:
    """Such a state stands in the `pos`; the stored one, from which it came, goes from memory before
    it."""
    server = TestServer(tmp_path, sqlite_database, "caches: {global_factor: 0.01}\n")
    connections = server.app.sync.sliding.connections
    alice = server.register("alice")
    rooms = [create(alice) for _ in range(4)]
    state = [[f"org.example.{number}".ljust(255, "x"), ""] for number in range(200)]
    clients = [
        SlidingClient(alice, str(n), lists={"all": a_list([0, 0], state=state)}) for n in range(15)
    ]
    for client in clients:
        client.sync()
        for room_id in rooms[:3]:
            say(alice, room_id, f"hello {client.body['conn_id']}".replace(" ", ""))
            client.sync()
        assert client.pos is not None
        assert "." in client.pos
    assert 2 < len(connections) < 10


def test_room_configs_count_in_the_size(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database, "caches: {global_factor: 0.01}\n")
    connections = server.app.sync.sliding.connections
    alice = server.register("alice")
    create(alice)
    state = [[f"org.example.{number}".ljust(255, "x"), ""] for number in range(200)]
    clients = [
        SlidingClient(alice, str(n), lists={"all": a_list([0, 1], state=state)}) for n in range(15)
    ]
    for client in clients:
        client.sync()
    assert 5 < len(connections) < 12
    for client in clients:
        client.sync()  # the others are read again
    assert 5 < len(connections) < 12


@pytest.mark.parametrize(
    "body",
    [
        {"lists": {"a": a_list([0, 1], tags=["x"] * 501)}},
        {"lists": {"a": a_list([0, 1], spaces=["x" * 256])}},
        {"lists": {"a": a_list([0, 1], room_name_like="x" * 256)}},
        {"extensions": {"receipts": {"enabled": True, "rooms": ["x"] * 501}}},
        {"extensions": {"typing": {"enabled": True, "lists": ["x" * 256]}}},
    ],
)
def test_the_number_of_rooms_in_a_pos_is_bounded(
    server: TestServer, body: dict[str, object]
) -> None:
    answer = server.register("alice").post(UNSTABLE, body)
    assert (answer.status, answer.errcode) == (400, "M_BAD_JSON")


def is_typing(user: User, room_id: str, typing: bool) -> None:
    answer = user.put(
        f"/_matrix/client/v3/rooms/{room_id}/typing/{user.user_id}",
        {"typing": typing, "timeout": 90000},
    )
    assert answer.status == 200, answer.body


def typists(answer: dict[str, Any]) -> dict[str, list[str]]:
    rooms = answer["extensions"]["typing"]["rooms"]
    return {room_id: event["content"]["user_ids"] for room_id, event in rooms.items()}


def test_sent_typing_is_bounded_by_bytes_and_by_device(server: TestServer) -> None:
    views = SentTyping(
        typing=server.app.presence.typing, streams=server.app.database.streams, capacity=50_000
    )

    def key(device: str, conn_id: str = "") -> SlidingConnectionKey:
        return SlidingConnectionKey("@alice:example.org", device, conn_id)

    def look(
        at: SlidingConnectionKey, pos: str | None, before: SyncToken | None, rooms: range
    ) -> None:
        views.record(at, pos, f"{pos}+", views.move(at, pos, before, set(rooms)).view)

    for number in range(MAX_DEVICE_CONNECTIONS + 5):
        look(key("PHONE", str(number)), None, None, range(0))
    assert views.weight == MAX_DEVICE_CONNECTIONS * ENTRY_BYTES
    pos = "0"
    look(key("LAPTOP"), None, None, range(0))
    views.record(key("LAPTOP"), None, pos, TypingView(frozenset(), {}))
    for number in range(1, 10):  # rooms that have left its view weigh too
        look(key("LAPTOP"), pos, SyncToken(5, number - 1), range(10 * number, 10 * number + 10))
        pos += "+"
    # the answer, and the one before it
    assert views.weight == (MAX_DEVICE_CONNECTIONS + 1) * ENTRY_BYTES + (90 + 80) * ROOM_BYTES
    for number in range(20):
        look(key(f"D{number}"), None, None, range(100))
        assert 10_000 < views.weight <= 50_000


@pytest.mark.parametrize("is_forgotten", [False, True])
def test_typing_is_correct_for_an_evicted_connection(
    server: TestServer, monkeypatch: pytest.MonkeyPatch, is_forgotten: bool
) -> None:
    if is_forgotten:
        monkeypatch.setattr(ConnectionCache, "get", lambda _self, _key: None)
    alice, bob = server.register("alice"), server.register("bob")
    older, newer = (create(alice, preset="public_chat") for _ in range(2))
    for room_id in (older, newer):
        act(bob, room_id, "join")
    client = SlidingClient(
        alice, lists={"all": a_list([0, 1])}, extensions={"typing": {"enabled": True}}
    )
    client.sync()
    is_typing(bob, older, True)
    assert typists(client.sync()) == {older: [bob.user_id]}
    client.body["lists"] = {"all": a_list([0, 0])}
    client.sync()
    is_typing(bob, older, False)
    assert typists(client.sync()) == {}
    client.body["lists"] = {"all": a_list([0, 1])}
    assert typists(client.sync()) == {older: []}
    is_typing(bob, newer, True)
    pending = client.wait()
    assert typists(finish_poll(server, pending))[newer] == [bob.user_id]
    client.pos = pending.answer.json["pos"]
    pending = client.wait()
    for _ in range(3):
        server.clock.advance(1)
    assert not pending.done  # who is forgotten waits all the same
    server.clock.advance(30)
    assert typists(pending.answer.json).get(newer, [bob.user_id]) == [bob.user_id]


def test_the_caches_of_a_device_are_deleted_with_it(server: TestServer) -> None:
    alice = server.register("alice")
    assert alice.device_id is not None
    room_id = create(alice)
    parts = server.app.sync.sliding
    key = SlidingConnectionKey(alice.user_id, alice.device_id, "")
    views = SentTyping(
        typing=server.app.presence.typing, streams=server.app.database.streams, capacity=50_000
    )
    views.record(key, None, "1", TypingView(frozenset({1}), {}))
    client = SlidingClient(
        alice,
        lists={"all": a_list([0, 9])},
        extensions={"org.matrix.msc4262.profiles": {"enabled": True}},
    )
    for text in ("a", "b", ""):
        if text:
            say(alice, room_id, text)
        client.sync()
    client.sync()
    assert min(views.weight, len(parts.connections)) > 0
    assert alice.post("/_matrix/client/v3/logout", {}).status == 200
    assert (views.weight, len(parts.connections)) == (0, 0)
    body = {**password_auth("alice"), "device_id": key.device_id}
    repeated = server.post("/_matrix/client/v3/login", body).json
    client.user.token = repeated["access_token"]
    assert repeated["device_id"] == key.device_id
    answer = client.user.post(client.path(), client.body)
    assert (answer.status, answer.errcode) == (400, "M_UNKNOWN_POS")


def test_members_removed_from_a_device_no_longer_count() -> None:
    """They left room for those of others, also once they were taken out."""
    members, alice, phone = (
        LazyMembers(capacity=20),
        UserID("@alice:example.org"),
        DeviceID("PHONE"),
    )
    token = "0"
    members.get_confirmed((alice, phone), None)
    for number in range(1, 30):  # each time a member is sent, who then changes without being sent
        before, token = token if number > 1 else None, str(number)
        members.add_sent((alice, phone), before, [(1, "@bob:example.org")], token)
        has = members.get_confirmed((alice, phone), token)
        assert has == {(1, "@bob:example.org")}
        assert len(members) <= 1
        has.clear()
