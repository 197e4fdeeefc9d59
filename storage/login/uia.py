"""User-interactive authentication that is under way.

A session belongs to one operation (and user): it confirms no other. It lives for minutes; what has
grown old is no session, and is swept. Apart from that it is kept when somebody last confirmed, on
each device, who they are.

spec: client-server-api#user-interactive-authentication-api
"""

from collections.abc import Sequence

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction


class UIASessionRow(msgspec.Struct, frozen=True):
    """A session. `session_hash`: of its id, hexadecimal; `completed` and `result` are JSON; see the
    service. Times are milliseconds since 1970."""

    session_hash: str
    created_ts: int
    operation: str
    user_id: str | None
    completed: str
    result: str | None = None


class UIAStore:
    """The table of sessions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_session(self, session_hash: str, created_after: int) -> UIASessionRow | None:
        """The session, unless it was made at or before `created_after`."""
        return await self._database.read_quickly(
            "get_uia_session", self.get_session_in, session_hash, created_after
        )

    def get_session_in(
        self, txn: Transaction, session_hash: str, created_after: int
    ) -> UIASessionRow | None:
        """As `get_session`, in a transaction."""
        row = txn.query_one(
            "SELECT session_hash, created_ts, operation, user_id, completed, result FROM uia_sessions"
            " WHERE session_hash = ? AND created_ts > ?",
            (session_hash, created_after),
        )
        return None if row is None else UIASessionRow(*row)

    def add_session(self, txn: WriteTransaction, session: UIASessionRow) -> None:
        """Begin one."""
        txn.execute(
            "INSERT INTO uia_sessions (session_hash, created_ts, operation, user_id, completed, result)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (
                session.session_hash,
                session.created_ts,
                session.operation,
                session.user_id,
                session.completed,
                session.result,
            ),
        )

    def set_completed(self, txn: WriteTransaction, session_hash: str, completed: str) -> None:
        """The stages that are done."""
        txn.execute(
            "UPDATE uia_sessions SET completed = ? WHERE session_hash = ?",
            (completed, session_hash),
        )

    def set_result(self, txn: WriteTransaction, session_hash: str, result: str) -> bool:
        """What the operation made; False where there is no such session (any more), or it has made
        something already, so that of two operations one has it."""
        sql = "UPDATE uia_sessions SET result = ? WHERE session_hash = ? AND result IS NULL"
        return bool(txn.execute(sql, (result, session_hash)))

    def remove_session(self, txn: WriteTransaction, session_hash: str) -> bool:
        """End one; False where there is none, so that of two who end it one wins."""
        return bool(txn.execute("DELETE FROM uia_sessions WHERE session_hash = ?", (session_hash,)))

    def remove_user(self, txn: WriteTransaction, user_id: str) -> None:
        """End those that a user was to confirm, or has."""
        txn.execute("DELETE FROM uia_sessions WHERE user_id = ?", (user_id,))

    def remove_old_sessions(
        self, txn: WriteTransaction, created_upto: int, limit: int
    ) -> list[UIASessionRow]:
        """Remove the sessions made at or before this time, `limit` at most, and return them: what
        they held back (uses of registration tokens) is to be given back in the same write."""
        rows = txn.query(
            "SELECT session_hash, created_ts, operation, user_id, completed, result FROM uia_sessions"
            " WHERE created_ts <= ? ORDER BY created_ts LIMIT ?",
            (created_upto, limit),
        )
        txn.execute_many(
            "DELETE FROM uia_sessions WHERE session_hash = ?", [(row[0],) for row in rows]
        )
        return [UIASessionRow(*row) for row in rows]


class ConfirmationStore:
    """When somebody last confirmed, on a device, who they are."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_confirmed(self, user_id: str, device_id: str) -> int | None:
        """When, in milliseconds since 1970; None: not since the session of the device began."""

        def read(txn: Transaction) -> int | None:
            sql = "SELECT confirmed_ts FROM confirmations WHERE user_id = ? AND device_id = ?"
            row = txn.query_one(sql, (user_id, device_id))
            return None if row is None else row[0]

        return await self._database.read_quickly("get_confirmed", read)

    async def set_confirmed(self, user_id: str, device_id: str, now: int, era: int) -> None:
        """They did, as far as the device is still there, and the account in this era."""

        def write(txn: WriteTransaction) -> None:
            txn.execute(
                "DELETE FROM confirmations WHERE user_id = ? AND device_id = ?",
                (user_id, device_id),
            )
            txn.execute(
                "INSERT INTO confirmations (user_id, device_id, confirmed_ts)"
                " SELECT d.user_id, d.device_id, ? FROM devices d JOIN accounts a ON a.user_id = d.user_id AND a.era = ?"
                " WHERE d.user_id = ? AND d.device_id = ?",
                (now, era, user_id, device_id),
            )

        await self._database.write("set_confirmed", write)

    def remove_user(self, txn: WriteTransaction, user_id: str) -> None:
        """What a user has confirmed holds no longer."""
        txn.execute("DELETE FROM confirmations WHERE user_id = ?", (user_id,))

    def remove_devices(
        self, txn: WriteTransaction, user_id: str, device_ids: Sequence[str]
    ) -> None:
        """The sessions of these devices have ended."""
        sql = "DELETE FROM confirmations WHERE user_id = ? AND device_id = ?"
        txn.execute_many(sql, [(user_id, device_id) for device_id in device_ids])
