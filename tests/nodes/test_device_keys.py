"""Keys uploaded through one node, read from the other: a response is never older than what any
client has received."""

import json
from pathlib import Path
from typing import Any

import pytest

from federation.protocol.ids import UserID
from storage.engine.database import PostgresConfig
from tests.conftest import run_coroutine
from tests.helpers.databases import QueryCounter, open_inline
from tests.helpers.encrypted_rooms import ENCRYPTION_EVENT
from tests.helpers.keys import V3, cross_signing_key, identity_keys, query, upload
from tests.helpers.logins import another_device
from tests.helpers.node_pair import POSTGRES_CONFIG, PollingNodes
from tests.helpers.server import TestServer, User
from tests.helpers.sync_requests import sync


def get_list(server: TestServer, user: User) -> dict[str, Any]:
    """Return the device list as another server reads it."""
    answer: dict[str, Any] = server.run(
        server.app.federation_sender.own_devices.get_list(UserID(user.user_id))
    )
    return answer


def test_a_device_list_has_the_changes_that_its_stream_id_stands_for(
    polling_nodes: PollingNodes,
) -> None:
    bob = polling_nodes.first.register("bob")
    upload(bob, device_keys=identity_keys(bob, 1)[1])
    polling_nodes.wait()
    before = get_list(polling_nodes.second, bob)
    second = another_device(bob)
    upload(second, device_keys=identity_keys(second, 2)[1])
    after = get_list(polling_nodes.second, bob)
    assert after["stream_id"] > before["stream_id"]
    assert {device["device_id"] for device in after["devices"]} == {bob.device_id, second.device_id}


def test_a_device_announced_by_one_node_is_found_on_the_other(polling_nodes: PollingNodes) -> None:
    here, there = polling_nodes.here_and_there("alice")
    bob = polling_nodes.first.register("bob")
    room_id = here.post(
        f"{V3}/createRoom", {"preset": "public_chat", "initial_state": [ENCRYPTION_EVENT]}
    ).json["room_id"]
    assert bob.post(f"{V3}/join/{room_id}").status == 200
    upload(bob, device_keys=identity_keys(bob, 1)[1])
    polling_nodes.wait()
    since = sync(here)["next_batch"]
    query(there, bob)
    second = another_device(bob)
    upload(second, device_keys=identity_keys(second, 2)[1])
    assert sync(here, since)["device_lists"]["changed"] == [bob.user_id]
    assert query(there, bob)["device_keys"][bob.user_id].keys() == {bob.device_id, second.device_id}


def test_the_sending_node_does_not_announce_a_new_device_as_deleted(
    polling_nodes: PollingNodes,
) -> None:
    here, there = polling_nodes.here_and_there("bob")
    upload(here, device_keys=identity_keys(here, 1)[1])
    polling_nodes.wait()
    get_list(polling_nodes.first, here)
    second = another_device(there)
    upload(second, device_keys=identity_keys(second, 2)[1])
    edus = polling_nodes.first.run(
        polling_nodes.first.app.federation_sender.own_devices.get_updates(here.user_id, 0)
    )
    received = [json.loads(edu)["content"] for edu in edus]
    assert {content["device_id"] for content in received} == {here.device_id, second.device_id}
    assert not any(content.get("deleted") for content in received)


def test_a_device_of_one_node_can_be_signed_through_the_other(polling_nodes: PollingNodes) -> None:
    here, there = polling_nodes.here_and_there("alice")
    master, master_key = cross_signing_key(here, "master", 5)
    signing, signing_key = cross_signing_key(here, "self_signing", 6, by=master)
    keys = {"master_key": master_key, "self_signing_key": signing_key}
    assert here.post(f"{V3}/keys/device_signing/upload", keys).status == 200
    polling_nodes.wait()
    query(there, there)
    _, device_keys = identity_keys(here, 1)
    upload(here, device_keys=device_keys)
    signed = {here.user_id: {here.device_id: signing.sign(device_keys, here)}}
    answer = there.post(f"{V3}/keys/signatures/upload", signed)
    assert (answer.status, answer.json) == (200, {"failures": {}})
    shown = query(there, here)["device_keys"][here.user_id][here.device_id]
    assert shown["signatures"][here.user_id].keys() >= {signing.key_id}


@pytest.mark.parametrize("number", [1, 30])
def test_checking_that_keys_are_current_is_one_read_for_any_number(
    tmp_path: Path, postgresql: PostgresConfig, number: int
) -> None:
    counter = QueryCounter()
    server = TestServer(tmp_path, open_inline(postgresql, counter), POSTGRES_CONFIG)
    users = [server.register(f"person{each}") for each in range(number)]
    for seed, user in enumerate(users, 1):
        upload(user, device_keys=identity_keys(user, seed)[1])
    asking = server.register("asking")
    first = query(asking, *users)
    counter.clear()
    assert query(asking, *users) == first
    assert dict(counter.queries) == {"get_head": 1}
    (tmp_path / "other").mkdir()
    other = TestServer(tmp_path / "other", open_inline(postgresql), POSTGRES_CONFIG, seed=2)
    other.register("somebody")
    counter.clear()
    assert query(asking, *users) == first
    assert dict(counter.queries) == {"get_head": 1, "get_newest_published_keys": 2}, (
        "another node has made a change"
    )
    server.run(server.app.database.poll())
    query(asking, *users)
    counter.clear()
    assert query(asking, *users) == first
    assert dict(counter.queries) == {"get_head": 1}
    run_coroutine(other.app.database.close(), None)
    run_coroutine(server.app.database.close(), None)


def test_signatures_of_other_users_are_seen_through_the_other_node(
    polling_nodes: PollingNodes,
) -> None:
    here, there = polling_nodes.here_and_there("alice")
    bob = polling_nodes.first.register("bob")
    master, master_key = cross_signing_key(here, "master", 5)
    signing, signing_key = cross_signing_key(here, "user_signing", 6, by=master)
    keys = {"master_key": master_key, "user_signing_key": signing_key}
    assert here.post(f"{V3}/keys/device_signing/upload", keys).status == 200
    theirs, their_key = cross_signing_key(bob, "master", 7)
    assert bob.post(f"{V3}/keys/device_signing/upload", {"master_key": their_key}).status == 200
    polling_nodes.wait()
    query(there, bob)
    signed = {bob.user_id: {theirs.public: signing.sign(their_key, here)}}
    assert here.post(f"{V3}/keys/signatures/upload", signed).json == {"failures": {}}
    shown = query(there, bob)["master_keys"][bob.user_id]
    assert shown["signatures"][here.user_id].keys() == {signing.key_id}
