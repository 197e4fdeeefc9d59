"""Aliases, room directory entries and room upgrades by shadow-banned users.

Only the user who made such a change sees it. The changes are stored in tables of their own. Only
requests of this user read them, and no cache holds the rows. So the changes take no position.
"""

from collections.abc import Iterable, Mapping

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction


class ShadowRoomStore:
    """Stores the changes that only a shadow-banned user sees."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_listings(self, user_id: str, room_nids: Iterable[int]) -> Mapping[int, bool]:
        """Return those of the rooms that the user has added to or removed from the room
        directory."""

        def read(txn: Transaction, keys: tuple[int, ...]) -> dict[int, bool]:
            sql = (
                "SELECT room_nid, is_public FROM shadow_room_listings"
                " WHERE user_id = ? AND room_nid IN {keys}"
            )
            return {
                room_nid: bool(is_public)
                for room_nid, is_public in txn.query_in(sql, keys, (user_id,))
            }

        return await self._database.read_quickly(
            "get_shadow_banned_listings", read, tuple(room_nids)
        )

    def set_listing(
        self, txn: WriteTransaction, user_id: str, room_nid: int, is_public: bool
    ) -> None:
        """Add a room to the directory, or remove it."""
        sql = (
            "INSERT INTO shadow_room_listings (user_id, room_nid, is_public) VALUES (?, ?, ?)"
            " ON CONFLICT (user_id, room_nid) DO UPDATE SET is_public = excluded.is_public"
        )
        txn.execute(sql, (user_id, room_nid, int(is_public)))

    async def get_aliases(self, user_id: str, aliases: Iterable[str]) -> Mapping[str, int | None]:
        """Return the rooms to which the user has pointed these aliases; None for a removed
        alias."""

        def read(txn: Transaction, keys: tuple[str, ...]) -> dict[str, int | None]:
            sql = "SELECT alias, room_nid FROM shadow_aliases WHERE user_id = ? AND alias IN {keys}"
            return dict(txn.query_in(sql, keys, (user_id,)))

        return await self._database.read_quickly("get_shadow_banned_aliases", read, tuple(aliases))

    async def get_aliases_of_room(self, user_id: str, room_nid: int) -> list[str]:
        """Return the aliases that the user has pointed to a room, oldest first."""

        def read(txn: Transaction) -> list[str]:
            sql = (
                "SELECT u.alias FROM shadow_aliases u JOIN room_aliases a ON a.alias = u.alias"
                " WHERE u.user_id = ? AND u.room_nid = ? ORDER BY a.created_ts, u.alias"
            )
            return [row[0] for row in txn.query(sql, (user_id, room_nid))]

        return await self._database.read_quickly("get_shadow_banned_aliases_of_room", read)

    def set_alias(
        self, txn: WriteTransaction, user_id: str, alias: str, room_nid: int | None
    ) -> None:
        """Point an alias to a room; None removes it."""
        sql = (
            "INSERT INTO shadow_aliases (user_id, alias, room_nid) VALUES (?, ?, ?)"
            " ON CONFLICT (user_id, alias) DO UPDATE SET room_nid = excluded.room_nid"
        )
        txn.execute(sql, (user_id, alias, room_nid))

    async def remove_alias(self, user_id: str, alias: str) -> None:
        """Undo the user's change of an alias."""
        sql = "DELETE FROM shadow_aliases WHERE user_id = ? AND alias = ?"
        await self._database.write(
            "remove_shadow_banned_alias", lambda txn: txn.execute(sql, (user_id, alias))
        )

    async def get_successor(self, user_id: str, room_nid: int) -> int | None:
        """Return the room to which the user has upgraded a room."""

        def read(txn: Transaction) -> int | None:
            sql = (
                "SELECT successor_nid FROM shadow_room_upgrades WHERE user_id = ? AND room_nid = ?"
            )
            row = txn.query_one(sql, (user_id, room_nid))
            return None if row is None else int(row[0])

        return await self._database.read_quickly("get_shadow_banned_successor", read)

    def set_successor(
        self, txn: WriteTransaction, user_id: str, room_nid: int, successor_nid: int
    ) -> None:
        """Record an upgrade of a room."""
        sql = (
            "INSERT INTO shadow_room_upgrades (user_id, room_nid, successor_nid) VALUES (?, ?, ?)"
            " ON CONFLICT (user_id, room_nid) DO UPDATE SET successor_nid = excluded.successor_nid"
        )
        txn.execute(sql, (user_id, room_nid, successor_nid))

    def remove_user(self, txn: WriteTransaction, user_id: str) -> None:
        """Delete all changes of a user."""
        for table in ("shadow_room_listings", "shadow_aliases", "shadow_room_upgrades"):
            txn.execute(f"DELETE FROM {table} WHERE user_id = ?", (user_id,))
