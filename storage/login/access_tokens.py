"""Access tokens and refresh tokens. The database has only their SHA-256 hashes.

A refresh issues a new *pair*: an access token and a refresh token. The old pair stays usable until
the client uses a token of the new pair, because the response to the refresh may be lost. This use
ends the old pair: its refresh token is spent, and its access token expires. A request with the
expired token gets `soft_logout`.

Two tabs of a client may refresh at the same time with the same refresh token. So before the old
pair ends, its refresh token may be exchanged several times. The newest `MAX_UNUSED_PAIRS` of the
issued pairs are valid until the first of them is used. Then the other pairs become invalid, except
those that were issued at most `RACE_MS` before or after the used pair. Each of these remains valid
only if the client uses it within the next `GRACE_MS`.

Expired and spent tokens are deleted later: when a pair from a later refresh is first used, or with
the device.

spec: client-server-api#refreshing-access-tokens
"""

from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Final

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction

GRACE_MS: Final = 60_000
"""How long a pair stays valid that lost a race between two exchanges of one refresh token."""
RACE_MS: Final = 10_000
"""Exchanges within this time of each other count as a race."""
MAX_UNUSED_PAIRS: Final = 5
"""Maximum number of unused pairs from exchanges of one refresh token."""
MAX_USED_PAIRS: Final = 5
"""Maximum number of pairs of a device in use in parallel; the most recently refreshed ones stay."""
MAX_RETIRED_PAIRS: Final = 10
"""Maximum number of expired, never refreshed pairs of a device that are stored to distinguish them
from stolen ones."""
_TRIM_LIMIT: Final = 100


class PairUse(Enum):
    """The result of `TokenStore.set_pair_used`."""

    FIRST = "first"
    """The first use; it has ended the pair that this one replaced."""
    AGAIN = "again"
    """A further use, or the use of a pair that replaced none."""
    TOO_LATE = "too late"
    """The pair is invalid: a competing pair was used too long ago, or there were too many."""


class AccessTokenRow(msgspec.Struct, frozen=True):
    """An access token, with the columns of its account that requests need. Times are milliseconds
    since 1970."""

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
    """The expiry time of the account."""
    oauth_client: str | None = None
    """The client of an OAuth 2.0 session; None for other sessions."""
    user_type: str | None = None
    is_appservice_account: bool = False
    """Whether the account belongs to an application service."""
    accepted_policies: int = 0
    """The number of the given policies that the owner has accepted."""
    shadow_banned: bool = False
    device_created_ts: int = 0
    """When the device was created; distinguishes it from a removed device with the same ID."""


class TokenState(msgspec.Struct, frozen=True):
    """The current state of a token that was valid at an earlier check."""

    exists: bool
    expires_ts: int | None
    """The expiry time, in milliseconds since 1970."""
    is_refreshed: bool
    """Whether the device has a valid access token from a refresh."""
    deactivated: bool
    locked: bool


class RefreshTokenRow(msgspec.Struct, frozen=True):
    """A refresh token. `session_expires_ts`: the end of the session, which refreshes do not
    extend."""

    refresh_nid: int
    user_id: str
    device_id: str
    expires_ts: int | None
    session_expires_ts: int | None
    grace_until_ts: int | None = None
    """The end of its grace period after a competing pair was used; in the past if it was retired,
    because there were too many pairs."""

    def is_grace_over(self, now: int) -> bool:
        """Return whether the grace period is over."""
        return self.grace_until_ts is not None and self.grace_until_ts <= now


_REFRESH: Final = "refresh_nid, user_id, device_id, expires_ts, session_expires_ts, grace_until_ts"


def has_access_token(txn: Transaction, token_nid: int) -> bool:
    """Return whether a token still exists."""
    return (
        txn.query_one("SELECT 1 FROM access_tokens WHERE token_nid = ?", (token_nid,)) is not None
    )


class TokenStore:
    """The tables `access_tokens` and `refresh_tokens`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_access_token(
        self, token_hash: bytes, policies: Sequence[tuple[str, str]] = ()
    ) -> AccessTokenRow | None:
        """Return the token and its account, in one query.

        `policies`: pairs of policy and version, counted in `accepted_policies`.
        """
        return await self._database.read_quickly(
            "get_access_token", self.get_access_token_in, token_hash, policies
        )

    def get_access_token_in(
        self, txn: Transaction, token_hash: bytes, policies: Sequence[tuple[str, str]] = ()
    ) -> AccessTokenRow | None:
        """Do `get_access_token` in a transaction."""
        any_of = " OR ".join("(c.policy_id = ? AND c.version = ?)" for _ in policies)
        agreed = (
            f"SELECT COUNT(*) FROM policy_consents c WHERE c.user_id = t.user_id AND ({any_of})"
            if policies
            else "0"
        )
        row = txn.query_one(
            "SELECT t.token_nid, t.user_id, t.device_id, t.expires_ts, t.refresh_nid,"
            " t.first_used, a.is_guest,"
            " a.is_admin, a.deactivated_ts, a.locked, a.suspended, a.expires_ts,"
            " o.client_id, a.user_type,"
            f" a.appservice_id, ({agreed}), a.shadow_banned, d.created_ts"
            " FROM access_tokens t JOIN accounts a ON a.user_id = t.user_id"
            " LEFT JOIN devices d ON d.user_id = t.user_id AND d.device_id = t.device_id"
            " LEFT JOIN oauth_sessions o ON o.user_id = t.user_id"
            " AND o.device_id = t.device_id WHERE t.token_hash = ?",
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
            is_appservice_account=row[14] is not None,
            accepted_policies=int(row[15]),
            shadow_banned=bool(row[16]),
            device_created_ts=row[17] or 0,
        )

    async def get_token_state(
        self, token_nid: int, user_id: str, device_id: str | None, now: int
    ) -> TokenState | None:
        """Return the current state of a user's token, in one query; None for an unknown account.

        `now`: milliseconds since 1970.
        """

        def read(txn: Transaction) -> TokenState | None:
            row = txn.query_one(
                "SELECT t.token_nid, t.expires_ts, a.deactivated_ts, a.locked, EXISTS"
                " (SELECT 1 FROM access_tokens o"
                " WHERE o.user_id = a.user_id AND o.device_id = ? AND o.refresh_nid IS NOT NULL"
                " AND COALESCE(o.expires_ts, ?) > ?)"
                " FROM accounts a LEFT JOIN access_tokens t ON t.token_nid = ?"
                " AND t.user_id = a.user_id"
                " WHERE a.user_id = ?",
                (device_id, now + 1, now, token_nid, user_id),
            )
            if row is None:
                return None
            return TokenState(
                row[0] is not None, row[1], bool(row[4]), row[2] is not None, bool(row[3])
            )

        return await self._database.read_quickly("get_token_state", read)

    def get_refresh_token(self, txn: Transaction, token_hash: bytes) -> RefreshTokenRow | None:
        """Return the refresh token with this hash, unless it is spent."""
        row = txn.query_one(
            f"SELECT {_REFRESH} FROM refresh_tokens WHERE token_hash = ? AND used_ts IS NULL",
            (token_hash,),
        )
        return None if row is None else RefreshTokenRow(*row)

    def get_refresh_token_of_family(
        self, txn: Transaction, family_hash: bytes
    ) -> RefreshTokenRow | None:
        """Return the newest unspent refresh token of a family; only for sessions of `/refresh`."""
        row = txn.query_one(
            f"SELECT {_REFRESH} FROM refresh_tokens"
            " WHERE family_hash = ? AND used_ts IS NULL ORDER BY refresh_nid DESC LIMIT 1",
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
        """Add an access token; return its number."""
        token_nid = txn.allocate("token")
        txn.execute(
            "INSERT INTO access_tokens (token_hash, token_nid, user_id, device_id,"
            " created_ts, expires_ts, refresh_nid,"
            " first_used) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                token_hash,
                token_nid,
                user_id,
                device_id,
                now,
                expires_ts,
                refresh_nid,
                int(first_used),
            ),
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
        session_expires_ts: int | None,
        family_hash: bytes | None = None,
        parent_nid: int | None = None,
    ) -> int:
        """Add a refresh token; return its number.

        `family_hash`: finds the session by one of its earlier refresh tokens; OAuth 2.0 sessions
        store it in their own table (`storage/oauth/oauth.py`). `parent_nid`: the refresh token
        exchanged for it.
        """
        refresh_nid = txn.allocate("token")
        txn.execute(
            "INSERT INTO refresh_tokens (token_hash, refresh_nid, user_id, device_id,"
            " created_ts, expires_ts,"
            " session_expires_ts, family_hash, parent_nid) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                token_hash,
                refresh_nid,
                user_id,
                device_id,
                now,
                expires_ts,
                session_expires_ts,
                family_hash,
                parent_nid,
            ),
        )
        return refresh_nid

    def trim_exchanges(self, txn: WriteTransaction, old: RefreshTokenRow, now: int) -> None:
        """Retire all but the newest `MAX_UNUSED_PAIRS` unused pairs exchanged for a refresh
        token."""
        sql = (
            "SELECT refresh_nid FROM refresh_tokens WHERE parent_nid = ? AND grace_until_ts IS NULL"
            " ORDER BY refresh_nid DESC LIMIT ? OFFSET ?"
        )
        self._retire(
            txn,
            [row[0] for row in txn.query(sql, (old.refresh_nid, _TRIM_LIMIT, MAX_UNUSED_PAIRS))],
            now,
        )
        self._remove_retired_pairs(txn, old.user_id, old.device_id, now)

    def set_pair_used(
        self, txn: WriteTransaction, refresh_nid: int, user_id: str, device_id: str, now: int
    ) -> PairUse:
        """Record the use of a token of a pair.

        The first use ends the pair that it replaced, and the competing pairs that were exchanged
        for the same refresh token. Competing pairs of the same moment (another tab, for example)
        get a grace period of `GRACE_MS`; a use within it keeps them valid.
        """
        sql = (
            "SELECT parent_nid, grace_until_ts, created_ts FROM refresh_tokens"
            " WHERE refresh_nid = ?"
        )
        row = txn.query_one(sql, (refresh_nid,))
        replaced, until, created_ts = (None, None, 0) if row is None else row
        if until is not None and until <= now:
            return PairUse.TOO_LATE
        txn.execute("UPDATE access_tokens SET first_used = 1 WHERE refresh_nid = ?", (refresh_nid,))
        if replaced is None:
            return PairUse.AGAIN
        txn.execute(
            "UPDATE refresh_tokens SET parent_nid = NULL, grace_until_ts = NULL"
            " WHERE refresh_nid = ?",
            (refresh_nid,),
        )
        if until is not None:
            self._retire_excess_pairs(txn, user_id, device_id, now)
            return PairUse.AGAIN
        self._remove_old(txn, user_id, device_id, refresh_nid, now)
        txn.execute(
            "UPDATE access_tokens SET expires_ts = ? WHERE refresh_nid = ?", (now, replaced)
        )
        txn.execute("UPDATE refresh_tokens SET used_ts = ? WHERE refresh_nid = ?", (now, replaced))
        txn.execute(
            "UPDATE refresh_tokens SET grace_until_ts = CASE WHEN created_ts BETWEEN ?"
            " AND ? THEN ? ELSE ? END"
            " WHERE parent_nid = ? AND grace_until_ts IS NULL",
            (created_ts - RACE_MS, created_ts + RACE_MS, now + GRACE_MS, now, replaced),
        )
        return PairUse.FIRST

    def _remove_old(
        self, txn: WriteTransaction, user_id: str, device_id: str, but: int, now: int
    ) -> None:
        """Remove expired and spent tokens of a device, except the pair `but`."""
        txn.execute(
            "DELETE FROM access_tokens WHERE user_id = ? AND device_id = ?"
            " AND refresh_nid IS NOT NULL"
            " AND refresh_nid <> ? AND expires_ts <= ?",
            (user_id, device_id, but, now),
        )
        txn.execute(
            "DELETE FROM refresh_tokens WHERE user_id = ? AND device_id = ? AND used_ts <= ?",
            (user_id, device_id, now - GRACE_MS),
        )
        self._remove_retired_pairs(txn, user_id, device_id, now)

    def _retire_excess_pairs(
        self, txn: WriteTransaction, user_id: str, device_id: str, now: int
    ) -> None:
        """Retire all but the newest `MAX_USED_PAIRS` pairs in use; closed tabs leave some
        behind."""
        sql = (
            "SELECT refresh_nid FROM refresh_tokens WHERE user_id = ? AND device_id = ?"
            " AND used_ts IS NULL"
            " AND parent_nid IS NULL AND grace_until_ts IS NULL ORDER BY refresh_nid DESC"
            " LIMIT ? OFFSET ?"
        )
        args = (user_id, device_id, _TRIM_LIMIT, MAX_USED_PAIRS)
        self._retire(txn, [row[0] for row in txn.query(sql, args)], now)

    @staticmethod
    def _retire(txn: WriteTransaction, refresh_nids: Sequence[int], now: int) -> None:
        sql = "UPDATE refresh_tokens SET grace_until_ts = ? WHERE refresh_nid = ?"
        txn.execute_many(sql, [(now, nid) for nid in refresh_nids])

    def _remove_retired_pairs(
        self, txn: WriteTransaction, user_id: str, device_id: str, now: int
    ) -> None:
        """Remove all but the newest `MAX_RETIRED_PAIRS` retired pairs of a device."""
        sql = (
            "SELECT refresh_nid FROM refresh_tokens WHERE user_id = ? AND device_id = ?"
            " AND grace_until_ts <= ?"
            " ORDER BY refresh_nid DESC LIMIT ? OFFSET ?"
        )
        args = (user_id, device_id, now, _TRIM_LIMIT, MAX_RETIRED_PAIRS)
        self._remove_pairs(txn, [row[0] for row in txn.query(sql, args)])

    @staticmethod
    def _remove_pairs(txn: WriteTransaction, refresh_nids: Sequence[int]) -> None:
        for table in ("access_tokens", "refresh_tokens"):
            txn.execute_many(
                f"DELETE FROM {table} WHERE refresh_nid = ?", [(nid,) for nid in refresh_nids]
            )

    def is_retired(self, txn: Transaction, refresh_nid: int, now: int) -> bool:
        """Return whether a pair is invalid because a competing pair was used or it was retired."""
        sql = "SELECT 1 FROM refresh_tokens WHERE refresh_nid = ? AND grace_until_ts <= ?"
        return txn.query_one(sql, (refresh_nid, now)) is not None

    def is_just_spent(
        self, txn: Transaction, token_hash: bytes, now: int, within_ms: int = GRACE_MS
    ) -> bool:
        """Return whether a refresh token was spent within `within_ms` (at most `GRACE_MS`)."""
        sql = "SELECT 1 FROM refresh_tokens WHERE token_hash = ? AND used_ts > ?"
        return txn.query_one(sql, (token_hash, now - within_ms)) is not None

    def expire_tokens_of_device(
        self, txn: WriteTransaction, user_id: str, device_id: str, now: int
    ) -> None:
        """Expire all tokens of a device, which clients see as `soft_logout`; the device stays."""
        for table in ("access_tokens", "refresh_tokens"):
            sql = (
                f"UPDATE {table} SET expires_ts = ? WHERE user_id = ? AND device_id = ?"
                " AND COALESCE(expires_ts, ?) >= ?"
            )
            txn.execute(sql, (now, user_id, device_id, now, now))

    def remove_tokens_of_devices(
        self, txn: WriteTransaction, user_id: str, device_ids: Iterable[str]
    ) -> None:
        """Remove the tokens of these devices."""
        rows = [(user_id, device_id) for device_id in device_ids]
        txn.execute_many("DELETE FROM access_tokens WHERE user_id = ? AND device_id = ?", rows)
        txn.execute_many("DELETE FROM refresh_tokens WHERE user_id = ? AND device_id = ?", rows)

    def remove_tokens(self, txn: WriteTransaction, user_id: str) -> None:
        """Remove all tokens of a user, also those without a device."""
        txn.execute("DELETE FROM access_tokens WHERE user_id = ?", (user_id,))
        txn.execute("DELETE FROM refresh_tokens WHERE user_id = ?", (user_id,))

    def remove_tokens_without_device(self, txn: WriteTransaction, user_id: str, but: int) -> None:
        """Remove the access tokens of a user that have no device, except the token `but`."""
        sql = "DELETE FROM access_tokens WHERE user_id = ? AND device_id IS NULL AND token_nid <> ?"
        txn.execute(sql, (user_id, but))

    def remove_access_token(self, txn: WriteTransaction, token_nid: int) -> None:
        """Remove an access token that has no device."""
        txn.execute("DELETE FROM access_tokens WHERE token_nid = ?", (token_nid,))
