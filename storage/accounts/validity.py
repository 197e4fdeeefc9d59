"""Until when accounts are good, which of their owners are still to be written to, and the links in
those letters.

Laws:
- A letter is noted in the write that queues it, on the condition that none was noted: two nodes
  write one.
- A new end of an account moves its `position`: what nodes remember of it no longer holds.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from storage.accounts.accounts import AccountStore
from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction

TO_WRITE: Final = 0
WRITTEN: Final = 1
UNWANTED: Final = 2
NO_ADDRESS: Final = 3


class EndingRow(msgspec.Struct, frozen=True):
    """An account that has an end. Times are milliseconds since 1970."""

    user_id: str
    expires_ts: int


class RenewalLinkRow(msgspec.Struct, frozen=True):
    """A link that was sent. `used_ts`: None while it was not used."""

    user_id: str
    used_ts: int | None
    expires_ts: int | None


class AccountValidityStore:
    """Columns of the table of accounts, and the table of links."""

    def __init__(self, database: Database, accounts: AccountStore) -> None:
        self._database = database
        self._accounts = accounts

    def get_endless(self, txn: Transaction, limit: int) -> list[tuple[str, int]]:
        """Up to `limit` accounts of people that have no end, and when they were made."""
        rows = txn.query(
            "SELECT user_id, created_ts FROM accounts WHERE expires_ts IS NULL AND deactivated_ts IS NULL"
            " AND is_guest = 0 AND appservice_id IS NULL ORDER BY user_id LIMIT ?",
            (limit,),
        )
        return [(row[0], row[1]) for row in rows]

    def set_end(
        self, txn: WriteTransaction, user_id: str, expires_ts: int, *, letter: bool = True
    ) -> None:
        """Give an account a (new) end. `letter`: whether its owner is to be written to before
        it."""
        sql = (
            "UPDATE accounts SET expires_ts = ?, renewal_letter = ?, is_over = 0 WHERE user_id = ?"
        )
        txn.execute(sql, (expires_ts, TO_WRITE if letter else UNWANTED, user_id))
        self._accounts.set_account_changed(txn, user_id)

    def note_over(self, txn: WriteTransaction, now: int, limit: int) -> int:
        """Note that up to `limit` accounts are past their day, and let everybody hear of it who
        remembers them; how many."""
        sql = (
            "SELECT user_id FROM accounts WHERE expires_ts IS NOT NULL AND is_over = 0 AND deactivated_ts IS NULL"
            " AND expires_ts <= ? ORDER BY expires_ts LIMIT ?"
        )
        return self._set_over(txn, [row[0] for row in txn.query(sql, (now, limit))], is_over=True)

    def forget_over(self, txn: WriteTransaction, limit: int) -> int:
        """The contrary, for up to `limit` accounts, where ends no longer count; how many."""
        sql = "SELECT user_id FROM accounts WHERE is_over = 1 ORDER BY user_id LIMIT ?"
        return self._set_over(txn, [row[0] for row in txn.query(sql, (limit,))], is_over=False)

    def _set_over(self, txn: WriteTransaction, user_ids: list[str], *, is_over: bool) -> int:
        for user_id in user_ids:
            txn.execute(
                "UPDATE accounts SET is_over = ? WHERE user_id = ?", (int(is_over), user_id)
            )
            self._accounts.set_account_changed(txn, user_id)
        return len(user_ids)

    def get_end(self, txn: Transaction, user_id: str) -> int | None:
        """The end of an account, if it has one."""
        row = txn.query_one("SELECT expires_ts FROM accounts WHERE user_id = ?", (user_id,))
        return None if row is None else row[0]

    async def get_unwritten(self, upto: int, limit: int) -> list[EndingRow]:
        """Up to `limit` accounts that end by then, and whose owners are to be written to; the first
        to end first."""

        def read(txn: Transaction) -> list[EndingRow]:
            rows = txn.query(
                "SELECT user_id, expires_ts FROM accounts WHERE renewal_letter = 0 AND deactivated_ts IS NULL"
                " AND expires_ts <= ? ORDER BY expires_ts LIMIT ?",
                (upto, limit),
            )
            return [EndingRow(row[0], row[1]) for row in rows]

        return await self._database.read("get_unwritten_renewals", read)

    def set_letter(self, txn: WriteTransaction, row: EndingRow, state: int) -> bool:
        """Note what became of the letter about this end; False where it was noted already, or the
        end has moved."""
        sql = "UPDATE accounts SET renewal_letter = ? WHERE user_id = ? AND expires_ts = ? AND renewal_letter = 0"
        return bool(txn.execute(sql, (state, row.user_id, row.expires_ts)))

    async def get_languages(self, user_ids: Iterable[str]) -> dict[str, str]:
        """What language the apps of these users speak, by what they said when they asked for
        notifications."""

        def read(txn: Transaction, keys: tuple[str, ...]) -> dict[str, str]:
            sql = "SELECT user_id, lang FROM pushers WHERE user_id IN {keys} AND lang <> '' ORDER BY set_ts"
            return {row[0]: row[1] for row in txn.query_in(sql, keys)}

        return await self._database.read("get_languages_of_users", read, tuple(user_ids))

    def set_link(self, txn: WriteTransaction, user_id: str, token_hash: bytes) -> None:
        """The link of the last letter; those before it work no more."""
        txn.execute("DELETE FROM renewal_links WHERE user_id = ?", (user_id,))
        txn.execute(
            "INSERT INTO renewal_links (user_id, token_hash) VALUES (?, ?)", (user_id, token_hash)
        )

    async def get_link(self, token_hash: bytes) -> RenewalLinkRow | None:
        """Whose link it is."""
        return await self._database.read_quickly("get_renewal_link", self.get_link_in, token_hash)

    def get_link_in(self, txn: Transaction, token_hash: bytes) -> RenewalLinkRow | None:
        """As `get_link`, in a transaction."""
        row = txn.query_one(
            "SELECT l.user_id, l.used_ts, a.expires_ts FROM renewal_links l JOIN accounts a ON a.user_id = l.user_id"
            " WHERE l.token_hash = ? AND a.deactivated_ts IS NULL",
            (token_hash,),
        )
        return None if row is None else RenewalLinkRow(row[0], row[1], row[2])

    def set_link_used(self, txn: WriteTransaction, token_hash: bytes, now: int) -> bool:
        """It was used; False where it was before."""
        sql = "UPDATE renewal_links SET used_ts = ? WHERE token_hash = ? AND used_ts IS NULL"
        return bool(txn.execute(sql, (now, token_hash)))

    def remove_user(self, txn: WriteTransaction, user_id: str) -> None:
        """The account is closed: its link works no more."""
        txn.execute("DELETE FROM renewal_links WHERE user_id = ?", (user_id,))
