"""Passwords that people make for one program each, and the sessions that were begun with them.

Only hashes are kept. What ends a password says, in the same write, which devices it had let in.
"""

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction


class ApplicationPasswordRow(msgspec.Struct, frozen=True):
    """One. Times are milliseconds since 1970."""

    password_id: str
    user_id: str
    name: str
    password_hash: str
    created_ts: int
    expires_ts: int | None = None
    used_ts: int | None = None
    """When it was last used: a sign-in with it, or what came from a session of it."""


_COLUMNS = "password_id, user_id, name, password_hash, created_ts, expires_ts, used_ts"


class ApplicationPasswordStore:
    """The tables of them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_password(self, password_id: str) -> ApplicationPasswordRow | None:
        """One by its id."""

        def read(txn: Transaction) -> ApplicationPasswordRow | None:
            row = txn.query_one(
                f"SELECT {_COLUMNS} FROM application_passwords WHERE password_id = ?",
                (password_id,),
            )
            return None if row is None else ApplicationPasswordRow(*row)

        return await self._database.read_quickly("get_application_password", read)

    async def get_passwords(self, user_id: str) -> list[ApplicationPasswordRow]:
        """Those of a user, the oldest first; what their sessions did counts as use."""

        def read(txn: Transaction) -> list[ApplicationPasswordRow]:
            rows = txn.query(
                f"SELECT {_COLUMNS} FROM application_passwords WHERE user_id = ? ORDER BY created_ts, password_id",
                (user_id,),
            )
            seen: dict[str, int | None] = dict(
                txn.query(
                    "SELECT s.password_id, MAX(d.last_seen_ts) FROM application_sessions s"
                    " JOIN devices d ON d.user_id = s.user_id AND d.device_id = s.device_id"
                    " WHERE s.user_id = ? GROUP BY s.password_id",
                    (user_id,),
                )
            )
            found = [ApplicationPasswordRow(*row) for row in rows]
            return [
                replace(each, used_ts=_latest(each.used_ts, seen.get(each.password_id)))
                for each in found
            ]

        return await self._database.read("get_application_passwords", read)

    def count_passwords(self, txn: Transaction, user_id: str) -> int:
        """How many a user has."""
        row = txn.query_one(
            "SELECT COUNT(*) FROM application_passwords WHERE user_id = ?", (user_id,)
        )
        return int(row[0]) if row is not None else 0

    def add_password(self, txn: WriteTransaction, row: ApplicationPasswordRow) -> bool:
        """Add one; False where the user has one of this name."""
        sql = f"INSERT INTO application_passwords ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
        values = (
            row.password_id,
            row.user_id,
            row.name,
            row.password_hash,
            row.created_ts,
            row.expires_ts,
            row.used_ts,
        )
        return bool(txn.execute(sql, values))

    async def is_program(self, user_id: str, device_id: str) -> bool:
        """Whether the session of a device was begun with one."""

        def read(txn: Transaction) -> bool:
            sql = "SELECT 1 FROM application_sessions WHERE user_id = ? AND device_id = ?"
            return txn.query_one(sql, (user_id, device_id)) is not None

        return await self._database.read_quickly("is_program", read)

    def is_other_device(
        self, txn: Transaction, user_id: str, device_id: str, password_id: str
    ) -> bool:
        """Whether a device is there that this one has not let in."""
        sql = (
            "SELECT 1 FROM devices AS d WHERE d.user_id = ? AND d.device_id = ? AND NOT EXISTS"
            " (SELECT 1 FROM application_sessions AS s WHERE s.user_id = d.user_id AND s.device_id = d.device_id"
            " AND s.password_id = ?)"
        )
        return txn.query_one(sql, (user_id, device_id, password_id)) is not None

    def set_used(
        self, txn: WriteTransaction, user_id: str, device_id: str, password_id: str, now: int
    ) -> bool:
        """A session was begun with it; False where it has ended in the meantime."""
        sql = "UPDATE application_passwords SET used_ts = ? WHERE password_id = ? AND user_id = ?"
        if not txn.execute(sql, (now, password_id, user_id)):
            return False
        txn.execute(
            "DELETE FROM application_sessions WHERE user_id = ? AND device_id = ?",
            (user_id, device_id),
        )
        sql = "INSERT INTO application_sessions (user_id, device_id, password_id) VALUES (?, ?, ?)"
        txn.execute(sql, (user_id, device_id, password_id))
        return True

    def remove_password(
        self, txn: WriteTransaction, user_id: str, password_id: str
    ) -> tuple[str, Sequence[str]] | None:
        """End one of a user's; its name, and the devices that it let in. None where there is
        none."""
        sql = "SELECT name FROM application_passwords WHERE password_id = ? AND user_id = ?"
        found = txn.query_one(sql, (password_id, user_id))
        if found is None:
            return None
        txn.execute(
            "DELETE FROM application_passwords WHERE password_id = ? AND user_id = ?",
            (password_id, user_id),
        )
        sql = "SELECT device_id FROM application_sessions WHERE user_id = ? AND password_id = ?"
        return found[0], [row[0] for row in txn.query(sql, (user_id, password_id))]

    def get_expired(self, txn: Transaction, now: int, limit: int) -> list[tuple[str, str]]:
        """User and id of up to `limit` whose time is over."""
        sql = (
            "SELECT user_id, password_id FROM application_passwords WHERE expires_ts IS NOT NULL AND expires_ts <= ?"
            " ORDER BY expires_ts LIMIT ?"
        )
        return [(row[0], row[1]) for row in txn.query(sql, (now, limit))]

    def remove_devices(
        self, txn: WriteTransaction, user_id: str, device_ids: Sequence[str]
    ) -> None:
        """These devices are gone, or somebody has signed in on them otherwise."""
        sql = "DELETE FROM application_sessions WHERE user_id = ? AND device_id = ?"
        txn.execute_many(sql, [(user_id, device_id) for device_id in device_ids])

    def remove_user(self, txn: WriteTransaction, user_id: str) -> int:
        """End all of a user's; how many there were."""
        txn.execute("DELETE FROM application_sessions WHERE user_id = ?", (user_id,))
        return txn.execute("DELETE FROM application_passwords WHERE user_id = ?", (user_id,))


def _latest(*times: int | None) -> int | None:
    return max((time for time in times if time is not None), default=None)
