"""Encryption that was turned on while a server could not see it: the event is known only from
fetched state, and from then on device lists work as in any encrypted room."""

from typing import Any

from tests.helpers.encrypted_rooms import ENCRYPTED
from tests.helpers.federated_rooms import (
    NORTH,
    SOUTH,
    Shared,
    join_through_north,
    shared,
    two_users,
)
from tests.helpers.keys import identity_keys, query, sync, upload
from tests.helpers.logins import another_device
from tests.helpers.network import Network, forge_responses
from tests.helpers.room_actions import create, join, leave, ok, say, set_state
from tests.helpers.server import User


def changed(user: User, since: str) -> tuple[set[str], str]:
    """The users in `changed`, and the next token."""
    answer: Any = sync(user, since)
    return set(answer.get("device_lists", {}).get("changed", ())), answer["next_batch"]


async def hear_the_last(network: Network, room: Shared) -> None:
    """After a cut: of the events at the other server only the last message arrives, with the state
    at it."""
    say(room.alice, room.room_id, "unheard")
    last = say(room.alice, room.room_id, "the last")
    network.mend(NORTH, SOUTH)
    forge_responses(network, NORTH, "get_missing_events", lambda _: {"events": []})
    await room.north.push(SOUTH, [await room.pdu(last)])
    network.interceptors.clear()
    assert await room.south.state(room.room_id) == await room.north.state(room.room_id)


async def test_encryption_enabled_in_a_gap_bridged_by_fetched_state_is_noticed(
    network: Network,
) -> None:
    room = await shared(network)
    upload(room.alice, device_keys=identity_keys(room.alice, 1)[1])
    since = changed(room.bob, sync(room.bob)["next_batch"])[1]
    network.cut(NORTH, SOUTH)
    set_state(room.alice, room.room_id, "m.room.encryption", ENCRYPTED)
    await hear_the_last(network, room)
    received, since = changed(room.bob, since)
    assert room.alice.user_id in received, "encryption is on now"
    query(room.bob, room.alice)
    received, since = changed(room.bob, since)
    assert received == set(), "they are listed once"
    network.start_sending()
    new = another_device(room.alice)
    upload(new, device_keys=identity_keys(new, 9)[1])
    network.settle()
    assert room.alice.user_id in changed(room.bob, since)[0]


async def test_encryption_enabled_while_no_local_user_was_in_the_room_is_noticed(
    network: Network,
) -> None:
    alice, bob = two_users(network)
    network.start_sending()
    room_id = create(alice, preset="public_chat")
    join_through_north(network, bob, room_id)
    upload(alice, device_keys=identity_keys(alice, 1)[1])
    network.settle()
    since = changed(bob, sync(bob)["next_batch"])[1]
    leave(bob, room_id)
    network.settle()
    since = changed(bob, since)[1]
    ok(alice.put(f"/_matrix/client/v3/rooms/{room_id}/state/m.room.encryption/", ENCRYPTED))
    join_through_north(network, bob, room_id)
    received, since = changed(bob, since)
    assert alice.user_id in received
    query(bob, alice)
    new = another_device(alice)
    upload(new, device_keys=identity_keys(new, 9)[1])
    network.settle()
    assert alice.user_id in changed(bob, since)[0]


async def test_users_who_join_and_leave_in_a_gap_are_in_changed_and_left(network: Network) -> None:
    room = await shared(network)
    set_state(room.alice, room.room_id, "m.room.encryption", ENCRYPTED)
    carol, dave = (room.alice.server.register(name) for name in ("carol", "dave"))
    join(carol, room.room_id)
    await room.north.push(SOUTH, [event.pdu for event in await room.north.last(room.room_id)])
    since = sync(room.bob)["next_batch"]
    network.cut(NORTH, SOUTH)
    leave(carol, room.room_id)
    join(dave, room.room_id)
    await hear_the_last(network, room)
    lists: Any = sync(room.bob, since)["device_lists"]
    assert lists["left"] == [carol.user_id]
    assert lists["changed"] == [dave.user_id]
