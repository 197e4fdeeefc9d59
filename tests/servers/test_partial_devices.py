"""Devices of people in rooms that are entered in part.

spec: server-server-api#device-management; MSC3902
"""

from typing import Any

import pytest

from tests.helpers.handshakes import NORTH, SOUTH, join_via
from tests.helpers.large_rooms import MEMBERS, complete, large_room, lazily, member
from tests.helpers.network import Network
from tests.helpers.server import User
from tests.helpers.talk import V3, ok, say

ENCRYPTED = {"initial_state": [{"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}]}


@pytest.mark.parametrize("looks_between", [True, False])
async def test_the_devices_of_all_are_told_of_when_they_are_known(network: Network, looks_between: bool) -> None:
    alice, bob, room_id = await large_room(network, **ENCRYPTED)
    ok(join_via(bob, room_id, NORTH))
    since = lazily(bob)["next_batch"]
    if looks_between:
        say(bob, room_id, "salom")
        since = lazily(bob, since)["next_batch"]

    complete(network)

    changed = set(lazily(bob, since)["device_lists"]["changed"])
    assert changed >= {alice.user_id, *map(member, range(MEMBERS))}


async def test_what_changes_of_devices_meanwhile_is_known_in_the_end(network: Network) -> None:
    alice, bob, room_id = await large_room(network, **ENCRYPTED)
    network.cut(NORTH, SOUTH)
    publish(alice, "one")
    network.mend(NORTH, SOUTH)
    ok(join_via(bob, room_id, NORTH))
    publish(alice, "two")
    publish(bob, "three")
    network.settle()
    complete(network)

    assert ed25519_of(alice, bob) == "three"
    assert ed25519_of(bob, alice) == "two"
    publish(alice, "four")
    publish(bob, "five")
    network.settle()
    assert ed25519_of(alice, bob) == "five"
    assert ed25519_of(bob, alice) == "four"


def publish(user: User, key: str) -> None:
    """Give the user's device this key, in a new device."""
    body = {
        "type": "m.login.password",
        "identifier": {"type": "m.id.user", "user": user.user_id},
        "password": "wonderland",
    }
    session = User(user.server, ok(user.server.post(f"{V3}/login", {**body, "device_id": key})))
    keys = device_keys(session.user_id, key, {f"ed25519:{key}": key})
    ok(session.post(f"{V3}/keys/upload", {"device_keys": keys}))


def ed25519_of(asking: User, asked: User) -> str:
    """The key of the newest device, as another server's user is told."""
    devices = ok(asking.post(f"{V3}/keys/query", {"device_keys": {asked.user_id: []}}))["device_keys"]
    return str(max(devices.get(asked.user_id, {"": 0}), key=ORDER.index))


ORDER = ["", "one", "two", "three", "four", "five"]


def device_keys(user_id: str, device_id: str, keys: dict[str, str]) -> dict[str, Any]:
    return {
        "user_id": user_id,
        "device_id": device_id,
        "algorithms": ["m.megolm.v1.aes-sha2"],
        "keys": keys,
        "signatures": {user_id: {f"ed25519:{device_id}": "s"}},
    }
