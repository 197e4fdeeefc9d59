"""The endpoint that receives transactions from other servers.

spec: server-server-api#transactions
"""

import msgspec

from federation.api.endpoint import ServerAuth, endpoint
from federation.api.request import Peer
from federation.receiver.transactions import TransactionReceiver

MAX_BODY = 16 << 20
"""Longest body: 50 events of 64 KiB and as much for 100 EDUs, with a reserve."""


@endpoint(
    "PUT",
    "/_matrix/federation/v1/send/{txn_id}",
    auth=ServerAuth.SERVER,
    max_body=MAX_BODY,
    resource="federation",
)
async def send_transaction(
    transactions: TransactionReceiver, peer: Peer, *, txn_id: str, body: bytes
) -> msgspec.Raw:
    """Receive a transaction."""
    return await transactions.receive_body(peer.server_name, txn_id, body)
