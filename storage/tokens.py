"""Access tokens and refresh tokens, by the SHA-256 of their text: the text itself is nowhere on disk.

A refresh gives out a new pair and leaves the old one usable, since the answer may be lost. The first use of either new
token ends the old pair: the old refresh token goes, the old access token expires (and so is refused with
`soft_logout`, not as a stranger's). Expired tokens go with the next refresh of the device, or with the device.

spec: client-server-api#refreshing-access-tokens
"""

from collections.abc import Iterable, Sequence

import msgspec

from storage.database import Database
from storage.transaction import Transaction, WriteTransaction


class AccessTokenRow(msgspec.Struct, frozen=True):
    """An access token, with what a request has to know of its account. Times are milliseconds since 1970."""

    token_nid: int
    user_id: str
    device_id: str | None
    expires_ts: int | None
    refresh_nid: int | None
    first_used: bool
    is_guest: bool
    is_admin: bool
    deactivated: bool
    locked: bool
    suspended: bool
    account_expires_ts: int | None = None
    """Until when the account is good, in milliseconds since 1970."""
    oauth_client: str | None = None
    """The program that signed in by the OAuth 2.0 API, where the session is of that kind."""
    user_type: str | None = None
    of_service: bool = False
    """Whether the account is an application service's."""
    agreed: int = 0
    """To how many of the documents that were asked about its owner has agreed."""
    shadow_banned: bool = False
    device_made_ts: int = 0
    """When the device was made; one that was removed and came again under its id is another."""


class RefreshTokenRow(msgspec.Struct, frozen=True):
    """A refresh token. `ultimate_expires_ts` ends the whole session, however often it is refreshed."""

    refresh_nid: int
    user_id: str
    device_id: str
    expires_ts: int | None
    ultimate_expires_ts: int | None
    next_nid: int | None


def has_access_token(txn: Transaction, token_nid: int) -> bool:
    """Whether a token is there still."""
    return txn.query_one("SELECT 1 FROM access_tokens WHERE token_nid = ?", (token_nid,)) is not None


class TokenStore:
    """The tables of tokens."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_access_token(
        self, token_hash: bytes, policies: Sequence[tuple[str, str]] = ()
    ) -> AccessTokenRow | None:
        """The token and its account, in one query. `policies`: documents, each with its version, for `agreed`."""
        return await self._database.read_quickly("get_access_token", self.get_access_token_in, token_hash, policies)

    def get_access_token_in(
        self, txn: Transaction, token_hash: bytes, policies: Sequence[tuple[str, str]] = ()
    ) -> AccessTokenRow | None:
        """As `get_access_token`, in a transaction."""
        any_of = " OR ".join("(c.policy_id = ? AND c.version = ?)" for _ in policies)
        agreed = (
            f"SELECT COUNT(*) FROM policy_consents c WHERE c.user_id = t.user_id AND ({any_of})" if policies else "0"
        )
        row = txn.query_one(
            "SELECT t.token_nid, t.user_id, t.device_id, t.expires_ts, t.refresh_nid, t.first_used, a.is_guest,"
            " a.is_admin, a.deactivated_ts, a.locked, a.suspended, a.expires_ts, o.client_id, a.user_type,"
            f" a.appservice_id, ({agreed}), a.shadow_banned, d.made_ts"
            " FROM access_tokens t JOIN accounts a ON a.user_id = t.user_id"
            " LEFT JOIN devices d ON d.user_id = t.user_id AND d.device_id = t.device_id"
            " LEFT JOIN oauth_sessions o ON o.user_id = t.user_id AND o.device_id = t.device_id WHERE t.token_hash = ?",
            (*(text for policy in policies for text in policy), token_hash),
        )
        if row is None:
            return None
        return AccessTokenRow(
            token_nid=row[0],
            user_id=row[1],
            device_id=row[2],
            expires_ts=row[3],
            refresh_nid=row[4],
            first_used=bool(row[5]),
            is_guest=bool(row[6]),
            is_admin=bool(row[7]),
            deactivated=row[8] is not None,
            locked=bool(row[9]),
            suspended=bool(row[10]),
            account_expires_ts=row[11],
            oauth_client=row[12],
            user_type=row[13],
            of_service=row[14] is not None,
            agreed=int(row[15]),
            shadow_banned=bool(row[16]),
            device_made_ts=row[17] or 0,
        )

    def get_refresh_token(self, txn: Transaction, token_hash: bytes) -> RefreshTokenRow | None:
        """The refresh token of this hash."""
        row = txn.query_one(
            "SELECT refresh_nid, user_id, device_id, expires_ts, ultimate_expires_ts, next_nid FROM refresh_tokens"
            " WHERE token_hash = ?",
            (token_hash,),
        )
        return None if row is None else RefreshTokenRow(*row)

    def get_refresh_token_of_family(self, txn: Transaction, family_hash: bytes) -> RefreshTokenRow | None:
        """The newest refresh token of a session of `/refresh`, by what all of the session begin with."""
        row = txn.query_one(
            "SELECT refresh_nid, user_id, device_id, expires_ts, ultimate_expires_ts, next_nid FROM refresh_tokens"
            " WHERE family_hash = ? ORDER BY refresh_nid DESC LIMIT 1",
            (family_hash,),
        )
        return None if row is None else RefreshTokenRow(*row)

    def add_access_token(
        self,
        txn: WriteTransaction,
        token_hash: bytes,
        user_id: str,
        device_id: str | None,
        *,
        now: int,
        expires_ts: int | None,
        refresh_nid: int | None = None,
        first_used: bool = True,
    ) -> int:
        """Add one; its number."""
        token_nid = txn.allocate("token")
        txn.execute(
            "INSERT INTO access_tokens (token_hash, token_nid, user_id, device_id, created_ts, expires_ts, refresh_nid,"
            " first_used) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (token_hash, token_nid, user_id, device_id, now, expires_ts, refresh_nid, int(first_used)),
        )
        return token_nid

    def add_refresh_token(
        self,
        txn: WriteTransaction,
        token_hash: bytes,
        user_id: str,
        device_id: str,
        *,
        now: int,
        expires_ts: int | None,
        ultimate_expires_ts: int | None,
        family_hash: bytes | None = None,
    ) -> int:
        """Add one; its number. `family_hash`: by what its session is found when one comes that went before it; of sessions of the
        OAuth 2.0 API that is kept with them (`storage/oauth.py`)."""
        refresh_nid = txn.allocate("token")
        txn.execute(
            "INSERT INTO refresh_tokens (token_hash, refresh_nid, user_id, device_id, created_ts, expires_ts,"
            " ultimate_expires_ts, family_hash) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (token_hash, refresh_nid, user_id, device_id, now, expires_ts, ultimate_expires_ts, family_hash),
        )
        return refresh_nid

    def set_next(self, txn: WriteTransaction, old: RefreshTokenRow, next_nid: int) -> None:
        """The old refresh token was exchanged for another. A pair from an earlier exchange of it, never used, goes."""
        if old.next_nid is not None:
            txn.execute("DELETE FROM access_tokens WHERE refresh_nid = ?", (old.next_nid,))
            txn.execute("DELETE FROM refresh_tokens WHERE refresh_nid = ?", (old.next_nid,))
        txn.execute("UPDATE refresh_tokens SET next_nid = ? WHERE refresh_nid = ?", (next_nid, old.refresh_nid))

    def set_pair_used(self, txn: WriteTransaction, refresh_nid: int, user_id: str, device_id: str, now: int) -> bool:
        """A token of this pair was used: end the pair that it replaced. True where there was one."""
        txn.execute("UPDATE access_tokens SET first_used = 1 WHERE refresh_nid = ?", (refresh_nid,))
        replaced = [
            row[0] for row in txn.query("SELECT refresh_nid FROM refresh_tokens WHERE next_nid = ?", (refresh_nid,))
        ]
        if not replaced:
            return False
        txn.execute(
            "DELETE FROM access_tokens WHERE user_id = ? AND device_id = ? AND refresh_nid IS NOT NULL"
            " AND refresh_nid <> ? AND expires_ts <= ?",
            (user_id, device_id, refresh_nid, now),
        )
        txn.execute_many(
            "UPDATE access_tokens SET expires_ts = ? WHERE refresh_nid = ?", [(now, nid) for nid in replaced]
        )
        txn.execute_many("DELETE FROM refresh_tokens WHERE refresh_nid = ?", [(nid,) for nid in replaced])
        return True

    def has_exchange_under_way(self, txn: Transaction, user_id: str, device_id: str) -> bool:
        """Whether a refresh token of the device was exchanged, and nothing of what it was exchanged for was used yet."""
        sql = "SELECT 1 FROM refresh_tokens WHERE user_id = ? AND device_id = ? AND next_nid IS NOT NULL"
        return txn.query_one(sql, (user_id, device_id)) is not None

    def remove_tokens_of_devices(self, txn: WriteTransaction, user_id: str, device_ids: Iterable[str]) -> None:
        """End the sessions of these devices."""
        rows = [(user_id, device_id) for device_id in device_ids]
        txn.execute_many("DELETE FROM access_tokens WHERE user_id = ? AND device_id = ?", rows)
        txn.execute_many("DELETE FROM refresh_tokens WHERE user_id = ? AND device_id = ?", rows)

    def remove_tokens(self, txn: WriteTransaction, user_id: str) -> None:
        """End all sessions of a user, those without a device too."""
        txn.execute("DELETE FROM access_tokens WHERE user_id = ?", (user_id,))
        txn.execute("DELETE FROM refresh_tokens WHERE user_id = ?", (user_id,))

    def remove_tokens_without_device(self, txn: WriteTransaction, user_id: str, but: int) -> None:
        """End the sessions of a user that have no device, all but one token."""
        sql = "DELETE FROM access_tokens WHERE user_id = ? AND device_id IS NULL AND token_nid <> ?"
        txn.execute(sql, (user_id, but))

    def remove_access_token(self, txn: WriteTransaction, token_nid: int) -> None:
        """End one session that has no device."""
        txn.execute("DELETE FROM access_tokens WHERE token_nid = ?", (token_nid,))
