"""Requests are authenticated by their signatures."""

import msgspec
import pytest

from federation.peers import signed_requests
from federation.peers.signed_requests import MAX_SHORT_BODY_BYTES, MAX_VALUES
from federation.protocol.canonical_json import decode_json, encode_canonical
from federation.protocol.errors import BadJson, Forbidden, NotJson, RemoteError, Unauthorized
from federation.protocol.ids import ServerName
from federation.protocol.request_signing import make_authorization
from federation.protocol.signing import SigningKey
from tests.helpers.network import Network

NORTH, SOUTH = ServerName("north.example"), ServerName("south.example")
URI = "/_matrix/federation/v1/query/profile?user_id=%40a%3Asouth.example"


def signed(network: Network, uri: str = URI, destination: ServerName = SOUTH) -> str:
    """A signature of the north's."""
    key = network.servers[NORTH].app.federation.identity.key
    return make_authorization(
        key, method="GET", uri=uri, origin=NORTH, destination=destination, content=None
    )


async def test_a_peer_is_authenticated_by_its_published_key(network: Network) -> None:
    network.add(NORTH)
    checker = network.add(SOUTH).app.peers.signed_requests

    assert (await checker.get_peer([signed(network)], "GET", URI, b"")).server_name == NORTH
    assert network.log == [(SOUTH, NORTH, "GET", "/_matrix/key/v2/server")]


async def test_a_request_for_another_server_is_refused(network: Network) -> None:
    network.add(NORTH)
    checker = network.add(SOUTH).app.peers.signed_requests

    with pytest.raises(Unauthorized):
        await checker.get_peer([signed(network, destination=NORTH)], "GET", URI, b"")


async def test_a_request_to_another_path_is_refused(network: Network) -> None:
    network.add(NORTH)
    checker = network.add(SOUTH).app.peers.signed_requests

    with pytest.raises(Unauthorized):
        await checker.get_peer([signed(network, URI + "0")], "GET", URI, b"")


async def test_a_server_whose_keys_are_unavailable_is_not_authenticated(network: Network) -> None:
    network.add(NORTH)
    checker = network.add(SOUTH).app.peers.signed_requests
    network.cut(NORTH, SOUTH)

    with pytest.raises(Unauthorized):
        await checker.get_peer([signed(network)], "GET", URI, b"")


async def test_an_unreachable_server_is_a_remote_error(network: Network) -> None:
    requests = network.add(NORTH).app.peers.requests

    with pytest.raises(RemoteError):
        await requests.get(SOUTH, "/_matrix/federation/v1/version")


SEND = "/_matrix/federation/v1/send/1"


def signed_body(
    network: Network, signed_as: bytes, key: SigningKey | None = None, origin: ServerName = NORTH
) -> str:
    """A signature over a PUT with these bytes as its body."""
    return make_authorization(
        key or network.servers[NORTH].app.federation.identity.key,
        method="PUT",
        uri=SEND,
        origin=origin,
        destination=SOUTH,
        content=msgspec.Raw(signed_as),
    )


@pytest.mark.parametrize(
    ("signed_as", "sent"),
    [
        (b'{"a":1,"b":"x"}', b'{"a":1,"b":"x"}'),
        (b'{"a":1,"b":"x"}', b' {"b": "\\u0078",\n "a": 1} '),
        (b'{"a":1.5,"b":1e+20}', b'{"a":1.5,"b":1e+20}'),
        (b'{"a":1.5,"b":1e+20}', b'{"b": 1e20, "a": 1.5}'),
        (b"[]", b"[ ]"),
    ],
)
async def test_the_signature_covers_the_canonical_body_in_any_encoding(
    network: Network, signed_as: bytes, sent: bytes
) -> None:
    network.add(NORTH)
    checker = network.add(SOUTH).app.peers.signed_requests
    header = signed_body(network, signed_as)
    assert (await checker.get_peer([header], "PUT", SEND, sent)).server_name == NORTH
    for other in (sent.replace(b"a", b"c"), b'{"c":5}', b"", b"{}"):
        if other != sent:
            with pytest.raises(Unauthorized):
                await checker.get_peer([header], "PUT", SEND, other)


DEEP = b'{"a":' * 10_000 + b"1" + b"}" * 10_000


@pytest.mark.parametrize(
    "body",
    [
        *(b"{", b"{} {}", b'{"a":1},"destination":"x"', b"\xff", b"NaN", b"[" * 100_000),
        *(DEEP + b',"destination":"x"', DEEP + DEEP, DEEP[:-1], b"[" * 100_000 + b"]" * 100_000),
    ],
)
async def test_a_body_that_is_not_json_is_refused(network: Network, body: bytes) -> None:
    network.add(NORTH)
    checker = network.add(SOUTH).app.peers.signed_requests
    with pytest.raises((NotJson, BadJson)):
        await checker.get_peer([signed_body(network, body)], "PUT", SEND, body)


async def test_all_signatures_of_a_request_must_be_valid(
    network: Network,
) -> None:
    network.add(NORTH)
    checker = network.add(SOUTH).app.peers.signed_requests
    good, unknown = (
        signed_body(network, b"{}"),
        signed_body(network, b"{}", SigningKey("unknown", bytes(32))),
    )
    wrong = signed_body(network, b'{"other":1}')
    assert (
        await checker.get_peer(["Bearer x", unknown, good], "PUT", SEND, b"{}")
    ).server_name == NORTH
    for headers in (
        [good, wrong],
        [unknown],
        ["Bearer x"],
        [],
        [good] * 6,
        [good, "X-Matrix origin=x"],
    ):
        with pytest.raises(Unauthorized):
            await checker.get_peer(headers, "PUT", SEND, b"{}")


async def test_signatures_of_two_servers_are_refused(network: Network) -> None:
    network.add(NORTH)
    checker = network.add(SOUTH).app.peers.signed_requests
    other = signed_body(network, b"{}", origin=ServerName("east.example"))
    with pytest.raises(Unauthorized, match="several"):
        await checker.get_peer([signed_body(network, b"{}"), other], "PUT", SEND, b"{}")


async def test_server_names_are_case_sensitive(network: Network) -> None:
    network.add(NORTH)
    checker = network.add(SOUTH).app.peers.signed_requests
    with pytest.raises(Unauthorized):
        await checker.get_peer(
            [signed_body(network, b"{}", origin=ServerName("North.example"))], "PUT", SEND, b"{}"
        )


async def test_a_blocked_server_is_refused_without_fetching_keys(network: Network) -> None:
    network.add(NORTH)
    south = network.add(SOUTH, "federation_domain_whitelist: [east.example]\n")
    with pytest.raises(Forbidden):
        await south.app.peers.signed_requests.get_peer(
            [signed_body(network, b"{}")], "PUT", SEND, b"{}"
        )
    assert network.log == []


async def test_long_unsigned_bodies_cost_little(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Anybody can send them, in the name of anybody."""
    network.add(NORTH)
    checker = network.add(SOUTH).app.peers.signed_requests
    made: list[int] = []

    def encode(value: object) -> bytes:
        made.append(1)
        return encode_canonical(value)

    monkeypatch.setattr(signed_requests, "encode_canonical", encode)
    long = b'{"a": "%b"}' % (b"x" * MAX_SHORT_BODY_BYTES)
    canonical = encode_canonical(msgspec.json.decode(long))

    async def send(body: bytes, signed_as: bytes, address: str) -> bool:
        try:
            await checker.get_peer([signed_body(network, signed_as)], "PUT", SEND, body, address)
        except Unauthorized:
            return False
        return True

    assert await send(long, canonical, "192.0.2.1")
    assert not await send(b'{"a":[' + b"{}," * MAX_VALUES + b"{}]}", b"{}", "192.0.2.1")
    assert len(made) == 1, "it has more values than anybody sends"
    assert [await send(long, b"{}", "192.0.2.2") for _ in range(3)] == [False] * 3
    assert len(made) == 2
    assert not await send(long, canonical, "192.0.2.2")
    assert await send(b'{"a": 1}', b'{"a":1}', "192.0.2.2")
    assert await send(canonical, canonical, "192.0.2.2")
    assert await send(long, canonical, "192.0.2.1"), "others do not notice"
    network.clock.advance(61)
    assert await send(long, canonical, "192.0.2.2")


@pytest.mark.parametrize("end", [b"[" * 300 + b"]" * 300, b'"\xff"', b"1e999"])
async def test_a_long_body_without_a_canonical_form_costs_little(
    network: Network, monkeypatch: pytest.MonkeyPatch, end: bytes
) -> None:
    network.add(NORTH)
    checker = network.add(SOUTH).app.peers.signed_requests
    read: list[int] = []

    def decode(body: bytes) -> object:
        read.append(1)
        return decode_json(body)

    monkeypatch.setattr(signed_requests, "decode_json", decode)
    body = b'{"a": "%b","b":%b}' % (b"x" * MAX_SHORT_BODY_BYTES, end)
    with pytest.raises((BadJson, NotJson)):
        await checker.get_peer([signed_body(network, b"{}")], "PUT", SEND, body, "192.0.2.1")
    for _ in range(2):
        with pytest.raises(Unauthorized):
            await checker.get_peer([signed_body(network, b"{}")], "PUT", SEND, body, "192.0.2.1")
    assert len(read) == 1
