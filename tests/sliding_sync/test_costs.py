"""The cost of sliding sync: it does not grow with the number of rooms. Also the start of Element
X, step by step."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from homeserver.services.sliding_sync.connections import (
    LIVE,
    ConnectionState,
    SentRoom,
    StateChanges,
)
from homeserver.services.sliding_sync.pos import MAX_ADDED
from homeserver.services.sliding_sync.request import RequiredState, RoomConfig
from storage.engine.database import Database, SQLiteConfig
from tests.conftest import run_coroutine
from tests.helpers.databases import QueryCounter, open_inline
from tests.helpers.room_actions import create, say
from tests.helpers.server import TestServer, User
from tests.helpers.sliding_client import SlidingClient, a_list, act, state_of, texts
from tests.helpers.sync_comparison import both_ways

ELEMENT_STATE = [
    ["m.room.name", ""],
    ["m.room.encryption", ""],
    ["m.room.member", "$LAZY"],
    ["m.room.member", "$ME"],
    ["m.room.topic", ""],
    ["m.room.avatar", ""],
    ["m.room.canonical_alias", ""],
    ["m.room.power_levels", ""],
    ["org.matrix.msc3401.call.member", "*"],
    ["m.room.join_rules", ""],
    ["m.room.tombstone", ""],
    ["m.room.create", ""],
    ["m.room.history_visibility", ""],
    ["io.element.functional_members", ""],
    ["m.space.parent", "*"],
    ["m.space.child", "*"],
    ["org.matrix.msc3672.beacon_info", "*"],
]
ELEMENT_EXTENSIONS: dict[str, Any] = {
    "account_data": {"enabled": True},
    "receipts": {"enabled": True, "rooms": ["*"]},
    "typing": {"enabled": True},
}


@pytest.fixture
def counted(sqlite: SQLiteConfig, counter: QueryCounter) -> Iterator[Database]:
    """A database whose queries are counted."""
    database = open_inline(sqlite, counter)
    yield database
    run_coroutine(database.close(), None)


def element(user: User) -> SlidingClient:
    """The connection of Element X for its list of rooms."""
    return SlidingClient(
        user,
        lists={"all_rooms": a_list([0, 19], state=ELEMENT_STATE)},
        extensions=ELEMENT_EXTENSIONS,
    )


def spent(counter: QueryCounter) -> int:
    """How many queries were made since the last time."""
    queries = sum(counter.queries.values())
    counter.clear()
    return queries


def test_the_number_of_rooms_costs_nothing(
    tmp_path: Path, counted: Database, counter: QueryCounter
) -> None:
    costs: list[list[int]] = []
    for number, rooms in enumerate((25, 300)):
        server = TestServer(tmp_path, counted, seed=2 * number + 1)
        alice = server.register(f"alice{number}")
        created = [create(alice, name=f"room {room}") for room in range(rooms)]
        alice.server = TestServer(tmp_path, counted, seed=2 * number + 2)  # it remembers nothing
        client = element(alice)
        alice.get("/_matrix/client/v3/account/whoami")
        counter.clear()
        answer = client.sync()
        assert len(answer["rooms"]) == 20
        first = spent(counter)
        client.sync()
        nothing = spent(counter)
        say(alice, created[-1], "hello")
        counter.clear()
        assert len(client.sync()["rooms"]) == 1
        one = spent(counter)
        costs.append([first, nothing, one])
    assert costs[0] == costs[1]
    assert costs[0][1] == 0
    assert costs[0][2] <= 4


@pytest.mark.parametrize(
    "state", [ELEMENT_STATE, [["m.room.name", ""], ["m.room.member", "$LAZY"]]]
)
def test_the_number_of_rooms_in_the_window_costs_nothing(
    tmp_path: Path, counted: Database, counter: QueryCounter, state: list[list[str]]
) -> None:
    """Not even while nothing of them is in memory."""
    server = TestServer(tmp_path, counted)
    alice = server.register("alice")
    for at in range(22):
        create(alice, name=f"{at}")
    costs: list[dict[str, int]] = []
    for number, last in enumerate((3, 19)):
        alice.server = TestServer(tmp_path, counted, seed=number + 2)  # it remembers nothing
        client = SlidingClient(alice, f"{last}", lists={"all": a_list([0, last], state=state)})
        alice.get("/_matrix/client/v3/account/whoami")
        counter.clear()
        assert len(client.sync()["rooms"]) == last + 1
        costs.append(dict(counter.reads))
    assert costs[0] == costs[1]


def looking(user: User, conn_id: str, last: int) -> SlidingClient:
    """A client that looks at the newest rooms, up to the last one of a window."""
    return SlidingClient(
        user, conn_id, lists={"all": a_list([0, last], limit=2)}, extensions=ELEMENT_EXTENSIONS
    )


def test_a_new_room_writes_nothing(
    tmp_path: Path, counted: Database, counter: QueryCounter
) -> None:
    server = TestServer(tmp_path, counted)
    alice = server.register("alice")
    rooms = [create(alice, name=f"{at}") for at in range(MAX_ADDED + 6)]
    looking(alice, "another", 99).sync()
    client = looking(alice, "first", 1)
    client.sync()
    written = []
    for at, room_id in enumerate(rooms[: MAX_ADDED + 3]):
        say(alice, room_id, f"{at}")
        counter.clear()
        assert client.sync()["rooms"][room_id]["initial"]
        written.append(bool(counter.writes))
        assert not counter.reads  # everything that is sent about them is in memory
    # those for which there is no more room are written, with all before them
    assert written == [at == MAX_ADDED for at in range(MAX_ADDED + 3)]
    assert str(client.pos).count(".") == 2
    client.body["lists"]["all"]["ranges"] = [[0, 99]]
    assert set(client.sync()["rooms"]) == {rooms[-3]}  # all the others were sent
    client = looking(alice, "second", 1)
    client.sync()
    say(alice, rooms[0], "again")
    counter.clear()
    assert client.sync()["rooms"][rooms[0]]["initial"]
    assert not counter.reads  # it was sent to a client before
    assert not counter.writes


def test_a_response_without_a_state_change_writes_nothing(
    tmp_path: Path, counted: Database, counter: QueryCounter
) -> None:
    server = TestServer(tmp_path, counted)
    alice = server.register("alice")
    room_id = create(alice)
    client = element(alice)
    client.sync()
    for number in range(3):
        say(alice, room_id, f"m{number}")
        counter.clear()
        assert texts(client.sync()["rooms"][room_id]) == [f"m{number}"]
        assert not counter.writes


def test_the_start_of_element_x_costs_a_bounded_number_of_queries(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    rooms = [create(alice, name=f"room {number}") for number in range(45)]
    act(alice, rooms[0], "invite", user_id=bob.user_id)
    act(bob, rooms[0], "join")
    encryption = SlidingClient(
        alice, "encryption", extensions={"to_device": {"enabled": True}, "e2ee": {"enabled": True}}
    )
    assert encryption.sync()["rooms"] == {}
    waiting = encryption.wait()
    client = element(alice)
    answer = client.sync()
    assert answer["lists"]["all_rooms"]["count"] == 45
    assert next(iter(answer["rooms"])) == rooms[0]
    assert len(answer["rooms"]) == 20
    assert ("m.room.create", "") in state_of(answer["rooms"][rooms[0]])
    client.body["lists"]["all_rooms"]["ranges"] = [[0, 44]]
    answer = client.sync()
    assert len(answer["rooms"]) == 25
    assert all(room["initial"] for room in answer["rooms"].values())
    pending = client.wait()
    assert not pending.done
    pending.disconnect()  # a room is opened: the request is given up, and sent again with more
    say(bob, rooms[0], "one")
    client.body["room_subscriptions"] = {
        rooms[0]: {
            "timeline_limit": 20,
            "required_state": [*ELEMENT_STATE, ["m.room.pinned_events", ""]],
        }
    }
    pending = client.wait()
    room = pending.answer.json["rooms"][rooms[0]]
    assert texts(room) == ["one"]
    assert room["unstable_expanded_timeline"] is True
    assert room["num_live"] == 1
    assert len(room["timeline"]) > 5
    client.pos = pending.answer.json["pos"]
    pending = client.wait()
    assert not pending.done
    say(bob, rooms[0], "two")
    for _ in range(3):
        server.clock.advance(0)
    room = pending.answer.json["rooms"][rooms[0]]
    assert texts(room) == ["two"]
    assert room["num_live"] == 1
    assert "unstable_expanded_timeline" not in room
    assert not waiting.done
    client.pos = None  # it pauses and starts small again
    client.body["lists"]["all_rooms"]["ranges"] = [[0, 19]]
    del client.body["room_subscriptions"]
    answer = client.sync()
    assert len(answer["rooms"]) == 20
    assert texts(answer["rooms"][rooms[0]]) == ["two"]


def test_a_notification_of_element_x_costs_a_bounded_number_of_queries(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice, name="tea", preset="public_chat")
    act(bob, room_id, "join")
    event_id = say(bob, room_id, "one")
    invited = create(bob, invite=[alice.user_id])
    client = SlidingClient(
        alice,
        "notifications",
        lists={"invites": a_list([0, 16], limit=8, state=ELEMENT_STATE, is_invite=True)},
        room_subscriptions={room_id: {"timeline_limit": 16, "required_state": ELEMENT_STATE}},
        extensions={"account_data": {"enabled": True}},
    )
    answer = client.sync()
    assert answer["lists"] == {"invites": {"count": 1}}
    assert answer["rooms"].keys() == {room_id, invited}
    assert answer["rooms"][room_id]["timeline"][-1]["event_id"] == event_id
    assert ("m.room.member", bob.user_id) in state_of(answer["rooms"][room_id])


def test_idle_connections_are_deleted_after_a_month(server: TestServer) -> None:
    alice = server.register("alice")
    client = element(alice)
    client.sync()
    for _ in range(3):
        server.clock.advance(20 * 24 * 3600)
        client.sync()
    server.clock.advance(31 * 24 * 3600)
    answer = alice.post(client.path(), client.body)
    assert (answer.status, answer.errcode) == (400, "M_UNKNOWN_POS")


def test_the_number_of_connections_of_a_device_is_limited(
    server: TestServer, tmp_path: Path
) -> None:
    alice = server.register("alice")
    clients = [SlidingClient(alice, f"c{number}") for number in range(17)]
    for client in clients:
        client.sync()
        server.clock.advance(1)
    alice.server = TestServer(tmp_path, server.app.database, seed=2)
    statuses = [alice.post(client.path(), client.body).status for client in clients]
    assert statuses == [400] + [200] * 16


def test_an_empty_response_repeats_until_the_request_or_data_change(
    server: TestServer,
) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    older, newer = (create(alice, preset="public_chat") for _ in range(2))
    act(bob, newer, "join")
    extensions: dict[str, Any] = {"typing": {"enabled": True}, "account_data": {"enabled": True}}
    client = SlidingClient(alice, lists={"all": a_list([0, 0])}, extensions=extensions)

    def settle() -> dict[str, Any]:
        client.sync()
        empty = client.sync()
        assert empty["rooms"] == {}
        assert client.sync() == client.sync() == empty
        return empty

    assert set(client.sync()["rooms"]) == {newer}
    assert settle()["lists"] == {"all": {"count": 2}}
    client.body["lists"] = {"all": a_list([0, 1])}
    assert set(client.sync()["rooms"]) == {older}
    settle()
    client.body["room_subscriptions"] = {older: {"timeline_limit": 10, "required_state": []}}
    assert client.sync()["rooms"][older]["timeline"]
    settle()
    client.body["extensions"] = {**extensions, "e2ee": {"enabled": True}}
    assert "e2ee" in client.sync()["extensions"]
    settle()
    bob.put(
        f"/_matrix/client/v3/rooms/{newer}/typing/{bob.user_id}", {"typing": True, "timeout": 9000}
    )
    assert client.sync()["extensions"]["typing"]["rooms"][newer]["content"] == {
        "user_ids": [bob.user_id]
    }
    settle()
    alice.put(f"/_matrix/client/v3/user/{alice.user_id}/account_data/org.example", {"a": 1})
    assert client.sync()["extensions"]["account_data"]["global"] == [
        {"type": "org.example", "content": {"a": 1}}
    ]
    settle()
    say(bob, newer, "hello")
    assert texts(client.sync()["rooms"][newer]) == ["hello"]


@pytest.mark.parametrize("filters", [{}, {"not_room_types": ["m.space"]}])
def test_a_room_that_comes_back_into_a_window_costs_no_query(
    tmp_path: Path, counted: Database, counter: QueryCounter, filters: dict[str, Any]
) -> None:
    server = TestServer(tmp_path, counted)
    alice, bob = server.register("alice"), server.register("bob")
    rooms = [create(alice, preset="public_chat", name=f"room {number}") for number in range(5)]
    for room_id in rooms:
        act(bob, room_id, "join")
    lists = {"all_rooms": a_list([0, 2], state=ELEMENT_STATE, **filters)}
    client = SlidingClient(alice, lists=lists, extensions=ELEMENT_EXTENSIONS)
    client.sync()
    for room_id in rooms:  # each comes into view, and is pushed out by the others
        say(bob, room_id, "one")
        client.sync()
    with both_ways() as compared:
        for number, room_id in enumerate(rooms):
            say(bob, room_id, "two")
            counter.clear()
            answer = client.sync()
            assert texts(answer["rooms"].pop(room_id)) == ["two"]
            assert not answer["rooms"]
            assert not counter.queries
            assert len(compared) == number + 1
        # so does one in which somebody began to type while it was out of view
        bob.put(
            f"/_matrix/client/v3/rooms/{rooms[0]}/typing/{bob.user_id}",
            {"typing": True, "timeout": 30000},
        )
        assert not client.sync()["extensions"]["typing"]["rooms"]
        say(bob, rooms[0], "three")
        typing = client.sync()["extensions"]["typing"]["rooms"]
        assert typing[rooms[0]]["content"]["user_ids"] == [bob.user_id]
        assert len(compared) == len(rooms) + 1


def test_a_receipt_missed_outside_the_window_comes_with_the_room(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    rooms = [create(alice, preset="public_chat") for _ in range(3)]
    for room_id in rooms:
        act(bob, room_id, "join")
    client = SlidingClient(
        alice, lists={"all": a_list([0, 1])}, extensions={"receipts": {"enabled": True}}
    )
    for room_id in rooms:
        say(bob, room_id, "one")
        client.sync()
    event_id = say(alice, rooms[0], "two")
    client.sync()
    say(bob, rooms[2], "two")
    say(bob, rooms[1], "two")
    client.sync()
    receipt = f"/_matrix/client/v3/rooms/{rooms[0]}/receipt/m.read/{event_id}"
    assert bob.post(receipt, {}).status == 200
    assert not client.sync()["extensions"]["receipts"]["rooms"]
    with both_ways():
        say(alice, rooms[0], "three")
        assert event_id in client.sync()["extensions"]["receipts"]["rooms"][rooms[0]]["content"]


def test_settled_rooms_are_derived_from_the_former_state() -> None:
    required = RequiredState()
    config = RoomConfig(5, required)
    state = ConnectionState(
        rooms={
            1: SentRoom(LIVE, 5, required),
            2: SentRoom(LIVE, 1, required),
            3: SentRoom(7, 5, required),
        }
    )
    assert state.complete_rooms(config) == {1}
    changes = StateChanges(state)
    changes.mark_not_live(1, 9)
    changes.set_room(2, SentRoom(LIVE, 5, required))
    changes.set_room(3, SentRoom(LIVE, 8, required))
    changes.set_room(4, SentRoom(LIVE, 4, required))
    after = changes.result()
    assert (
        after.complete_rooms(config)
        == ConnectionState(rooms=after.rooms).complete_rooms(config)
        == {2, 3}
    )
    assert after.complete_rooms(RoomConfig(4, required)) == {2, 3, 4}


def test_counts_of_unchanged_rooms_cost_nothing(
    tmp_path: Path, counted: Database, counter: QueryCounter
) -> None:
    server = TestServer(tmp_path, counted)
    alice, bob = server.register("alice"), server.register("bob")
    rooms = [create(alice, preset="public_chat") for _ in range(5)]
    for room_id in rooms:
        act(bob, room_id, "join")
    event_id = say(bob, rooms[0], "hello")
    client = SlidingClient(alice, lists={"all": a_list([0, 9])})
    client.sync()
    client.sync()
    path = f"/_matrix/client/v3/rooms/{rooms[0]}/receipt/m.read/{event_id}"
    assert bob.post(path, {}).status == 200
    counter.clear()
    assert client.sync()["rooms"] == {}
    assert spent(counter) == 0, "others have read"
    assert alice.post(path, {}).status == 200
    counter.clear()
    assert list(client.sync()["rooms"]) == [rooms[0]]
    assert not counter.writes
    assert spent(counter) <= 4
