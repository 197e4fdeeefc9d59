"""What a client sent under which transaction id, so that a retried request is answered and not
carried out again.

The note is written in the transaction that carries the request out, so it holds over a restart too.
It names the request by a hash: a note is written with every message, and the names are longer than
many a message. No index has the notes by their age, which each of these writes would pay for: who
forgets old ones goes through all of them, in the order of their hashes.
"""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Final

import msgspec

from storage.engine.database import Database, Row
from storage.engine.transaction import Transaction, WriteTransaction


class SentTransaction(msgspec.Struct, frozen=True):
    """The name of a client's request. spec: client-server-api#transaction-identifiers"""

    user_id: str
    device_id: str
    """'' for a token without a device."""
    scope: str
    """The request's method and path without the transaction id: ids of different endpoints never
    meet."""
    txn_id: str
    device_made_ts: int = 0
    """Of a device that was signed out and came again under its id, which begins its ids anew. 0
    where it is not known."""

    def compute_key(self) -> bytes:
        """Sixteen bytes that stand for it."""
        names = [self.user_id, self.device_id, self.scope, self.txn_id]
        if self.device_made_ts:
            names.append(str(self.device_made_ts))
        return blake2b(msgspec.json.encode(names), digest_size=16, person=b"mahalla.sent").digest()


LOOKED_AT: Final = 20
"""So many notes for each that may be forgotten in a step."""
AFTER_ALL: Final = b"\xff" * 17
"""After all hashes."""
DELAYED: Final = "delay:"
"""With it begins the id under which no device but the server sends a delayed event; its own
follows."""


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
        self._looked_at = b""
        """The cleaner has gone through the notes up to this one."""

    async def get_response(self, transaction: SentTransaction) -> bytes | None:
        """What was answered to that request, or None if it is new."""
        return await self._database.read_quickly("get_sent_response", select_response, transaction)

    async def get_txn_ids(self, event_nids: Iterable[int]) -> Mapping[int, tuple[str, str]]:
        """For those of the events that were sent with a transaction id, the device and the id."""
        return await self._database.read_quickly("get_txn_ids", _select_ids, list(event_nids))

    async def remove_before(self, created_ts: int, limit: int) -> int:
        """Forget up to `limit` of the notes older than that, of those it has not looked at yet;
        `limit`, or 0 where it has come to the last of all. Then it begins again."""
        old, looked_at = await self._database.read(
            "look_for_old_sent", _select_old, self._looked_at, created_ts, limit
        )
        if old:
            await self._database.write("remove_old_sent", _remove, old)
        self._looked_at = looked_at or b""
        return 0 if looked_at is None else limit


def add_transaction(
    txn: WriteTransaction,
    transaction: SentTransaction,
    event_nid: int | None,
    response: bytes | None,
    created_ts: int,
) -> None:
    """Note the request in the transaction that carries it out. Raises AlreadySent.

    With an event, the response is None: it is the event's id.
    """
    key = transaction.compute_key()
    added = txn.execute(
        "INSERT INTO sent_transactions (request, created_ts, event_nid, device_id, txn_id, response)"
        " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (key, created_ts, event_nid, transaction.device_id, transaction.txn_id, response),
    )
    if not added:
        earlier = select_response(txn, transaction)
        assert earlier is not None
        raise AlreadySent(transaction, earlier)


def select_response(txn: Transaction, transaction: SentTransaction) -> bytes | None:
    """The form of `get_response` for use inside a transaction."""
    row = txn.query_one(
        "SELECT t.response, e.event_id FROM sent_transactions AS t LEFT JOIN events AS e ON e.event_nid = t.event_nid"
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
    """Some of the old notes after that one, and up to where there are no others; None: up to the
    end."""
    ahead = txn.query_one(
        "SELECT request FROM sent_transactions WHERE request > ? ORDER BY request LIMIT 1 OFFSET ?",
        (after, limit * LOOKED_AT),
    )
    upto: bytes = AFTER_ALL if ahead is None else ahead[0]
    old = txn.query(
        "SELECT request, created_ts FROM sent_transactions WHERE request > ? AND request <= ? AND created_ts < ?"
        " ORDER BY request LIMIT ?",
        (after, upto, created_ts, limit),
    )
    if len(old) == limit:
        return old, old[-1][0]
    return old, None if ahead is None else upto


def _remove(txn: WriteTransaction, notes: Sequence[tuple[bytes, int]]) -> None:
    # another node may have removed it meanwhile, and the client sent it anew: that note is a new
    # one
    txn.execute_many("DELETE FROM sent_transactions WHERE request = ? AND created_ts = ?", notes)
