"""Rate limits in bytes of to-device messages from another server: it keeps messages beyond the
limit, and sends them again later."""

import pytest
from twisted.logger import capturedLogs

from federation.peers.client import RefusedByRemote, get_retry_after_ms
from federation.protocol.ids import ServerName
from homeserver.services.encryption import to_device
from tests.helpers.encrypted_rooms import encrypted_room, receive_numbers, send_number
from tests.helpers.federated_rooms import EAST, NORTH, SOUTH, Side, adopt
from tests.helpers.federation_sender import LARGE_TEXT, SLOW_TO_DEVICE
from tests.helpers.logins import another_device
from tests.helpers.network import Network


async def test_a_server_above_the_limit_sends_its_messages_later(network: Network) -> None:
    """A message counts for each device that gets it: wildcard messages are stored per device."""
    room = await encrypted_room(network)
    east = Side(network.add(EAST))
    carol = east.server.register("carol")
    await adopt(room.north, east, carol.user_id, room.room_id)
    room.north.server = room.alice.server = network.rebuild(NORTH, SLOW_TO_DEVICE)
    second = another_device(room.alice)
    (_, since), (_, seconds) = receive_numbers(room.alice), receive_numbers(second)
    for number in range(4):
        send_number(
            room.bob, number, {room.alice.user_id: {"*": {"n": number, "padding": LARGE_TEXT}}}
        )
        network.settle()
    found, since = receive_numbers(room.alice, since)
    assert found == [0, 1], (
        "each counts twice its size, and a request is accepted while any budget is left"
    )
    edu = {
        "sender": carol.user_id,
        "type": "m.x",
        "message_id": "1",
        "messages": {room.alice.user_id: {"*": {"n": 9}}},
    }
    await east.push(NORTH, [], [{"edu_type": "m.direct_to_device", "content": edu}])
    found, since = receive_numbers(room.alice, since)
    assert found == [9], "others are not affected"
    for _ in range(4):
        network.clock.advance(60)
        network.settle()
    assert receive_numbers(room.alice, since)[0] == [2, 3]
    assert receive_numbers(second, seconds)[0] == [0, 1, 9, 2, 3]


async def test_a_transaction_that_is_refused_for_bytes_is_accepted_completely_later(
    network: Network,
) -> None:
    room = await encrypted_room(network)
    room.north.server = room.alice.server = network.rebuild(NORTH, SLOW_TO_DEVICE)
    _, since = receive_numbers(room.alice)
    edus = []
    for number in range(5):
        messages = {
            room.alice.user_id: {room.alice.device_id: {"n": number, "padding": LARGE_TEXT}}
        }
        content = {
            "sender": room.bob.user_id,
            "type": "m.x",
            "message_id": str(number),
            "messages": messages,
        }
        edus.append({"edu_type": "m.direct_to_device", "content": content})
    path, body = (
        "/_matrix/federation/v1/send/large",
        {"origin": SOUTH, "origin_server_ts": 1, "pdus": [], "edus": edus},
    )
    requests = room.south.server.app.peers.requests
    with pytest.raises(RefusedByRemote) as refused:
        await requests.put(ServerName(NORTH), path, body)
    assert (refused.value.status, refused.value.errcode) == (429, "M_LIMIT_EXCEEDED")
    assert get_retry_after_ms(refused.value)
    network.clock.advance(60)
    await requests.put(ServerName(NORTH), path, body)
    assert receive_numbers(room.alice, since)[0] == [*range(5)]


async def test_a_user_who_sends_too_much_does_not_block_others_of_their_server(
    network: Network,
) -> None:
    room = await encrypted_room(network)
    dora = room.south.server.register("dora")
    limits = "rc_federation: {to_device_bytes_of_user: {per_second: 1000, burst_count: 30000}}\n"
    room.north.server = room.alice.server = network.rebuild(NORTH, limits)
    _, since = receive_numbers(room.alice)
    with capturedLogs() as logged:
        for number in range(8):
            send_number(
                room.bob,
                number,
                {room.alice.user_id: {room.alice.device_id: {"n": number, "padding": LARGE_TEXT}}},
            )
            network.settle()
    assert [event["sender"] for event in logged if event["log_level"].name == "warn"] == [
        room.bob.user_id
    ]
    send_number(dora, 1, {room.alice.user_id: {room.alice.device_id: {"n": 9}}})
    network.settle()
    found, since = receive_numbers(room.alice, since)
    assert found == [0, 1, 2, 3, 9], "a request is accepted while any budget is left"
    network.clock.advance(10)
    send_number(room.bob, 10, {room.alice.user_id: {room.alice.device_id: {"n": 10}}})
    network.settle()
    assert receive_numbers(room.alice, since)[0] == [10]


async def test_copies_of_one_message_are_bounded_as_for_local_users(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(to_device, "MAX_COPIED_BYTES", 20_000)
    room = await encrypted_room(network)
    others = [another_device(room.alice) for _ in range(2)]
    _, since = receive_numbers(room.alice)
    for number, to in enumerate(["*", room.alice.device_id], 1):
        content = {"n": number, "padding": LARGE_TEXT}
        messages = {room.alice.user_id: {to: content}}
        edu = {
            "sender": room.bob.user_id,
            "type": "m.x",
            "message_id": str(number),
            "messages": messages,
        }
        await room.south.push(NORTH, [], [{"edu_type": "m.direct_to_device", "content": edu}])
    assert receive_numbers(room.alice, since)[0] == [2]
    assert [receive_numbers(other)[0] for other in others] == [[], []]
