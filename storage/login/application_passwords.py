"""Application passwords, each for one program that has no other way to sign in, and the sessions
begun with them. The passwords are stored as hashes."""

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction


class ApplicationPasswordRow(msgspec.Struct, frozen=True):
    """An application password. Times are milliseconds since 1970."""

    password_id: str
    user_id: str
    name: str
    password_hash: str
    created_ts: int
    expires_ts: int | None = None
    used_ts: int | None = None
    """Its last use: a sign-in with it, or a request of one of its sessions."""


_COLUMNS = "password_id, user_id, name, password_hash, created_ts, expires_ts, used_ts"


class ApplicationPasswordStore:
    """The tables `application_passwords` and `application_password_sessions`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_password(self, password_id: str) -> ApplicationPasswordRow | None:
        """Return a password by its ID."""

        def read(txn: Transaction) -> ApplicationPasswordRow | None:
            row = txn.query_one(
                f"SELECT {_COLUMNS} FROM application_passwords WHERE password_id = ?",
                (password_id,),
            )
            return None if row is None else ApplicationPasswordRow(*row)

        return await self._database.read_quickly("get_application_password", read)

    async def get_passwords(self, user_id: str) -> list[ApplicationPasswordRow]:
        """Return the passwords of a user, oldest first; requests of their sessions count as use."""

        def read(txn: Transaction) -> list[ApplicationPasswordRow]:
            rows = txn.query(
                f"SELECT {_COLUMNS} FROM application_passwords WHERE user_id = ?"
                " ORDER BY created_ts, password_id",
                (user_id,),
            )
            seen: dict[str, int | None] = dict(
                txn.query(
                    "SELECT s.password_id, MAX(d.last_seen_ts) FROM application_password_sessions s"
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
        """Return the number of passwords of a user."""
        row = txn.query_one(
            "SELECT COUNT(*) FROM application_passwords WHERE user_id = ?", (user_id,)
        )
        return int(row[0]) if row is not None else 0

    def add_password(self, txn: WriteTransaction, row: ApplicationPasswordRow) -> bool:
        """Add a password; return False if the user has one with this name."""
        sql = (
            f"INSERT INTO application_passwords ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT DO NOTHING"
        )
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

    async def is_application_session(self, user_id: str, device_id: str) -> bool:
        """Return whether the session of a device was begun with an application password."""

        def read(txn: Transaction) -> bool:
            sql = "SELECT 1 FROM application_password_sessions WHERE user_id = ? AND device_id = ?"
            return txn.query_one(sql, (user_id, device_id)) is not None

        return await self._database.read_quickly("is_application_session", read)

    def is_device_of_other_login(
        self, txn: Transaction, user_id: str, device_id: str, password_id: str
    ) -> bool:
        """Return whether the device exists and was not signed in by this password."""
        sql = (
            "SELECT 1 FROM devices AS d WHERE d.user_id = ? AND d.device_id = ? AND NOT EXISTS"
            " (SELECT 1 FROM application_password_sessions AS s WHERE s.user_id = d.user_id"
            " AND s.device_id = d.device_id"
            " AND s.password_id = ?)"
        )
        return txn.query_one(sql, (user_id, device_id, password_id)) is not None

    def set_used(
        self, txn: WriteTransaction, user_id: str, device_id: str, password_id: str, now: int
    ) -> bool:
        """Record that a session was begun with a password; return False if it has been revoked."""
        sql = "UPDATE application_passwords SET used_ts = ? WHERE password_id = ? AND user_id = ?"
        if not txn.execute(sql, (now, password_id, user_id)):
            return False
        txn.execute(
            "DELETE FROM application_password_sessions WHERE user_id = ? AND device_id = ?",
            (user_id, device_id),
        )
        sql = (
            "INSERT INTO application_password_sessions (user_id, device_id, password_id)"
            " VALUES (?, ?, ?)"
        )
        txn.execute(sql, (user_id, device_id, password_id))
        return True

    def remove_password(
        self, txn: WriteTransaction, user_id: str, password_id: str
    ) -> tuple[str, Sequence[str]] | None:
        """Remove a password; return its name and the devices of its sessions, or None.

        The caller removes these devices in the same write.
        """
        sql = "SELECT name FROM application_passwords WHERE password_id = ? AND user_id = ?"
        found = txn.query_one(sql, (password_id, user_id))
        if found is None:
            return None
        txn.execute(
            "DELETE FROM application_passwords WHERE password_id = ? AND user_id = ?",
            (password_id, user_id),
        )
        sql = (
            "SELECT device_id FROM application_password_sessions WHERE user_id = ?"
            " AND password_id = ?"
        )
        return found[0], [row[0] for row in txn.query(sql, (user_id, password_id))]

    def get_expired(self, txn: Transaction, now: int, limit: int) -> list[tuple[str, str]]:
        """Return the user and ID of up to `limit` expired passwords."""
        sql = (
            "SELECT user_id, password_id FROM application_passwords"
            " WHERE expires_ts IS NOT NULL AND expires_ts <= ?"
            " ORDER BY expires_ts LIMIT ?"
        )
        return [(row[0], row[1]) for row in txn.query(sql, (now, limit))]

    def remove_devices(
        self, txn: WriteTransaction, user_id: str, device_ids: Sequence[str]
    ) -> None:
        """Remove the sessions of these devices, which are removed or signed in another way."""
        sql = "DELETE FROM application_password_sessions WHERE user_id = ? AND device_id = ?"
        txn.execute_many(sql, [(user_id, device_id) for device_id in device_ids])

    def remove_user(self, txn: WriteTransaction, user_id: str) -> int:
        """Remove the passwords and sessions of a user; return the number of passwords."""
        txn.execute("DELETE FROM application_password_sessions WHERE user_id = ?", (user_id,))
        return txn.execute("DELETE FROM application_passwords WHERE user_id = ?", (user_id,))


def _latest(*times: int | None) -> int | None:
    return max((time for time in times if time is not None), default=None)
