"""Browser sessions of the server's own pages, looked up by the hash of their cookie.

A job removes expired sessions.
"""

import msgspec

from storage.engine.database import Database
from storage.engine.interface import get_prefix_end
from storage.engine.transaction import Transaction, WriteTransaction


class BrowserSessionRow(msgspec.Struct, frozen=True):
    """A session, with the columns of its account that pages need. Times are ms since 1970."""

    user_id: str
    authenticated_ts: int
    expires_ts: int
    is_admin: bool
    suspended: bool
    upstream_login: str | None = None
    """The sign-in at an identity provider that began the session, as JSON; None: another way."""
    account_expires_ts: int | None = None
    epoch: int = 0
    """The credential epoch of the account."""


class _Origin(msgspec.Struct, frozen=True):
    session: str | None = None


def has_browser_session(txn: Transaction, token_hash: bytes, user_id: str) -> bool:
    """Return whether the user is still signed in with this cookie."""
    sql = "SELECT 1 FROM browser_sessions WHERE token_hash = ? AND user_id = ?"
    return txn.query_one(sql, (token_hash, user_id)) is not None


class BrowserSessionStore:
    """The table `browser_sessions`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_browser_session(self, token_hash: bytes, now: int) -> BrowserSessionRow | None:
        """Return the session of a cookie.

        None if it has expired, or its account is deactivated, locked or awaits approval.
        """
        return await self._database.read_quickly(
            "get_browser_session", self.get_browser_session_in, token_hash, now
        )

    def get_browser_session_in(
        self, txn: Transaction, token_hash: bytes, now: int
    ) -> BrowserSessionRow | None:
        """Do `get_browser_session` in a transaction."""
        row = txn.query_one(
            "SELECT b.user_id, b.authenticated_ts, b.expires_ts, a.is_admin, a.suspended,"
            " b.upstream_login,"
            " a.expires_ts, a.credential_epoch"
            " FROM browser_sessions b JOIN accounts a ON a.user_id = b.user_id"
            " WHERE b.token_hash = ? AND b.expires_ts > ? AND a.deactivated_ts IS NULL"
            " AND a.locked = 0"
            " AND a.approval_pending_ts IS NULL",
            (token_hash, now),
        )
        if row is None:
            return None
        return BrowserSessionRow(
            row[0], row[1], row[2], bool(row[3]), bool(row[4]), row[5], row[6], row[7]
        )

    def add_browser_session(
        self,
        txn: WriteTransaction,
        token_hash: bytes,
        user_id: str,
        authenticated_ts: int,
        expires_ts: int,
        origin: str | None = None,
    ) -> None:
        """Add a session."""
        session = None if origin is None else msgspec.json.decode(origin, type=_Origin).session
        txn.execute(
            "INSERT INTO browser_sessions (token_hash, user_id, authenticated_ts, expires_ts,"
            " upstream_login, upstream_session_id)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (token_hash, user_id, authenticated_ts, expires_ts, origin, session),
        )

    def remove_browser_session(
        self, txn: WriteTransaction, token_hash: bytes
    ) -> tuple[str, int] | None:
        """Remove a session; return its user and expiry time, or None if there is none."""
        sql = "DELETE FROM browser_sessions WHERE token_hash = ? RETURNING user_id, expires_ts"
        row = txn.query_one(sql, (token_hash,))
        return None if row is None else (row[0], row[1])

    def get_browsers_by_session_prefix(
        self, txn: Transaction, beginning: str
    ) -> list[tuple[bytes, str, str]]:
        """Return like `get_browsers_of_session` for all names with a prefix.

        `beginning`: the prefix, of alphanumeric characters and dots.
        """
        sql = (
            "SELECT token_hash, user_id, upstream_login FROM browser_sessions"
            " WHERE upstream_session_id >= ?"
            " AND upstream_session_id < ?"
        )
        return [
            (bytes(row[0]), row[1], row[2])
            for row in txn.query(sql, (beginning, get_prefix_end(beginning)))
        ]

    def get_browsers_of_session(
        self, txn: Transaction, session: str
    ) -> list[tuple[bytes, str, str]]:
        """Return the sessions begun by a sign-in of this name, of any provider.

        The name is `session` in their `origin`. A tuple holds the hash of the cookie, the user, and
        `origin`.
        """
        sql = (
            "SELECT token_hash, user_id, upstream_login FROM browser_sessions"
            " WHERE upstream_session_id = ?"
        )
        return [(bytes(row[0]), row[1], row[2]) for row in txn.query(sql, (session,))]

    def remove_user(self, txn: WriteTransaction, user_id: str) -> int:
        """Remove the sessions of a user; return the number."""
        return txn.execute("DELETE FROM browser_sessions WHERE user_id = ?", (user_id,))

    def remove_old(self, txn: WriteTransaction, now: int, limit: int) -> list[tuple[str, int]]:
        """Remove up to `limit` expired sessions; return their users and expiry times."""
        sql = (
            "DELETE FROM browser_sessions WHERE token_hash IN"
            " (SELECT token_hash FROM browser_sessions WHERE expires_ts <= ? LIMIT ?)"
            " RETURNING user_id, expires_ts"
        )
        return [(row[0], row[1]) for row in txn.query(sql, (now, limit))]
