"""What other servers send us unasked. spec: server-server-api#transactions"""

import msgspec

from federation.api.endpoint import ServerAuth, endpoint
from federation.api.request import Peer
from federation.receiver.transactions import Transactions

MAX_BODY = 16 << 20
"""50 events of 64 KiB, and as much for 100 EDUs, with room to spare."""


@endpoint(
    "PUT",
    "/_matrix/federation/v1/send/{txn_id}",
    auth=ServerAuth.SERVER,
    max_body=MAX_BODY,
    resource="federation",
)
async def send_transaction(
    transactions: Transactions, peer: Peer, *, txn_id: str, body: bytes
) -> msgspec.Raw:
    """Take in events and EDUs."""
    return await transactions.receive_body(peer.server_name, txn_id, body)
