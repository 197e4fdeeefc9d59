"""Delayed events (MSC4140): scheduled ones and, for some time, finalised ones (sent or cancelled).

Laws:
- A node leases an event in a write before it sends it, so only one node sends it. If a lease
  expires, its node has presumably died, and another node leases the event.
- A leased event can be neither cancelled nor restarted.
"""

from collections.abc import Iterable
from typing import Final

import msgspec
from msgspec.structs import replace

from storage.engine.database import Database
from storage.engine.interface import Row
from storage.engine.transaction import Transaction, WriteTransaction

MAX_FINALISED: Final = 1000
"""The maximum number of finalised events that are stored per user."""


class DelayedEventRow(msgspec.Struct, frozen=True):
    """A delayed event. Times are milliseconds since 1970 unless they are a duration; `content` and
    `error` are JSON."""

    delay_id: str
    user_id: str
    device_id: str
    appservice_id: str | None
    room_id: str
    type: str
    state_key: str | None
    content: bytes
    origin_server_ts: int | None
    delay_ms: int
    running_since: int
    send_ts: int | None
    leased_until: int = 0
    finalised_ts: int | None = None
    outcome: str | None = None
    reason: str | None = None
    event_id: str | None = None
    error: bytes | None = None
    sticky_ms: int | None = None


_COLUMNS: Final = (
    "delay_id, user_id, device_id, appservice_id, room_id, type, state_key, content,"
    " origin_server_ts, delay_ms,"
    " running_since, send_ts, leased_until, finalised_ts, outcome, reason, event_id, error,"
    " sticky_ms"
)
_SELECT: Final = f"SELECT {_COLUMNS} FROM delayed_events"


class DelayedEventStore:
    """Reads and writes the table `delayed_events`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_event(self, delay_id: str) -> DelayedEventRow | None:
        """Return one event, finalised or not."""
        return await self._database.read_quickly("get_delayed_event", _select, delay_id)

    async def get_scheduled(self, user_id: str) -> list[DelayedEventRow]:
        """Return a user's events that are still to be sent, the next first."""

        def read(txn: Transaction) -> list[DelayedEventRow]:
            sql = f"{_SELECT} WHERE user_id = ? AND finalised_ts IS NULL ORDER BY send_ts, delay_id"
            return _rows(txn.query(sql, (user_id,)))

        return await self._database.read("get_scheduled_delayed_events", read)

    async def get_finalised(self, user_id: str, limit: int) -> list[DelayedEventRow]:
        """Return a user's events that were sent or cancelled, the latest first."""

        def read(txn: Transaction) -> list[DelayedEventRow]:
            sql = (
                f"{_SELECT} WHERE user_id = ? AND finalised_ts IS NOT NULL"
                " ORDER BY finalised_ts DESC, delay_id LIMIT ?"
            )
            return _rows(txn.query(sql, (user_id, limit)))

        return await self._database.read("get_finalised_delayed_events", read)

    async def has_due(self, now: int) -> bool:
        """Whether an event is due that no node leases."""

        def read(txn: Transaction) -> bool:
            sql = (
                "SELECT 1 FROM delayed_events"
                " WHERE send_ts IS NOT NULL AND send_ts <= ? AND leased_until <= ? LIMIT 1"
            )
            return txn.query_one(sql, (now, now)) is not None

        return await self._database.read_quickly("has_due_delayed_events", read)

    async def get_next_time(self) -> int | None:
        """Return when the next unleased event is due; None: there is none."""

        def read(txn: Transaction) -> int | None:
            row = txn.query_one(
                "SELECT send_ts FROM delayed_events WHERE send_ts IS NOT NULL AND leased_until = 0"
                " ORDER BY send_ts LIMIT 1"
            )
            return None if row is None else int(row[0])

        return await self._database.read_quickly("get_next_delayed_event", read)

    def count_scheduled(self, txn: Transaction, user_id: str) -> tuple[int, int | None]:
        """Count a user's events that are still to be sent. Return the count and when the next is
        due."""
        row = txn.query_one(
            "SELECT COUNT(*), MIN(send_ts) FROM delayed_events"
            " WHERE user_id = ? AND finalised_ts IS NULL",
            (user_id,),
        )
        assert row is not None
        return row[0], row[1]

    def add_event(self, txn: WriteTransaction, row: DelayedEventRow) -> None:
        """Schedule an event."""
        txn.execute(
            "INSERT INTO delayed_events (delay_id, user_id, device_id, appservice_id, room_id,"
            " type, state_key, content,"
            " origin_server_ts, delay_ms, running_since, send_ts, sticky_ms, leased_until)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
            (
                row.delay_id,
                row.user_id,
                row.device_id,
                row.appservice_id,
                row.room_id,
                row.type,
                row.state_key,
                row.content,
                row.origin_server_ts,
                row.delay_ms,
                row.running_since,
                row.send_ts,
                row.sticky_ms,
            ),
        )

    def set_restarted(self, txn: WriteTransaction, delay_id: str, now: int) -> int | None:
        """Restart the delay. Return the new send time; None if the event is sent, cancelled or
        leased."""
        changed = txn.execute(
            "UPDATE delayed_events SET running_since = ?, send_ts = ? + delay_ms"
            " WHERE delay_id = ? AND send_ts IS NOT NULL AND leased_until <= ?",
            (now, now, delay_id, now),
        )
        row = _select(txn, delay_id) if changed else None
        return None if row is None else row.send_ts

    def take_lease(self, txn: WriteTransaction, delay_id: str, now: int, until: int) -> bool:
        """Lease one event; False if it is sent, cancelled or leased."""
        return bool(
            txn.execute(
                "UPDATE delayed_events SET leased_until = ?"
                " WHERE delay_id = ? AND send_ts IS NOT NULL AND leased_until <= ?",
                (until, delay_id, now),
            )
        )

    def lease_due(
        self, txn: WriteTransaction, now: int, until: int, limit: int
    ) -> list[DelayedEventRow]:
        """Lease due events, in the order of their send times."""
        rows = _rows(
            txn.query(
                f"{_SELECT} WHERE send_ts IS NOT NULL AND send_ts <= ? AND leased_until <= ?"
                " ORDER BY send_ts, delay_id"
                " LIMIT ?",
                (now, now, limit),
            )
        )
        txn.execute_many(
            "UPDATE delayed_events SET leased_until = ? WHERE delay_id = ?",
            [(until, row.delay_id) for row in rows],
        )
        return rows

    def end_lease(self, txn: WriteTransaction, delay_id: str) -> None:
        """End the lease of an event that was not sent; it stays scheduled."""
        txn.execute("UPDATE delayed_events SET leased_until = 0 WHERE delay_id = ?", (delay_id,))

    def set_cancelled(self, txn: WriteTransaction, row: DelayedEventRow, now: int) -> bool:
        """Cancel an event on request; False if it is sent, cancelled or leased."""
        changed = txn.execute(
            "UPDATE delayed_events SET send_ts = NULL, finalised_ts = ?, outcome = 'cancel',"
            " reason = 'action'"
            " WHERE delay_id = ? AND send_ts IS NOT NULL AND leased_until <= ?",
            (now, row.delay_id, now),
        )
        self._remove_oldest(txn, row.user_id)
        return bool(changed)

    def set_sent(
        self, txn: WriteTransaction, row: DelayedEventRow, now: int, reason: str, event_id: str
    ) -> None:
        """Finalise an event that was sent."""
        self._finalise(txn, row, now, "send", reason, event_id, None)

    def set_failed(
        self, txn: WriteTransaction, row: DelayedEventRow, now: int, error: bytes
    ) -> None:
        """Finalise an event that could not be sent when it was due."""
        self._finalise(txn, row, now, "cancel", "error", None, error)

    async def remove_finalised(self, before: int, limit: int) -> int:
        """Delete up to `limit` events that were finalised before that time. Return how many."""

        def write(txn: WriteTransaction) -> int:
            rows = txn.query(
                "SELECT delay_id FROM delayed_events"
                " WHERE finalised_ts IS NOT NULL AND finalised_ts < ?"
                " ORDER BY finalised_ts LIMIT ?",
                (before, limit),
            )
            txn.execute_many("DELETE FROM delayed_events WHERE delay_id = ?", rows)
            return len(rows)

        return await self._database.write("remove_finalised_delayed_events", write)

    def remove_user(self, txn: WriteTransaction, user_id: str) -> None:
        """Remove all events of a user."""
        txn.execute("DELETE FROM delayed_events WHERE user_id = ?", (user_id,))

    def _finalise(
        self,
        txn: WriteTransaction,
        row: DelayedEventRow,
        now: int,
        outcome: str,
        reason: str,
        event_id: str | None,
        error: bytes | None,
    ) -> None:
        txn.execute(
            "UPDATE delayed_events SET send_ts = NULL, leased_until = 0, finalised_ts = ?,"
            " outcome = ?, reason = ?,"
            " event_id = ?, error = ? WHERE delay_id = ? AND finalised_ts IS NULL",
            (now, outcome, reason, event_id, error, row.delay_id),
        )
        self._remove_oldest(txn, row.user_id)

    def _remove_oldest(self, txn: WriteTransaction, user_id: str) -> None:
        rows = txn.query(
            "SELECT delay_id FROM delayed_events WHERE user_id = ? AND finalised_ts IS NOT NULL"
            " ORDER BY finalised_ts DESC, delay_id LIMIT 100 OFFSET ?",
            (user_id, MAX_FINALISED),
        )
        if rows:
            txn.execute_many("DELETE FROM delayed_events WHERE delay_id = ?", rows)


def erase_contents(txn: WriteTransaction, event_nids: Iterable[int]) -> None:
    """Erase the content of delayed events whose sent event loses its content."""
    sql = (
        "UPDATE delayed_events SET content = ? WHERE event_id = (SELECT event_id FROM events"
        " WHERE event_nid = ?)"
    )
    txn.execute_many(sql, [(b"{}", nid) for nid in event_nids])


def _select(txn: Transaction, delay_id: str) -> DelayedEventRow | None:
    row = txn.query_one(f"{_SELECT} WHERE delay_id = ?", (delay_id,))
    return None if row is None else _rows([row])[0]


def _rows(rows: list[Row]) -> list[DelayedEventRow]:
    return [
        replace(
            row, content=bytes(row.content), error=None if row.error is None else bytes(row.error)
        )
        for row in (DelayedEventRow(*values) for values in rows)
    ]
