"""What a client sent under which transaction id, so that a retried request is answered and not carried out again.

The note is written in the transaction that carries the request out, so it holds over a restart too.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from storage.database import Database
from storage.transaction import Transaction, WriteTransaction


@dataclass(frozen=True, slots=True)
class SentTransaction:
    """The name of a client's request. spec: client-server-api#transaction-identifiers"""

    user_id: str
    device_id: str
    """'' for a token without a device."""
    scope: str
    """The request's method and path without the transaction id: ids of different endpoints never meet."""
    txn_id: str


class AlreadySent(Exception):
    """The request has been carried out before; `response` is what was answered then."""

    def __init__(self, transaction: SentTransaction, response: bytes) -> None:
        super().__init__("this request was carried out before")
        self.transaction = transaction
        self.response = response


class SentTransactionStore:
    """Readers and the cleaner of the table `sent_transactions`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_response(self, transaction: SentTransaction) -> bytes | None:
        """What was answered to that request, or None if it is new."""
        return await self._database.read_quickly("get_sent_response", _select_response, transaction)

    async def get_txn_ids(self, user_id: str, device_id: str, event_nids: Iterable[int]) -> Mapping[int, str]:
        """For those of the events that this device sent, the transaction id."""
        return await self._database.read_quickly("get_txn_ids", _select_ids, user_id, device_id, list(event_nids))

    async def add_response(self, transaction: SentTransaction, response: bytes, created_ts: int) -> None:
        """Note a request that made no event. Raises AlreadySent."""
        await self._database.write("add_sent_response", add_transaction, transaction, None, response, created_ts)

    async def remove_before(self, created_ts: int, limit: int) -> int:
        """Forget up to `limit` requests older than that; how many were forgotten."""
        return await self._database.write("remove_old_sent", _remove_before, created_ts, limit)


def add_transaction(
    txn: WriteTransaction, transaction: SentTransaction, event_nid: int | None, response: bytes, created_ts: int
) -> None:
    """Note the request in the transaction that carries it out. Raises AlreadySent."""
    added = txn.execute(
        "INSERT INTO sent_transactions (user_id, device_id, scope, txn_id, event_nid, response, created_ts)"
        " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (
            transaction.user_id,
            transaction.device_id,
            transaction.scope,
            transaction.txn_id,
            event_nid,
            response,
            created_ts,
        ),
    )
    if not added:
        earlier = _select_response(txn, transaction)
        assert earlier is not None
        raise AlreadySent(transaction, earlier)


def _select_response(txn: Transaction, transaction: SentTransaction) -> bytes | None:
    row = txn.query_one(
        "SELECT response FROM sent_transactions WHERE user_id = ? AND device_id = ? AND scope = ? AND txn_id = ?",
        (transaction.user_id, transaction.device_id, transaction.scope, transaction.txn_id),
    )
    return row[0] if row is not None else None


def _select_ids(txn: Transaction, user_id: str, device_id: str, event_nids: list[int]) -> dict[int, str]:
    # by the events alone: with the user in the condition a database may read all that they ever sent
    rows = txn.query_in(
        "SELECT event_nid, txn_id, user_id, device_id FROM sent_transactions WHERE event_nid IN {keys}", event_nids
    )
    return {nid: txn_id for nid, txn_id, sender, device in rows if sender == user_id and device == device_id}


def _remove_before(txn: WriteTransaction, created_ts: int, limit: int) -> int:
    rows = txn.query(
        "SELECT user_id, device_id, scope, txn_id FROM sent_transactions WHERE created_ts < ?"
        " ORDER BY created_ts LIMIT ?",
        (created_ts, limit),
    )
    txn.execute_many(
        "DELETE FROM sent_transactions WHERE user_id = ? AND device_id = ? AND scope = ? AND txn_id = ?", rows
    )
    return len(rows)
