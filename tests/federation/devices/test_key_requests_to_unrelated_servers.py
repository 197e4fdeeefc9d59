"""Key requests to servers with which the caller shares no room: their names are easily made up, and
each costs an attempt."""

from typing import Any

import msgspec
import pytest

from federation.peers.wire import WireResponse
from federation.remote.keys import CLAIM_BASE_BYTES, MAX_LIST_RESPONSE_BYTES, QUERY_BASE_BYTES
from homeserver.services.encryption import key_queries
from tests.helpers.encrypted_rooms import encrypted_room
from tests.helpers.federated_rooms import EAST, NORTH, SOUTH
from tests.helpers.http import Pending
from tests.helpers.keys import V3, identity_keys, one_time_keys, upload
from tests.helpers.network import Network
from tests.helpers.server import User

MADE_UP = [f"victim.example:{port}" for port in range(1, 8)]


def ask(user: User, what: str, others: list[User], servers: list[str]) -> Pending:
    """Query or claim keys of these users, and of users of servers that do not exist."""
    made_up = [f"@somebody:{server}" for server in servers]
    if what == "query":
        body: dict[str, Any] = {
            "device_keys": {
                user_id: [] for user_id in [*made_up, *(each.user_id for each in others)]
            }
        }
    else:
        wished = {each.user_id: {each.device_id: "signed_curve25519"} for each in others}
        body = {
            "one_time_keys": {
                **{user_id: {"D": "signed_curve25519"} for user_id in made_up},
                **wished,
            }
        }
    return user.start("POST", f"{V3}/keys/{what}", body)


def answer(network: Network, pending: Pending) -> Any:
    for _ in range(20):
        if not pending.done:
            network.clock.advance(1)
            network.settle()
    assert pending.answer.status == 200, pending.answer.body
    return pending.answer.json


def tries(network: Network, servers: list[str]) -> list[str]:
    return [to for _, to, _, uri in network.log if to in servers and "/user/keys/" in uri]


@pytest.mark.parametrize("what", ["query", "claim"])
async def test_one_request_contacts_few_unrelated_servers(
    network: Network, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(key_queries, "MAX_UNRELATED_SERVERS", 3)
    room = await encrypted_room(network)
    received = answer(network, ask(room.alice, what, [room.bob], MADE_UP))
    assert set(tries(network, MADE_UP)) == set(MADE_UP[:3])
    assert received["failures"].keys() == set(MADE_UP)
    (keys,) = (received[kind] for kind in ("device_keys", "one_time_keys") if kind in received)
    assert keys[room.bob.user_id].keys() == {room.bob.device_id}, "a room is shared with this one"


@pytest.mark.parametrize("what", ["list", "query", "claim"])
@pytest.mark.parametrize("is_too_long", [False, True])
async def test_the_size_limit_of_a_response_depends_on_the_query(
    network: Network, what: str, is_too_long: bool
) -> None:
    """Many servers may answer at the same time."""
    room = await encrypted_room(network)
    other = room.bob if what == "list" else network.add(EAST).register("carol")
    keys = {other.user_id: {other.device_id: identity_keys(other, 5)[1]}}
    answers: dict[str, Any] = {
        "list": {
            "user_id": other.user_id,
            "stream_id": 7,
            "devices": [{"device_id": other.device_id, "keys": identity_keys(other, 5)[1]}],
        },
        "query": {"device_keys": keys},
        "claim": {
            "one_time_keys": {
                other.user_id: {other.device_id: {"signed_curve25519:A": {"key": "A"}}}
            }
        },
    }
    most = {"list": MAX_LIST_RESPONSE_BYTES, "query": QUERY_BASE_BYTES, "claim": CLAIM_BASE_BYTES}[
        what
    ] + 100_000
    body = msgspec.json.encode(
        {**answers[what], "padding": "x" * (most if is_too_long else most // 2)}
    )
    words = ("/user/devices/", "/user/keys/")
    network.interceptors.append(
        lambda _, request: (
            WireResponse(200, {}, body) if any(word in request.uri for word in words) else None
        )
    )
    received = answer(
        network, ask(room.alice, "claim" if what == "claim" else "query", [other], [])
    )
    assert bool(received["failures"]) == is_too_long
    (found,) = (received[kind] for kind in ("device_keys", "one_time_keys") if kind in received)
    assert bool(found.get(other.user_id)) != is_too_long


@pytest.mark.parametrize("what", ["query", "claim"])
async def test_unrelated_servers_are_rate_limited(network: Network, what: str) -> None:
    room = await encrypted_room(network)
    carol = network.add(EAST).register("carol")
    upload(
        carol, device_keys=identity_keys(carol, 5)[1], one_time_keys=one_time_keys("A", "B", "C")
    )
    room.north.server = room.alice.server = network.rebuild(
        NORTH, "rc_key_requests_to_new_servers: {per_second: 0.1, burst_count: 2}\n"
    )

    def failed() -> set[str]:
        return set(answer(network, ask(room.alice, what, [room.bob, carol], []))["failures"])

    assert [failed() for _ in range(3)] == [set(), set(), {EAST}]
    network.clock.advance(10)
    assert failed() == set()
    assert SOUTH not in failed()
