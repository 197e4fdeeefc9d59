"""Transaction IDs of clients, so that a retried request gets its first response and is not carried
out again.

The database transaction that carries out a request also stores its record, so the record survives a
restart. The key of a record is a hash of user, device, endpoint and transaction ID. Without the
hash, the key would be longer than many messages, and every message has a record. There is no index
by age, because every message would have to update it. So the clean-up reads all records, in the
order of their hashes.
"""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Final

import msgspec

from storage.engine.database import Database, Row
from storage.engine.transaction import Transaction, WriteTransaction


class SentTransaction(msgspec.Struct, frozen=True):
    """Identifies a client's request. spec: client-server-api#transaction-identifiers"""

    user_id: str
    device_id: str
    """'' for a token without a device."""
    scope: str
    """The request's method and path without the transaction ID: IDs of different endpoints do not
    collide."""
    txn_id: str
    device_created_ts: int = 0
    """When the device was created again under its old ID, after a logout: its transaction IDs start
    again. 0 if unknown."""

    def compute_key(self) -> bytes:
        """Return a 16-byte hash of the request."""
        names = [self.user_id, self.device_id, self.scope, self.txn_id]
        if self.device_created_ts:
            names.append(str(self.device_created_ts))
        return blake2b(msgspec.json.encode(names), digest_size=16, person=b"mahalla.sent").digest()


READ_PER_DELETED: Final = 20
"""Records read per record that one step may delete."""
MAX_KEY: Final = b"\xff" * 17
"""Greater than all hashes."""
DELAYED: Final = "delay:"
"""The prefix of the pseudo device ID with which the server sends a delayed event; its delay ID
follows."""


class AlreadySent(Exception):
    """The request was carried out before. `response` is the response to it."""

    def __init__(self, transaction: SentTransaction, response: bytes) -> None:
        super().__init__("this request was carried out before")
        self.transaction = transaction
        self.response = response


class SentTransactionStore:
    """Reads and cleans up the table `sent_transactions`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._cleaned_upto = b""
        """The clean-up has read the records up to this key."""

    async def get_response(self, transaction: SentTransaction) -> bytes | None:
        """Return the answer to that request, or None if it is new."""
        return await self._database.read_quickly("get_sent_response", select_response, transaction)

    async def get_txn_ids(self, event_nids: Iterable[int]) -> Mapping[int, tuple[str, str]]:
        """Return the device and transaction ID of events that were sent with one."""
        return await self._database.read_quickly("get_txn_ids", _select_ids, list(event_nids))

    async def remove_before(self, created_ts: int, limit: int) -> int:
        """Delete up to `limit` records older than that, among those not read yet. Return `limit`,
        or 0 at the end of the table; the next call starts again."""
        old, cleaned_upto = await self._database.read(
            "get_old_sent_transactions", _select_old, self._cleaned_upto, created_ts, limit
        )
        if old:
            await self._database.write("remove_old_sent_transactions", _remove, old)
        self._cleaned_upto = cleaned_upto or b""
        return 0 if cleaned_upto is None else limit


def add_transaction(
    txn: WriteTransaction,
    transaction: SentTransaction,
    event_nid: int | None,
    response: bytes | None,
    created_ts: int,
) -> None:
    """Record the request in the transaction that carries it out. Raises AlreadySent.

    With an event, `response` is None: the answer is the event's ID.
    """
    key = transaction.compute_key()
    added = txn.execute(
        "INSERT INTO sent_transactions (request, created_ts, event_nid, device_id, txn_id,"
        " response)"
        " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (key, created_ts, event_nid, transaction.device_id, transaction.txn_id, response),
    )
    if not added:
        earlier = select_response(txn, transaction)
        assert earlier is not None
        raise AlreadySent(transaction, earlier)


def select_response(txn: Transaction, transaction: SentTransaction) -> bytes | None:
    """Do `get_response` in a transaction."""
    row = txn.query_one(
        "SELECT t.response, e.event_id FROM sent_transactions AS t"
        " LEFT JOIN events AS e ON e.event_nid = t.event_nid"
        " WHERE t.request = ?",
        (transaction.compute_key(),),
    )
    if row is None:
        return None
    response, event_id = row
    return response if response is not None else b'{"event_id":"%s"}' % event_id.encode()


def _select_ids(txn: Transaction, event_nids: list[int]) -> dict[int, tuple[str, str]]:
    rows = txn.query_in(
        "SELECT event_nid, device_id, txn_id FROM sent_transactions WHERE event_nid IN {keys}",
        event_nids,
    )
    return {nid: (of_device, txn_id) for nid, of_device, txn_id in rows}


def _select_old(
    txn: Transaction, after: bytes, created_ts: int, limit: int
) -> tuple[list[Row], bytes | None]:
    """Return some old records after that key, and the key up to which there are no others; None:
    the end of the table."""
    next_row = txn.query_one(
        "SELECT request FROM sent_transactions WHERE request > ? ORDER BY request LIMIT 1 OFFSET ?",
        (after, limit * READ_PER_DELETED),
    )
    upto: bytes = MAX_KEY if next_row is None else next_row[0]
    old = txn.query(
        "SELECT request, created_ts FROM sent_transactions"
        " WHERE request > ? AND request <= ? AND created_ts < ?"
        " ORDER BY request LIMIT ?",
        (after, upto, created_ts, limit),
    )
    if len(old) == limit:
        return old, old[-1][0]
    return old, None if next_row is None else upto


def _remove(txn: WriteTransaction, records: Sequence[tuple[bytes, int]]) -> None:
    # another node may have removed it meanwhile, and the client may have sent it again: that record
    # is a new one
    txn.execute_many("DELETE FROM sent_transactions WHERE request = ? AND created_ts = ?", records)
