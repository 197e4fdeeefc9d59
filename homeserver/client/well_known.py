"""Well-known documents: discovery for clients and servers, support contacts, and the public key of
a policy server that has the same server name as this server.

spec: client-server-api#well-known-uris, server-server-api#getwell-knownmatrixserver
"""

from collections.abc import Mapping

from federation.protocol.errors import NotFound
from homeserver.api.endpoint import Auth, endpoint
from homeserver.services.discovery.client import ClientDiscovery
from homeserver.services.discovery.server import ServerDiscovery


@endpoint("GET", "/.well-known/matrix/client", auth=Auth.NONE)
async def get_client(discovery: ClientDiscovery) -> Mapping[str, object]:
    """Return the client discovery document. Available if `public_baseurl` is configured."""
    return _or_not_found(discovery.document)


@endpoint("GET", "/.well-known/matrix/server", auth=Auth.NONE)
async def get_server(discovery: ServerDiscovery) -> Mapping[str, object]:
    """Return the server discovery document. Available if `serve_server_wellknown` is on."""
    return _or_not_found(discovery.server)


@endpoint("GET", "/.well-known/matrix/support", auth=Auth.NONE)
async def get_support(discovery: ServerDiscovery) -> Mapping[str, object]:
    """Return the support contacts. Available if `admin_contact` or `support_page` is configured."""
    return _or_not_found(discovery.support)


@endpoint("GET", "/.well-known/matrix/policy_server", auth=Auth.NONE)
async def get_policy_server(discovery: ServerDiscovery) -> Mapping[str, object]:
    """Return the policy server document. Available if `policy_server_public_key` is configured.
    spec: client-server-api#getwell-knownmatrixpolicy_server"""
    return _or_not_found(discovery.policy_server)


def _or_not_found(document: Mapping[str, object] | None) -> Mapping[str, object]:
    if document is None:
        raise NotFound("This is not configured here")
    return document
