"""Room aliases of this server: the room of each alias, and its creator."""

from collections.abc import Iterable, Mapping

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction


class AliasTaken(Exception):
    """The alias already points to a room."""


class AliasRow(msgspec.Struct, frozen=True):
    """An alias of this server."""

    alias: str
    room_nid: int
    creator: str
    created_ts: int


_COLUMNS = "alias, room_nid, creator, created_ts"


class AliasStore:
    """Stores the aliases of this server."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_aliases(self, aliases: Iterable[str]) -> Mapping[str, AliasRow]:
        """Return those of the aliases that exist."""
        return await self._database.read_quickly("get_aliases", _select, list(aliases))

    async def get_aliases_of_room(self, room_nid: int) -> list[AliasRow]:
        """Return all aliases of a room, oldest first."""
        return await self._database.read_quickly("get_aliases_of_room", _select_of_room, room_nid)

    async def add_alias(self, row: AliasRow) -> None:
        """Add an alias. Raises AliasTaken."""
        await self._database.write("add_alias", add_alias, row)

    async def remove_alias(self, alias: str) -> bool:
        """Delete an alias. Return whether it existed."""
        return await self._database.write("remove_alias", _delete, alias)


def add_alias(txn: WriteTransaction, row: AliasRow) -> None:
    """Do `AliasStore.add_alias` in a write."""
    added = txn.execute(
        f"INSERT INTO room_aliases ({_COLUMNS}) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (row.alias, row.room_nid, row.creator, row.created_ts),
    )
    if not added:
        raise AliasTaken(row.alias)


def move_aliases(txn: WriteTransaction, from_room: int, to_room: int) -> None:
    """Point all aliases of one room to another."""
    txn.execute("UPDATE room_aliases SET room_nid = ? WHERE room_nid = ?", (to_room, from_room))


def _select(txn: Transaction, aliases: list[str]) -> dict[str, AliasRow]:
    rows = txn.query_in(f"SELECT {_COLUMNS} FROM room_aliases WHERE alias IN {{keys}}", aliases)
    return {row[0]: AliasRow(*row) for row in rows}


def _select_of_room(txn: Transaction, room_nid: int) -> list[AliasRow]:
    rows = txn.query(
        f"SELECT {_COLUMNS} FROM room_aliases WHERE room_nid = ? ORDER BY created_ts, alias",
        (room_nid,),
    )
    return [AliasRow(*row) for row in rows]


def _delete(txn: WriteTransaction, alias: str) -> bool:
    return txn.execute("DELETE FROM room_aliases WHERE alias = ?", (alias,)) == 1
