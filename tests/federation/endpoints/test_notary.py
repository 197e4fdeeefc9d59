"""Requests to this server as a notary for keys of third servers, and for its version."""

from typing import Any

import msgspec
import pytest

from federation.peers.notary import FETCH_BURST, MAX_FETCHES_PER_REQUEST, MAX_RESPONSE_BYTES
from federation.peers.server_keys import MAX_DOCUMENT_BYTES
from federation.peers.wire import WireRequest, WireResponse
from federation.protocol.ids import ServerName
from federation.protocol.signing import SigningKey, encode_base64, is_signed_by, sign_json
from tests.helpers.network import Network

NORTH, SOUTH, EAST = "north.example", "south.example", "east.example"
QUERY = "/_matrix/key/v2/query"
DAY = 24 * 3600


def documents(network: Network, server: str = SOUTH, criteria: Any = None) -> list[dict[str, Any]]:
    """Return the documents of the north about a server's keys."""
    answer = network.servers[NORTH].post(
        QUERY, {"server_keys": {server: {} if criteria is None else criteria}}
    )
    assert answer.status == 200, answer.body
    received: list[dict[str, Any]] = answer.json["server_keys"]
    return received


def fetches(network: Network) -> int:
    return sum(uri == "/_matrix/key/v2/server" for *_, uri in network.log)


@pytest.fixture
def pair(network: Network) -> Network:
    network.add(NORTH)
    network.add(SOUTH)
    return network


def test_keys_of_another_server_are_signed_by_both_servers(pair: Network) -> None:
    (received,) = documents(pair)
    assert received["server_name"] == SOUTH
    for name in (NORTH, SOUTH):
        key = pair.servers[name].app.federation.identity.key
        assert is_signed_by(received, name, {key.key_id: key.public_key})
    assert received == pair.servers[NORTH].get(f"{QUERY}/{SOUTH}").json["server_keys"][0]
    assert (
        received
        == pair.servers[NORTH].get(f"{QUERY}/{SOUTH}/ed25519:a_test").json["server_keys"][0]
    )
    assert fetches(pair) == 1


def test_a_query_for_our_own_keys_is_answered(pair: Network) -> None:
    (received,) = documents(pair, NORTH)
    assert received == pair.servers[NORTH].get("/_matrix/key/v2/server").json
    assert pair.log == []


def test_a_query_may_name_several_servers_and_unknown_ones(pair: Network) -> None:
    body: dict[str, dict[str, Any]] = {
        "server_keys": {SOUTH: {}, "nowhere.example": {}, NORTH: {"ed25519:x": {}}, "no name": {}}
    }
    answer = pair.servers[NORTH].post(QUERY, body)
    assert sorted(received["server_name"] for received in answer.json["server_keys"]) == [
        NORTH,
        SOUTH,
    ]
    assert pair.servers[NORTH].post(QUERY, {"server_keys": {}}).json == {"server_keys": []}


def test_stored_keys_of_an_unreachable_server_are_returned(pair: Network) -> None:
    before = documents(pair)
    pair.cut(NORTH, SOUTH)
    pair.clock.advance(3 * DAY)
    assert documents(pair) == before


def test_outdated_keys_are_fetched_again(pair: Network) -> None:
    (before,) = documents(pair)
    pair.clock.advance(DAY + 1)
    (after,) = documents(pair)
    assert after["valid_until_ts"] > before["valid_until_ts"]
    assert fetches(pair) == 2


def test_a_query_for_a_validity_beyond_all_keys_causes_few_fetches(pair: Network) -> None:
    hosts = {"ed25519:a_test": {"minimum_valid_until_ts": 1 << 50}}
    for _ in range(100):
        assert len(documents(pair, SOUTH, hosts)) == 1
        pair.clock.advance(DAY / 100)
    assert fetches(pair) <= 3


def test_a_missing_key_is_fetched_whatever_validity_the_query_asks_for(pair: Network) -> None:
    documents(pair)
    pair.clock.advance(DAY / 4)
    documents(pair, SOUTH, {"ed25519:a_test": {"minimum_valid_until_ts": 1 << 50}})
    assert fetches(pair) == 1
    documents(pair, SOUTH, {"ed25519:new": {"minimum_valid_until_ts": 1 << 50}})
    assert fetches(pair) == 2


def test_fetches_for_anonymous_callers_are_bounded(pair: Network) -> None:
    for number in range(100):
        names: dict[str, Any] = {f"s{number}-{each}.example": {} for each in range(100)}
        assert pair.servers[NORTH].post(QUERY, {"server_keys": names}).status == 200
        assert fetches(pair) <= (number + 1) * MAX_FETCHES_PER_REQUEST
    assert fetches(pair) == FETCH_BURST


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"server_keys": []},
        {"server_keys": {SOUTH: []}},
        {"server_keys": {SOUTH: {"ed25519:a": {"minimum_valid_until_ts": "soon"}}}},
        {"server_keys": {f"s{number}.example": {} for number in range(1000)}},
    ],
)
def test_malformed_queries_are_refused(pair: Network, body: Any) -> None:
    answer = pair.servers[NORTH].post(QUERY, body)
    assert 400 <= answer.status < 500
    assert fetches(pair) == 0


def test_an_invalid_server_name_is_refused(pair: Network) -> None:
    assert pair.servers[NORTH].get(f"{QUERY}/a%20b").status == 400


def test_a_blocked_server_is_not_queried(network: Network) -> None:
    network.add(NORTH, f"federation_domain_whitelist: [{EAST}]\n")
    network.add(SOUTH)
    assert documents(network) == []
    assert network.log == []


def test_the_version_of_the_server_is_returned(pair: Network) -> None:
    server = pair.servers[NORTH].get("/_matrix/federation/v1/version").json["server"]
    assert server["name"] == "Mahalla"
    assert server["version"]


def test_a_response_of_long_documents_is_bounded(pair: Network) -> None:
    """Servers make documents as long as they may, so that somebody who asks for all of them gets
    very much."""
    names = [f"{SOUTH}:{number}" for number in range(1, 41)]
    key = SigningKey("long", b"k" * 32)

    def forge(to: ServerName, request: WireRequest) -> WireResponse | None:
        if to not in names or request.uri != "/_matrix/key/v2/server":
            return None
        document = {
            "server_name": to,
            "verify_keys": {key.key_id: {"key": encode_base64(key.public_key)}},
            "valid_until_ts": int(pair.clock.seconds() + DAY) * 1000,
            "padding": "x" * (MAX_DOCUMENT_BYTES - 1000),
        }
        return WireResponse(200, {}, msgspec.json.encode(sign_json(document, to, key)))

    pair.interceptors.append(forge)
    for name in names:
        assert documents(pair, name)

    answer = pair.servers[NORTH].post(QUERY, {"server_keys": {name: {} for name in names}})

    assert 0 < len(answer.json["server_keys"]) < len(names)
    assert len(answer.body) < MAX_RESPONSE_BYTES + MAX_DOCUMENT_BYTES
