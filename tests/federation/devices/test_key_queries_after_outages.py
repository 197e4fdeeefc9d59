"""Keys of remote users during an outage of their server and right after it. Stored keys are
returned. A server that is back is contacted, though it sends nothing by itself and the next retry
of its queue is much later."""

import pytest

from federation.peers.wire import WireResponse
from tests.helpers.clocks import pass_time
from tests.helpers.encrypted_rooms import encrypted_room
from tests.helpers.federated_rooms import NORTH, SOUTH, Shared
from tests.helpers.keys import claim, identity_keys, query, upload
from tests.helpers.logins import another_device
from tests.helpers.network import Fate, Network, count_requests
from tests.helpers.room_actions import say

BACK = 25
"""Seconds after which the south is back; the next retry is at 65."""


def go_away(network: Network, how: str) -> None:
    """The south is unreachable. Every attempt fails at once, or a proxy answers instead."""
    if how == "cut":
        network.cut(NORTH, SOUTH)
    else:
        away = WireResponse(502, {}, b"Bad Gateway")
        network.interceptors.append(lambda destination, _: away if destination == SOUTH else None)


def come_back(network: Network) -> None:
    network.mend(NORTH, SOUTH)
    network.interceptors.clear()


async def outage(network: Network, how: str) -> Shared:
    """The south was away, and has been back for twenty seconds."""
    room = await encrypted_room(network)
    go_away(network, how)
    say(room.alice, room.room_id, "is anybody there?")
    network.settle()
    pass_time(network, BACK, 1)
    come_back(network)
    pass_time(network, 20, 1)
    return room


@pytest.mark.parametrize("how", ["cut", "proxy"])
async def test_keys_can_be_queried_as_soon_as_the_server_is_back(
    network: Network, how: str
) -> None:
    """Keys of users whom nobody on this server queried before."""
    room = await outage(network, how)
    assert count_requests(network, SOUTH, "/user/devices/") == 0
    found = query(room.alice, room.bob)
    assert (found["failures"], found["device_keys"][room.bob.user_id].keys()) == (
        {},
        {room.bob.device_id},
    )


@pytest.mark.parametrize("how", ["cut", "proxy"])
async def test_one_time_keys_can_be_claimed_as_soon_as_the_server_is_back(
    network: Network, how: str
) -> None:
    room = await outage(network, how)
    assert claim(room.alice, room.bob)


async def test_stored_keys_are_returned_during_the_outage(network: Network) -> None:
    """Without a failure if no update was missed; otherwise together with the failure."""
    room = await encrypted_room(network)
    known = query(room.alice, room.bob)
    go_away(network, "cut")
    say(room.alice, room.room_id, "is anybody there?")
    network.settle()
    assert query(room.alice, room.bob) == known

    database = room.north.server.app.database
    await database.write(
        "test", lambda txn: txn.execute("UPDATE remote_device_lists SET is_stale = 1")
    )
    stale = query(room.alice, room.bob)
    assert stale["failures"].keys() == {SOUTH}
    assert stale["device_keys"] == known["device_keys"]

    second = another_device(room.bob)
    upload(second, device_keys=identity_keys(second, 3)[1])
    come_back(network)
    pass_time(network, 5, 1)
    assert query(room.alice, room.bob)["device_keys"][room.bob.user_id].keys() == {
        room.bob.device_id,
        second.device_id,
    }


async def test_a_server_that_fails_at_once_is_contacted_at_most_every_five_seconds(
    network: Network,
) -> None:
    room = await encrypted_room(network)
    go_away(network, "cut")
    say(room.alice, room.room_id, "is anybody there?")
    network.settle()
    before = count_requests(network, SOUTH, "/user/devices/")
    for _ in range(60):
        pass_time(network, 1, 1)
        assert query(room.alice, room.bob)["failures"].keys() == {SOUTH}
    assert count_requests(network, SOUTH, "/user/devices/") - before <= 12


async def test_a_server_that_timed_out_is_left_alone_for_longer(network: Network) -> None:
    """Every caller would wait as long."""
    room = await encrypted_room(network)
    network.choose_fate = lambda transfer: (
        Fate.IS_NOT_ANSWERED if transfer.destination == SOUTH else Fate.ARRIVES
    )
    say(room.alice, room.room_id, "is anybody there?")
    network.settle()
    pass_time(
        network, 60 + 5 + 60, 1
    )  # two attempts, of a minute each; the next one is in fifteen seconds
    before = count_requests(network, SOUTH, "/user/devices/")
    for _ in range(14):
        assert query(room.alice, room.bob)["failures"].keys() == {SOUTH}
        pass_time(network, 1, 1)
    assert count_requests(network, SOUTH, "/user/devices/") == before
