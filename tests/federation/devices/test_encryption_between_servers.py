"""Encryption between servers: keys are fetched and claimed once, device lists stay current, to-
device messages arrive once."""

import json
from typing import Any

import pytest

from federation.peers.client import RefusedByRemote, get_retry_after_ms
from federation.protocol.canonical_json import MAX_DEPTH, MAX_SENT_DEPTH
from federation.protocol.ids import RoomID, ServerName, UserID
from tests.helpers.encrypted_rooms import encrypted_room, receive_numbers, send_number
from tests.helpers.federated_rooms import EAST, NORTH, SOUTH, Side, adopt, shared
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
from tests.helpers.logins import another_device
from tests.helpers.network import Network, count_requests
from tests.helpers.server import TestServer

CLAIM = "/_matrix/federation/v1/user/keys/claim"


async def test_keys_of_a_remote_user_are_fetched_once_and_stored(network: Network) -> None:
    room = await encrypted_room(network)

    first = query(room.alice, room.bob)
    repeated = query(room.alice, room.bob)

    devices = first["device_keys"][room.bob.user_id]
    assert devices[room.bob.device_id]["keys"] == identity_keys(room.bob, 2)[1]["keys"]
    assert devices[room.bob.device_id]["signatures"] == identity_keys(room.bob, 2)[1]["signatures"]
    assert first == repeated
    assert first["failures"] == {}
    assert count_requests(network, SOUTH, "/user/devices/") == 1


async def test_a_new_device_is_announced_and_known_without_another_query(network: Network) -> None:
    room = await encrypted_room(network)
    query(room.alice, room.bob)
    since = sync(room.alice)["next_batch"]

    second = another_device(room.bob)
    upload(second, device_keys=identity_keys(second, 3)[1])
    network.settle()

    assert sync(room.alice, since)["device_lists"]["changed"] == [room.bob.user_id]
    assert query(room.alice, room.bob)["device_keys"][room.bob.user_id].keys() == {
        room.bob.device_id,
        second.device_id,
    }
    assert count_requests(network, SOUTH, "/user/devices/") == 1

    assert second.post(f"{V3}/logout").status == 200
    network.settle()
    assert query(room.alice, room.bob)["device_keys"][room.bob.user_id].keys() == {
        room.bob.device_id
    }
    assert count_requests(network, SOUTH, "/user/devices/") == 1


async def test_changes_during_an_outage_are_sent_after_it(network: Network) -> None:
    room = await encrypted_room(network)
    query(room.alice, room.bob)
    network.cut(NORTH, SOUTH)
    devices = [another_device(room.bob) for _ in range(3)]
    for seed, device in enumerate(devices, 3):
        upload(device, device_keys=identity_keys(device, seed)[1])
        network.settle()
    network.rebuild(SOUTH)
    network.settle()
    network.mend(NORTH, SOUTH)
    for _ in range(3):
        network.clock.advance(3600)
        network.settle()

    known = query(room.alice, room.bob)["device_keys"][room.bob.user_id]
    assert known.keys() == {room.bob.device_id, *(device.device_id for device in devices)}


async def test_a_gap_in_updates_triggers_a_resync(network: Network) -> None:
    room = await encrypted_room(network)
    query(room.alice, room.bob)
    content = {
        "user_id": room.bob.user_id,
        "device_id": "GONE",
        "stream_id": 1_000_000,
        "prev_id": [999_999],
        "deleted": True,
    }
    await room.south.push(NORTH, [], [{"edu_type": "m.device_list_update", "content": content}])
    network.settle()

    assert count_requests(network, SOUTH, "/user/devices/") == 2
    assert query(room.alice, room.bob)["device_keys"][room.bob.user_id].keys() == {
        room.bob.device_id
    }


async def test_a_server_cannot_change_devices_of_another_server(network: Network) -> None:
    room = await encrypted_room(network)
    east = Side(network.add(EAST))
    await adopt(room.north, east, east.server.register("carol").user_id, room.room_id)
    before = query(room.alice, room.bob)["device_keys"]
    content = {
        "user_id": room.bob.user_id,
        "device_id": room.bob.device_id,
        "stream_id": 1 << 40,
        "deleted": True,
    }

    await east.push(NORTH, [], [{"edu_type": "m.device_list_update", "content": content}])
    network.settle()

    assert query(room.alice, room.bob)["device_keys"] == before


async def test_cross_signing_keys_are_announced(network: Network) -> None:
    room = await encrypted_room(network)
    query(room.alice, room.bob)
    master, master_key = cross_signing_key(room.bob, "master", 9)
    _, self_signing = cross_signing_key(room.bob, "self_signing", 10, master)
    answer = room.bob.post(
        f"{V3}/keys/device_signing/upload",
        {"master_key": master_key, "self_signing_key": self_signing},
    )
    assert answer.status == 200, answer.body
    network.settle()

    known = query(room.alice, room.bob)
    assert known["master_keys"][room.bob.user_id]["keys"] == master_key["keys"]
    assert known["self_signing_keys"][room.bob.user_id]["keys"] == self_signing["keys"]
    assert count_requests(network, SOUTH, "/user/devices/") == 1


async def test_repeated_cross_signing_keys_are_no_change(network: Network) -> None:
    """With and without a stored device list."""
    room = await encrypted_room(network)
    _, master_key = cross_signing_key(room.bob, "master", 9)
    edu: dict[str, Any] = {
        "edu_type": "m.signing_key_update",
        "content": {"user_id": room.bob.user_id, "master_key": master_key},
    }
    other = {
        **edu,
        "content": {**edu["content"], "master_key": cross_signing_key(room.bob, "master", 10)[1]},
    }
    since = sync(room.alice)["next_batch"]
    received: list[bool] = []
    for said in (edu, edu, other, edu, "ask", edu, edu):
        if said == "ask":
            query(room.alice, room.bob)
        else:
            await room.south.push(NORTH, [], [said])
        answer = sync(room.alice, since)
        since = answer["next_batch"]
        received.append(room.bob.user_id in answer["device_lists"]["changed"])
    assert received == [True, False, True, True, False, True, False], (
        "after the query bob's server has no list; it gets the update, and again"
    )


async def test_a_server_that_does_not_answer_is_a_failure(network: Network) -> None:
    room = await encrypted_room(network)
    network.cut(NORTH, SOUTH)

    answer = query(room.alice, room.alice, room.bob)
    assert answer["failures"].keys() == {SOUTH}
    assert answer["device_keys"].keys() == {room.alice.user_id}


async def test_keys_of_users_without_a_shared_room_are_fetched_each_time(network: Network) -> None:
    room = await encrypted_room(network)
    dan = room.south.server.register("dan")
    upload(dan, device_keys=identity_keys(dan, 5)[1])

    for _ in range(2):
        assert query(room.alice, dan)["device_keys"][dan.user_id].keys() == {dan.device_id}
    assert count_requests(network, SOUTH, "/user/keys/query") == 2


async def test_a_one_time_key_is_never_claimed_twice(network: Network) -> None:
    room = await encrypted_room(network)
    east = Side(network.add(EAST))
    carol = east.server.register("carol")
    names = [f"k{number}" for number in range(10)]
    upload(room.bob, one_time_keys=one_time_keys(*names))

    given: list[str] = []
    for number in range(12):
        got = claim((room.alice, carol, room.bob)[number % 3], room.bob)
        given += got or {}

    assert len(given) == len(set(given)) == 11
    fallback = {"signed_curve25519:F": {"key": "f", "fallback": True, "signatures": {}}}
    upload(room.bob, fallback_keys=fallback)
    assert claim(carol, room.bob) == claim(room.alice, room.bob) == fallback
    assert sync(room.bob)["device_unused_fallback_key_types"] == []


async def test_a_server_that_claims_too_many_keys_is_limited_and_others_are_not(
    network: Network,
) -> None:
    room = await shared(
        network, config={NORTH: "rc_federation: {claimed_keys: {per_second: 1, burst_count: 4}}\n"}
    )
    upload(room.alice, one_time_keys=one_time_keys(*[f"k{number}" for number in range(9)]))
    east = network.add(EAST)
    requested = {
        "one_time_keys": {
            room.alice.user_id: {room.alice.device_id: "signed_curve25519", "X": "other"}
        }
    }

    async def ask(server: TestServer) -> int:
        """Return the number of claimed keys. Raises RefusedByRemote."""
        answer = await server.app.peers.requests.post(ServerName(NORTH), CLAIM, requested)
        return len(answer["one_time_keys"].get(room.alice.user_id, {}))

    south = room.south.server
    assert [await ask(south) for _ in range(2)] == [1, 1]
    with pytest.raises(RefusedByRemote) as refused:
        await ask(south)
    assert (refused.value.status, refused.value.errcode) == (429, "M_LIMIT_EXCEEDED")
    assert get_retry_after_ms(refused.value) == 1000
    assert await ask(east) == 1
    network.clock.advance(1.0)
    assert await ask(south) == 1
    assert sync(room.alice)["device_one_time_keys_count"] == {"signed_curve25519": 5}


async def test_to_device_messages_arrive_in_order_and_once(network: Network) -> None:
    room = await encrypted_room(network)
    second = another_device(room.bob)
    _, since = receive_numbers(room.bob)
    _, since_second = receive_numbers(second)
    for number in range(5):
        send_number(
            room.alice,
            number,
            {
                room.bob.user_id: {
                    room.bob.device_id: {"n": number},
                    second.device_id: {"n": number},
                }
            },
        )
        network.settle()
    network.cut(NORTH, SOUTH)
    for number in range(5, 120):
        send_number(room.alice, number, {room.bob.user_id: {"*": {"n": number}}})
        network.settle()
    network.rebuild(NORTH)
    network.settle()
    network.mend(NORTH, SOUTH)
    for _ in range(3):
        network.clock.advance(3600)
        network.settle()

    for user, start in ((room.bob, since), (second, since_second)):
        got, token = list[int](), start
        while True:
            more, token = receive_numbers(user, token)
            if not more:
                break
            got += more
        assert got == list(range(120))


async def test_a_duplicate_message_is_ignored(network: Network) -> None:
    room = await encrypted_room(network)
    _, since = receive_numbers(room.bob)
    content = {
        "sender": room.alice.user_id,
        "type": "org.example.number",
        "message_id": "m1",
        "messages": {room.bob.user_id: {room.bob.device_id: {"n": 1}}},
    }
    edu = {"edu_type": "m.direct_to_device", "content": content}
    forged = {
        "edu_type": "m.direct_to_device",
        "content": {**content, "sender": room.bob.user_id, "message_id": "m2"},
    }
    for _ in range(2):
        await room.north.push(SOUTH, [], [edu, forged])

    assert receive_numbers(room.bob, since)[0] == [1]


async def test_a_message_of_the_maximum_depth_arrives(network: Network) -> None:
    room = await encrypted_room(network)
    _, since = receive_numbers(room.bob)
    deep = json.loads("[" * (MAX_SENT_DEPTH - 1) + "]" * (MAX_SENT_DEPTH - 1))
    send_number(room.alice, 1, {room.bob.user_id: {room.bob.device_id: {"n": deep}}})
    network.settle()

    assert receive_numbers(room.bob, since)[0] == [deep]


async def test_a_message_that_nests_too_deep_is_dropped_and_no_other(network: Network) -> None:
    room = await encrypted_room(network)
    _, since = receive_numbers(room.bob)
    deeper = json.loads("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    content = {"sender": room.alice.user_id, "type": "org.example.number"}
    edus = [
        {
            "edu_type": "m.direct_to_device",
            "content": {
                **content,
                "message_id": str(number),
                "messages": {room.bob.user_id: {"*": {"n": n}}},
            },
        }
        for number, n in enumerate([1, deeper, 2])
    ]
    await room.north.push(SOUTH, [], edus)

    assert receive_numbers(room.bob, since)[0] == [1, 2]


async def test_messages_to_no_device_leave_no_record(network: Network) -> None:
    """Otherwise a server could fill our disk with messages to nobody. A message whose device
    appears meanwhile is accepted."""
    room = await encrypted_room(network)
    later = room.bob.device_id + "LATER"
    recipients: list[dict[str, Any]] = [
        {},
        {room.bob.user_id: {}},
        {room.bob.user_id: {later: {"n": 1}}},
        {room.alice.user_id: {"*": {"n": 1}}},
        {f"@nobody:{SOUTH}": {"*": {"n": 1}}},
        {room.bob.user_id: {"*": {"n": 2}}},
    ]
    _, since = receive_numbers(room.bob)
    for number, messages in enumerate(recipients):
        content = {
            "sender": room.alice.user_id,
            "type": "org.example.number",
            "message_id": f"m{number}",
            "messages": messages,
        }
        await room.north.push(SOUTH, [], [{"edu_type": "m.direct_to_device", "content": content}])

    notes = await room.south.server.app.database.read(
        "test", lambda txn: txn.query("SELECT message_id, origin FROM received_to_device")
    )
    assert notes == [("m5", NORTH)]
    assert receive_numbers(room.bob, since)[0] == [2]


async def test_keys_of_a_returning_user_are_fetched_again(network: Network) -> None:
    room = await encrypted_room(network)
    query(room.alice, room.bob)
    room.bob.post(f"{V3}/rooms/{room.room_id}/leave")
    network.settle()
    second = another_device(room.bob)  # this is not announced, as no room is shared
    upload(second, device_keys=identity_keys(second, 3)[1])
    network.settle()
    await adopt(room.north, room.south, UserID(room.bob.user_id), RoomID(room.room_id))
    network.settle()

    assert query(room.alice, room.bob)["device_keys"][room.bob.user_id].keys() == {
        room.bob.device_id,
        second.device_id,
    }


async def test_a_device_list_is_stored_only_while_a_room_is_shared(network: Network) -> None:
    room = await encrypted_room(network)
    query(room.alice, room.bob)
    room.alice.post(f"{V3}/rooms/{room.room_id}/leave")
    network.settle()
    second = another_device(room.bob)  # this is not announced, as no room is shared
    upload(second, device_keys=identity_keys(second, 3)[1])
    network.settle()

    assert query(room.alice, room.bob)["device_keys"][room.bob.user_id].keys() == {
        room.bob.device_id,
        second.device_id,
    }


async def test_a_user_who_joins_a_room_gets_the_present_devices(network: Network) -> None:
    room = await encrypted_room(network)
    query(room.alice, room.bob)
    answer = room.bob.post(f"{V3}/createRoom", {"preset": "public_chat"})
    later = answer.json["room_id"]
    room.alice.post(f"{V3}/rooms/{room.room_id}/leave")
    network.settle()
    second = another_device(room.bob)  # this is not announced, as no room is shared
    upload(second, device_keys=identity_keys(second, 3)[1])
    network.settle()
    answer = room.alice.post(f"{V3}/join/{later}?via={SOUTH}")
    assert answer.status == 200, answer.body
    network.settle()

    assert query(room.alice, room.bob)["device_keys"][room.bob.user_id].keys() == {
        room.bob.device_id,
        second.device_id,
    }
    assert count_requests(network, SOUTH, "/user/devices/") == 2


async def test_a_user_who_returns_to_a_room_gets_the_present_devices(
    network: Network,
) -> None:
    room = await encrypted_room(network)
    query(room.alice, room.bob)
    room.alice.post(f"{V3}/rooms/{room.room_id}/leave")
    network.settle()
    second = another_device(room.bob)  # this is not announced, as no room is shared
    upload(second, device_keys=identity_keys(second, 3)[1])
    network.settle()
    room.bob.post(f"{V3}/rooms/{room.room_id}/invite", {"user_id": room.alice.user_id})
    network.settle()
    answer = room.alice.post(f"{V3}/join/{room.room_id}?via={SOUTH}")
    assert answer.status == 200, answer.body
    network.settle()

    assert query(room.alice, room.bob)["device_keys"][room.bob.user_id].keys() == {
        room.bob.device_id,
        second.device_id,
    }


async def test_users_who_join_and_leave_are_in_changed_and_left(network: Network) -> None:
    room = await encrypted_room(network)
    carol = room.south.server.register("carol")
    upload(carol, device_keys=identity_keys(carol, 6)[1])
    network.settle()
    since = sync(room.alice)["next_batch"]

    answer = carol.post(f"{V3}/join/{room.room_id}?via={NORTH}")
    assert answer.status == 200, answer.body
    network.settle()
    came = sync(room.alice, since)
    assert came["device_lists"]["changed"] == [carol.user_id]
    assert query(room.alice, carol)["device_keys"][carol.user_id].keys() == {carol.device_id}

    carol.post(f"{V3}/rooms/{room.room_id}/leave")
    network.settle()
    assert sync(room.alice, came["next_batch"])["device_lists"]["left"] == [carol.user_id]


async def test_device_names_and_user_signing_keys_are_not_sent_to_other_servers(
    network: Network,
) -> None:
    room = await encrypted_room(network)
    room.bob.put(f"{V3}/devices/{room.bob.device_id}", {"display_name": "Bob's secret phone"})
    master, master_key = cross_signing_key(room.bob, "master", 9)
    _, user_signing = cross_signing_key(room.bob, "user_signing", 11, master)
    room.bob.post(
        f"{V3}/keys/device_signing/upload",
        {"master_key": master_key, "user_signing_key": user_signing},
    )
    network.settle()

    known = query(room.alice, room.bob)
    assert "Bob's secret phone" not in str(known)
    assert "user_signing_keys" not in known
