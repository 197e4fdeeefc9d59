"""Keys of very many users of another server: fetched in requests of a size that it accepts, until
the timeout.

spec: server-server-api#post_matrixfederationv1userkeysclaim
"""

import json

import pytest

from homeserver.services.encryption import key_queries
from homeserver.services.encryption.key_queries import REMOTE_BATCH
from tests.helpers.federated_rooms import EAST, SOUTH, shared
from tests.helpers.keys import V3, identity_keys, one_time_keys, upload
from tests.helpers.network import Network
from tests.helpers.server import User

MANY = 2 * REMOTE_BATCH + 1
"""More than fit into two requests."""


def requested(bob: User) -> dict[str, dict[str, str]]:
    """Keys for devices that do not exist, and last for Bob's."""
    others = {f"@u{n}:{SOUTH}": {"D": "signed_curve25519"} for n in range(MANY - 1)}
    return {**others, bob.user_id: {bob.device_id: "signed_curve25519"}}


async def test_a_large_claim_is_split_into_several_requests(network: Network) -> None:
    room = await shared(network)
    upload(room.bob, one_time_keys=one_time_keys("k"))
    pending = room.alice.start("POST", f"{V3}/keys/claim", {"one_time_keys": requested(room.bob)})
    network.settle()
    assert pending.answer.json["failures"] == {}
    assert pending.answer.json["one_time_keys"].keys() == {room.bob.user_id}
    assert sum("/user/keys/claim" in uri for _, to, _, uri in network.log if to == SOUTH) == 3


async def test_a_large_query_is_split_into_several_requests(network: Network) -> None:
    room = await shared(network)
    upload(room.bob, device_keys=identity_keys(room.bob)[1])
    users: dict[str, list[str]] = {user_id: [] for user_id in requested(room.bob)}
    pending = room.alice.start("POST", f"{V3}/keys/query", {"device_keys": users})
    network.settle()
    assert pending.answer.json["failures"] == {}
    assert list(pending.answer.json["device_keys"][room.bob.user_id]) == [room.bob.device_id]
    asked = [uri for _, to, _, uri in network.log if to == SOUTH]
    assert sum("/user/keys/query" in uri for uri in asked) == 2
    assert sum("/user/devices/" in uri for uri in asked) == 1, (
        "Bob shares a room: his device list was fetched"
    )


async def test_a_server_that_answers_too_slowly_gets_no_further_requests(network: Network) -> None:
    room = await shared(network)
    network.hold()
    pending = room.alice.start(
        "POST", f"{V3}/keys/claim", {"one_time_keys": requested(room.bob), "timeout": 5000}
    )
    network.settle()
    asked = [transfer for transfer in network.held() if "/user/keys/claim" in transfer.request.uri]
    assert len(asked) == 1
    assert len(json.loads(asked[0].request.body or b"")["one_time_keys"]) == REMOTE_BATCH
    network.clock.advance(5.1)
    network.settle()
    assert pending.answer.json["failures"].keys() == {SOUTH}
    assert (
        len([transfer for transfer in network.held() if "/user/keys/claim" in transfer.request.uri])
        == 1
    )


async def test_a_server_whose_users_have_too_many_keys_is_a_failure_and_others_are_returned(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_queries, "MAX_BYTES_PER_SERVER", 1000)
    monkeypatch.setattr(key_queries, "MAX_BYTES_PER_USER", 500)
    room = await shared(network)
    carol = network.add(EAST).register("carol")
    for user, padding in ((room.alice, 9000), (room.bob, 2000), (carol, 10)):
        upload(user, device_keys={**identity_keys(user)[1], "padding": "x" * padding})
    asked: dict[str, list[str]] = {user.user_id: [] for user in (room.bob, carol, room.alice)}
    pending = room.alice.start("POST", f"{V3}/keys/query", {"device_keys": asked})
    network.settle()
    assert pending.answer.status == 200
    assert pending.answer.json["failures"].keys() == {SOUTH}
    assert pending.answer.json["device_keys"].keys() == {room.alice.user_id, carol.user_id}
