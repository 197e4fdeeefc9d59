"""Registered clients, authorization codes, and sessions of the OAuth 2.0 API.

Also stores until when a user may replace their cross-signing keys. Users permit the replacement on
the account page.

Codes are stored as hashes. Times are milliseconds since 1970.
"""

from collections.abc import Sequence

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction
from storage.upstream.sessions import ProviderSessions, upstream_key


class OAuthClientRow(msgspec.Struct, frozen=True):
    """A registered client. `metadata` is JSON."""

    client_id: str
    metadata: str
    created_ts: int
    last_used_ts: int


class OAuthCodeRow(msgspec.Struct, frozen=True):
    """An authorization code. `used_for_family`: the family hash of the session that it was
    exchanged for; b"" if the exchange failed; None if it is unused."""

    code_hash: bytes
    user_id: str
    client_id: str
    device_id: str
    scope: str
    redirect_uri: str
    code_challenge: str
    expires_ts: int
    used_for_family: bytes | None = None
    upstream_login: str | None = None
    """JSON: the upstream sign-in of the user who allowed the client, if any."""


class OAuthSessionRow(msgspec.Struct, frozen=True):
    """The session of a device that signed in with an OAuth client."""

    user_id: str
    device_id: str
    client_id: str
    scope: str
    family_hash: bytes


_CODE = (
    "code_hash, user_id, client_id, device_id, scope, redirect_uri, code_challenge, expires_ts,"
    " used_for_family, upstream_login"
)
_SESSION = "user_id, device_id, client_id, scope, family_hash"
_NOT_IN_USE = (
    "NOT EXISTS (SELECT 1 FROM oauth_sessions s WHERE s.client_id = c.client_id)"
    " AND NOT EXISTS (SELECT 1 FROM oauth_codes o WHERE o.client_id = c.client_id)"
    " AND NOT EXISTS (SELECT 1 FROM oauth_device_grants g WHERE g.client_id = c.client_id)"
)


class OAuthStore:
    """The tables of clients, codes and sessions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # Clients.

    async def get_client(self, client_id: str) -> OAuthClientRow | None:
        """Return a client; None if it is unknown."""

        def read(txn: Transaction) -> OAuthClientRow | None:
            sql = (
                "SELECT client_id, metadata, created_ts, last_used_ts FROM oauth_clients"
                " WHERE client_id = ?"
            )
            row = txn.query_one(sql, (client_id,))
            return None if row is None else OAuthClientRow(*row)

        return await self._database.read_quickly("get_oauth_client", read)

    def add_client(self, txn: WriteTransaction, client: OAuthClientRow) -> bool:
        """Add a client; if it exists, update its last use and return False."""
        sql = "UPDATE oauth_clients SET last_used_ts = ? WHERE client_id = ?"
        if txn.execute(sql, (client.last_used_ts, client.client_id)):
            return False
        txn.execute(
            "INSERT INTO oauth_clients (client_id, metadata, created_ts, last_used_ts)"
            " VALUES (?, ?, ?, ?)",
            (client.client_id, client.metadata, client.created_ts, client.last_used_ts),
        )
        return True

    def set_client_allowed(self, txn: WriteTransaction, client_id: str, now: int) -> bool:
        """Record that a user allowed a client; return whether it is the first time."""
        sql = (
            "UPDATE oauth_clients SET authorized_ts = ? WHERE client_id = ?"
            " AND authorized_ts IS NULL"
        )
        return bool(txn.execute(sql, (now, client_id)))

    def remove_unused_clients(
        self, txn: WriteTransaction, used_before: int, never_before: int, limit: int
    ) -> int:
        """Remove up to `limit` clients last used before `used_before`, or, if no user ever allowed
        them, before `never_before`. Clients with a session, code or device grant stay."""
        return txn.execute(
            "DELETE FROM oauth_clients WHERE client_id IN (SELECT c.client_id FROM oauth_clients c"
            " WHERE (c.last_used_ts < ? OR (c.authorized_ts IS NULL AND c.last_used_ts < ?))"
            f" AND {_NOT_IN_USE} LIMIT ?)",
            (used_before, never_before, limit),
        )

    def remove_clients_beyond(self, txn: WriteTransaction, max_clients: int, limit: int) -> int:
        """Of the clients that no user ever allowed, keep the `max_clients` last used, and remove up
        to `limit` of the others."""
        row = txn.query_one(
            "SELECT last_used_ts FROM oauth_clients WHERE authorized_ts IS NULL"
            " ORDER BY last_used_ts DESC LIMIT 1 OFFSET ?",
            (max_clients,),
        )
        if row is None:
            return 0
        return txn.execute(
            "DELETE FROM oauth_clients WHERE client_id IN (SELECT c.client_id FROM oauth_clients c"
            f" WHERE c.authorized_ts IS NULL AND c.last_used_ts <= ? AND {_NOT_IN_USE} LIMIT ?)",
            (row[0], limit),
        )

    # Codes.

    def add_code(self, txn: WriteTransaction, code: OAuthCodeRow) -> None:
        """Add a code."""
        txn.execute(
            f"INSERT INTO oauth_codes ({_CODE}, upstream_key)"
            f" VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                code.code_hash,
                code.user_id,
                code.client_id,
                code.device_id,
                code.scope,
                code.redirect_uri,
                code.code_challenge,
                code.expires_ts,
                code.used_for_family,
                code.upstream_login,
                upstream_key(code.upstream_login),
            ),
        )

    def get_code(self, txn: Transaction, code_hash: bytes) -> OAuthCodeRow | None:
        """Return a code, used or not."""
        row = txn.query_one(f"SELECT {_CODE} FROM oauth_codes WHERE code_hash = ?", (code_hash,))
        return None if row is None else OAuthCodeRow(*row)

    def set_code_used(self, txn: WriteTransaction, code_hash: bytes, used_for: bytes) -> None:
        """Mark a code as used, for a session or in a failed exchange."""
        txn.execute(
            "UPDATE oauth_codes SET used_for_family = ? WHERE code_hash = ?", (used_for, code_hash)
        )

    def remove_old_codes(self, txn: WriteTransaction, expired_before: int, limit: int) -> int:
        """Remove up to `limit` codes that expired before; return how many."""
        return txn.execute(
            "DELETE FROM oauth_codes WHERE code_hash IN"
            " (SELECT code_hash FROM oauth_codes WHERE expires_ts < ? LIMIT ?)",
            (expired_before, limit),
        )

    def remove_user(self, txn: WriteTransaction, user_id: str) -> None:
        """Remove the codes of a user."""
        txn.execute("DELETE FROM oauth_codes WHERE user_id = ?", (user_id,))

    def remove_provider_sessions(self, txn: WriteTransaction, sign_ins: ProviderSessions) -> None:
        """Remove the codes of upstream sign-ins."""
        condition, values = sign_ins.where()
        txn.execute(f"DELETE FROM oauth_codes WHERE {condition}", values)

    # Sessions.

    def get_session(self, txn: Transaction, user_id: str, device_id: str) -> OAuthSessionRow | None:
        """Return the session of a device; None if it did not sign in with OAuth."""
        row = txn.query_one(
            f"SELECT {_SESSION} FROM oauth_sessions WHERE user_id = ? AND device_id = ?",
            (user_id, device_id),
        )
        return None if row is None else OAuthSessionRow(*row)

    def get_session_of_family(self, txn: Transaction, family_hash: bytes) -> OAuthSessionRow | None:
        """Return the session of a family of refresh tokens."""
        row = txn.query_one(
            f"SELECT {_SESSION} FROM oauth_sessions WHERE family_hash = ?", (family_hash,)
        )
        return None if row is None else OAuthSessionRow(*row)

    async def get_sessions(self, user_id: str) -> dict[str, OAuthSessionRow]:
        """Return the sessions of a user, by device."""

        def read(txn: Transaction) -> dict[str, OAuthSessionRow]:
            rows = txn.query(f"SELECT {_SESSION} FROM oauth_sessions WHERE user_id = ?", (user_id,))
            return {row[1]: OAuthSessionRow(*row) for row in rows}

        return await self._database.read("get_oauth_sessions", read)

    def set_session(self, txn: WriteTransaction, session: OAuthSessionRow) -> None:
        """Store the session of a device, replacing an earlier one."""
        self.remove_devices(txn, session.user_id, [session.device_id])
        txn.execute(
            f"INSERT INTO oauth_sessions ({_SESSION}) VALUES (?, ?, ?, ?, ?)",
            (
                session.user_id,
                session.device_id,
                session.client_id,
                session.scope,
                session.family_hash,
            ),
        )

    def remove_devices(
        self, txn: WriteTransaction, user_id: str, device_ids: Sequence[str]
    ) -> None:
        """Remove the sessions of these devices."""
        txn.execute_many(
            "DELETE FROM oauth_sessions WHERE user_id = ? AND device_id = ?",
            [(user_id, device_id) for device_id in device_ids],
        )


class CrossSigningResetStore:
    """Stores the time until which a user may replace their cross-signing keys."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_until(self, user_id: str) -> int:
        """Return the end of the permission; 0 if there is none."""

        def read(txn: Transaction) -> int:
            row = txn.query_one(
                "SELECT expires_ts FROM cross_signing_resets WHERE user_id = ?", (user_id,)
            )
            return 0 if row is None else int(row[0])

        return await self._database.read_quickly("get_cross_signing_reset", read)

    def set_until(self, txn: WriteTransaction, user_id: str, until_ts: int) -> None:
        """Allow the replacement until a time."""
        txn.execute(
            "INSERT INTO cross_signing_resets (user_id, expires_ts) VALUES (?, ?)"
            " ON CONFLICT (user_id) DO UPDATE SET expires_ts = excluded.expires_ts",
            (user_id, until_ts),
        )

    def remove_user(self, txn: WriteTransaction, user_id: str) -> None:
        """Remove the permission of a user."""
        txn.execute("DELETE FROM cross_signing_resets WHERE user_id = ?", (user_id,))
