"""Accounts of this server: password hashes, flags, approval and expiry.

Laws:
- An account is never deleted. The row of a deactivated account remains, so that its user id is
  never reused.
- Everything that invalidates earlier authentications (a new password, a sign-out everywhere, a
  lock, the deactivation) increments the `credential_epoch`. A new hash of the same password does
  not.
- Everything that ends sessions or changes the rights of an account sets a new `position` and is
  announced (`Topic.ACCOUNT`), so that every node invalidates its caches.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from storage.accounts.erasures import add_erasure
from storage.directory.user_directory_queue import queue_directory_updates
from storage.engine.database import Database
from storage.engine.streams import Change, Topic
from storage.engine.transaction import Transaction, WriteTransaction
from storage.media.references import record_erasure

ALL_TIMES: Final = 2**62
"""Later than every due time."""


class AccountRow(msgspec.Struct, frozen=True):
    """An account. Times are milliseconds since 1970."""

    user_id: str
    password_hash: str | None
    created_ts: int
    is_guest: bool = False
    is_admin: bool = False
    deactivated_ts: int | None = None
    erased: bool = False
    locked: bool = False
    suspended: bool = False
    user_type: str | None = None
    appservice_id: str | None = None
    approval_pending_ts: int | None = None
    """Since when the account awaits approval; None: it does not."""
    approval_languages: str | None = None
    """The owner's languages for the e-mail about the approval, as in `Accept-Language`."""
    expires_ts: int | None = None
    """The expiry time, where accounts expire."""
    shadow_banned: bool = False
    """Whether its events and invites reach nobody else."""
    epoch: int = 0
    """The credential epoch."""


class AccountState(msgspec.Struct, frozen=True):
    """The state of an account that a sign-in checks again in its write."""

    epoch: int
    locked: bool
    deactivated: bool


def select_account_state(txn: Transaction, user_id: str) -> AccountState | None:
    """Return the current state of an account; None for an unknown user."""
    sql = (
        "SELECT credential_epoch, locked, deactivated_ts IS NOT NULL FROM accounts"
        " WHERE user_id = ?"
    )
    row = txn.query_one(sql, (user_id,))
    return None if row is None else AccountState(row[0], bool(row[1]), bool(row[2]))


class AccountStore:
    """The table of accounts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_accounts(self, user_ids: Iterable[str]) -> dict[str, AccountRow]:
        """Return the existing accounts among these users, in one query."""
        return await self._database.read_quickly(
            "get_accounts", self.get_accounts_in, tuple(user_ids)
        )

    def get_accounts_in(self, txn: Transaction, user_ids: Iterable[str]) -> dict[str, AccountRow]:
        """Do `get_accounts` in a transaction."""
        rows = txn.query_in(
            "SELECT user_id, password_hash, created_ts, is_guest, is_admin, deactivated_ts,"
            " erased, locked, suspended,"
            " user_type, appservice_id, approval_pending_ts, approval_languages, expires_ts,"
            " shadow_banned, credential_epoch"
            " FROM accounts WHERE user_id IN {keys}",
            user_ids,
        )
        return {
            row[0]: AccountRow(
                user_id=row[0],
                password_hash=row[1],
                created_ts=row[2],
                is_guest=bool(row[3]),
                is_admin=bool(row[4]),
                deactivated_ts=row[5],
                erased=bool(row[6]),
                locked=bool(row[7]),
                suspended=bool(row[8]),
                user_type=row[9],
                appservice_id=row[10],
                approval_pending_ts=row[11],
                approval_languages=row[12],
                expires_ts=row[13],
                shadow_banned=bool(row[14]),
                epoch=row[15],
            )
            for row in rows
        }

    async def get_changed_accounts(self, since: int, upto: int) -> set[str]:
        """Return the accounts with `since` < position <= `upto`.

        Their sessions, flags or password have changed; for a node that missed the announcements.
        """

        def read(txn: Transaction) -> set[str]:
            rows = txn.query(
                "SELECT user_id FROM accounts WHERE position > ? AND position <= ?", (since, upto)
            )
            return {row[0] for row in rows}

        return await self._database.read("get_changed_accounts", read)

    def add_account(self, txn: WriteTransaction, account: AccountRow) -> bool:
        """Add an account; return False if the user ID is taken, also by a deactivated account."""
        position = txn.next_position()
        added = txn.execute(
            "INSERT INTO accounts (user_id, password_hash, created_ts, is_guest, is_admin,"
            " deactivated_ts, erased,"
            " locked, suspended, user_type, appservice_id, approval_pending_ts, approval_languages,"
            " position)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (
                account.user_id,
                account.password_hash,
                account.created_ts,
                int(account.is_guest),
                int(account.is_admin),
                account.deactivated_ts,
                int(account.erased),
                int(account.locked),
                int(account.suspended),
                account.user_type,
                account.appservice_id,
                account.approval_pending_ts,
                account.approval_languages,
                position,
            ),
        )
        if added:
            queue_directory_updates(txn, [(account.user_id, position)])
            txn.announce(Change(position, Topic.ACCOUNT, user_id=account.user_id))
        return bool(added)

    def upgrade_guest(self, txn: WriteTransaction, account: AccountRow) -> bool:
        """Upgrade a guest to a full account, with the password and approval state of this row.

        Return False if there is no such usable guest.
        """
        sql = (
            "UPDATE accounts"
            " SET is_guest = 0, password_hash = ?, approval_pending_ts = ?, approval_languages = ?"
            " WHERE user_id = ? AND is_guest = 1 AND deactivated_ts IS NULL AND locked = 0"
            " AND suspended = 0"
        )
        values = (
            account.password_hash,
            account.approval_pending_ts,
            account.approval_languages,
            account.user_id,
        )
        if not txn.execute(sql, values):
            return False
        position = txn.next_position()
        txn.execute(
            "UPDATE accounts SET position = ? WHERE user_id = ?", (position, account.user_id)
        )
        queue_directory_updates(txn, [(account.user_id, position)])
        txn.announce(Change(position, Topic.ACCOUNT, user_id=account.user_id))
        return True

    def set_account_changed(self, txn: WriteTransaction, user_id: str) -> None:
        """Move the account's position and announce it, so that all nodes invalidate their caches.

        The write is acknowledged once every node has done so.
        """
        position = txn.next_position()
        txn.execute("UPDATE accounts SET position = ? WHERE user_id = ?", (position, user_id))
        txn.announce(Change(position, Topic.ACCOUNT, user_id=user_id))
        txn.require_all_nodes(position)

    def set_password_hash(
        self,
        txn: WriteTransaction,
        user_id: str,
        password_hash: str | None,
        instead_of: str | None = None,
    ) -> bool:
        """Set the hash of a new password and increment the credential epoch.

        `instead_of`: replace this hash by another one of the same password, if it is still the
        current one; the epoch stays. Return False if nothing changed.
        """
        if instead_of is not None:
            sql, args = " AND password_hash = ?", (password_hash, user_id, instead_of)
            return bool(
                txn.execute("UPDATE accounts SET password_hash = ? WHERE user_id = ?" + sql, args)
            )
        sql = (
            "UPDATE accounts SET password_hash = ?, credential_epoch = credential_epoch +"
            " 1 WHERE user_id = ?"
        )
        return bool(txn.execute(sql, (password_hash, user_id)))

    def advance_epoch(self, txn: WriteTransaction, user_id: str) -> None:
        """Increment the credential epoch, which invalidates all earlier authentications."""
        txn.execute(
            "UPDATE accounts SET credential_epoch = credential_epoch + 1 WHERE user_id = ?",
            (user_id,),
        )

    def set_flags(
        self,
        txn: WriteTransaction,
        user_id: str,
        *,
        is_admin: bool | None = None,
        locked: bool | None = None,
        suspended: bool | None = None,
        shadow_banned: bool | None = None,
    ) -> None:
        """Set the given flags, and announce the change."""
        flags = (is_admin, locked, suspended, shadow_banned)
        txn.execute(
            "UPDATE accounts SET is_admin = COALESCE(?, is_admin), locked = COALESCE(?, locked),"
            " suspended = COALESCE(?, suspended), shadow_banned = COALESCE(?, shadow_banned)"
            " WHERE user_id = ?",
            (*(None if flag is None else int(flag) for flag in flags), user_id),
        )
        self.set_account_changed(txn, user_id)

    def set_user_type(self, txn: WriteTransaction, user_id: str, user_type: str | None) -> None:
        """Set the user type, and announce the change."""
        txn.execute("UPDATE accounts SET user_type = ? WHERE user_id = ?", (user_type, user_id))
        self.set_account_changed(txn, user_id)

    def set_awaiting(
        self, txn: WriteTransaction, user_id: str, approval_pending_ts: int | None
    ) -> bool:
        """Set since when an account awaits approval; None: it does not.

        Return False if it is in that state already.
        """
        is_other_state = (
            "approval_pending_ts IS NOT NULL"
            if approval_pending_ts is None
            else "approval_pending_ts IS NULL"
        )
        changed = bool(
            txn.execute(
                f"UPDATE accounts SET approval_pending_ts = ? WHERE user_id = ?"
                f" AND {is_other_state}",
                (approval_pending_ts, user_id),
            )
        )
        if changed:
            self.set_account_changed(txn, user_id)
        return changed

    def has_awaiting(self, txn: Transaction, since: int, but: str) -> bool:
        """Return whether another active account than `but` awaits approval since after `since`."""
        sql = (
            "SELECT 1 FROM accounts WHERE approval_pending_ts > ?"
            " AND approval_pending_ts IS NOT NULL"
            " AND user_id != ?"
            " AND deactivated_ts IS NULL LIMIT 1"
        )
        return txn.query_one(sql, (since, but)) is not None

    async def get_awaiting(self, limit: int) -> list[tuple[str, int]]:
        """Return up to `limit` accounts that await approval, with the time, oldest first."""

        def read(txn: Transaction) -> list[tuple[str, int]]:
            sql = (
                "SELECT user_id, approval_pending_ts FROM accounts"
                " WHERE approval_pending_ts IS NOT NULL"
                " AND deactivated_ts IS NULL"
                " ORDER BY approval_pending_ts, user_id LIMIT ?"
            )
            return [(row[0], row[1]) for row in txn.query(sql, (limit,))]

        return await self._database.read("get_accounts_awaiting_approval", read)

    def set_deactivated(
        self, txn: WriteTransaction, user_id: str, now: int, *, erase: bool
    ) -> None:
        """Deactivate the account permanently, and add it to the accounts that have rooms to leave.

        It has no password and no rights afterwards. `erase`: also mark it as erased.
        """
        txn.execute(
            "UPDATE accounts SET deactivated_ts = COALESCE(deactivated_ts, ?), password_hash"
            " = NULL, is_admin = 0,"
            " erased = CASE WHEN ? = 1 THEN 1 ELSE erased END WHERE user_id = ?",
            (now, int(erase), user_id),
        )
        if erase:
            record_erasure(txn, user_id)
            add_erasure(txn, user_id)
        txn.execute(
            "INSERT INTO leaving_accounts (user_id) VALUES (?) ON CONFLICT DO NOTHING", (user_id,)
        )
        self.set_account_changed(txn, user_id)

    async def get_leaving_accounts(self) -> list[str]:
        """Return the deactivated accounts that still have rooms to leave."""

        def read(txn: Transaction) -> list[str]:
            return [
                row[0] for row in txn.query("SELECT user_id FROM leaving_accounts ORDER BY user_id")
            ]

        return await self._database.read("get_leaving_accounts", read)

    def remove_leaving_account(self, txn: WriteTransaction, user_id: str) -> None:
        """Remove an account that has left all of its rooms."""
        txn.execute("DELETE FROM leaving_accounts WHERE user_id = ?", (user_id,))

    def add_pending_auto_join(self, txn: WriteTransaction, user_id: str, due_ts: int) -> None:
        """Add a new account with pending auto-joins, leased until `due_ts` (ms since 1970)."""
        txn.execute(
            "INSERT INTO pending_auto_joins (user_id, due_ts) VALUES (?, ?) ON CONFLICT DO NOTHING",
            (user_id, due_ts),
        )

    async def lease_pending_auto_joins(self, now: int, until: int, limit: int) -> list[str]:
        """Lease up to `limit` accounts with pending auto-joins until `until`; return them.

        Only those whose lease has expired at `now`.
        """
        if not await self._database.read_quickly(
            "has_pending_auto_joins", _select_arriving, now, 1
        ):
            return []

        def write(txn: WriteTransaction) -> list[str]:
            user_ids = _select_arriving(txn, now, limit)
            txn.execute_many(
                "UPDATE pending_auto_joins SET due_ts = ? WHERE user_id = ?",
                [(until, user_id) for user_id in user_ids],
            )
            return user_ids

        return await self._database.write("lease_pending_auto_joins", write)

    def remove_pending_auto_join(self, txn: WriteTransaction, user_id: str) -> None:
        """Remove an account whose auto-joins are complete."""
        txn.execute("DELETE FROM pending_auto_joins WHERE user_id = ?", (user_id,))


def _select_arriving(txn: Transaction, now: int, limit: int) -> list[str]:
    sql = "SELECT user_id FROM pending_auto_joins WHERE due_ts <= ? ORDER BY user_id LIMIT ?"
    return [user_id for (user_id,) in txn.query(sql, (now, limit))]
