"""What two devices tell each other while one signs the other in. Found by hashes of ids; what has
grown old is swept."""

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction


class RendezvousRow(msgspec.Struct, frozen=True):
    """The last word. Times are milliseconds since 1970."""

    id_hash: bytes
    data: bytes
    revision: str
    written_ts: int
    expires_ts: int


_COLUMNS = "id_hash, data, revision, written_ts, expires_ts"


class RendezvousStore:
    """The table of them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, id_hash: bytes, now: int) -> RendezvousRow | None:
        """One, unless its time is over."""
        return await self._database.read_quickly("get_rendezvous", self.get_in, id_hash, now)

    def get_in(self, txn: Transaction, id_hash: bytes, now: int) -> RendezvousRow | None:
        """As `get`, in a transaction."""
        sql = f"SELECT {_COLUMNS} FROM rendezvous WHERE id_hash = ? AND expires_ts > ?"
        row = txn.query_one(sql, (id_hash, now))
        return None if row is None else RendezvousRow(bytes(row[0]), bytes(row[1]), *row[2:])

    def count(self, txn: Transaction, now: int) -> int:
        """How many there are."""
        row = txn.query_one("SELECT COUNT(*) FROM rendezvous WHERE expires_ts > ?", (now,))
        return 0 if row is None else int(row[0])

    def add(self, txn: WriteTransaction, row: RendezvousRow) -> None:
        """Begin one."""
        txn.execute(
            f"INSERT INTO rendezvous ({_COLUMNS}) VALUES (?, ?, ?, ?, ?)",
            (row.id_hash, row.data, row.revision, row.written_ts, row.expires_ts),
        )

    def set_data(self, txn: WriteTransaction, row: RendezvousRow) -> None:
        """Another word."""
        txn.execute(
            "UPDATE rendezvous SET data = ?, revision = ?, written_ts = ? WHERE id_hash = ?",
            (row.data, row.revision, row.written_ts, row.id_hash),
        )

    def remove(self, txn: WriteTransaction, id_hash: bytes) -> bool:
        """End one; False where there is none."""
        return bool(txn.execute("DELETE FROM rendezvous WHERE id_hash = ?", (id_hash,)))

    async def remove_old(self, now: int, limit: int) -> int:
        """Remove up to `limit` whose time is over; how many."""

        def write(txn: WriteTransaction) -> int:
            sql = "DELETE FROM rendezvous WHERE id_hash IN (SELECT id_hash FROM rendezvous WHERE expires_ts <= ? LIMIT ?)"
            return txn.execute(sql, (now, limit))

        return await self._database.write("remove_old_rendezvous", write)
