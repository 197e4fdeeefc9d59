"""Devices of members of rooms with partial state.

spec: server-server-api#device-management; MSC3902
"""

from typing import Any

import pytest

from federation.protocol.ids import RoomID, UserID
from federation.rooms.event_drafts import Draft
from federation.rooms.receipt_checks import Verdict
from tests.helpers.encrypted_rooms import ENCRYPTION_EVENT
from tests.helpers.federated_rooms import Side
from tests.helpers.large_rooms import (
    MEMBERS,
    complete,
    join_after_missed_ban,
    large_room,
    lazily,
    member,
    take,
)
from tests.helpers.logins import password_auth
from tests.helpers.network import Network
from tests.helpers.remote_membership import NORTH, SOUTH, WEST, join_via
from tests.helpers.room_actions import V3, create, ok, say
from tests.helpers.server import TestServer, User

ENCRYPTED = {"initial_state": [ENCRYPTION_EVENT]}


@pytest.mark.parametrize("looks_between", [True, False])
async def test_all_members_are_in_changed_when_the_state_is_complete(
    network: Network, looks_between: bool
) -> None:
    alice, bob, room_id = await large_room(network, **ENCRYPTED)
    ok(join_via(bob, room_id, NORTH))
    since = lazily(bob)["next_batch"]
    if looks_between:
        say(bob, room_id, "salom")
        since = lazily(bob, since)["next_batch"]

    complete(network)

    changed = set(lazily(bob, since)["device_lists"]["changed"])
    assert changed >= {alice.user_id, *map(member, range(MEMBERS))}


async def test_members_who_leave_meanwhile_or_later_are_in_left(network: Network) -> None:
    alice, bob, room_id = await large_room(network, **ENCRYPTED)
    since = lazily(bob)["next_batch"]
    ok(join_via(bob, room_id, NORTH))
    answer = lazily(bob, since)
    known = set(answer["device_lists"]["changed"])
    assert known >= {alice.user_id, member(0)}
    assert len(known) < MEMBERS
    await send_leave(alice.server, room_id, member(0))
    network.settle()
    answer = lazily(bob, answer["next_batch"])
    assert answer["device_lists"] == {"changed": [], "left": [member(0)]}
    await send_leave(alice.server, room_id, member(MEMBERS - 1))
    complete(network)
    answer = lazily(bob, answer["next_batch"])
    others = {alice.user_id, *map(member, range(1, MEMBERS - 1))}
    assert set(answer["device_lists"]["changed"]) - {bob.user_id} == others
    ok(bob.post(f"{V3}/rooms/{room_id}/leave"))
    assert set(lazily(bob, answer["next_batch"])["device_lists"]["left"]) == others


async def mistaken(network: Network) -> tuple[User, User, str, str]:
    """Bob gets the devices of Wanda, who had been banned. The partial state does not show that, so
    her join was accepted. Returns Bob, Wanda, the room, and Bob's position."""
    powers = {f"@alice:{NORTH}": 100, f"@wanda:{WEST}": 60}
    alice, bob, room_id = await large_room(
        network,
        room_version="11",
        power_level_content_override={"users": powers, "events": {}},
        **ENCRYPTED,
    )
    wanda = network.add(WEST).register("wanda")
    join_after_missed_ban(network, alice, bob, room_id, wanda)
    since = lazily(bob)["next_batch"]
    west = Side(wanda.server)
    (our_join,) = await Side(bob.server).last(RoomID(room_id))
    content = {"membership": "join", "displayname": "Wanda"}
    renamed = await west.build_next(
        RoomID(room_id), wanda.user_id, "m.room.member", content, wanda.user_id, prev=[our_join]
    )
    assert await take(bob, room_id, west, renamed) is Verdict.ACCEPT
    answer = lazily(bob, since)
    assert answer["device_lists"]["changed"] == [wanda.user_id]
    network.mend(NORTH, WEST)
    return bob, wanda, room_id, answer["next_batch"]


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_user_who_was_a_member_only_in_the_partial_state_is_in_left(
    network: Network, restarts: bool
) -> None:
    bob, wanda, _, since = await mistaken(network)
    complete(network)
    if restarts:
        bob.server = network.rebuild(SOUTH)
    answer = lazily(bob, since)
    assert answer["device_lists"]["left"] == [wanda.user_id]
    assert lazily(bob, answer["next_batch"])["device_lists"] == {"changed": [], "left": []}


@pytest.mark.parametrize("restarts", [False, True])
async def test_a_partial_member_is_in_left_though_the_reader_has_left(
    network: Network, restarts: bool
) -> None:
    bob, wanda, room_id, since = await mistaken(network)
    complete(network)
    ok(bob.post(f"{V3}/rooms/{room_id}/leave"))
    if restarts:
        bob.server = network.rebuild(SOUTH)
    answer = lazily(bob, since)
    assert wanda.user_id in answer["device_lists"]["left"]
    assert answer["device_lists"]["changed"] == []
    assert lazily(bob, answer["next_batch"])["device_lists"] == {"changed": [], "left": []}


async def test_a_partial_member_of_another_encrypted_room_is_not_in_left(network: Network) -> None:
    bob, wanda, _, since = await mistaken(network)
    other = create(bob, preset="public_chat", **ENCRYPTED)
    ok(join_via(wanda, other, SOUTH))
    complete(network)
    answer = lazily(bob, since)
    assert wanda.user_id in answer["device_lists"]["changed"]
    assert answer["device_lists"]["left"] == []
    since = answer["next_batch"]
    ok(wanda.post(f"{V3}/rooms/{other}/leave"))
    network.settle()
    assert lazily(bob, since)["device_lists"] == {"changed": [], "left": [wanda.user_id]}


async def test_device_changes_during_partial_state_are_known_in_the_end(network: Network) -> None:
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


async def send_leave(server: TestServer, room_id: str, user_id: UserID) -> None:
    draft = Draft("m.room.member", user_id, {"membership": "leave"}, user_id)
    await server.app.room_engine.engine.send(RoomID(room_id), [draft])


def publish(user: User, key: str) -> None:
    """Give the user a new device with this key."""
    body = password_auth(user.user_id)
    session = User(user.server, ok(user.server.post(f"{V3}/login", {**body, "device_id": key})))
    keys = device_keys(session.user_id, key, {f"ed25519:{key}": key})
    ok(session.post(f"{V3}/keys/upload", {"device_keys": keys}))


def ed25519_of(asking: User, asked: User) -> str:
    """Return the key of the newest device that a remote user gets."""
    devices = ok(asking.post(f"{V3}/keys/query", {"device_keys": {asked.user_id: []}}))[
        "device_keys"
    ]
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
