"""Who sends a request is proved by its signature."""

import pytest

from federation.protocol.errors import RemoteError, Unauthorized
from federation.protocol.ids import ServerName
from federation.protocol.request_signing import make_authorization
from tests.helpers.network import Network

NORTH, SOUTH = ServerName("north.example"), ServerName("south.example")
URI = "/_matrix/federation/v1/query/profile?user_id=%40a%3Asouth.example"


def signed(network: Network, uri: str = URI, destination: ServerName = SOUTH) -> str:
    """A signature of the north's."""
    key = network.servers[NORTH].app.federation.identity.key
    return make_authorization(key, method="GET", uri=uri, origin=NORTH, destination=destination, content=None)


async def test_the_peer_is_known_by_the_key_that_it_publishes(network: Network) -> None:
    network.add(NORTH)
    checker = network.add(SOUTH).app.federation.signed_requests

    assert (await checker.get_peer([signed(network)], "GET", URI, b"")).server_name == NORTH
    assert network.log == [(SOUTH, NORTH, "GET", "/_matrix/key/v2/server")]


async def test_a_request_for_another_server_is_refused(network: Network) -> None:
    network.add(NORTH)
    checker = network.add(SOUTH).app.federation.signed_requests

    with pytest.raises(Unauthorized):
        await checker.get_peer([signed(network, destination=NORTH)], "GET", URI, b"")


async def test_a_request_to_another_path_is_refused(network: Network) -> None:
    network.add(NORTH)
    checker = network.add(SOUTH).app.federation.signed_requests

    with pytest.raises(Unauthorized):
        await checker.get_peer([signed(network, URI + "0")], "GET", URI, b"")


async def test_who_cannot_be_asked_for_its_keys_is_not_known(network: Network) -> None:
    network.add(NORTH)
    checker = network.add(SOUTH).app.federation.signed_requests
    network.cut(NORTH, SOUTH)

    with pytest.raises(Unauthorized):
        await checker.get_peer([signed(network)], "GET", URI, b"")


async def test_a_server_that_is_not_there_is_a_remote_error(network: Network) -> None:
    requests = network.add(NORTH).app.federation.requests

    with pytest.raises(RemoteError):
        await requests.get(SOUTH, "/_matrix/federation/v1/version")
