"""The database cost of a /sync: no query for a client that is up to date, and a bounded number
for one message."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from storage.engine.sqlite import SQLiteConfig
from tests.helpers.databases import QueryCounter, open_inline
from tests.helpers.room_actions import V3, ok
from tests.helpers.server import TestServer, move_user
from tests.helpers.sync_comparison import plain_timelines
from tests.helpers.sync_requests import Rooms, bodies, poll, sync, token

rooms = Rooms()


@pytest.fixture
def server(tmp_path: Path, sqlite: SQLiteConfig, counter: QueryCounter) -> Iterator[TestServer]:
    database = open_inline(sqlite, counter)
    yield TestServer(tmp_path, database)
    Deferred.fromCoroutine(database.close())


def reads(counter: QueryCounter) -> dict[str, int]:
    """Reads by name, without those of the authentication."""
    return {name: count for name, count in counter.queries.items() if name not in counter.writes}


def test_a_client_that_is_up_to_date_costs_no_query(
    server: TestServer, counter: QueryCounter
) -> None:
    alice = server.register("alice")
    for _ in range(5):
        rooms.create(alice)
    since = sync(alice)["next_batch"]
    sync(alice, since)
    counter.clear()
    sync(alice, since)
    assert not counter.queries


@pytest.mark.parametrize(("others", "known"), [(1, 2), (20, 12)])
def test_one_message_costs_no_query_however_many_rooms_and_members(
    server: TestServer, counter: QueryCounter, others: int, known: int
) -> None:
    alice = server.register("alice")
    for _ in range(known):
        rooms.create(alice)
    room = rooms.create(alice)
    for number in range(others):
        person = server.register(f"person{number}")
        rooms.join(person, room)
    first = sync(alice)["next_batch"]
    rooms.say(person, room)
    since = sync(alice, first)["next_batch"]
    rooms.say(person, room)
    counter.clear()
    with plain_timelines() as plain:
        assert bodies(sync(alice, since)["rooms"]["join"][room]) == ["hello"]
    assert not counter.queries
    assert len(plain) == 1


def test_waking_many_clients_costs_no_query_per_client(
    server: TestServer, counter: QueryCounter
) -> None:
    people = [server.register(f"person{number}") for number in range(12)]
    room = rooms.create(people[0], *people[1:])
    waiting = [poll(person, sync(person)["next_batch"]) for person in people]
    counter.clear()
    rooms.say(people[0], room)
    for _ in range(3):
        server.clock.advance(0)
    assert all(each.done for each in waiting)
    assert sum(counter.queries[name] for name in counter.reads) <= 3, counter.queries


def test_an_initial_sync_makes_a_bounded_number_of_reads(
    server: TestServer, counter: QueryCounter
) -> None:
    alice, bob = server.register("alice"), server.register("bob")

    def cost() -> int:
        counter.clear()
        sync(alice)
        return sum(counter.reads.values())

    for _ in range(3):
        rooms.say(bob, rooms.create(alice, bob))
    token(alice)
    few = cost()
    for _ in range(6):
        rooms.say(bob, rooms.create(alice, bob))
    token(alice)
    assert cost() <= few


def test_the_transaction_id_of_an_own_message_is_cached(
    server: TestServer, counter: QueryCounter
) -> None:
    alice = server.register("alice")
    room = rooms.create(alice)
    rooms.say(alice, room)
    first = sync(alice, sync(alice)["next_batch"])["next_batch"]
    rooms.say(alice, room)
    counter.clear()
    answer = sync(alice, first)
    assert "get_txn_ids" not in counter.queries
    assert answer["rooms"]["join"][room]["timeline"]["events"][0]["unsigned"]["transaction_id"]


def asked_for_children(counter: QueryCounter) -> int:
    """Of few events it is asked first whether any has some."""
    return counter.reads["have_children"] + counter.reads["get_relation_children"]


def test_children_are_queried_once_and_only_for_limited_timelines(
    tmp_path: Path, sqlite: SQLiteConfig, counter: QueryCounter
) -> None:
    database = open_inline(sqlite, counter)
    server = TestServer(tmp_path, database)
    alice, bob = server.register("alice"), server.register("bob")
    for _ in range(3):
        room = rooms.create(alice, bob)
        for _ in range(3):
            rooms.say(alice, room)
    counter.clear()
    filter = {"room": {"timeline": {"limit": 2}}}
    sync(bob, filter=filter)
    assert not asked_for_children(
        counter
    )  # these were just sent: their children would have been heard of
    restarted = TestServer(tmp_path, database)
    alice, bob = (move_user(restarted, each) for each in (alice, bob))
    counter.clear()
    since = sync(bob, filter=filter)["next_batch"]
    assert asked_for_children(counter) == 1
    rooms.say(alice, room)
    counter.clear()
    sync(bob, since)
    assert not asked_for_children(counter)
    Deferred.fromCoroutine(database.close())


def test_an_event_without_children_is_looked_up_once(
    server: TestServer, counter: QueryCounter
) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room = rooms.create(alice, bob)
    said = rooms.say(alice, room)
    page = f"/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=5"

    def unsigned() -> dict[str, Any]:
        chunk = bob.get(page).json["chunk"]
        found: dict[str, Any] = next(
            event["unsigned"] for event in chunk if event["event_id"] == said
        )
        return found

    assert "m.relations" not in unsigned()
    counter.clear()
    assert "m.relations" not in unsigned()
    assert not asked_for_children(counter)
    relation = {"rel_type": "m.reference", "event_id": said}
    sent = alice.put(
        f"/_matrix/client/v3/rooms/{room}/send/m.room.message/child",
        {"msgtype": "m.text", "body": "child", "m.relates_to": relation},
    )
    received = unsigned()["m.relations"]["m.reference"]["chunk"]
    assert received == [{"event_id": sent.json["event_id"]}]


def test_ignoring_a_sender_hides_no_children_from_others(server: TestServer) -> None:
    """A reader who ignores the sender of a child makes nobody else miss it."""
    alice, bob, carol = (server.register(name) for name in ("alice", "bob", "carol"))
    room = rooms.create(alice, bob, carol)
    said = rooms.say(alice, room)
    relation = {"rel_type": "m.reference", "event_id": said}
    alice.put(
        f"/_matrix/client/v3/rooms/{room}/send/m.room.message/child",
        {"msgtype": "m.text", "body": "child", "m.relates_to": relation},
    )
    bob.put(
        f"/_matrix/client/v3/user/{bob.user_id}/account_data/m.ignored_user_list",
        {"ignored_users": {alice.user_id: {}}},
    )
    event = f"/_matrix/client/v3/rooms/{room}/event/{said}"
    assert "m.relations" not in bob.get(event).json["unsigned"]
    assert carol.get(event).json["unsigned"]["m.relations"]


def test_the_name_of_a_room_is_read_once_until_it_changes(
    server: TestServer, counter: QueryCounter
) -> None:
    alice, bob, carol = server.register("alice"), server.register("bob"), server.register("carol")
    room = rooms.create(alice, bob, name="Garden")

    def summary() -> dict[str, Any]:
        """As an initial answer says it; asked twice, read at most once."""
        received: dict[str, Any] = sync(alice)["rooms"]["join"][room]["summary"]
        counter.clear()
        assert sync(alice)["rooms"]["join"][room]["summary"] == received
        assert ("get_rosters" in counter.reads) is ("m.heroes" in received), (
            "of a room without a name the people are read"
        )
        return received

    def counts(joined: int, invited: int) -> dict[str, int]:
        return {"m.joined_member_count": joined, "m.invited_member_count": invited}

    assert summary() == counts(2, 0)
    counter.clear()
    rooms.say(bob, room)
    sync(bob)
    assert "get_rosters" not in counter.reads, (
        "a message changes nothing of it, and it is the same for all"
    )
    rooms.act(alice, room, "invite", carol)
    assert summary() == counts(2, 1)
    rooms.join(carol, room)
    assert summary() == counts(3, 0)
    rooms.act(alice, room, "kick", carol)
    assert summary() == counts(2, 0)
    rooms.act(bob, room, "leave")
    assert summary() == counts(1, 0)
    rooms.state(alice, room, "m.room.name", {"name": ""})
    assert summary()["m.heroes"] == [carol.user_id, bob.user_id]
    name = rooms.state(alice, room, "m.room.name", {"name": "Orchard"})
    assert summary() == counts(1, 0)
    rooms.redact(alice, room, name)
    assert summary()["m.heroes"] == [carol.user_id, bob.user_id]


def test_an_initial_sync_reads_nothing_twice(server: TestServer, counter: QueryCounter) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room = rooms.create(alice, bob)
    last = rooms.say(bob, room)
    ok(
        alice.put(
            f"{V3}/user/{alice.user_id}/account_data/m.ignored_user_list", {"ignored_users": {}}
        )
    )
    ok(alice.post(f"{V3}/rooms/{room}/receipt/m.read/{last}", {}))
    counter.clear()
    answer = sync(alice)
    assert answer["rooms"]["join"][room]["unread_notifications"]["notification_count"] == 0
    # whom she ignores is in her account data, how far she has read among the receipts of the room;
    # her push rules are kept elsewhere
    named = ("account_data", "receipts", "push_rules")
    read = {
        name: count for name, count in counter.reads.items() if any(each in name for each in named)
    }
    assert read == {"get_account_data": 1, "get_push_rules": 1, "get_receipts": 1}
    since = answer["next_batch"]
    counter.clear()
    rooms.say(bob, room)
    assert (
        sync(alice, since)["rooms"]["join"][room]["unread_notifications"]["notification_count"] == 1
    )
    assert not counter.reads


def test_acknowledged_to_device_messages_are_deleted_though_a_room_has_new_events(
    server: TestServer, counter: QueryCounter
) -> None:
    """The usual answer would not do it."""
    alice, bob = server.register("alice"), server.register("bob")
    room = rooms.create(alice, bob)
    since = sync(alice, token(alice))["next_batch"]
    ok(
        bob.put(
            f"{V3}/sendToDevice/m.test/1",
            {"messages": {alice.user_id: {alice.device_id: {"n": 1}}}},
        )
    )
    answer = sync(alice, since)
    assert len(answer["to_device"]["events"]) == 1
    rooms.say(bob, room)
    counter.clear()
    assert room in sync(alice, answer["next_batch"])["rooms"]["join"]
    assert counter.writes == {"remove_to_device": 1}
