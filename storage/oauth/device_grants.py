"""Pending device authorization grants. Device codes are stored as hashes.

spec: RFC 8628
"""

import msgspec
from msgspec.structs import replace

from storage.engine.database import Database
from storage.engine.interface import Row
from storage.engine.transaction import Transaction, WriteTransaction
from storage.upstream.sessions import ProviderSessions, upstream_key


class DeviceGrantRow(msgspec.Struct, frozen=True):
    """A device grant. Times are milliseconds since 1970. `allowed`: None until the user decides."""

    code_hash: bytes
    user_code: str
    client_id: str
    device_id: str
    scope: str
    expires_ts: int
    interval_ms: int
    last_poll_ts: int = 0
    user_id: str | None = None
    allowed: bool | None = None
    upstream_login: str | None = None
    """JSON: the upstream sign-in of the user who decided, if any."""


_COLUMNS = (
    "code_hash, user_code, client_id, device_id, scope, expires_ts, interval_ms, last_poll_ts,"
    " user_id, allowed, upstream_login"
)


class DeviceGrantStore:
    """The table of device grants."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_grant(self, txn: WriteTransaction, grant: DeviceGrantRow) -> bool:
        """Add a grant; False if another one has the same user code."""
        return bool(
            txn.execute(
                f"INSERT INTO oauth_device_grants ({_COLUMNS}, upstream_key)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (
                    grant.code_hash,
                    grant.user_code,
                    grant.client_id,
                    grant.device_id,
                    grant.scope,
                    grant.expires_ts,
                    grant.interval_ms,
                    grant.last_poll_ts,
                    grant.user_id,
                    None if grant.allowed is None else int(grant.allowed),
                    grant.upstream_login,
                    upstream_key(grant.upstream_login),
                ),
            )
        )

    def get_grant(self, txn: Transaction, code_hash: bytes) -> DeviceGrantRow | None:
        """Return the grant of a device code."""
        sql = f"SELECT {_COLUMNS} FROM oauth_device_grants WHERE code_hash = ?"
        return _grant(txn.query_one(sql, (code_hash,)))

    async def get_grant_of_user_code(self, user_code: str, now: int) -> DeviceGrantRow | None:
        """Return the open grant of a user code."""

        def read(txn: Transaction) -> DeviceGrantRow | None:
            sql = (
                f"SELECT {_COLUMNS} FROM oauth_device_grants"
                " WHERE user_code = ? AND expires_ts > ? AND allowed IS NULL"
            )
            return _grant(txn.query_one(sql, (user_code, now)))

        return await self._database.read_quickly("get_device_grant_of_user_code", read)

    def set_last_poll(
        self, txn: WriteTransaction, code_hash: bytes, last_poll_ts: int, interval_ms: int
    ) -> None:
        """Record the client's last poll and its interval."""
        txn.execute(
            "UPDATE oauth_device_grants SET last_poll_ts = ?, interval_ms = ? WHERE code_hash = ?",
            (last_poll_ts, interval_ms, code_hash),
        )

    def set_decided(
        self,
        txn: WriteTransaction,
        user_code: str,
        user_id: str,
        now: int,
        origin: str | None = None,
        *,
        allowed: bool,
    ) -> bool:
        """Store the user's decision; False if the grant is no longer open."""
        return bool(
            txn.execute(
                "UPDATE oauth_device_grants SET user_id = ?, allowed = ?, upstream_login ="
                " ?, upstream_key = ?"
                " WHERE user_code = ? AND expires_ts > ? AND allowed IS NULL",
                (user_id, int(allowed), origin, upstream_key(origin), user_code, now),
            )
        )

    def remove_grant(self, txn: WriteTransaction, code_hash: bytes) -> bool:
        """Remove a grant; False if there is none."""
        return bool(
            txn.execute("DELETE FROM oauth_device_grants WHERE code_hash = ?", (code_hash,))
        )

    def remove_user(self, txn: WriteTransaction, user_id: str) -> None:
        """Remove the grants that a user decided."""
        txn.execute("DELETE FROM oauth_device_grants WHERE user_id = ?", (user_id,))

    def remove_provider_sessions(self, txn: WriteTransaction, sign_ins: ProviderSessions) -> None:
        """Remove the grants that were decided in browsers of these upstream sign-ins."""
        condition, values = sign_ins.where()
        txn.execute(f"DELETE FROM oauth_device_grants WHERE {condition}", values)

    def remove_old_grants(self, txn: WriteTransaction, expired_before: int, limit: int) -> int:
        """Remove up to `limit` grants that expired before; return how many."""
        return txn.execute(
            "DELETE FROM oauth_device_grants WHERE code_hash IN"
            " (SELECT code_hash FROM oauth_device_grants WHERE expires_ts < ? LIMIT ?)",
            (expired_before, limit),
        )


def _grant(row: Row | None) -> DeviceGrantRow | None:
    if row is None:
        return None
    grant = DeviceGrantRow(*row)
    return replace(grant, allowed=None if grant.allowed is None else bool(grant.allowed))
