"""E-mail addresses and telephone numbers of people, and how they show that an address is theirs.

Laws:
- An address belongs to one account at most. Who says so is known: the account's user, or identity
  providers.
- A validation serves one purpose, once; the text that validates it, and the secret of the client
  that uses it, are kept as hashes.

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
    vouched_by: frozenset[str] = frozenset()
    """The identity providers that say so; none where somebody has confirmed it."""


class ValidationRow(msgspec.Struct, frozen=True):
    """Somebody is to show, for a purpose, that an address is theirs. Times are milliseconds since
    1970."""

    sid: str
    purpose: str
    medium: str
    address: str
    client_secret_hash: str
    token_hash: bytes | None
    """None: nothing was sent that validates it, and nothing ever does."""
    send_attempt: int
    next_link: str | None
    created_ts: int
    validated_ts: int | None = None
    tries: int = 0
    """How often somebody has typed a code."""


_THREEPID = "medium, address, user_id, validated_ts, added_ts"
_VALIDATION = "sid, purpose, medium, address, client_secret_hash, token_hash, send_attempt, next_link, created_ts, validated_ts, tries"


class ThreepidStore:
    """The tables of addresses and of validations."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_owner(self, medium: str, address: str) -> str | None:
        """Whose address it is."""
        return await self._database.read_quickly(
            "get_threepid_owner", self.get_owner_in, medium, address
        )

    def get_owner_in(self, txn: Transaction, medium: str, address: str) -> str | None:
        """As `get_owner`, in a transaction."""
        row = txn.query_one(
            "SELECT user_id FROM threepids WHERE medium = ? AND address = ?", (medium, address)
        )
        return None if row is None else str(row[0])

    async def get_threepids(self, user_ids: Iterable[str]) -> dict[str, list[ThreepidRow]]:
        """The addresses of these users, in two queries, by when they were added; a user without any
        is absent."""
        return await self._database.read("get_threepids", self.get_threepids_in, tuple(user_ids))

    def get_threepids_in(
        self, txn: Transaction, user_ids: Iterable[str]
    ) -> dict[str, list[ThreepidRow]]:
        """As `get_threepids`, in a transaction."""
        rows = txn.query_in(
            f"SELECT {_THREEPID} FROM threepids WHERE user_id IN {{keys}} ORDER BY added_ts, address",
            user_ids,
        )
        vouchers: dict[tuple[str, str], set[str]] = {}
        for medium, address, provider in txn.query_in(
            "SELECT v.medium, v.address, v.provider FROM threepid_vouchers AS v JOIN threepids AS t"
            " ON t.medium = v.medium AND t.address = v.address WHERE t.user_id IN {keys}",
            user_ids,
        ):
            vouchers.setdefault((medium, address), set()).add(provider)
        found: dict[str, list[ThreepidRow]] = {}
        for medium, address, user_id, validated_ts, added_ts in rows:
            vouched_by = frozenset(vouchers.get((medium, address), ()))
            row = ThreepidRow(medium, address, user_id, validated_ts, added_ts, vouched_by)
            found.setdefault(user_id, []).append(row)
        return found

    def get_owners_in(
        self, txn: Transaction, medium: str, addresses: Iterable[str]
    ) -> dict[str, str]:
        """Whose these addresses are, in a transaction; one that is nobody's is absent."""
        sql = "SELECT address, user_id FROM threepids WHERE medium = ? AND address IN {keys}"
        return dict(txn.query_in(sql, addresses, before=[medium]))

    def add_threepid(self, txn: WriteTransaction, row: ThreepidRow) -> bool:
        """Give an account an address; False where it is another's. One's own is left as it is, but
        that somebody has confirmed it now counts for more than what identity providers say."""
        sql = f"INSERT INTO threepids ({_THREEPID}) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
        if txn.execute(sql, (row.medium, row.address, row.user_id, row.validated_ts, row.added_ts)):
            for provider in row.vouched_by:
                self.add_voucher(txn, row.medium, row.address, provider)
            # whom no letter about the end of their account could reach gets it now
            # (storage/accounts/validity.py)
            txn.execute(
                "UPDATE accounts SET renewal_letter = 0 WHERE user_id = ? AND renewal_letter = 3",
                (row.user_id,),
            )
            return True
        if self.get_owner_in(txn, row.medium, row.address) != row.user_id:
            return False
        if not row.vouched_by:
            self._remove_vouchers(txn, row.medium, row.address)
        return True

    def add_voucher(self, txn: WriteTransaction, medium: str, address: str, provider: str) -> None:
        """Another identity provider says that an address is the user's who has it."""
        sql = "INSERT INTO threepid_vouchers (medium, address, provider) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
        txn.execute(sql, (medium, address, provider))

    def remove_voucher(
        self, txn: WriteTransaction, medium: str, address: str, provider: str
    ) -> None:
        """An identity provider no longer says so."""
        sql = "DELETE FROM threepid_vouchers WHERE medium = ? AND address = ? AND provider = ?"
        txn.execute(sql, (medium, address, provider))

    def _remove_vouchers(self, txn: WriteTransaction, medium: str, address: str) -> None:
        txn.execute(
            "DELETE FROM threepid_vouchers WHERE medium = ? AND address = ?", (medium, address)
        )

    def remove_threepid(
        self, txn: WriteTransaction, user_id: str, medium: str, address: str
    ) -> bool:
        """Take an address from an account; False where it had none such."""
        sql = "DELETE FROM threepids WHERE medium = ? AND address = ? AND user_id = ?"
        if not txn.execute(sql, (medium, address, user_id)):
            return False
        self._remove_vouchers(txn, medium, address)
        return True

    def remove_threepids(self, txn: WriteTransaction, user_id: str) -> None:
        """Take all addresses from an account."""
        txn.execute(
            "DELETE FROM threepid_vouchers WHERE EXISTS (SELECT 1 FROM threepids AS t WHERE t.user_id = ?"
            " AND t.medium = threepid_vouchers.medium AND t.address = threepid_vouchers.address)",
            (user_id,),
        )
        txn.execute("DELETE FROM threepids WHERE user_id = ?", (user_id,))

    def get_validation_of_client(
        self, txn: Transaction, purpose: str, medium: str, address: str, client_secret_hash: str
    ) -> ValidationRow | None:
        """The validation that a client has begun, and that was not used."""
        sql = (
            f"SELECT {_VALIDATION} FROM threepid_validations"
            " WHERE client_secret_hash = ? AND address = ? AND medium = ? AND purpose = ?"
        )
        row = txn.query_one(sql, (client_secret_hash, address, medium, purpose))
        return None if row is None else ValidationRow(*row)

    async def get_validation(self, sid: str) -> ValidationRow | None:
        """A validation by its id."""
        return await self._database.read_quickly(
            "get_threepid_validation", self.get_validation_in, sid
        )

    def get_validation_in(self, txn: Transaction, sid: str) -> ValidationRow | None:
        """As `get_validation`, in a transaction."""
        row = txn.query_one(f"SELECT {_VALIDATION} FROM threepid_validations WHERE sid = ?", (sid,))
        return None if row is None else ValidationRow(*row)

    def set_validation(self, txn: WriteTransaction, row: ValidationRow) -> None:
        """Begin a validation, or note its next letter."""
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
            row.tries,
        )
        txn.execute("DELETE FROM threepid_validations WHERE sid = ?", (row.sid,))
        sql = f"INSERT INTO threepid_validations ({_VALIDATION}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        txn.execute(sql, values)

    def take_try(
        self,
        txn: WriteTransaction,
        sid: str,
        client_secret_hash: str,
        medium: str,
        most: int,
        created_after: int,
    ) -> ValidationRow | None:
        """Count that somebody types a code; None where there is no such validation, or they may try
        no more."""
        sql = (
            "UPDATE threepid_validations SET tries = tries + 1"
            " WHERE sid = ? AND client_secret_hash = ? AND medium = ? AND tries < ? AND created_ts > ?"
        )
        if not txn.execute(sql, (sid, client_secret_hash, medium, most, created_after)):
            return None
        return self.get_validation_in(txn, sid)

    async def set_validated(self, sid: str, token_hash: bytes, now: int) -> bool:
        """Note that somebody has shown the text of the letter; False where it is not that of the
        last one."""
        return await self._database.write(
            "set_threepid_validated", self.set_validated_in, sid, token_hash, now
        )

    def set_validated_in(
        self, txn: WriteTransaction, sid: str, token_hash: bytes, now: int
    ) -> bool:
        """As `set_validated`, in a transaction."""
        sql = "UPDATE threepid_validations SET validated_ts = COALESCE(validated_ts, ?) WHERE sid = ? AND token_hash = ?"
        return bool(txn.execute(sql, (now, sid, token_hash)))

    def remove_validation(self, txn: WriteTransaction, sid: str) -> bool:
        """It was used; False where another request has done so."""
        return bool(txn.execute("DELETE FROM threepid_validations WHERE sid = ?", (sid,)))

    def remove_unsent(self, txn: WriteTransaction, sid: str, token_hash: bytes | None) -> None:
        """The message with this text could not be sent; one that was sent after it stays good."""
        if token_hash is not None:
            sql = "DELETE FROM threepid_validations WHERE sid = ? AND token_hash = ?"
            txn.execute(sql, (sid, token_hash))

    async def remove_old_validations(self, created_before: int, limit: int) -> int:
        """Remove up to `limit` that were begun before that; how many."""

        def write(txn: WriteTransaction) -> int:
            sql = (
                "DELETE FROM threepid_validations WHERE sid IN"
                " (SELECT sid FROM threepid_validations WHERE created_ts < ? LIMIT ?)"
            )
            return txn.execute(sql, (created_before, limit))

        return await self._database.write("remove_old_threepid_validations", write)
