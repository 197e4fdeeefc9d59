"""Backups of room keys. Each version of a backup has the keys of Megolm sessions, which the server
cannot decrypt.

Laws:
- A deleted version becomes invisible immediately. Its keys, of which there may be hundreds of
  thousands, are deleted in small steps.
- However many keys a client adds or deletes in a request, each write is short, so that other writes
  can run in between.
"""

from collections.abc import Sequence
from typing import Final

import msgspec

from storage.engine.database import Database
from storage.engine.interface import MAX_CHUNK, Row
from storage.engine.transaction import Transaction, WriteTransaction

DELETE_CHUNK: Final = 500
"""The most keys that one write deletes. The job deletes the remaining keys of a deleted version."""
PUT_CHUNK: Final = MAX_CHUNK
"""The most keys that one write adds."""
MAX_KEYS: Final = 500_000
"""The most keys in one version: several times what the busiest users collect in years."""
MAX_BACKUPS: Final = 1000
"""The most versions of a user, not counting deleted ones. Clients create one with each reset, and
read the newest."""


class BackupRow(msgspec.Struct, frozen=True):
    """A version of a user's backup."""

    user_id: str
    version: int
    algorithm: str
    auth_data: bytes
    etag: int
    """Increases with every change of the keys."""
    key_count: int


class BackedUpKey(msgspec.Struct, frozen=True):
    """The backed-up key of a Megolm session."""

    room_id: str
    session_id: str
    first_message_index: int
    forwarded_count: int
    is_verified: bool
    session_data: bytes


class NoSuchBackup(Exception):
    """The user has no backup of that version, or it was deleted."""


class NotCurrentBackup(Exception):
    """Keys can only be added to the newest version."""

    def __init__(self, current: int) -> None:
        super().__init__(str(current))
        self.current = current


class TooManyBackups(Exception):
    """The user has reached the limit on versions."""


class BackupFull(Exception):
    """The version has reached the limit on keys."""


_Cursor = tuple[str, str]
"""Room ID and session ID: where a page of keys ends."""
_COLUMNS = "user_id, version, algorithm, auth_data, etag, key_count"
_KEY_COLUMNS = (
    "room_id, session_id, first_message_index, forwarded_count, is_verified, session_data"
)


class KeyBackupStore:
    """Stores key backups."""

    def __init__(self, *, database: Database, max_keys: int = MAX_KEYS) -> None:
        self._database = database
        self._max_keys = max_keys

    async def get_backup(self, user_id: str, version: int | None) -> BackupRow | None:
        """Return a version of the backup, by default the newest."""
        return await self._database.read_quickly("get_key_backup", _select_backup, user_id, version)

    async def add_backup(self, user_id: str, algorithm: str, auth_data: bytes) -> int:
        """Create a version. Return its number. Raises TooManyBackups."""
        return await self._database.write(
            "add_key_backup", _add_backup, user_id, algorithm, auth_data
        )

    async def set_auth_data(self, user_id: str, version: int, auth_data: bytes) -> None:
        """Replace the auth data of a version. Raises NoSuchBackup."""
        await self._database.write(
            "set_backup_auth_data", _set_auth_data, user_id, version, auth_data
        )

    async def remove_backup(self, user_id: str, version: int) -> None:
        """Delete a version. Its keys are deleted in small steps. Deleting it again is no error.

        Raises NoSuchBackup.
        """
        await self._database.write("remove_key_backup", _remove_backup, user_id, version)

    async def sweep(self, limit: int) -> int:
        """Delete some keys of deleted versions. Return how many."""
        return await self._database.write("sweep_key_backups", _sweep, limit)

    async def get_key(
        self, user_id: str, version: int, room_id: str, session_id: str
    ) -> BackedUpKey | None:
        """Return the key of one session."""
        return await self._database.read_quickly(
            "get_backed_up_key", _select_key, user_id, version, room_id, session_id
        )

    async def get_keys(
        self, user_id: str, version: int, room_id: str | None, after: tuple[str, str], limit: int
    ) -> Sequence[BackedUpKey]:
        """Return the next keys of a version, in order, after a room and session: of all rooms, or
        of one room. Raises NoSuchBackup."""
        return await self._database.read(
            "get_backed_up_keys", _select_keys, user_id, version, room_id, after, limit
        )

    async def put_keys(self, user_id: str, version: int, keys: Sequence[BackedUpKey]) -> BackupRow:
        """Add keys. A worse key never replaces a better one. Raises NoSuchBackup, NotCurrentBackup,
        BackupFull; some of very many keys may have been added then."""
        remaining = list({(key.room_id, key.session_id): key for key in keys}.values())
        while True:
            chunk, remaining = remaining[:PUT_CHUNK], remaining[PUT_CHUNK:]
            backup = await self._database.write(
                "put_backed_up_keys", _put_keys, user_id, version, chunk, self._max_keys
            )
            if not remaining:
                return backup

    async def remove_keys(
        self, user_id: str, version: int, room_id: str | None, session_id: str | None
    ) -> BackupRow:
        """Delete keys of a version: all, those of a room, or that of a session. Raises
        NoSuchBackup."""
        after: _Cursor | None = ("", "")
        while after is not None:
            backup, after = await self._database.write(
                "remove_backed_up_keys", _remove_keys, user_id, version, room_id, session_id, after
            )
        return backup

    def remove_user(self, txn: WriteTransaction, user_id: str) -> None:
        """Delete all versions of a user. Their keys are deleted in small steps."""
        txn.execute("UPDATE key_backups SET deleted = 1 WHERE user_id = ?", (user_id,))


def is_better_key(new: BackedUpKey, old: BackedUpKey) -> bool:
    """Return whether a key replaces the stored one. spec:
    client-server-api#backup-algorithm-mmegolm_backupv1curve25519-aes-sha2"""
    return (new.is_verified, -new.first_message_index, -new.forwarded_count) > (
        old.is_verified,
        -old.first_message_index,
        -old.forwarded_count,
    )


def _select_backup(txn: Transaction, user_id: str, version: int | None) -> BackupRow | None:
    sql = f"SELECT {_COLUMNS} FROM key_backups WHERE user_id = ? AND deleted = 0"
    if version is None:
        row = txn.query_one(sql + " ORDER BY version DESC LIMIT 1", (user_id,))
    else:
        row = txn.query_one(sql + " AND version = ?", (user_id, version))
    return None if row is None else BackupRow(*row)


def _find(txn: Transaction, user_id: str, version: int) -> BackupRow:
    backup = _select_backup(txn, user_id, version)
    if backup is None:
        raise NoSuchBackup(version)
    return backup


def _add_backup(txn: WriteTransaction, user_id: str, algorithm: str, auth_data: bytes) -> int:
    # a number is never reused, even after deletion: clients identify backups by it
    ((latest,),) = txn.query("SELECT max(version) FROM key_backups WHERE user_id = ?", (user_id,))
    version = int(latest or 0) + 1
    # most users have few versions: count only where there may be too many
    if version > MAX_BACKUPS:
        ((number,),) = txn.query(
            "SELECT count(*) FROM key_backups WHERE user_id = ? AND deleted = 0", (user_id,)
        )
        if number >= MAX_BACKUPS:
            raise TooManyBackups
    txn.execute(
        f"INSERT INTO key_backups ({_COLUMNS}) VALUES (?, ?, ?, ?, 0, 0)",
        (user_id, version, algorithm, auth_data),
    )
    return version


def _set_auth_data(txn: WriteTransaction, user_id: str, version: int, auth_data: bytes) -> None:
    changed = txn.execute(
        "UPDATE key_backups SET auth_data = ? WHERE user_id = ? AND version = ? AND deleted = 0",
        (auth_data, user_id, version),
    )
    if not changed:
        raise NoSuchBackup(version)


def _remove_backup(txn: WriteTransaction, user_id: str, version: int) -> None:
    # from now on `key_count` only says that keys are left to delete; the number does not change
    # until then
    sql = "UPDATE key_backups SET deleted = 1, auth_data = ? WHERE user_id = ? AND version = ?"
    changed = txn.execute(sql, (b"{}", user_id, version))
    if not changed:
        raise NoSuchBackup(version)
    _remove_some(txn, user_id, version, DELETE_CHUNK)


def _sweep(txn: WriteTransaction, limit: int) -> int:
    backup = txn.query_one(
        "SELECT user_id, version FROM key_backups WHERE deleted = 1 AND key_count > 0 LIMIT 1"
    )
    if backup is None:
        return 0
    user_id, version = backup
    _remove_some(txn, user_id, version, limit)
    return limit  # the next step finds out whether there are more


def _remove_some(txn: WriteTransaction, user_id: str, version: int, limit: int) -> None:
    """Delete some keys of a deleted version."""
    sql = "SELECT room_id, session_id FROM backed_up_keys WHERE user_id = ? AND version = ? LIMIT ?"
    keys = txn.query(sql, (user_id, version, limit))
    _delete(txn, user_id, version, keys)
    if len(keys) < limit:
        txn.execute(
            "UPDATE key_backups SET key_count = 0 WHERE user_id = ? AND version = ?",
            (user_id, version),
        )


def _where(
    user_id: str, version: int, room_id: str | None, session_id: str | None
) -> tuple[str, list[str | int]]:
    sql = " WHERE user_id = ? AND version = ?"
    args: list[str | int] = [user_id, version]
    if room_id is not None:
        sql += " AND room_id = ?"
        args.append(room_id)
    if session_id is not None:
        sql += " AND session_id = ?"
        args.append(session_id)
    return sql, args


def _select_key(
    txn: Transaction, user_id: str, version: int, room_id: str, session_id: str
) -> BackedUpKey | None:
    where, args = _where(user_id, version, room_id, session_id)
    row = txn.query_one(f"SELECT {_KEY_COLUMNS} FROM backed_up_keys{where}", args)
    return None if row is None else _key(row)


def _select_keys(
    txn: Transaction,
    user_id: str,
    version: int,
    room_id: str | None,
    after: tuple[str, str],
    limit: int,
) -> list[BackedUpKey]:
    _find(txn, user_id, version)  # a deleted version must not return the keys that are left
    where, args = _where(user_id, version, room_id, None)
    rows = txn.query(
        f"SELECT {_KEY_COLUMNS} FROM backed_up_keys{where} AND (room_id, session_id) > (?, ?)"
        " ORDER BY room_id, session_id LIMIT ?",
        (*args, *after, limit),
    )
    return [_key(row) for row in rows]


def _key(row: Row) -> BackedUpKey:
    room_id, session_id, first_message_index, forwarded_count, is_verified, session_data = row
    return BackedUpKey(
        room_id, session_id, first_message_index, forwarded_count, bool(is_verified), session_data
    )


def _put_keys(
    txn: WriteTransaction, user_id: str, version: int, keys: Sequence[BackedUpKey], max_keys: int
) -> BackupRow:
    backup = _find(txn, user_id, version)
    newest = _select_backup(txn, user_id, None)
    if newest is not None and newest.version != version:
        raise NotCurrentBackup(newest.version)
    found = txn.query_each(
        f"SELECT {_KEY_COLUMNS} FROM backed_up_keys"
        " WHERE user_id = ? AND version = ? AND room_id = ? AND session_id = ?",
        [(user_id, version, key.room_id, key.session_id) for key in keys],
    )
    present = {(row[0], row[1]): _key(row) for rows in found for row in rows}
    better = [
        key
        for key in keys
        if (key.room_id, key.session_id) not in present
        or is_better_key(key, present[key.room_id, key.session_id])
    ]
    if not better:
        return backup
    added = sum((key.room_id, key.session_id) not in present for key in better)
    if added and backup.key_count + added > max_keys:
        raise BackupFull
    txn.execute_many(
        f"INSERT INTO backed_up_keys (user_id, version, {_KEY_COLUMNS})"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (user_id, version, room_id, session_id) DO UPDATE SET"
        " first_message_index = excluded.first_message_index, forwarded_count ="
        " excluded.forwarded_count,"
        " is_verified = excluded.is_verified, session_data = excluded.session_data",
        [
            (
                user_id,
                version,
                key.room_id,
                key.session_id,
                key.first_message_index,
                key.forwarded_count,
                int(key.is_verified),
                key.session_data,
            )
            for key in better
        ],
    )
    return _changed(txn, backup, backup.key_count + added)


def _remove_keys(
    txn: WriteTransaction,
    user_id: str,
    version: int,
    room_id: str | None,
    session_id: str | None,
    after: _Cursor,
) -> tuple[BackupRow, _Cursor | None]:
    """Delete the next keys after a cursor. Return the backup, and the next cursor or None at the
    end."""
    backup = _find(txn, user_id, version)
    where, args = _where(user_id, version, room_id, session_id)
    keys = txn.query(
        f"SELECT room_id, session_id FROM backed_up_keys{where} AND (room_id, session_id) > (?, ?)"
        " ORDER BY room_id, session_id LIMIT ?",
        (*args, *after, DELETE_CHUNK),
    )
    _delete(txn, user_id, version, keys)
    if keys:
        backup = _changed(txn, backup, backup.key_count - len(keys))
    return backup, (keys[-1][0], keys[-1][1]) if len(keys) == DELETE_CHUNK else None


def _delete(txn: WriteTransaction, user_id: str, version: int, keys: Sequence[Row]) -> None:
    txn.execute_many(
        "DELETE FROM backed_up_keys WHERE user_id = ? AND version = ? AND room_id = ?"
        " AND session_id = ?",
        [(user_id, version, *key) for key in keys],
    )


def _changed(txn: WriteTransaction, backup: BackupRow, key_count: int) -> BackupRow:
    txn.execute(
        "UPDATE key_backups SET etag = etag + 1, key_count = ? WHERE user_id = ? AND version = ?",
        (key_count, backup.user_id, backup.version),
    )
    return BackupRow(
        backup.user_id,
        backup.version,
        backup.algorithm,
        backup.auth_data,
        backup.etag + 1,
        key_count,
    )
