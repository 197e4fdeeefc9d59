"""Account data: JSON objects that clients store on the server, global or for one room.

Tags are the room account data of type `m.tag`.

Laws:
- Contents are stored and returned as bytes.
- Each change takes a position and is announced (`Topic.ACCOUNT_DATA`, with the room ID unless the
  entry is global). An entry stores only the position of its latest change.
- A deleted entry stays as a row with `{}`, so that incremental syncs report the deletion. Other
  reads skip deleted entries. Only the newest `MAX_DELETED` deleted entries of each user are
  stored. When an account is erased, all rows of its account data are deleted.
- The number and total size of a user's entries are stored in `account_data_usage` and updated with
  each entry. Deleted entries are counted separately.
"""

from collections.abc import Iterable, Sequence

import msgspec

from storage.engine.database import Database
from storage.engine.streams import Change, Topic
from storage.engine.transaction import Transaction, WriteTransaction
from storage.media.references import SettingKind, put_setting, remove_settings

GLOBAL = ""
"""Takes the place of a room ID for global data."""
MAX_DELETED = 5000


class UserAccountData(msgspec.Struct, frozen=True, gc=False):
    """Contents (JSON objects) by type, global and by room."""

    global_data: dict[str, bytes] = msgspec.field(default_factory=dict)
    rooms: dict[str, dict[str, bytes]] = msgspec.field(default_factory=dict)


class AccountDataUsage(msgspec.Struct, frozen=True, gc=False):
    """The amount of account data that a user has stored."""

    entries: int = 0
    size: int = 0
    """Total bytes of all contents."""
    deleted: int = 0
    """The number of deleted entries, which are not counted above."""


class AccountDataStore:
    """Stores account data."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_account_data(self, user_id: str) -> UserAccountData:
        """Return all account data of a user, without deleted entries, in one query."""
        return await self._database.read_without_snapshot(
            "get_account_data", self.get_account_data_in, user_id
        )

    def get_account_data_in(self, txn: Transaction, user_id: str) -> UserAccountData:
        """Do `get_account_data` in a transaction."""
        sql = (
            "SELECT room_id, type, content FROM account_data WHERE user_id = ? AND deleted = 0"
            " ORDER BY position"
        )
        return _collect(txn.query(sql, (user_id,)))

    async def get_account_data_since(self, user_id: str, since: int, upto: int) -> UserAccountData:
        """Return entries that changed after `since`, up to `upto`, in one query. A deleted entry is
        `{}`."""
        return await self._database.read_without_snapshot(
            "get_account_data_since", self.get_account_data_since_in, user_id, since, upto
        )

    def get_account_data_since_in(
        self, txn: Transaction, user_id: str, since: int, upto: int
    ) -> UserAccountData:
        """Do `get_account_data_since` in a transaction."""
        sql = (
            "SELECT room_id, type, content FROM account_data"
            " WHERE user_id = ? AND position > ? AND position <= ?"
            " ORDER BY position"
        )
        return _collect(txn.query(sql, (user_id, since, upto)))

    async def get_rooms_account_data(
        self, user_id: str, room_ids: Iterable[str]
    ) -> dict[str, dict[str, bytes]]:
        """Return a user's account data of a few rooms, by room, in one query. Rooms without any are
        missing."""
        return await self._database.read_quickly(
            "get_rooms_account_data", _select_of_rooms, user_id, list(room_ids)
        )

    async def get_rooms_entries(self, user_id: str, type_: str) -> dict[str, bytes]:
        """Return the entries of one type of all rooms, in one query."""
        return await self._database.read_without_snapshot(
            "get_rooms_entries", _select_of_type, user_id, type_
        )

    async def get_entries(self, user_id: str, types: Sequence[str]) -> dict[str, bytes]:
        """Return contents of global entries by type, in one query. Entries that do not exist are
        missing."""

        def read(txn: Transaction) -> dict[str, bytes]:
            sql = (
                "SELECT type, content FROM account_data"
                " WHERE user_id = ? AND room_id = ? AND type IN {keys}"
                " AND deleted = 0"
            )
            return {
                type_: bytes(content)
                for type_, content in txn.query_in(sql, types, before=(user_id, GLOBAL))
            }

        return await self._database.read_quickly("get_account_data_entries", read)

    async def get_entries_of_users(
        self, user_ids: Iterable[str], types: Sequence[str]
    ) -> dict[str, dict[str, bytes]]:
        """Return contents of global entries by user and type, in one query. Entries that do not
        exist are missing."""

        def read(txn: Transaction) -> dict[str, dict[str, bytes]]:
            placeholders = ", ".join("?" * len(types))
            sql = (
                "SELECT user_id, type, content FROM account_data"
                f" WHERE room_id = ? AND type IN ({placeholders})"
                " AND deleted = 0 AND user_id IN {keys}"
            )
            found: dict[str, dict[str, bytes]] = {}
            for user_id, type_, content in txn.query_in(
                sql, list(user_ids), before=(GLOBAL, *types)
            ):
                found.setdefault(user_id, {})[type_] = bytes(content)
            return found

        return await self._database.read_quickly("get_account_data_of_users", read)

    async def get_entry(self, user_id: str, room_id: str | None, type_: str) -> bytes | None:
        """Return the content of one entry, or None if it does not exist. `room_id` None: global."""
        return await self._database.read_quickly(
            "get_account_data_entry", self.get_entry_in, user_id, room_id, type_
        )

    def get_entry_in(
        self, txn: Transaction, user_id: str, room_id: str | None, type_: str
    ) -> bytes | None:
        """Do `get_entry` in a transaction."""
        row = txn.query_one(
            "SELECT content FROM account_data WHERE user_id = ? AND room_id = ? AND type = ?"
            " AND deleted = 0",
            (user_id, room_id or GLOBAL, type_),
        )
        return None if row is None else bytes(row[0])

    def get_usage(self, txn: Transaction, user_id: str) -> AccountDataUsage:
        """Return the usage of a user."""
        row = txn.query_one(
            "SELECT entries, bytes, deleted FROM account_data_usage WHERE user_id = ?", (user_id,)
        )
        return AccountDataUsage() if row is None else AccountDataUsage(*row)

    def get_larger_usage(
        self, txn: Transaction, user_id: str, room_id: str | None, type_: str, content: bytes
    ) -> AccountDataUsage | None:
        """Return the user's usage with this entry, or None if it is not larger than now."""
        change = _usage_change(txn, user_id, room_id, type_, _usage_of(content))
        if change.entries <= 0 and change.size <= 0:
            return None
        return _add(self.get_usage(txn, user_id), change)

    def set_entry(
        self,
        txn: WriteTransaction,
        user_id: str,
        room_id: str | None,
        type_: str,
        content: bytes,
        *,
        deleted: bool = False,
    ) -> int:
        """Set one entry. Return the position of the change."""
        position = txn.next_position()
        change = _usage_change(
            txn, user_id, room_id, type_, _DELETED if deleted else _usage_of(content)
        )
        if change != AccountDataUsage():
            _add_usage(txn, user_id, change)
        txn.execute(
            "INSERT INTO account_data (user_id, room_id, type, content, deleted, position)"
            " VALUES (?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (user_id, room_id, type) DO UPDATE SET content = excluded.content,"
            " deleted = excluded.deleted, position = excluded.position",
            (user_id, room_id or GLOBAL, type_, content, int(deleted), position),
        )
        if change.deleted > 0 and self.get_usage(txn, user_id).deleted > MAX_DELETED:
            _trim_deleted(txn, user_id)
        put_setting(txn, user_id, SettingKind.ACCOUNT_DATA, f"{room_id or GLOBAL} {type_}", content)
        txn.announce(
            Change(position, Topic.ACCOUNT_DATA, room_id=room_id, user_id=user_id, detail=type_)
        )
        return position

    def remove_entry(
        self, txn: WriteTransaction, user_id: str, room_id: str | None, type_: str
    ) -> int | None:
        """Delete one entry. Return the position of the change, or None if there is no entry."""
        if self.get_entry_in(txn, user_id, room_id, type_) is None:
            return None
        return self.set_entry(txn, user_id, room_id, type_, b"{}", deleted=True)

    def remove_account_data(self, txn: WriteTransaction, user_id: str) -> None:
        """Delete all account data of an erased account. Announced as one change without a type."""
        if txn.execute("DELETE FROM account_data WHERE user_id = ?", (user_id,)):
            txn.announce(Change(txn.next_position(), Topic.ACCOUNT_DATA, user_id=user_id))
        txn.execute("DELETE FROM account_data_usage WHERE user_id = ?", (user_id,))
        remove_settings(txn, user_id, SettingKind.ACCOUNT_DATA)


_DELETED = AccountDataUsage(deleted=1)


def _usage_of(content: bytes) -> AccountDataUsage:
    return AccountDataUsage(1, len(content))


def _add(sums: AccountDataUsage, more: AccountDataUsage) -> AccountDataUsage:
    return AccountDataUsage(
        sums.entries + more.entries, sums.size + more.size, sums.deleted + more.deleted
    )


def _usage_change(
    txn: Transaction, user_id: str, room_id: str | None, type_: str, entry: AccountDataUsage
) -> AccountDataUsage:
    """Return the change of the user's usage if this entry replaces the stored one."""
    row = txn.query_one(
        "SELECT length(content), deleted FROM account_data"
        " WHERE user_id = ? AND room_id = ? AND type = ?",
        (user_id, room_id or GLOBAL, type_),
    )
    if row is None:
        return entry
    return _add(entry, AccountDataUsage(0, 0, -1) if row[1] else AccountDataUsage(-1, -int(row[0])))


def _add_usage(txn: WriteTransaction, user_id: str, change: AccountDataUsage) -> None:
    txn.execute(
        "INSERT INTO account_data_usage (user_id, entries, bytes, deleted) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (user_id) DO UPDATE"
        " SET entries = account_data_usage.entries + excluded.entries,"
        " bytes = account_data_usage.bytes + excluded.bytes,"
        " deleted = account_data_usage.deleted + excluded.deleted",
        (user_id, change.entries, change.size, change.deleted),
    )


def _trim_deleted(txn: WriteTransaction, user_id: str) -> None:
    """Delete the oldest deleted entries, which no active client still needs."""
    trimmed = txn.execute(
        "DELETE FROM account_data WHERE user_id = ? AND deleted = 1"
        " AND position <= (SELECT position FROM account_data"
        " WHERE user_id = ? AND deleted = 1 ORDER BY position DESC LIMIT 1 OFFSET ?)",
        (user_id, user_id, MAX_DELETED),
    )
    _add_usage(txn, user_id, AccountDataUsage(deleted=-trimmed))


def _collect(rows: list[tuple[str, str, bytes]]) -> UserAccountData:
    data = UserAccountData()
    for room_id, type_, content in rows:
        of = data.rooms.setdefault(room_id, {}) if room_id else data.global_data
        of[type_] = bytes(content)
    return data


def _select_of_rooms(
    txn: Transaction, user_id: str, room_ids: list[str]
) -> dict[str, dict[str, bytes]]:
    sql = (
        "SELECT room_id, type, content FROM account_data"
        " WHERE user_id = ? AND room_id IN {keys} AND deleted = 0"
        " ORDER BY position"
    )
    return _collect(txn.query_in(sql, room_ids, before=(user_id,))).rooms


def _select_of_type(txn: Transaction, user_id: str, type_: str) -> dict[str, bytes]:
    rows = txn.query(
        "SELECT room_id, content FROM account_data"
        " WHERE user_id = ? AND type = ? AND room_id <> ? AND deleted = 0",
        (user_id, type_, GLOBAL),
    )
    return {room_id: bytes(content) for room_id, content in rows}
