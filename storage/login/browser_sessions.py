"""Browsers in which somebody is signed in to the server's own pages. Kept as hashes of their
cookies; what has grown old is swept."""

import msgspec

from storage.engine.database import Database
from storage.engine.interface import end_of_beginning
from storage.engine.transaction import Transaction, WriteTransaction


class BrowserSessionRow(msgspec.Struct, frozen=True):
    """One, with what a page has to know of its account. Times are milliseconds since 1970."""

    user_id: str
    proved_ts: int
    expires_ts: int
    is_admin: bool
    suspended: bool
    origin: str | None = None
    """JSON: the sign-in at an identity provider by which they came, if any."""
    account_expires_ts: int | None = None
    era: int = 0
    """Of the account."""


class _Origin(msgspec.Struct, frozen=True):
    session: str | None = None


def has_browser_session(txn: Transaction, token_hash: bytes, user_id: str) -> bool:
    """Whether somebody is signed in still in the browser that has this cookie."""
    sql = "SELECT 1 FROM browser_sessions WHERE token_hash = ? AND user_id = ?"
    return txn.query_one(sql, (token_hash, user_id)) is not None


class BrowserSessionStore:
    """The table of them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_browser_session(self, token_hash: bytes, now: int) -> BrowserSessionRow | None:
        """The session of a cookie, unless its time is over or its account is closed, locked, or
        waits to be approved."""

        return await self._database.read_quickly(
            "get_browser_session", self.get_browser_session_in, token_hash, now
        )

    def get_browser_session_in(
        self, txn: Transaction, token_hash: bytes, now: int
    ) -> BrowserSessionRow | None:
        """As `get_browser_session`, in a transaction."""
        row = txn.query_one(
            "SELECT b.user_id, b.proved_ts, b.expires_ts, a.is_admin, a.suspended, b.origin, a.expires_ts, a.era"
            " FROM browser_sessions b JOIN accounts a ON a.user_id = b.user_id"
            " WHERE b.token_hash = ? AND b.expires_ts > ? AND a.deactivated_ts IS NULL AND a.locked = 0"
            " AND a.awaiting_ts IS NULL",
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
        proved_ts: int,
        expires_ts: int,
        origin: str | None = None,
    ) -> None:
        """Begin one."""
        session = None if origin is None else msgspec.json.decode(origin, type=_Origin).session
        txn.execute(
            "INSERT INTO browser_sessions (token_hash, user_id, proved_ts, expires_ts, origin, session)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (token_hash, user_id, proved_ts, expires_ts, origin, session),
        )

    def remove_browser_session(
        self, txn: WriteTransaction, token_hash: bytes
    ) -> tuple[str, int] | None:
        """End one; whose it was, and when its time is, or was, over. None where there is none."""
        sql = "DELETE FROM browser_sessions WHERE token_hash = ? RETURNING user_id, expires_ts"
        row = txn.query_one(sql, (token_hash,))
        return None if row is None else (row[0], row[1])

    def get_browsers_by_session(
        self, txn: Transaction, beginning: str
    ) -> list[tuple[bytes, str, str]]:
        """As `get_browsers_of_session`, of all whose names begin so; a beginning has letters,
        digits and dots."""
        sql = "SELECT token_hash, user_id, origin FROM browser_sessions WHERE session >= ? AND session < ?"
        return [
            (bytes(row[0]), row[1], row[2])
            for row in txn.query(sql, (beginning, end_of_beginning(beginning)))
        ]

    def get_browsers_of_session(
        self, txn: Transaction, session: str
    ) -> list[tuple[bytes, str, str]]:
        """Those that came by a sign-in of this name (`session` of their `origin`), of whichever
        provider: hash of the cookie, user, `origin`."""
        sql = "SELECT token_hash, user_id, origin FROM browser_sessions WHERE session = ?"
        return [(bytes(row[0]), row[1], row[2]) for row in txn.query(sql, (session,))]

    def remove_user(self, txn: WriteTransaction, user_id: str) -> int:
        """End all of a user's; how many there were."""
        return txn.execute("DELETE FROM browser_sessions WHERE user_id = ?", (user_id,))

    def remove_old(self, txn: WriteTransaction, now: int, limit: int) -> list[tuple[str, int]]:
        """Remove up to `limit` whose time is over; whose they were, and when it was over."""
        sql = (
            "DELETE FROM browser_sessions WHERE token_hash IN"
            " (SELECT token_hash FROM browser_sessions WHERE expires_ts <= ? LIMIT ?) RETURNING user_id, expires_ts"
        )
        return [(row[0], row[1]) for row in txn.query(sql, (now, limit))]
