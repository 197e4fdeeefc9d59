"""What shadow-banned accounts have made of rooms, aliases and the directory since: they see it
themselves, and nobody else.

It concerns nobody else: no position, no note.
"""

from collections.abc import Iterable, Mapping

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction


class UnshownRoomStore:
    """The tables of it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_listings(self, user_id: str, room_nids: Iterable[int]) -> Mapping[int, bool]:
        """Those of the rooms that the user has put into the directory, or taken out."""

        def read(txn: Transaction, keys: tuple[int, ...]) -> dict[int, bool]:
            sql = (
                "SELECT room_nid, is_public FROM unshown_listings"
                " WHERE user_id = ? AND room_nid IN {keys}"
            )
            return {
                room_nid: bool(is_public)
                for room_nid, is_public in txn.query_in(sql, keys, (user_id,))
            }

        return await self._database.read_quickly("get_unshown_listings", read, tuple(room_nids))

    def set_listing(
        self, txn: WriteTransaction, user_id: str, room_nid: int, is_public: bool
    ) -> None:
        """Put a room into the directory, or take it out."""
        sql = (
            "INSERT INTO unshown_listings (user_id, room_nid, is_public) VALUES (?, ?, ?)"
            " ON CONFLICT (user_id, room_nid) DO UPDATE SET is_public = excluded.is_public"
        )
        txn.execute(sql, (user_id, room_nid, int(is_public)))

    async def get_aliases(self, user_id: str, aliases: Iterable[str]) -> Mapping[str, int | None]:
        """To which rooms the user has moved those of the aliases; None for one that they have
        removed."""

        def read(txn: Transaction, keys: tuple[str, ...]) -> dict[str, int | None]:
            sql = (
                "SELECT alias, room_nid FROM unshown_aliases WHERE user_id = ? AND alias IN {keys}"
            )
            return dict(txn.query_in(sql, keys, (user_id,)))

        return await self._database.read_quickly("get_unshown_aliases", read, tuple(aliases))

    async def get_aliases_of_room(self, user_id: str, room_nid: int) -> list[str]:
        """The aliases that the user has moved to a room, the oldest first."""

        def read(txn: Transaction) -> list[str]:
            sql = (
                "SELECT u.alias FROM unshown_aliases u JOIN room_aliases a ON a.alias = u.alias"
                " WHERE u.user_id = ? AND u.room_nid = ? ORDER BY a.created_ts, u.alias"
            )
            return [row[0] for row in txn.query(sql, (user_id, room_nid))]

        return await self._database.read_quickly("get_unshown_aliases_of_room", read)

    def set_alias(
        self, txn: WriteTransaction, user_id: str, alias: str, room_nid: int | None
    ) -> None:
        """Move an alias to a room; None: remove it."""
        sql = (
            "INSERT INTO unshown_aliases (user_id, alias, room_nid) VALUES (?, ?, ?)"
            " ON CONFLICT (user_id, alias) DO UPDATE SET room_nid = excluded.room_nid"
        )
        txn.execute(sql, (user_id, alias, room_nid))

    async def remove_alias(self, user_id: str, alias: str) -> None:
        """Let an alias point again to what it points to for others."""
        sql = "DELETE FROM unshown_aliases WHERE user_id = ? AND alias = ?"
        await self._database.write(
            "remove_unshown_alias", lambda txn: txn.execute(sql, (user_id, alias))
        )

    async def get_successor(self, user_id: str, room_nid: int) -> int | None:
        """The room by which the user has replaced one."""

        def read(txn: Transaction) -> int | None:
            sql = "SELECT successor_nid FROM unshown_upgrades WHERE user_id = ? AND room_nid = ?"
            row = txn.query_one(sql, (user_id, room_nid))
            return None if row is None else int(row[0])

        return await self._database.read_quickly("get_unshown_successor", read)

    def set_successor(
        self, txn: WriteTransaction, user_id: str, room_nid: int, successor_nid: int
    ) -> None:
        """Replace a room."""
        sql = (
            "INSERT INTO unshown_upgrades (user_id, room_nid, successor_nid) VALUES (?, ?, ?)"
            " ON CONFLICT (user_id, room_nid) DO UPDATE SET successor_nid = excluded.successor_nid"
        )
        txn.execute(sql, (user_id, room_nid, successor_nid))

    def remove_user(self, txn: WriteTransaction, user_id: str) -> None:
        """Forget all of a user."""
        for table in ("unshown_listings", "unshown_aliases", "unshown_upgrades"):
            txn.execute(f"DELETE FROM {table} WHERE user_id = ?", (user_id,))
