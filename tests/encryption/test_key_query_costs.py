"""Database statements of key queries and claims: the same for any number of users and devices."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred

from storage.engine.sqlite import SQLiteConfig
from tests.helpers.databases import QueryCounter, open_inline
from tests.helpers.keys import (
    V3,
    claim,
    cross_signing_key,
    identity_keys,
    one_time_keys,
    query,
    sync,
    upload,
)
from tests.helpers.server import TestServer, User


@pytest.fixture
def server(tmp_path: Path, sqlite: SQLiteConfig, counter: QueryCounter) -> Iterator[TestServer]:
    database = open_inline(sqlite, counter)
    yield TestServer(tmp_path, database)
    Deferred.fromCoroutine(database.close())


def people(server: TestServer, number: int) -> list[User]:
    """Users, each with a device, its keys and cross-signing keys."""
    users = [server.register(f"person{each}") for each in range(number)]
    for seed, user in enumerate(users, 1):
        upload(
            user,
            device_keys=identity_keys(user, seed)[1],
            one_time_keys=one_time_keys("a", "b", "c"),
        )
        _, master = cross_signing_key(user, "master", seed)
        assert user.post(f"{V3}/keys/device_signing/upload", {"master_key": master}).status == 200
    return users


@pytest.mark.parametrize("number", [1, 40])
def test_a_key_query_costs_one_read_the_first_time_and_none_later(
    server: TestServer, counter: QueryCounter, number: int
) -> None:
    asking = server.register("asking")
    users = people(server, number)
    query(asking)
    counter.clear()
    answer = query(asking, *users)
    assert dict(counter.queries) == {"get_published_keys": 4}
    assert len(answer["device_keys"]) == len(answer["master_keys"]) == number
    assert all(answer["device_keys"].values())
    counter.clear()
    assert query(asking, *users) == answer
    assert not counter.queries


@pytest.mark.parametrize("number", [1, 25])
def test_a_device_change_costs_the_same_in_any_number_of_rooms(
    server: TestServer, counter: QueryCounter, number: int
) -> None:
    """It costs one write with one query and five statements, of which one deletes signatures of the
    old keys. Members of the shared rooms are notified without a query."""
    alice, bob = people(server, 2)
    for _ in range(number):
        encryption = {
            "type": "m.room.encryption",
            "state_key": "",
            "content": {"algorithm": "m.megolm.v1.aes-sha2"},
        }
        room = {"preset": "public_chat", "initial_state": [encryption]}
        room_id = alice.post(f"{V3}/createRoom", room).json["room_id"]
        assert bob.post(f"{V3}/join/{room_id}", {}).status == 200
    since = sync(bob)["next_batch"]
    identity = identity_keys(alice)[1]
    upload(alice, device_keys={**identity, "algorithms": ["one"]})
    since = sync(bob, since)["next_batch"]
    counter.clear()
    upload(alice, device_keys={**identity, "algorithms": ["another"]})
    assert dict(counter.queries) == {"upload_keys": 6}
    counter.clear()
    assert sync(bob, since)["device_lists"]["changed"] == [alice.user_id]
    assert not counter.queries


def test_an_unchanged_device_name_is_not_announced(
    server: TestServer, counter: QueryCounter
) -> None:
    """Some clients set the device name at each start. Otherwise all who share rooms would query the
    keys."""
    alice, bob = people(server, 2)
    encryption = {
        "type": "m.room.encryption",
        "state_key": "",
        "content": {"algorithm": "m.megolm.v1.aes-sha2"},
    }
    room_id = alice.post(
        f"{V3}/createRoom", {"preset": "public_chat", "initial_state": [encryption]}
    ).json["room_id"]
    assert bob.post(f"{V3}/join/{room_id}", {}).status == 200
    assert alice.put(f"{V3}/devices/{alice.device_id}", {"display_name": "Bot"}).status == 200
    since = sync(bob)["next_batch"]
    counter.clear()
    assert alice.put(f"{V3}/devices/{alice.device_id}", {"display_name": "Bot"}).status == 200
    assert dict(counter.queries) == {"get_device": 1}
    answer = sync(bob, since)
    assert answer["device_lists"]["changed"] == []
    assert alice.put(f"{V3}/devices/{alice.device_id}", {"display_name": "Robot"}).status == 200
    assert sync(bob, answer["next_batch"])["device_lists"]["changed"] == [alice.user_id]


@pytest.mark.parametrize("number", [1, 40])
def test_a_claim_is_one_statement(server: TestServer, counter: QueryCounter, number: int) -> None:
    asking = server.register("asking")
    users = people(server, number)
    claim(asking, users[0])
    counter.clear()
    requested = {user.user_id: {user.device_id: "signed_curve25519"} for user in users}
    claimed = asking.post(f"{V3}/keys/claim", {"one_time_keys": requested}).json["one_time_keys"]
    assert dict(counter.queries) == {"claim_keys": 1}
    assert len(claimed) == number


@pytest.mark.parametrize("number", [1, 40])
def test_fallback_keys_cost_two_more_statements_the_first_time(
    server: TestServer, counter: QueryCounter, number: int
) -> None:
    asking = server.register("asking")
    users = people(server, number)
    requested = {user.user_id: {user.device_id: "other_algorithm"} for user in users}
    for user in users:
        upload(user, fallback_keys={"other_algorithm:f": {"key": "f", "fallback": True}})
    claim(asking, users[0])  # its token is cached
    counts = []
    for _ in range(2):
        counter.clear()
        claimed = asking.post(f"{V3}/keys/claim", {"one_time_keys": requested}).json[
            "one_time_keys"
        ]
        assert len(claimed) == number
        counts.append(dict(counter.queries))
    assert counts == [{"claim_keys": 3}, {"claim_keys": 2}]
