"""User-interactive authentication that is under way.

A session belongs to one operation (and user): it confirms no other. It lives for minutes; what has grown old is no
session, and is swept.

spec: client-server-api#user-interactive-authentication-api
"""

import msgspec

from storage.database import Database
from storage.transaction import Transaction, WriteTransaction


class UIASessionRow(msgspec.Struct, frozen=True):
    """A session. `completed` and `result` are JSON; see the service. Times are milliseconds since 1970."""

    session_id: str
    created_ts: int
    operation: str
    user_id: str | None
    completed: str
    result: str | None = None


class UIAStore:
    """The table of sessions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_session(self, session_id: str, created_after: int) -> UIASessionRow | None:
        """The session, unless it was made at or before `created_after`."""
        return await self._database.read_quickly("get_uia_session", self.get_session_in, session_id, created_after)

    def get_session_in(self, txn: Transaction, session_id: str, created_after: int) -> UIASessionRow | None:
        """As `get_session`, in a transaction."""
        row = txn.query_one(
            "SELECT session_id, created_ts, operation, user_id, completed, result FROM uia_sessions"
            " WHERE session_id = ? AND created_ts > ?",
            (session_id, created_after),
        )
        return None if row is None else UIASessionRow(*row)

    def add_session(self, txn: WriteTransaction, session: UIASessionRow) -> None:
        """Begin one."""
        txn.execute(
            "INSERT INTO uia_sessions (session_id, created_ts, operation, user_id, completed, result)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (
                session.session_id,
                session.created_ts,
                session.operation,
                session.user_id,
                session.completed,
                session.result,
            ),
        )

    def set_completed(self, txn: WriteTransaction, session_id: str, completed: str) -> None:
        """The stages that are done."""
        txn.execute("UPDATE uia_sessions SET completed = ? WHERE session_id = ?", (completed, session_id))

    def set_result(self, txn: WriteTransaction, session_id: str, result: str) -> None:
        """What the operation made."""
        txn.execute("UPDATE uia_sessions SET result = ? WHERE session_id = ?", (result, session_id))

    def remove_session(self, txn: WriteTransaction, session_id: str) -> bool:
        """End one; False where there is none, so that of two who end it one wins."""
        return bool(txn.execute("DELETE FROM uia_sessions WHERE session_id = ?", (session_id,)))

    def remove_old_sessions(self, txn: WriteTransaction, created_upto: int, limit: int) -> list[UIASessionRow]:
        """Remove the sessions made at or before this time, `limit` at most, and return them: what they held back (uses
        of registration tokens) is to be given back in the same write."""
        rows = txn.query(
            "SELECT session_id, created_ts, operation, user_id, completed, result FROM uia_sessions"
            " WHERE created_ts <= ? ORDER BY created_ts LIMIT ?",
            (created_upto, limit),
        )
        txn.execute_many("DELETE FROM uia_sessions WHERE session_id = ?", [(row[0],) for row in rows])
        return [UIASessionRow(*row) for row in rows]
