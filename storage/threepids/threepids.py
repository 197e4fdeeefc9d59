"""E-mail addresses and telephone numbers of accounts, and their validations.

In this module, an address is either of the two.

Laws:
- An address belongs to at most one account. Either the user has validated it, or the identity
  providers that assert it are stored.
- A validation serves one purpose, once. Its token or code, and the client secret, are stored as
  hashes.

spec: client-server-api#adding-account-administrative-contact-information
"""

from collections.abc import Iterable

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction


class ThreepidRow(msgspec.Struct, frozen=True):
    """An address of an account. Times are milliseconds since 1970."""

    medium: str
    address: str
    user_id: str
    validated_ts: int
    added_ts: int
    asserted_by: frozenset[str] = frozenset()
    """The identity providers that assert it; empty if the user has validated it."""


class ValidationRow(msgspec.Struct, frozen=True):
    """A validation of an address for a purpose. Times are milliseconds since 1970."""

    sid: str
    purpose: str
    medium: str
    address: str
    client_secret_hash: str
    token_hash: bytes | None
    """None: the message contained no token, so the validation can never succeed."""
    send_attempt: int
    next_link: str | None
    created_ts: int
    validated_ts: int | None = None
    attempts: int = 0
    """The number of codes that were entered."""


_THREEPID = "medium, address, user_id, validated_ts, added_ts"
_VALIDATION = (
    "sid, purpose, medium, address, client_secret_hash, token_hash, send_attempt, next_link,"
    " created_ts, validated_ts, attempts"
)


class ThreepidStore:
    """The tables `threepids`, `threepid_assertions` and `threepid_validations`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_owner(self, medium: str, address: str) -> str | None:
        """Return the user who has an address."""
        return await self._database.read_quickly(
            "get_threepid_owner", self.get_owner_in, medium, address
        )

    def get_owner_in(self, txn: Transaction, medium: str, address: str) -> str | None:
        """Do `get_owner` in a transaction."""
        row = txn.query_one(
            "SELECT user_id FROM threepids WHERE medium = ? AND address = ?", (medium, address)
        )
        return None if row is None else str(row[0])

    async def get_threepids(self, user_ids: Iterable[str]) -> dict[str, list[ThreepidRow]]:
        """Return the addresses of these users, in two queries, in the order of addition.

        Users without an address are missing.
        """
        return await self._database.read("get_threepids", self.get_threepids_in, tuple(user_ids))

    def get_threepids_in(
        self, txn: Transaction, user_ids: Iterable[str]
    ) -> dict[str, list[ThreepidRow]]:
        """Do `get_threepids` in a transaction."""
        rows = txn.query_in(
            f"SELECT {_THREEPID} FROM threepids WHERE user_id IN {{keys}}"
            " ORDER BY added_ts, address",
            user_ids,
        )
        asserting_providers: dict[tuple[str, str], set[str]] = {}
        for medium, address, provider in txn.query_in(
            "SELECT v.medium, v.address, v.provider FROM threepid_assertions AS v"
            " JOIN threepids AS t"
            " ON t.medium = v.medium AND t.address = v.address WHERE t.user_id IN {keys}",
            user_ids,
        ):
            asserting_providers.setdefault((medium, address), set()).add(provider)
        found: dict[str, list[ThreepidRow]] = {}
        for medium, address, user_id, validated_ts, added_ts in rows:
            vouched_by = frozenset(asserting_providers.get((medium, address), ()))
            row = ThreepidRow(medium, address, user_id, validated_ts, added_ts, vouched_by)
            found.setdefault(user_id, []).append(row)
        return found

    def get_owners_in(
        self, txn: Transaction, medium: str, addresses: Iterable[str]
    ) -> dict[str, str]:
        """Return the owners of these addresses, in a transaction; unused ones are missing."""
        sql = "SELECT address, user_id FROM threepids WHERE medium = ? AND address IN {keys}"
        return dict(txn.query_in(sql, addresses, before=[medium]))

    def add_threepid(self, txn: WriteTransaction, row: ThreepidRow) -> bool:
        """Add an address to an account; return False if another account has it.

        An address that the account already has stays unchanged, except that a validation by the
        user replaces the assertions of identity providers.
        """
        sql = f"INSERT INTO threepids ({_THREEPID}) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
        if txn.execute(sql, (row.medium, row.address, row.user_id, row.validated_ts, row.added_ts)):
            for provider in row.asserted_by:
                self.add_assertion(txn, row.medium, row.address, provider)
            # an owner without an address now gets the e-mail about the expiry of the account
            # (storage/accounts/validity.py)
            txn.execute(
                "UPDATE accounts SET renewal_email = 0 WHERE user_id = ? AND renewal_email = 3",
                (row.user_id,),
            )
            return True
        if self.get_owner_in(txn, row.medium, row.address) != row.user_id:
            return False
        if not row.asserted_by:
            self._remove_assertions(txn, row.medium, row.address)
        return True

    def add_assertion(
        self, txn: WriteTransaction, medium: str, address: str, provider: str
    ) -> None:
        """Add an identity provider that asserts an address."""
        sql = (
            "INSERT INTO threepid_assertions (medium, address, provider) VALUES (?, ?, ?)"
            " ON CONFLICT DO NOTHING"
        )
        txn.execute(sql, (medium, address, provider))

    def remove_assertion(
        self, txn: WriteTransaction, medium: str, address: str, provider: str
    ) -> None:
        """Remove an identity provider that asserted an address."""
        sql = "DELETE FROM threepid_assertions WHERE medium = ? AND address = ? AND provider = ?"
        txn.execute(sql, (medium, address, provider))

    def _remove_assertions(self, txn: WriteTransaction, medium: str, address: str) -> None:
        txn.execute(
            "DELETE FROM threepid_assertions WHERE medium = ? AND address = ?", (medium, address)
        )

    def remove_threepid(
        self, txn: WriteTransaction, user_id: str, medium: str, address: str
    ) -> bool:
        """Remove an address from an account; return False if it did not have it."""
        sql = "DELETE FROM threepids WHERE medium = ? AND address = ? AND user_id = ?"
        if not txn.execute(sql, (medium, address, user_id)):
            return False
        self._remove_assertions(txn, medium, address)
        return True

    def remove_threepids(self, txn: WriteTransaction, user_id: str) -> None:
        """Remove all addresses from an account."""
        txn.execute(
            "DELETE FROM threepid_assertions WHERE EXISTS (SELECT 1 FROM threepids AS t"
            " WHERE t.user_id = ?"
            " AND t.medium = threepid_assertions.medium"
            " AND t.address = threepid_assertions.address)",
            (user_id,),
        )
        txn.execute("DELETE FROM threepids WHERE user_id = ?", (user_id,))

    def get_client_validation(
        self, txn: Transaction, purpose: str, medium: str, address: str, client_secret_hash: str
    ) -> ValidationRow | None:
        """Return the unused validation that a client has begun."""
        sql = (
            f"SELECT {_VALIDATION} FROM threepid_validations"
            " WHERE client_secret_hash = ? AND address = ? AND medium = ? AND purpose = ?"
        )
        row = txn.query_one(sql, (client_secret_hash, address, medium, purpose))
        return None if row is None else ValidationRow(*row)

    async def get_validation(self, sid: str) -> ValidationRow | None:
        """Return a validation by its ID."""
        return await self._database.read_quickly(
            "get_threepid_validation", self.get_validation_in, sid
        )

    def get_validation_in(self, txn: Transaction, sid: str) -> ValidationRow | None:
        """Do `get_validation` in a transaction."""
        row = txn.query_one(f"SELECT {_VALIDATION} FROM threepid_validations WHERE sid = ?", (sid,))
        return None if row is None else ValidationRow(*row)

    def set_validation(self, txn: WriteTransaction, row: ValidationRow) -> None:
        """Add or replace a validation."""
        values = (
            row.sid,
            row.purpose,
            row.medium,
            row.address,
            row.client_secret_hash,
            row.token_hash,
            row.send_attempt,
            row.next_link,
            row.created_ts,
            row.validated_ts,
            row.attempts,
        )
        txn.execute("DELETE FROM threepid_validations WHERE sid = ?", (row.sid,))
        sql = (
            f"INSERT INTO threepid_validations ({_VALIDATION})"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        )
        txn.execute(sql, values)

    def count_attempt(
        self,
        txn: WriteTransaction,
        sid: str,
        client_secret_hash: str,
        medium: str,
        max_attempts: int,
        created_after: int,
    ) -> ValidationRow | None:
        """Count an attempt at the code; return the validation.

        None if it is unknown or expired, or has had `max_attempts` attempts.
        """
        sql = (
            "UPDATE threepid_validations SET attempts = attempts + 1"
            " WHERE sid = ? AND client_secret_hash = ? AND medium = ? AND attempts < ?"
            " AND created_ts > ?"
        )
        if not txn.execute(sql, (sid, client_secret_hash, medium, max_attempts, created_after)):
            return None
        return self.get_validation_in(txn, sid)

    async def set_validated(self, sid: str, token_hash: bytes, now: int) -> bool:
        """Mark a validation as successful; return False unless the token is that of its last
        message."""
        return await self._database.write(
            "set_threepid_validated", self.set_validated_in, sid, token_hash, now
        )

    def set_validated_in(
        self, txn: WriteTransaction, sid: str, token_hash: bytes, now: int
    ) -> bool:
        """Do `set_validated` in a transaction."""
        sql = (
            "UPDATE threepid_validations SET validated_ts = COALESCE(validated_ts, ?)"
            " WHERE sid = ? AND token_hash = ?"
        )
        return bool(txn.execute(sql, (now, sid, token_hash)))

    def remove_validation(self, txn: WriteTransaction, sid: str) -> bool:
        """Remove a used validation; return False if another request has removed it."""
        return bool(txn.execute("DELETE FROM threepid_validations WHERE sid = ?", (sid,)))

    def remove_unsent(self, txn: WriteTransaction, sid: str, token_hash: bytes | None) -> None:
        """Remove a validation whose message was not sent, unless a later message replaced it."""
        if token_hash is not None:
            sql = "DELETE FROM threepid_validations WHERE sid = ? AND token_hash = ?"
            txn.execute(sql, (sid, token_hash))

    async def remove_old_validations(self, created_before: int, limit: int) -> int:
        """Remove up to `limit` validations created before a time; return the number."""

        def write(txn: WriteTransaction) -> int:
            sql = (
                "DELETE FROM threepid_validations WHERE sid IN"
                " (SELECT sid FROM threepid_validations WHERE created_ts < ? LIMIT ?)"
            )
            return txn.execute(sql, (created_before, limit))

        return await self._database.write("remove_old_threepid_validations", write)
