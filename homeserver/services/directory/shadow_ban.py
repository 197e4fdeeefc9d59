"""Aliases, directory listings and room upgrades that only a shadow-banned user sees.

A shadow-banned user sees their own changes; all others see the real state. Only requests of
shadow-banned users need additional queries.
"""

from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from federation.protocol.ids import UserID
from homeserver.api.requester import Requester
from storage.directory.aliases import AliasRow, AliasStore
from storage.directory.shadow_ban import ShadowRoomStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.rooms.rooms import RoomStore


class HiddenRoomChanges:
    """Reads the state as a user sees it, and writes changes that only that user sees."""

    def __init__(
        self, *, database: Database, store: ShadowRoomStore, aliases: AliasStore, rooms: RoomStore
    ) -> None:
        self._database = database
        self._store = store
        self._aliases = aliases
        self._rooms = rooms

    async def get_aliases(
        self, caller: Requester | None, aliases: Iterable[str]
    ) -> Mapping[str, AliasRow]:
        """Return those of the aliases that exist for the caller."""
        found = await self._aliases.get_aliases(aliases)
        if caller is None or not caller.is_shadow_banned or not found:
            return found
        moved = await self._store.get_aliases(caller.user_id, found)
        return {
            alias: replace(row, room_nid=room_nid)
            for alias, row in found.items()
            if (room_nid := moved.get(alias, row.room_nid)) is not None
        }

    async def get_aliases_of_room(self, caller: Requester, room_nid: int) -> list[str]:
        """Return the aliases of a room as the caller sees them, the oldest first."""
        found = [row.alias for row in await self._aliases.get_aliases_of_room(room_nid)]
        if not caller.is_shadow_banned:
            return found
        moved = await self._store.get_aliases(caller.user_id, found)
        here = await self._store.get_aliases_of_room(caller.user_id, room_nid)
        return [*(alias for alias in found if alias not in moved), *here]

    async def is_listed(self, caller: Requester | None, room_nid: int) -> bool:
        """Return whether the caller sees the room in the directory."""
        if caller is not None and caller.is_shadow_banned:
            listings = await self._store.get_listings(caller.user_id, [room_nid])
            if room_nid in listings:
                return listings[room_nid]
        return (await self._rooms.get_public_flags([room_nid]))[room_nid]

    async def do_list(self, user_id: UserID, room_nid: int, is_public: bool) -> None:
        """Add a room to the directory, or remove it, only for the user."""
        await self._database.write(
            "add_shadow_banned_listing", self.list_in, user_id, room_nid, is_public
        )

    def list_in(
        self, txn: WriteTransaction, user_id: UserID, room_nid: int, is_public: bool
    ) -> None:
        """Do what `do_list` does, in the caller's write."""
        self._store.set_listing(txn, user_id, room_nid, is_public)

    async def is_removed(self, caller: Requester, alias: str) -> bool:
        """Return whether the caller removed an alias that still exists for others."""
        return (await self._store.get_aliases(caller.user_id, [alias])).get(alias, 0) is None

    async def do_move_alias(self, user_id: UserID, alias: str, room_nid: int | None) -> None:
        """Point an alias to a room, only for the user; None removes the alias."""
        await self._database.write(
            "move_shadow_banned_alias", self.move_alias_in, user_id, alias, room_nid
        )

    def move_alias_in(
        self, txn: WriteTransaction, user_id: UserID, alias: str, room_nid: int | None
    ) -> None:
        """Do what `do_move_alias` does, in the caller's write."""
        self._store.set_alias(txn, user_id, alias, room_nid)

    async def do_remove_alias(self, caller: Requester, alias: str) -> None:
        """Delete the caller's hidden change of an alias, after they added or removed it for all."""
        if caller.is_shadow_banned:
            await self._store.remove_alias(caller.user_id, alias)

    async def find_successor(self, user_id: UserID, room_nid: int) -> int | None:
        """Return the hidden room by which the user replaced a room."""
        return await self._store.get_successor(user_id, room_nid)

    def replace_in(
        self,
        txn: WriteTransaction,
        user_id: UserID,
        room_nid: int,
        successor_nid: int,
        aliases: Iterable[str],
        *,
        is_listed: bool,
    ) -> None:
        """Replace a room, with its aliases and listing, only for the user; in the caller's
        write."""
        self._store.set_successor(txn, user_id, room_nid, successor_nid)
        for alias in aliases:
            self._store.set_alias(txn, user_id, alias, successor_nid)
        if is_listed:
            self._store.set_listing(txn, user_id, room_nid, False)
            self._store.set_listing(txn, user_id, successor_nid, True)

    def remove_user(self, txn: WriteTransaction, user_id: UserID) -> None:
        """Delete all hidden changes of a user whose shadow ban ends, in the caller's write."""
        self._store.remove_user(txn, user_id)
