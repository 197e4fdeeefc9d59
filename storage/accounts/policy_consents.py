"""Consents of users to the server's policies, such as its terms of use, by version of the policy.
Rows are added and never changed."""

from collections.abc import Iterable, Mapping

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction


class ConsentRow(msgspec.Struct, frozen=True):
    """A user's consent to a version of a policy. `ts`: milliseconds since 1970."""

    policy_id: str
    version: str
    ts: int


class PolicyConsentStore:
    """The table of consents."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_consents(self, user_ids: Iterable[str]) -> dict[str, list[ConsentRow]]:
        """Return the consents of each of these users, oldest first, in one query.

        Users without a consent are missing.
        """

        def read(txn: Transaction, keys: tuple[str, ...]) -> dict[str, list[ConsentRow]]:
            sql = (
                "SELECT user_id, policy_id, version, ts FROM policy_consents"
                " WHERE user_id IN {keys} ORDER BY ts"
            )
            found: dict[str, list[ConsentRow]] = {}
            for user_id, *row in txn.query_in(sql, keys):
                found.setdefault(user_id, []).append(ConsentRow(*row))
            return found

        return await self._database.read_quickly("get_policy_consents", read, tuple(user_ids))

    async def get_users(
        self, policy_id: str, version: str, *, agreed: bool, after: str, limit: int
    ) -> list[tuple[str, int | None]]:
        """Return up to `limit` active users after `after`, in the order of their IDs.

        `agreed`: those who have accepted this version, with the time; else those who have not.
        """

        def read(txn: Transaction) -> list[tuple[str, int | None]]:
            sql = (
                "SELECT a.user_id, c.ts FROM accounts a LEFT JOIN policy_consents c"
                " ON c.user_id = a.user_id AND c.policy_id = ? AND c.version = ?"
                " WHERE a.user_id > ? AND a.deactivated_ts IS NULL AND a.is_guest = 0"
                " AND a.appservice_id IS NULL"
                f" AND c.ts IS {'NOT NULL' if agreed else 'NULL'} ORDER BY a.user_id LIMIT ?"
            )
            return [(row[0], row[1]) for row in txn.query(sql, (policy_id, version, after, limit))]

        return await self._database.read("get_users_by_consent", read)

    async def count_users(self, versions: Mapping[str, str]) -> dict[str, int]:
        """Return the number of active users who have accepted these versions, by policy.

        One query for each policy.
        """

        def read(txn: Transaction) -> dict[str, int]:
            sql = (
                "SELECT COUNT(*) FROM policy_consents c JOIN accounts a ON a.user_id = c.user_id"
                " WHERE c.policy_id = ? AND c.version = ? AND a.deactivated_ts IS NULL"
                " AND a.is_guest = 0"
                " AND a.appservice_id IS NULL"
            )
            return {
                key: int(txn.query(sql, (key, version))[0][0]) for key, version in versions.items()
            }

        return await self._database.read("count_consents", read)

    def add_consents(
        self, txn: WriteTransaction, user_id: str, versions: Mapping[str, str], ts: int
    ) -> None:
        """Add the consent of a user to these versions; earlier rows stay unchanged."""
        txn.execute_many(
            "INSERT INTO policy_consents (user_id, policy_id, version, ts)"
            " VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            [(user_id, policy_id, version, ts) for policy_id, version in versions.items()],
        )
