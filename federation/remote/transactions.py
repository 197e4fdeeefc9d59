"""Sends transactions of events and EDUs to other servers.

spec: server-server-api#transactions
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from federation.peers.client import FederationClient, make_path
from federation.peers.identity import ServerIdentity
from federation.protocol.canonical_json import encode_canonical
from federation.protocol.errors import RemoteError
from federation.protocol.ids import ServerName

MAX_PDUS: Final = 50
MAX_EDUS: Final = 100
MAX_ANSWER_BYTES: Final = 1 << 20


class FederationTransaction(msgspec.Struct, frozen=True):
    """A transaction. A retry has the same ID and content."""

    txn_id: str
    origin_server_ts: int
    pdus: Sequence[bytes]
    """Events in canonical JSON, at most MAX_PDUS."""
    edus: Sequence[bytes]
    """EDUs in canonical JSON, at most MAX_EDUS."""


class TransactionClient:
    """Sends transactions."""

    def __init__(self, *, requests: FederationClient, identity: ServerIdentity) -> None:
        self._requests = requests
        self._origin = encode_canonical(identity.server_name)

    async def send(self, destination: ServerName, transaction: FederationTransaction) -> int:
        """Send a transaction. Return how many events the server reports as refused.

        Raises RemoteError, Forbidden.
        """
        body = b'{"edus":[%b],"origin":%b,"origin_server_ts":%d,"pdus":[%b]}' % (
            b",".join(transaction.edus),
            self._origin,
            transaction.origin_server_ts,
            b",".join(transaction.pdus),
        )
        path = make_path("/_matrix/federation/v1/send/{}", transaction.txn_id)
        answer = await self._requests.put(
            destination, path, msgspec.Raw(body), max_bytes=MAX_ANSWER_BYTES
        )
        if not isinstance(answer, dict):
            raise RemoteError(
                destination, "the answer to a transaction is no JSON object", retryable=True
            )
        results = answer.get("pdus")
        if not isinstance(results, dict):
            return 0
        return sum(
            1 for result in results.values() if isinstance(result, dict) and "error" in result
        )
