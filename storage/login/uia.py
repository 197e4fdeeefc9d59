"""Stores the sessions of user-interactive authentication (UIA), and the time of the last
confirmation on each device.

A session confirms only one operation of one user. It expires after some minutes, and a job removes
it. For some time after a confirmation, further operations from the same device may need none.

spec: client-server-api#user-interactive-authentication-api
"""

from collections.abc import Sequence

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction


class UIASessionRow(msgspec.Struct, frozen=True):
    """A UIA session. Times are milliseconds since 1970.

    `session_hash`: the hash of its ID, in hexadecimal. `completed`: the results of the completed
    stages, as JSON. `result`: the result of the operation.
    """

    session_hash: str
    created_ts: int
    operation: str
    user_id: str | None
    completed: str
    result: str | None = None


class UIAStore:
    """The table `uia_sessions`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_session(self, session_hash: str, created_after: int) -> UIASessionRow | None:
        """Return a session that was created after `created_after`."""
        return await self._database.read_quickly(
            "get_uia_session", self.get_session_in, session_hash, created_after
        )

    def get_session_in(
        self, txn: Transaction, session_hash: str, created_after: int
    ) -> UIASessionRow | None:
        """Do `get_session` in a transaction."""
        row = txn.query_one(
            "SELECT session_hash, created_ts, operation, user_id, completed, result"
            " FROM uia_sessions"
            " WHERE session_hash = ? AND created_ts > ?",
            (session_hash, created_after),
        )
        return None if row is None else UIASessionRow(*row)

    def add_session(self, txn: WriteTransaction, session: UIASessionRow) -> None:
        """Add a session."""
        txn.execute(
            "INSERT INTO uia_sessions (session_hash, created_ts, operation, user_id,"
            " completed, result)"
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
        """Set the completed stages."""
        txn.execute(
            "UPDATE uia_sessions SET completed = ? WHERE session_hash = ?",
            (completed, session_hash),
        )

    def set_result(self, txn: WriteTransaction, session_hash: str, result: str) -> bool:
        """Set the result of the operation, once.

        Return False if the session has ended or has a result, so one of two concurrent operations
        wins.
        """
        sql = "UPDATE uia_sessions SET result = ? WHERE session_hash = ? AND result IS NULL"
        return bool(txn.execute(sql, (result, session_hash)))

    def remove_session(self, txn: WriteTransaction, session_hash: str) -> bool:
        """Remove a session; return False if there is none, so one of two concurrent calls wins."""
        return bool(txn.execute("DELETE FROM uia_sessions WHERE session_hash = ?", (session_hash,)))

    def remove_user(self, txn: WriteTransaction, user_id: str) -> None:
        """Remove the sessions of a user."""
        txn.execute("DELETE FROM uia_sessions WHERE user_id = ?", (user_id,))

    def remove_old_sessions(
        self, txn: WriteTransaction, created_upto: int, limit: int
    ) -> list[UIASessionRow]:
        """Remove up to `limit` sessions created at or before this time, and return them.

        The caller releases their reservations (uses of registration tokens) in the same write.
        """
        rows = txn.query(
            "SELECT session_hash, created_ts, operation, user_id, completed, result"
            " FROM uia_sessions"
            " WHERE created_ts <= ? ORDER BY created_ts LIMIT ?",
            (created_upto, limit),
        )
        txn.execute_many(
            "DELETE FROM uia_sessions WHERE session_hash = ?", [(row[0],) for row in rows]
        )
        return [UIASessionRow(*row) for row in rows]


class ConfirmationStore:
    """The table `uia_confirmations`: the time of the last confirmation on each device."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_confirmed(self, user_id: str, device_id: str) -> int | None:
        """Return the time of the last confirmation in milliseconds since 1970.

        None: there was none since the session of the device began.
        """

        def read(txn: Transaction) -> int | None:
            sql = "SELECT confirmed_ts FROM uia_confirmations WHERE user_id = ? AND device_id = ?"
            row = txn.query_one(sql, (user_id, device_id))
            return None if row is None else row[0]

        return await self._database.read_quickly("get_confirmed_operation", read)

    async def set_confirmed(self, user_id: str, device_id: str, now: int, epoch: int) -> None:
        """Set the time, if the device still exists and the account is in this credential epoch."""

        def write(txn: WriteTransaction) -> None:
            txn.execute(
                "DELETE FROM uia_confirmations WHERE user_id = ? AND device_id = ?",
                (user_id, device_id),
            )
            txn.execute(
                "INSERT INTO uia_confirmations (user_id, device_id, confirmed_ts)"
                " SELECT d.user_id, d.device_id, ? FROM devices d"
                " JOIN accounts a ON a.user_id = d.user_id AND a.credential_epoch = ?"
                " WHERE d.user_id = ? AND d.device_id = ?",
                (now, epoch, user_id, device_id),
            )

        await self._database.write("set_confirmed", write)

    def remove_user(self, txn: WriteTransaction, user_id: str) -> None:
        """Delete the confirmations of a user."""
        txn.execute("DELETE FROM uia_confirmations WHERE user_id = ?", (user_id,))

    def remove_devices(
        self, txn: WriteTransaction, user_id: str, device_ids: Sequence[str]
    ) -> None:
        """Delete the confirmations of these devices."""
        sql = "DELETE FROM uia_confirmations WHERE user_id = ? AND device_id = ?"
        txn.execute_many(sql, [(user_id, device_id) for device_id in device_ids])
