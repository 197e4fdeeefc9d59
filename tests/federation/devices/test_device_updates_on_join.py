"""A server with which our user newly shares a room gets the latest change of their devices: its
list may be old."""

import msgspec
import pytest

from tests.helpers.encrypted_rooms import encrypted_room
from tests.helpers.federated_rooms import EAST, NORTH, SOUTH, create_room
from tests.helpers.keys import V3, identity_keys, query, upload
from tests.helpers.logins import another_device
from tests.helpers.network import Fate, Network, Transfer

UPDATE = "m.device_list_update"


@pytest.fixture
def sent_updates(network: Network) -> list[tuple[str, str]]:
    """Device updates by server."""
    found: list[tuple[str, str]] = []

    def look(transfer: Transfer) -> Fate:
        if "/v1/send/" in transfer.request.uri and transfer.request.body:
            edus = msgspec.json.decode(transfer.request.body).get("edus", [])
            found.extend(
                (transfer.destination, edu["content"]["device_id"])
                for edu in edus
                if edu["edu_type"] == UPDATE
            )
        return Fate.ARRIVES

    network.choose_fate = look
    return found


async def test_a_returning_user_sends_the_changes_made_meanwhile(
    network: Network, sent_updates: list[tuple[str, str]]
) -> None:
    room = await encrypted_room(network)
    query(room.alice, room.bob)
    room.bob.post(f"{V3}/rooms/{room.room_id}/leave")
    network.settle()
    second = another_device(room.bob)
    upload(second, device_keys=identity_keys(second, 3)[1])
    network.settle()
    sent_updates.clear()
    assert room.bob.post(f"{V3}/join/{room.room_id}?via={NORTH}", {}).status == 200
    network.settle()
    assert sent_updates == [(NORTH, second.device_id)]


async def test_only_the_latest_change_is_sent_and_only_if_no_room_was_shared(
    network: Network, sent_updates: list[tuple[str, str]]
) -> None:
    room = await encrypted_room(network)
    for seed in range(3, 6):
        last = another_device(room.bob)
        upload(last, device_keys=identity_keys(last, seed)[1])
    carol = network.add(EAST).register("carol")
    theirs, norths = create_room(carol), create_room(room.alice)
    network.settle()
    sent_updates.clear()
    assert room.bob.post(f"{V3}/join/{norths}?via={NORTH}", {}).status == 200
    network.settle()
    assert sent_updates == [], "a room is shared with them already"
    assert room.bob.post(f"{V3}/join/{theirs}?via={EAST}", {}).status == 200
    network.settle()
    assert sent_updates == [(EAST, last.device_id)]
    assert (
        room.bob.put(
            f"{V3}/profile/{room.bob.user_id}/displayname", {"displayname": "Bobby"}
        ).status
        == 200
    )
    network.clock.advance(5)
    network.settle()
    assert len(sent_updates) == 1, "a new display name is not a join"


async def test_a_user_without_keys_sends_nothing(
    network: Network, sent_updates: list[tuple[str, str]]
) -> None:
    room = await encrypted_room(network)
    dan = room.south.server.register("dan")
    sent_updates.clear()
    assert dan.post(f"{V3}/join/{room.room_id}?via={NORTH}", {}).status == 200
    network.settle()
    assert sent_updates == []


async def test_changes_are_sent_after_a_kill(
    network: Network, sent_updates: list[tuple[str, str]]
) -> None:
    room = await encrypted_room(network)
    room.bob.post(f"{V3}/rooms/{room.room_id}/leave")
    network.settle()
    sent_updates.clear()
    pending = room.bob.start("POST", f"{V3}/join/{room.room_id}?via={NORTH}", {})
    assert pending.done
    assert sent_updates == []
    network.rebuild(SOUTH)
    network.settle()
    assert set(sent_updates) == {(NORTH, room.bob.device_id)}


async def test_a_server_that_is_behind_costs_no_row_per_joining_user(
    network: Network, sent_updates: list[tuple[str, str]]
) -> None:
    room = await encrypted_room(network)
    people = [room.south.server.register(f"person{number}") for number in range(3)]
    for seed, user in enumerate(people, 10):
        upload(user, device_keys=identity_keys(user, seed)[1])
    south = room.south.server.app.database
    sent_updates.clear()
    network.cut(NORTH, SOUTH)
    room.bob.put(
        f"{V3}/rooms/{room.room_id}/send/m.room.message/1", {"msgtype": "m.text", "body": "1"}
    )
    network.settle()
    for user in people:
        assert user.post(f"{V3}/join/{room.room_id}", {}).status == 200
    network.settle()
    count = await south.read(
        "test", lambda txn: txn.query_one("SELECT count(*) FROM destination_users")
    )
    assert count == (0,)
