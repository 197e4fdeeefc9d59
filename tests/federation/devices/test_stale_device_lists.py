"""Stale device lists are fetched again, and a server that does not answer delays only its own
users.

spec: server-server-api#device-management
"""

from federation.peers.wire import WireRequest, WireResponse
from federation.protocol.ids import ServerName
from storage.encryption.remote_devices import RemoteDeviceStore
from tests.helpers.federated_rooms import EAST, NORTH, SOUTH, Shared, Side, adopt, shared
from tests.helpers.keys import V3, identity_keys, query, upload
from tests.helpers.network import Network
from tests.helpers.server import User


async def with_stale_lists(network: Network) -> tuple[Shared, User, User]:
    """North stores stale lists of Bob and Dave on the south and Carol on the east."""
    room = await shared(network)
    east = Side(network.add(EAST))
    carol, dave = east.server.register("carol"), room.south.server.register("dave")
    await adopt(room.north, east, carol.user_id, room.room_id)
    network.start_sending()
    network.settle()
    assert dave.post(f"{V3}/join/{room.room_id}?via={NORTH}", {}).status == 200
    network.settle()
    people = (room.bob, carol, dave)
    for seed, user in enumerate(people, 1):
        upload(user, device_keys=identity_keys(user, seed)[1])
    network.settle()
    assert all(query(room.alice, *people)["device_keys"].values())
    database = room.north.server.app.database
    sql = "UPDATE remote_device_lists SET is_stale = 1"
    assert await database.write("test", lambda txn: txn.execute(sql)) == len(people)
    return room, carol, dave


def asked(network: Network) -> list[str]:
    """The servers from which lists are being fetched."""
    return sorted(
        transfer.destination
        for transfer in network.held()
        if "/user/devices/" in transfer.request.uri
    )


async def stale(room: Shared) -> list[str]:
    return list(await RemoteDeviceStore(room.north.server.app.database).get_stale("", 10))


async def test_servers_are_queried_in_parallel_each_for_one_user_after_another(
    network: Network,
) -> None:
    room, _, _ = await with_stale_lists(network)
    devices = room.north.server.app.federation_sender.remote_devices
    network.hold()
    assert await devices.do_resync(10) == 3
    assert asked(network) == [EAST, SOUTH]
    await devices.do_resync(10)
    assert asked(network) == [EAST, SOUTH], "nobody is queried twice"
    network.deliver()
    network.settle()
    assert await stale(room) == []


async def test_a_server_that_does_not_answer_delays_only_its_own_users(network: Network) -> None:
    room, _, dave = await with_stale_lists(network)
    devices = room.north.server.app.federation_sender.remote_devices
    network.hold()
    await devices.do_resync(10)
    network.deliver(
        lambda transfers: [str(transfer.destination) for transfer in transfers].index(EAST), most=1
    )
    network.settle()
    assert await stale(room) == [room.bob.user_id, dave.user_id]
    network.clock.advance(31)
    assert await stale(room) == [room.bob.user_id, dave.user_id]
    assert asked(network).count(SOUTH) == 1, "its next list is not fetched"
    network.deliver()
    await devices.do_resync(10)
    network.settle()
    assert await stale(room) == []


async def test_a_server_that_asks_us_to_wait_is_not_queried_for_the_next(network: Network) -> None:
    room, carol, _ = await with_stale_lists(network)
    asked_for: list[str] = []

    def refuse(destination: ServerName, request: WireRequest) -> WireResponse | None:
        if destination != SOUTH or "/user/devices/" not in request.uri:
            return None
        asked_for.append(request.uri)
        return WireResponse(429, {"retry-after": "300"}, b'{"errcode":"M_LIMIT_EXCEEDED"}')

    network.interceptors.append(refuse)
    devices = room.north.server.app.federation_sender.remote_devices
    await devices.do_resync(10)
    network.settle()
    assert len(asked_for) == 1
    assert carol.user_id not in await stale(room), "others are"
    network.clock.advance(299)
    await devices.do_resync(10)
    network.settle()
    assert len(asked_for) == 1, "not before the time that it named"
    network.clock.advance(1)
    await devices.do_resync(10)
    network.settle()
    assert len(asked_for) == 2
