"""Rendezvous sessions of the sign-in by QR code, looked up by the hashes of their IDs.

A job removes expired sessions.
"""

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction


class RendezvousRow(msgspec.Struct, frozen=True):
    """A session with its current payload. Times are milliseconds since 1970."""

    id_hash: bytes
    data: bytes
    etag: str
    written_ts: int
    expires_ts: int


_COLUMNS = "id_hash, data, etag, written_ts, expires_ts"


class RendezvousStore:
    """The table `rendezvous_sessions`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, id_hash: bytes, now: int) -> RendezvousRow | None:
        """Return a session that has not expired."""
        return await self._database.read_quickly("get_rendezvous", self.get_in, id_hash, now)

    def get_in(self, txn: Transaction, id_hash: bytes, now: int) -> RendezvousRow | None:
        """Do `get` in a transaction."""
        sql = f"SELECT {_COLUMNS} FROM rendezvous_sessions WHERE id_hash = ? AND expires_ts > ?"
        row = txn.query_one(sql, (id_hash, now))
        return None if row is None else RendezvousRow(bytes(row[0]), bytes(row[1]), *row[2:])

    def count(self, txn: Transaction, now: int) -> int:
        """Return the number of sessions that have not expired."""
        row = txn.query_one("SELECT COUNT(*) FROM rendezvous_sessions WHERE expires_ts > ?", (now,))
        return 0 if row is None else int(row[0])

    def add(self, txn: WriteTransaction, row: RendezvousRow) -> None:
        """Add a session."""
        txn.execute(
            f"INSERT INTO rendezvous_sessions ({_COLUMNS}) VALUES (?, ?, ?, ?, ?)",
            (row.id_hash, row.data, row.etag, row.written_ts, row.expires_ts),
        )

    def set_data(self, txn: WriteTransaction, row: RendezvousRow) -> None:
        """Replace the payload and etag of a session."""
        txn.execute(
            "UPDATE rendezvous_sessions SET data = ?, etag = ?, written_ts = ? WHERE id_hash = ?",
            (row.data, row.etag, row.written_ts, row.id_hash),
        )

    def remove(self, txn: WriteTransaction, id_hash: bytes) -> bool:
        """Remove a session; return False if there is none."""
        return bool(txn.execute("DELETE FROM rendezvous_sessions WHERE id_hash = ?", (id_hash,)))

    async def remove_old(self, now: int, limit: int) -> int:
        """Remove up to `limit` expired sessions; return the number."""

        def write(txn: WriteTransaction) -> int:
            sql = (
                "DELETE FROM rendezvous_sessions WHERE id_hash IN (SELECT id_hash"
                " FROM rendezvous_sessions"
                " WHERE expires_ts <= ? LIMIT ?)"
            )
            return txn.execute(sql, (now, limit))

        return await self._database.write("remove_old_rendezvous", write)
