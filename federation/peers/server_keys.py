"""Fetches the signing keys of servers, from the servers themselves and from notaries.

spec: server-server-api#retrieving-server-keys
"""

from collections.abc import Mapping
from typing import Any

from federation.peers.client import FederationClient
from federation.protocol.errors import RemoteError
from federation.protocol.ids import KeyID, ServerName

SECONDS = 10.0
MAX_DOCUMENT_BYTES = 64 << 10
"""Longest document: a hundred keys of each kind take less. As a notary, this server sends many
such documents in one response."""
MAX_QUERY_RESPONSE_BYTES = 8 << 20
SERVERS_PER_QUERY = 100
"""Servers named in one request to a notary."""


class ServerKeyClient:
    """Fetches key documents. They are untrusted JSON, and the caller checks their signatures."""

    def __init__(self, requests: FederationClient) -> None:
        self._requests = requests

    async def fetch(self, server: ServerName) -> Mapping[str, Any]:
        """Return the key document of a server. Raises RemoteError, Forbidden (the policy)."""
        return await self._requests.get(
            server,
            "/_matrix/key/v2/server",
            signed=False,
            seconds=SECONDS,
            max_bytes=MAX_DOCUMENT_BYTES,
        )

    async def query(
        self, notary: ServerName, wanted: Mapping[ServerName, Mapping[KeyID, int]]
    ) -> list[Mapping[str, Any]]:
        """Return a notary's documents about the keys of other servers.

        `wanted`: for each key the time until which it should be valid, in milliseconds.
        Raises RemoteError, Forbidden (the policy).
        """
        criteria = {
            server: {key_id: {"minimum_valid_until_ts": at_ms} for key_id, at_ms in keys.items()}
            for server, keys in wanted.items()
        }
        answer = await self._requests.post(
            notary,
            "/_matrix/key/v2/query",
            {"server_keys": criteria},
            seconds=3 * SECONDS,
            max_bytes=MAX_QUERY_RESPONSE_BYTES,
        )
        documents = answer.get("server_keys") if isinstance(answer, dict) else None
        if not isinstance(documents, list):
            raise RemoteError(notary, "the answer has no server_keys", retryable=False)
        return [each for each in documents[: 4 * SERVERS_PER_QUERY] if isinstance(each, dict)]
