"""Names of servers that a client makes up cost a bounded number of queues, for a bounded time.

spec: client-server-api#send-to-device-messaging
"""

from federation.protocol.ids import ServerName
from homeserver.services.encryption.to_device import MAX_MESSAGES, MAX_UNRELATED_SERVERS
from homeserver.services.federation.destinations import DEAD_DAYS, UNKNOWN_SERVER_DAYS
from storage.encryption.outgoing_to_device import OutgoingToDeviceStore
from storage.federation.destinations import DestinationStore
from tests.helpers.federated_rooms import NORTH, SOUTH, Shared, shared
from tests.helpers.http import Answer
from tests.helpers.keys import V3
from tests.helpers.network import Network
from tests.helpers.server import User

DAY = 24 * 3600
_FREE = {NORTH: "rc_to_device_to_new_servers: {per_second: 1000, burst_count: 1000}\n"}


def made_up(first: int, count: int) -> dict[str, object]:
    """A message for a user of each of these servers, which do not exist."""
    return {f"@a:s{n}.example": {"D": {}} for n in range(first, first + count)}


def send(user: User, number: int, messages: dict[str, object]) -> Answer:
    return user.put(f"{V3}/sendToDevice/m.x/{number}", {"messages": messages})


async def waiting(room: Shared) -> dict[str, int]:
    return dict(
        await OutgoingToDeviceStore(database=room.north.server.app.database).count_messages()
    )


async def known(room: Shared) -> set[str]:
    return set(await DestinationStore(room.north.server.app.database).get_destinations())


async def live(room: Shared, days: int) -> None:
    """Let days pass with their jobs."""
    destinations = room.north.server.app.federation_sender.destinations
    for _ in range(days):
        room.network.clock.advance(DAY)
        room.network.settle()
        while await destinations.do_remove_expired(7) == 7:
            continue
        while await destinations.do_remove_forgotten(7) == 7:
            continue


async def test_a_request_goes_to_a_bounded_number_of_unknown_servers_and_devices(
    network: Network,
) -> None:
    room = await shared(network, config=_FREE)
    refused = send(room.alice, 1, made_up(0, MAX_UNRELATED_SERVERS + 1))
    assert (refused.status, refused.json["errcode"]) == (400, "M_INVALID_PARAM")
    many = send(room.alice, 2, {room.bob.user_id: {f"D{n}": {} for n in range(MAX_MESSAGES + 1)}})
    assert (many.status, many.json["errcode"]) == (400, "M_INVALID_PARAM")
    assert await waiting(room) == {}

    mixed = {**made_up(0, MAX_UNRELATED_SERVERS), room.bob.user_id: {"D": {}}}
    assert send(room.alice, 3, mixed).status == 200, "a server that shares a room does not count"
    assert len(await waiting(room)) == MAX_UNRELATED_SERVERS + 1


async def test_messages_to_unknown_servers_are_rate_limited(network: Network) -> None:
    room = await shared(
        network, config={NORTH: "rc_to_device_to_new_servers: {per_second: 0.1, burst_count: 10}\n"}
    )
    assert send(room.alice, 1, made_up(0, 10)).status == 200
    refused = send(room.alice, 2, made_up(10, 1))
    assert (refused.status, refused.json["errcode"]) == (429, "M_LIMIT_EXCEEDED")
    assert send(room.alice, 3, {room.bob.user_id: {"D": {}}}).status == 200, (
        "servers that share a room do not count"
    )
    assert send(room.alice, 1, made_up(0, 10)).status == 200, "the response may have been lost"
    network.clock.advance(refused.json["retry_after_ms"] / 1000)
    assert send(room.alice, 2, made_up(10, 1)).status == 200


async def test_device_ids_do_not_make_an_edu_too_large(network: Network) -> None:
    """The server would reject the transaction, and all later ones."""
    room = await shared(network)
    store = OutgoingToDeviceStore(database=room.north.server.app.database)
    many: dict[str, object] = {f"{number:0>250}": {} for number in range(4000)}
    assert send(room.alice, 1, {room.bob.user_id: {**many, "D" * 1_000_000: {}}}).status == 200
    messages = await store.get_messages(SOUTH, 100)
    assert len(messages) == 5
    assert max(len(message.content) for message in messages) < 300_000
    assert sum(message.content.count(b"{}") for message in messages) == len(many)
    assert send(room.alice, 2, {room.bob.user_id: {"D" * 300: {}}}).status == 200
    assert len(await store.get_messages(SOUTH, 100)) == 5


async def test_unknown_servers_are_given_up_after_a_week_and_leave_nothing(
    network: Network,
) -> None:
    room = await shared(network, config=_FREE)
    network.start_sending()
    network.settle()
    assert send(room.alice, 1, made_up(0, 30)).status == 200
    network.settle()
    await live(room, UNKNOWN_SERVER_DAYS - 2)
    assert len(await waiting(room)) == 30, "they may be temporarily unreachable"
    await live(room, 6)
    assert await waiting(room) == {}
    assert await known(room) == set()
    deliveries = room.north.server.app.federation_sender.deliveries
    assert [each.server for each in deliveries] == []
    assert deliveries.get_metrics()["failing"] == 0


async def test_messages_are_kept_longer_for_a_server_that_shares_a_room(network: Network) -> None:
    room = await shared(network)
    network.start_sending()
    network.settle()
    network.cut(NORTH, SOUTH)
    assert send(room.alice, 1, {room.bob.user_id: {room.bob.device_id: {}}}).status == 200
    network.settle()
    await live(room, DEAD_DAYS - 2)
    assert await waiting(room) == {SOUTH: 1}
    await live(room, 4)
    assert await waiting(room) == {}
    assert await known(room) == {SOUTH}, "it shares a room"
    assert room.north.server.app.federation_sender.deliveries.peek(ServerName(SOUTH)) is not None
