"""Keys that verify signatures: of this server, and of others as a notary.

spec: server-server-api#retrieving-server-keys
"""

import msgspec

from federation.api.endpoint import ServerAuth, endpoint
from federation.peers.notary import KeyNotary
from federation.peers.own_keys import OwnKeys
from federation.protocol.ids import ServerName


class Criterion(msgspec.Struct, frozen=True):
    minimum_valid_until_ts: int | None = None


class Query(msgspec.Struct, frozen=True):
    server_keys: dict[str, dict[str, Criterion]]


class Answer(msgspec.Struct, frozen=True):
    server_keys: list[msgspec.Raw]


@endpoint(
    "GET",
    "/_matrix/key/v2/server",
    "/_matrix/key/v2/server/{key_id}",
    auth=ServerAuth.NONE,
    resource="keys",
)
async def get_server_keys(keys: OwnKeys, *, key_id: str = "") -> msgspec.Raw:  # noqa: ARG001 - the path has it
    """Return all keys. The deprecated key id in the path changes nothing."""
    return keys.get_document()


@endpoint(
    "GET",
    "/_matrix/key/v2/query/{server_name}",
    "/_matrix/key/v2/query/{server_name}/{key_id}",
    auth=ServerAuth.NONE,
    resource="keys",
)
async def get_keys_of_another(
    notary: KeyNotary,
    *,
    server_name: ServerName,
    key_id: str = "",
    minimum_valid_until_ts: int | None = None,
) -> Answer:
    """Return the key documents of another server."""
    return Answer(await notary.get_documents({server_name: {key_id: minimum_valid_until_ts}}))


@endpoint("POST", "/_matrix/key/v2/query", auth=ServerAuth.NONE, resource="keys")
async def post_query_of_keys(notary: KeyNotary, *, body: Query) -> Answer:
    """Return the key documents of other servers."""
    return Answer(
        await notary.get_documents(
            {
                server: {
                    key_id: criterion.minimum_valid_until_ts for key_id, criterion in keys.items()
                }
                for server, keys in body.server_keys.items()
            }
        )
    )
