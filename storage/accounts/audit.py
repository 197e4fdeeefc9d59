"""The audit log of accounts, for their owners and for administrators. A change of an account and
its audit record are written in one transaction.

A record contains time, event, IP address, device and detail, but no secrets. Records are deleted
after a retention time.
"""

from collections.abc import Collection, Iterable, Sequence

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction


class AuditRecord(msgspec.Struct, frozen=True):
    """A record. `ts`: milliseconds since 1970."""

    user_id: str
    ts: int
    event: str
    address: str | None = None
    device_id: str | None = None
    by_user: str | None = None
    """The administrator who did it; None: the owner, or the server itself."""
    detail: str | None = None
    """The object or reason of the event, if there is more to say."""


def add_audit_records(txn: WriteTransaction, records: Sequence[AuditRecord]) -> None:
    """Add records, in the write that carries the operations out."""
    first = txn.allocate("audit", len(records))
    txn.execute_many(
        "INSERT INTO audit_records (record_nid, user_id, ts, event, address, device_id,"
        " by_user, detail)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        [
            (
                first + index,
                record.user_id,
                record.ts,
                record.event,
                record.address,
                record.device_id,
                record.by_user,
                record.detail,
            )
            for index, record in enumerate(records)
        ],
    )


def has_record(txn: Transaction, record: AuditRecord, since: int) -> bool:
    """Return whether an equal record of the same user and address exists since `since`."""
    sql = (
        "SELECT 1 FROM audit_records WHERE user_id = ? AND ts >= ? AND event = ?"
        " AND COALESCE(address, '') = ? AND COALESCE(detail, '') = ? LIMIT 1"
    )
    values = (record.user_id, since, record.event, record.address or "", record.detail or "")
    return txn.query_one(sql, values) is not None


def add_records_of_new_addresses(
    txn: WriteTransaction, records: Iterable[AuditRecord], known: Collection[str] = ()
) -> None:
    """Add the records whose address is new to their user; one query for all.

    An address is new if the user has no record of the same event, or of an event in `known`, with
    this address.
    """
    wanted = {(record.user_id, record.address): record for record in records}
    if not wanted:
        return
    events = {record.event for record in wanted.values()}.union(known)
    rows = txn.query_in(
        "SELECT DISTINCT user_id, address, event FROM audit_records WHERE user_id IN {keys}",
        {user_id for user_id, _ in wanted},
    )
    for user_id, address, event in rows:
        if event in events:
            wanted.pop((user_id, address), None)
    if wanted:
        add_audit_records(txn, list(wanted.values()))


class AuditStore:
    """Reads and deletes audit records."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_records(self, user_id: str, limit: int) -> list[AuditRecord]:
        """Return up to `limit` records of a user, newest first."""

        def read(txn: Transaction) -> list[AuditRecord]:
            rows = txn.query(
                "SELECT user_id, ts, event, address, device_id, by_user, detail"
                " FROM audit_records WHERE user_id = ?"
                " ORDER BY ts DESC, record_nid DESC LIMIT ?",
                (user_id, limit),
            )
            return [AuditRecord(*row) for row in rows]

        return await self._database.read("get_audit_records", read)

    async def remove_old(self, before: int, limit: int) -> int:
        """Remove up to `limit` records older than `before`; return the number."""

        def write(txn: WriteTransaction) -> int:
            sql = (
                "DELETE FROM audit_records WHERE record_nid IN (SELECT record_nid"
                " FROM audit_records WHERE ts < ? LIMIT ?)"
            )
            return txn.execute(sql, (before, limit))

        return await self._database.write("remove_old_audit_records", write)
