"""Stores the last presence of each local user, so that a restart does not lose it.

Clients get presence from memory, so these writes take no position in the stream.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction

NOT_SENT: Final = 0
"""The position of a state that has not been sent yet."""


class PresenceRow(msgspec.Struct, frozen=True):
    """The presence of a user. `state` is online, unavailable or offline. The position is from the
    ephemeral counter, or `NOT_SENT`. The time is in milliseconds since 1970."""

    user_id: str
    state: str
    status_msg: str | None
    last_active_ts: int | None
    position: int


_SELECT = "SELECT user_id, state, status_msg, last_active_ts, position FROM presence_states"


class PresenceStore:
    """Stores presence."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_states(self, user_ids: Iterable[str]) -> dict[str, PresenceRow]:
        """Return the last presence of these users, in one query. Users without one are missing."""

        def read(txn: Transaction, wanted: tuple[str, ...]) -> dict[str, PresenceRow]:
            rows = txn.query_in(f"{_SELECT} WHERE user_id IN {{keys}}", wanted)
            return {row[0]: PresenceRow(*row) for row in rows}

        return await self._database.read_quickly("get_presence_states", read, tuple(user_ids))

    async def get_online(self) -> list[PresenceRow]:
        """Return all users whose stored state is not offline."""

        def read(txn: Transaction) -> list[PresenceRow]:
            return [PresenceRow(*row) for row in txn.query(f"{_SELECT} WHERE state <> 'offline'")]

        return await self._database.read("get_online_users", read)

    async def get_offline(self, after: int, limit: int) -> list[PresenceRow]:
        """Return users whose offline state was sent after a position, or is not sent yet, latest
        first."""

        def read(txn: Transaction) -> list[PresenceRow]:
            rows = txn.query(
                f"{_SELECT} WHERE (position > ? OR position = ?) AND state = 'offline'"
                " ORDER BY position DESC LIMIT ?",
                (after, NOT_SENT, limit),
            )
            return [PresenceRow(*row) for row in rows]

        return await self._database.read("get_offline_users", read)

    def set_states(self, txn: WriteTransaction, rows: Iterable[PresenceRow]) -> None:
        """Store the current presence of these users."""
        txn.execute_many(
            "INSERT INTO presence_states (user_id, state, status_msg, last_active_ts, position)"
            " VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT (user_id) DO UPDATE SET state = excluded.state,"
            " status_msg = excluded.status_msg,"
            " last_active_ts = excluded.last_active_ts, position = excluded.position",
            [
                (row.user_id, row.state, row.status_msg, row.last_active_ts, row.position)
                for row in rows
            ],
        )

    def remove_state(self, txn: WriteTransaction, user_id: str) -> None:
        """Delete the presence of a user."""
        txn.execute("DELETE FROM presence_states WHERE user_id = ?", (user_id,))
