"""Expiry of accounts: expiry times, the e-mails about them, and renewal links.

Laws:
- The transaction that queues an e-mail about an expiry time also marks the account's row. If the
  row is marked already, it queues no e-mail. So two nodes send only one e-mail.
- A new expiry time sets a new `position` of the account, so that nodes invalidate their caches.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from storage.accounts.accounts import AccountStore
from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction

EMAIL_DUE: Final = 0
EMAIL_SENT: Final = 1
EMAIL_DISABLED: Final = 2
NO_ADDRESS: Final = 3


class ExpiringAccountRow(msgspec.Struct, frozen=True):
    """An account with an expiry time, in milliseconds since 1970."""

    user_id: str
    expires_ts: int


class RenewalLinkRow(msgspec.Struct, frozen=True):
    """A renewal link that was sent. `used_ts`: None: not used yet."""

    user_id: str
    used_ts: int | None
    expires_ts: int | None


class AccountValidityStore:
    """The expiry columns of the table `accounts`, and the table `renewal_links`."""

    def __init__(self, *, database: Database, accounts: AccountStore) -> None:
        self._database = database
        self._accounts = accounts

    def get_without_expiry(self, txn: Transaction, limit: int) -> list[tuple[str, int]]:
        """Return up to `limit` accounts of people without expiry time, with their creation time."""
        rows = txn.query(
            "SELECT user_id, created_ts FROM accounts WHERE expires_ts IS NULL"
            " AND deactivated_ts IS NULL"
            " AND is_guest = 0 AND appservice_id IS NULL ORDER BY user_id LIMIT ?",
            (limit,),
        )
        return [(row[0], row[1]) for row in rows]

    def set_expiry(
        self, txn: WriteTransaction, user_id: str, expires_ts: int, *, sends_email: bool = True
    ) -> None:
        """Set the expiry time of an account. With `sends_email`, its owner gets an e-mail before
        it."""
        sql = (
            "UPDATE accounts SET expires_ts = ?, renewal_email = ?, is_expired = 0"
            " WHERE user_id = ?"
        )
        txn.execute(sql, (expires_ts, EMAIL_DUE if sends_email else EMAIL_DISABLED, user_id))
        self._accounts.set_account_changed(txn, user_id)

    def mark_expired(self, txn: WriteTransaction, now: int, limit: int) -> int:
        """Mark up to `limit` expired accounts, and announce the change; return the number."""
        sql = (
            "SELECT user_id FROM accounts WHERE expires_ts IS NOT NULL AND is_expired = 0"
            " AND deactivated_ts IS NULL"
            " AND expires_ts <= ? ORDER BY expires_ts LIMIT ?"
        )
        return self._set_expired(
            txn, [row[0] for row in txn.query(sql, (now, limit))], is_expired=True
        )

    def unmark_expired(self, txn: WriteTransaction, limit: int) -> int:
        """Remove the mark from up to `limit` accounts, and announce the change; return the number.

        For a server on which accounts no longer expire.
        """
        sql = "SELECT user_id FROM accounts WHERE is_expired = 1 ORDER BY user_id LIMIT ?"
        return self._set_expired(
            txn, [row[0] for row in txn.query(sql, (limit,))], is_expired=False
        )

    def _set_expired(self, txn: WriteTransaction, user_ids: list[str], *, is_expired: bool) -> int:
        for user_id in user_ids:
            txn.execute(
                "UPDATE accounts SET is_expired = ? WHERE user_id = ?", (int(is_expired), user_id)
            )
            self._accounts.set_account_changed(txn, user_id)
        return len(user_ids)

    def get_expiry(self, txn: Transaction, user_id: str) -> int | None:
        """Return the expiry time of an account, if it has one."""
        row = txn.query_one("SELECT expires_ts FROM accounts WHERE user_id = ?", (user_id,))
        return None if row is None else row[0]

    async def get_accounts_to_email(self, upto: int, limit: int) -> list[ExpiringAccountRow]:
        """Return up to `limit` accounts that expire up to `upto` and whose owners get an e-mail.

        The first to expire comes first.
        """

        def read(txn: Transaction) -> list[ExpiringAccountRow]:
            rows = txn.query(
                "SELECT user_id, expires_ts FROM accounts WHERE renewal_email = 0"
                " AND deactivated_ts IS NULL"
                " AND expires_ts <= ? ORDER BY expires_ts LIMIT ?",
                (upto, limit),
            )
            return [ExpiringAccountRow(row[0], row[1]) for row in rows]

        return await self._database.read("get_accounts_to_email", read)

    def set_email_state(self, txn: WriteTransaction, row: ExpiringAccountRow, state: int) -> bool:
        """Set the state of the e-mail about this expiry time.

        Return False if it is set already, or the expiry time has moved.
        """
        sql = (
            "UPDATE accounts SET renewal_email = ? WHERE user_id = ? AND expires_ts = ?"
            " AND renewal_email = 0"
        )
        return bool(txn.execute(sql, (state, row.user_id, row.expires_ts)))

    async def get_languages(self, user_ids: Iterable[str]) -> dict[str, str]:
        """Return the language of each of these users, as set in their newest pusher."""

        def read(txn: Transaction, keys: tuple[str, ...]) -> dict[str, str]:
            sql = (
                "SELECT user_id, lang FROM pushers WHERE user_id IN {keys} AND lang <> ''"
                " ORDER BY set_ts"
            )
            return {row[0]: row[1] for row in txn.query_in(sql, keys)}

        return await self._database.read("get_languages_of_users", read, tuple(user_ids))

    def set_link(self, txn: WriteTransaction, user_id: str, token_hash: bytes) -> None:
        """Set the link of the latest e-mail, which replaces earlier links of the user."""
        txn.execute("DELETE FROM renewal_links WHERE user_id = ?", (user_id,))
        txn.execute(
            "INSERT INTO renewal_links (user_id, token_hash) VALUES (?, ?)", (user_id, token_hash)
        )

    async def get_link(self, token_hash: bytes) -> RenewalLinkRow | None:
        """Return the link with this token, if its account is active."""
        return await self._database.read_quickly("get_renewal_link", self.get_link_in, token_hash)

    def get_link_in(self, txn: Transaction, token_hash: bytes) -> RenewalLinkRow | None:
        """Do `get_link` in a transaction."""
        row = txn.query_one(
            "SELECT l.user_id, l.used_ts, a.expires_ts FROM renewal_links l"
            " JOIN accounts a ON a.user_id = l.user_id"
            " WHERE l.token_hash = ? AND a.deactivated_ts IS NULL",
            (token_hash,),
        )
        return None if row is None else RenewalLinkRow(row[0], row[1], row[2])

    def set_link_used(self, txn: WriteTransaction, token_hash: bytes, now: int) -> bool:
        """Mark a link as used; return False if it was used before."""
        sql = "UPDATE renewal_links SET used_ts = ? WHERE token_hash = ? AND used_ts IS NULL"
        return bool(txn.execute(sql, (now, token_hash)))

    def remove_user(self, txn: WriteTransaction, user_id: str) -> None:
        """Delete the user's link."""
        txn.execute("DELETE FROM renewal_links WHERE user_id = ?", (user_id,))
