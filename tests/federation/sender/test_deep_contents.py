"""Contents that are nested too deeply, or have too large numbers, are not sent, since servers
refuse the complete transaction.

A transaction is parsed as a whole: a user who could add something that its receiver refuses would
stop all traffic between two servers.
"""

from typing import Any

import msgspec
import pytest

from federation.peers.wire import WireRequest, WireResponse
from federation.protocol.canonical_json import MAX_SENT_DEPTH
from federation.protocol.device_keys import MAX_KEY_DEPTH
from tests.helpers.federated_rooms import SOUTH, shared
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
from tests.helpers.network import Network
from tests.helpers.room_actions import set_state
from tests.helpers.server import User


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


def send(user: User, number: int, recipient: User, content: bytes) -> int:
    """`number`: one for each message to that recipient."""
    messages = b'{"messages":{"%b":{"%b":%b}}}' % (
        recipient.user_id.encode(),
        recipient.device_id.encode(),
        content,
    )
    path = f"{V3}/sendToDevice/org.example.number/{recipient.device_id}{number}"
    return user.server.client.request("PUT", path, token=user.token, body=messages).status


def deep(levels: int) -> bytes:
    return b'{"a":' * levels + b"1" + b"}" * levels


def numbers(user: User, since: str) -> list[int | None]:
    return [
        event["content"].get("n")
        for event in sync(user, since).get("to_device", {}).get("events", [])
    ]


async def test_messages_that_other_servers_could_not_read_are_refused(network: Network) -> None:
    """How deep a server reads depends on where its stack stands: of each depth one is tried."""
    room = await shared(network)
    network.start_sending()
    carol = room.alice.server.register("carol")
    for recipient in (room.bob, carol):
        since = sync(recipient)["next_batch"]
        assert send(room.alice, 1, recipient, deep(MAX_SENT_DEPTH)) == 200
        too_deep = range(MAX_SENT_DEPTH + 1, 1000)
        assert {send(room.alice, levels, recipient, deep(levels)) for levels in too_deep} == {400}
        in_a_list = b'{"a":' + b"[" * MAX_SENT_DEPTH + b"]" * MAX_SENT_DEPTH + b"}"
        assert send(room.alice, 1001, recipient, in_a_list) == 400
        for number, digits in enumerate(
            (310, 4000), 1010
        ):  # to who reads numbers as doubles it is none
            assert send(room.alice, number, recipient, b'{"a":[{"b":%b}]}' % (b"9" * digits)) == 400
        assert send(room.alice, 1002, recipient, b'{"n":2}') == 200
        network.settle()
        assert numbers(recipient, since) == [None, 2]


@pytest.mark.parametrize("levels", [880, 900, 920, 940, 1000, 10_000])
async def test_a_too_deeply_nested_remote_event_does_not_block_others(
    network: Network, levels: int
) -> None:
    """Our limit of nesting is not theirs, and they would resend the transaction forever."""
    room = await shared(network)
    since = sync(room.bob)["next_batch"]

    def edu(content: bytes, message_id: str) -> msgspec.Raw:
        messages = b'{"%b":{"%b":%b}}' % (
            room.bob.user_id.encode(),
            room.bob.device_id.encode(),
            content,
        )
        return msgspec.Raw(
            b'{"content":{"message_id":"%b","messages":%b,"sender":"%b","type":"org.example.number"},'
            b'"edu_type":"m.direct_to_device"}'
            % (message_id.encode(), messages, room.alice.user_id.encode())
        )

    edus = [edu(b'{"n":1}', "m1"), edu(deep(levels), "m2"), edu(b'{"n":3}', "m3")]
    await room.north.push(SOUTH, [msgspec.Raw(deep(levels))], edus)
    assert numbers(room.bob, since) == [1, 3]


async def test_messages_from_other_servers_that_no_client_can_parse_are_dropped(
    network: Network,
) -> None:
    room = await shared(network)
    since = sync(room.bob)["next_batch"]
    other = {"n": 1}
    for number, content in enumerate(
        (nested(MAX_SENT_DEPTH + 1), {"a": 10**400}, nested(MAX_SENT_DEPTH), other)
    ):
        message = {
            "sender": room.alice.user_id,
            "type": "org.example.number",
            "message_id": f"m{number}",
            "messages": {room.bob.user_id: {room.bob.device_id: content}},
        }
        await room.north.push(SOUTH, [], [{"edu_type": "m.direct_to_device", "content": message}])
    assert numbers(room.bob, since) == [None, 1]


@pytest.mark.parametrize("levels", [MAX_KEY_DEPTH, 950, 10_000])
async def test_a_too_deeply_nested_key_does_not_hide_other_keys(
    network: Network, levels: int
) -> None:
    """Another server may let its users publish such."""
    room = await shared(network)
    network.start_sending()
    dave = room.bob.server.register("dave")
    for user, seed in ((room.bob, 2), (dave, 3)):
        upload(user, device_keys=identity_keys(user, seed)[1], one_time_keys=one_time_keys("a"))

    def deepen(_: WireRequest, answer: WireResponse) -> WireResponse:
        at = answer.body.find(dave.device_id.encode() + b'":{')
        if at < 0:
            return answer
        at = answer.body.index(b"{", at) + 1
        body = answer.body[:at] + b'"x":' + deep(levels) + b"," + answer.body[at:]
        return WireResponse(answer.status, answer.headers, body)

    network.forge(SOUTH, deepen)
    found = query(room.alice, dave, room.bob)
    assert found["failures"] == {}
    assert {user_id for user_id, devices in found["device_keys"].items() if devices} == {
        room.bob.user_id
    }
    requested = {user.user_id: {user.device_id: "signed_curve25519"} for user in (dave, room.bob)}
    answer = room.alice.post(f"{V3}/keys/claim", {"one_time_keys": requested}).json
    assert answer["failures"] == {}
    assert list(answer["one_time_keys"]) == [room.bob.user_id]


async def test_keys_that_other_servers_could_not_read_are_refused(network: Network) -> None:
    room = await shared(network)
    network.start_sending()
    set_state(room.alice, room.room_id, "m.room.encryption", {"algorithm": "m.megolm.v1.aes-sha2"})
    for user, seed in ((room.alice, 1), (room.bob, 2)):
        upload(user, device_keys=identity_keys(user, seed)[1], one_time_keys=one_time_keys("a"))
    network.settle()
    since = sync(room.bob)["next_batch"]
    most = {"org.example": nested(MAX_KEY_DEPTH - 1)}
    further = {"org.example": nested(MAX_KEY_DEPTH)}
    endless = {"org.example": 10**400}
    _, identity = identity_keys(room.alice, 3)
    _, master = cross_signing_key(room.alice, "master", 4)
    for path, body in (
        ("keys/upload", {"device_keys": identity | further}),
        ("keys/upload", {"device_keys": identity | endless}),
        ("keys/upload", {"one_time_keys": {"signed_curve25519:deep": {"key": "deep", **endless}}}),
        ("keys/upload", {"one_time_keys": {"signed_curve25519:deep": {"key": "deep", **further}}}),
        ("keys/upload", {"fallback_keys": {"signed_curve25519:deep": {"key": "deep", **further}}}),
        ("keys/device_signing/upload", {"master_key": master | further}),
    ):
        answer = room.alice.post(f"{V3}/{path}", body)
        assert (answer.status, answer.errcode) == (400, "M_BAD_JSON"), path

    upload(
        room.alice,
        device_keys=identity | most,
        one_time_keys={"signed_curve25519:b": {"key": "b", **most}},
    )
    assert (
        room.alice.post(f"{V3}/keys/device_signing/upload", {"master_key": master | most}).status
        == 200
    )
    network.settle()
    assert room.alice.user_id in sync(room.bob, since)["device_lists"]["changed"]
    found = query(room.bob, room.alice)
    assert found["failures"] == {}
    assert (
        found["device_keys"][room.alice.user_id][room.alice.device_id]["keys"] == identity["keys"]
    )
    assert found["master_keys"][room.alice.user_id]["keys"] == master["keys"]
    assert claim(room.bob, room.alice) == {"signed_curve25519:b": {"key": "b", **most}}
