"""Endpoints that publish the signing keys of this server and, as a notary, those of other servers.

spec: server-server-api#retrieving-server-keys
"""

import msgspec

from federation.api.endpoint import ServerAuth, endpoint
from federation.peers.notary import KeyNotaryService
from federation.peers.own_keys import PublishedServerKeys
from federation.protocol.ids import ServerName


class Criterion(msgspec.Struct, frozen=True):
    minimum_valid_until_ts: int | None = None


class ServerKeyQuery(msgspec.Struct, frozen=True):
    server_keys: dict[str, dict[str, Criterion]]


class ServerKeyResponse(msgspec.Struct, frozen=True):
    server_keys: list[msgspec.Raw]


@endpoint(
    "GET",
    "/_matrix/key/v2/server",
    "/_matrix/key/v2/server/{key_id}",
    auth=ServerAuth.NONE,
    resource="keys",
)
async def get_server_keys(keys: PublishedServerKeys, *, key_id: str = "") -> msgspec.Raw:  # noqa: ARG001 - the path has it
    """Return all keys. The deprecated key ID in the path changes nothing."""
    return keys.get_document()


@endpoint(
    "GET",
    "/_matrix/key/v2/query/{server_name}",
    "/_matrix/key/v2/query/{server_name}/{key_id}",
    auth=ServerAuth.NONE,
    resource="keys",
)
async def get_keys_of_server(
    notary: KeyNotaryService,
    *,
    server_name: ServerName,
    key_id: str = "",
    minimum_valid_until_ts: int | None = None,
) -> ServerKeyResponse:
    """Return the key documents of another server."""
    return ServerKeyResponse(
        await notary.get_documents({server_name: {key_id: minimum_valid_until_ts}})
    )


@endpoint("POST", "/_matrix/key/v2/query", auth=ServerAuth.NONE, resource="keys")
async def query_server_keys(notary: KeyNotaryService, *, body: ServerKeyQuery) -> ServerKeyResponse:
    """Return the key documents of other servers."""
    return ServerKeyResponse(
        await notary.get_documents(
            {
                server: {
                    key_id: criterion.minimum_valid_until_ts for key_id, criterion in keys.items()
                }
                for server, keys in body.server_keys.items()
            }
        )
    )
