"""How people were last there: one row for each who was. It takes no position: presence is told from
memory."""

from collections.abc import Iterable
from typing import Final

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction

UNTOLD: Final = 0
"""Stands for the position of what has not been told yet."""


class PresenceRow(msgspec.Struct, frozen=True):
    """`state` is online, unavailable or offline, told at a position of the ephemeral counter, or
    UNTOLD; the time is in milliseconds since 1970."""

    user_id: str
    state: str
    status_msg: str | None
    last_active_ts: int | None
    position: int


_SELECT = "SELECT user_id, state, status_msg, last_active_ts, position FROM presence_states"


class PresenceStore:
    """The table of presence."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_states(self, user_ids: Iterable[str]) -> dict[str, PresenceRow]:
        """As these users were last there, in one query; who never was is absent."""

        def read(txn: Transaction, wanted: tuple[str, ...]) -> dict[str, PresenceRow]:
            rows = txn.query_in(f"{_SELECT} WHERE user_id IN {{keys}}", wanted)
            return {row[0]: PresenceRow(*row) for row in rows}

        return await self._database.read_quickly("get_presence_states", read, tuple(user_ids))

    async def get_present(self) -> list[PresenceRow]:
        """Everybody who was not offline when last written."""

        def read(txn: Transaction) -> list[PresenceRow]:
            return [PresenceRow(*row) for row in txn.query(f"{_SELECT} WHERE state <> 'offline'")]

        return await self._database.read("get_present_people", read)

    async def get_gone(self, after: int, limit: int) -> list[PresenceRow]:
        """Those of whom it was told after a position that they are offline, or is yet to be told,
        the latest first."""

        def read(txn: Transaction) -> list[PresenceRow]:
            rows = txn.query(
                f"{_SELECT} WHERE (position > ? OR position = ?) AND state = 'offline'"
                " ORDER BY position DESC LIMIT ?",
                (after, UNTOLD, limit),
            )
            return [PresenceRow(*row) for row in rows]

        return await self._database.read("get_gone_people", read)

    def set_states(self, txn: WriteTransaction, rows: Iterable[PresenceRow]) -> None:
        """Write how these users are there now."""
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
        """Remove what is kept of a user."""
        txn.execute("DELETE FROM presence_states WHERE user_id = ?", (user_id,))
