"""Leases on work that one node does at a time, such as sending to other servers.

A lease records its holder, its expiry, and a position. All work up to that position is done, except
the unfinished work that is stored in tables of its own (such as
`storage/federation/destinations.py`).
"""

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction


class Lease(msgspec.Struct, frozen=True):
    """A lease that was taken."""

    epoch: int
    """Increases each time that the lease is taken."""
    position: int


class LeaseStore:
    """Stores the lease of one kind of work."""

    def __init__(self, *, database: Database, name: str) -> None:
        """`name` is the name of the work."""
        self._database = database
        self._name = name

    async def take(
        self,
        holder: str,
        now_ms: int,
        expires_ts: int,
        *,
        force: bool,
        replacing: str | None = None,
    ) -> Lease | None:
        """Take the lease if it is free. Return None if another holder has it. `force`: take it
        from any holder. `replacing`: take it from this holder, which is gone.

        A lease that is taken for the first time starts at the end of the sequence.
        """
        return await self._database.write(
            "take_lease", _take, self._name, holder, now_ms, expires_ts, force, replacing
        )

    async def renew(
        self, holder: str, expires_ts: int, position: int, *, name: str | None = None
    ) -> bool:
        """Record the position and extend the lease, under a new `name` of the holder if one is
        given. An earlier renewal with that name may have succeeded without our knowing. Return
        False if the lease is lost."""
        return await self._database.write(
            "renew_lease", _renew, self._name, holder, expires_ts, position, name
        )

    async def get_holder(self) -> str | None:
        """Return the current or last holder."""
        return await self._database.read_quickly("get_lease_holder", _select_holder, self._name)


def _select_holder(txn: Transaction, name: str) -> str | None:
    row = txn.query_one("SELECT holder FROM leases WHERE name = ?", (name,))
    return None if row is None else row[0]


def _take(
    txn: WriteTransaction,
    name: str,
    holder: str,
    now_ms: int,
    expires_ts: int,
    force: bool,
    replacing: str | None,
) -> Lease | None:
    row = txn.query_one(
        "SELECT holder, expires_ts, epoch, position FROM leases WHERE name = ?", (name,)
    )
    if row is None:
        position = txn.next_position()
        txn.execute(
            "INSERT INTO leases (name, holder, expires_ts, epoch, position) VALUES (?, ?, ?, 1, ?)",
            (name, holder, expires_ts, position),
        )
        return Lease(1, position)
    if not force and row[0] not in (holder, replacing) and row[1] > now_ms:
        return None
    txn.execute(
        "UPDATE leases SET holder = ?, expires_ts = ?, epoch = epoch + 1 WHERE name = ?",
        (holder, expires_ts, name),
    )
    return Lease(row[2] + 1, row[3])


def _renew(
    txn: WriteTransaction,
    name: str,
    holder: str,
    expires_ts: int,
    position: int,
    new_holder: str | None,
) -> bool:
    new_holder = new_holder or holder
    sql = (
        "UPDATE leases SET expires_ts = ?, position = ?, holder = ?"
        " WHERE name = ? AND holder IN (?, ?)"
    )
    return txn.execute(sql, (expires_ts, position, new_holder, name, holder, new_holder)) == 1
