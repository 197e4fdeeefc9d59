"""Letters that are to be sent, until they are: over restarts, and by one node at a time.

Who takes letters puts off when they are due, so that nobody else takes them meanwhile; if it dies, they are due again.
"""

from collections.abc import Sequence

import msgspec

from storage.database import Database
from storage.transaction import Transaction, WriteTransaction


class OutgoingMailRow(msgspec.Struct, frozen=True):
    """A letter, encoded. Times are milliseconds since 1970."""

    mail_nid: int
    created_ts: int
    attempts: int
    recipient: str
    message: bytes


class OutgoingMailStore:
    """The table of letters."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_mail(self, txn: WriteTransaction, recipient: str, message: bytes, now: int) -> None:
        """Queue a letter."""
        sql = (
            "INSERT INTO outgoing_mail (mail_nid, next_ts, created_ts, attempts, recipient, message)"
            " VALUES (?, ?, ?, 0, ?, ?)"
        )
        txn.execute(sql, (txn.allocate("mail"), now, now, recipient, message))

    async def take_due(self, now: int, until: int, limit: int) -> Sequence[OutgoingMailRow]:
        """Up to `limit` letters that are due, oldest first; nobody else is given them before `until`."""

        def write(txn: WriteTransaction) -> list[OutgoingMailRow]:
            rows = txn.query(
                "SELECT mail_nid, created_ts, attempts, recipient, message FROM outgoing_mail WHERE next_ts <= ?"
                " ORDER BY next_ts LIMIT ?",
                (now, limit),
            )
            taken = [OutgoingMailRow(*row) for row in rows]
            for row in taken:
                sql = "UPDATE outgoing_mail SET next_ts = ?, attempts = attempts + 1 WHERE mail_nid = ?"
                txn.execute(sql, (until, row.mail_nid))
            return taken

        return await self._database.write("take_mail", write)

    async def set_due(self, mail_nid: int, next_ts: int) -> None:
        """Try a letter again then."""

        def write(txn: WriteTransaction) -> None:
            txn.execute("UPDATE outgoing_mail SET next_ts = ? WHERE mail_nid = ?", (next_ts, mail_nid))

        await self._database.write("set_mail_due", write)

    async def remove_mail(self, mail_nid: int) -> None:
        """A letter is sent, or given up."""

        def write(txn: WriteTransaction) -> None:
            txn.execute("DELETE FROM outgoing_mail WHERE mail_nid = ?", (mail_nid,))

        await self._database.write("remove_mail", write)

    async def get_next_time(self) -> int | None:
        """When the next letter is due, if there is one."""

        def read(txn: Transaction) -> int | None:
            row = txn.query_one("SELECT MIN(next_ts) FROM outgoing_mail")
            return None if row is None else row[0]

        return await self._database.read_quickly("get_next_mail", read)
