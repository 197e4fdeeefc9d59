"""The queue of e-mails to send. It survives restarts, and one node at a time sends each e-mail.

A sender that takes e-mails postpones their due time, so that no other sender takes them. If the
sender dies, they become due again.

A notification e-mail contains the text of messages. When one of these messages is redacted or
purged, the same transaction deletes the e-mail. It also moves the pusher's position back to
where the previous e-mail ended. So a new e-mail reports the remaining messages.
"""

from collections.abc import Collection, Sequence

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction


class QueuedEmail(msgspec.Struct, frozen=True):
    """An encoded e-mail. Times are milliseconds since 1970."""

    email_nid: int
    created_ts: int
    attempts: int
    recipient: str
    message: bytes


class NotificationEmail(msgspec.Struct, frozen=True):
    """The pusher and the events of a notification e-mail."""

    pusher_nid: int
    previous_position: int
    """The previous e-mail covered the events up to this position."""
    event_nids: Collection[int]


class EmailOutbox:
    """Stores queued e-mails."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_email(
        self,
        txn: WriteTransaction,
        recipient: str,
        message: bytes,
        now: int,
        notification: NotificationEmail | None = None,
    ) -> None:
        """Queue an e-mail."""
        email_nid = txn.allocate("email")
        sql = (
            "INSERT INTO email_outbox (email_nid, due_ts, created_ts, attempts, recipient,"
            " message, pusher_nid, previous_position)"
            " VALUES (?, ?, ?, 0, ?, ?, ?, ?)"
        )
        pusher = (
            (None, None)
            if notification is None
            else (notification.pusher_nid, notification.previous_position)
        )
        txn.execute(sql, (email_nid, now, now, recipient, message, *pusher))
        if notification is not None:
            sql = "INSERT INTO email_outbox_events (event_nid, email_nid) VALUES (?, ?)"
            txn.execute_many(
                sql, [(nid, email_nid) for nid in sorted(set(notification.event_nids))]
            )

    async def get_notified_events(self, email_nid: int) -> tuple[int | None, list[int]] | None:
        """Return the pusher of an e-mail (None for other kinds of e-mail) and the numbers of the
        events in it. Return None if the e-mail is no longer queued."""

        def read(txn: Transaction) -> tuple[int | None, list[int]] | None:
            rows = txn.query(
                "SELECT m.pusher_nid, e.event_nid FROM email_outbox AS m"
                " LEFT JOIN email_outbox_events AS e ON e.email_nid = m.email_nid"
                " WHERE m.email_nid = ? ORDER BY e.event_nid",
                (email_nid,),
            )
            return (rows[0][0], [nid for _, nid in rows if nid is not None]) if rows else None

        return await self._database.read_quickly("get_notified_events", read)

    async def withdraw_email(self, email_nid: int) -> None:
        """Delete an e-mail with content that must no longer be sent. Another e-mail will cover the
        rest."""
        await self._database.write("withdraw_email", _withdraw, [email_nid])

    async def claim_due(self, now: int, until: int, limit: int) -> Sequence[QueuedEmail]:
        """Take up to `limit` e-mails that are due, oldest first. No other caller gets them before
        `until`."""

        def write(txn: WriteTransaction) -> list[QueuedEmail]:
            rows = txn.query(
                "SELECT email_nid, created_ts, attempts, recipient, message FROM email_outbox"
                " WHERE due_ts <= ?"
                " ORDER BY due_ts LIMIT ?",
                (now, limit),
            )
            leased = [QueuedEmail(*row) for row in rows]
            for row in leased:
                sql = (
                    "UPDATE email_outbox SET due_ts = ?, attempts = attempts + 1"
                    " WHERE email_nid = ?"
                )
                txn.execute(sql, (until, row.email_nid))
            return leased

        return await self._database.write("claim_due_emails", write)

    async def set_due(self, email_nid: int, due_ts: int) -> None:
        """Schedule the next try of an e-mail."""
        await self._database.write("set_email_due", _set_due, email_nid, due_ts)

    async def postpone(self, email_nid: int, due_ts: int, now: int, error: str) -> None:
        """Schedule the next try of an e-mail that could not be sent, and record the failure of its
        pusher."""

        def write(txn: WriteTransaction) -> None:
            _set_due(txn, email_nid, due_ts)
            _record_failure(txn, email_nid, now, error)

        await self._database.write("postpone_email", write)

    async def record_sent(self, email_nid: int, now: int) -> None:
        """Delete an e-mail that was sent, and record the success of its pusher."""

        def write(txn: WriteTransaction) -> None:
            sql = (
                "UPDATE pushers SET failing_since_ts = NULL, last_attempt_ts = ?,"
                " last_success_ts = ?, error"
                f" = NULL WHERE {_PUSHER}"
            )
            txn.execute(sql, (now, now, email_nid))
            _remove(txn, [email_nid])

        await self._database.write("record_sent_email", write)

    async def give_up(self, email_nid: int, now: int, error: str) -> None:
        """Delete an e-mail that cannot be sent, and record the failure of its pusher."""

        def write(txn: WriteTransaction) -> None:
            _record_failure(txn, email_nid, now, error)
            _remove(txn, [email_nid])

        await self._database.write("abandon_email", write)

    async def get_next_time(self) -> int | None:
        """Return the time at which the next e-mail is due, if there is one."""

        def read(txn: Transaction) -> int | None:
            row = txn.query_one("SELECT MIN(due_ts) FROM email_outbox")
            return None if row is None else row[0]

        return await self._database.read_quickly("get_next_email_time", read)


_PUSHER = "pusher_nid = (SELECT pusher_nid FROM email_outbox WHERE email_nid = ?)"


def _set_due(txn: WriteTransaction, email_nid: int, due_ts: int) -> None:
    txn.execute("UPDATE email_outbox SET due_ts = ? WHERE email_nid = ?", (due_ts, email_nid))


def _record_failure(txn: WriteTransaction, email_nid: int, now: int, error: str) -> None:
    sql = (
        "UPDATE pushers SET failing_since_ts = COALESCE(failing_since_ts, ?),"
        f" last_attempt_ts = ?, error = ? WHERE {_PUSHER}"
    )
    txn.execute(sql, (now, now, error, email_nid))


def withdraw_notification_emails(txn: WriteTransaction, event_nids: Collection[int]) -> None:
    """Delete the unsent e-mails with these events, which lose their content."""
    rows = txn.query_in(
        "SELECT email_nid FROM email_outbox_events WHERE event_nid IN {keys}", event_nids
    )
    if rows:
        _withdraw(txn, sorted({nid for (nid,) in rows}))


def _withdraw(txn: WriteTransaction, email_nids: Collection[int]) -> None:
    pushers = txn.query_in(
        "SELECT previous_position, pusher_nid FROM email_outbox"
        " WHERE pusher_nid IS NOT NULL AND email_nid IN {keys}",
        email_nids,
    )
    sql = "UPDATE pushers SET position = ?, due_ts = 0 WHERE pusher_nid = ? AND position > ?"
    txn.execute_many(sql, [(position, pusher_nid, position) for position, pusher_nid in pushers])
    _remove(txn, email_nids)


def _remove(txn: WriteTransaction, email_nids: Collection[int]) -> None:
    keys = [(nid,) for nid in email_nids]
    txn.execute_many("DELETE FROM email_outbox WHERE email_nid = ?", keys)
    txn.execute_many("DELETE FROM email_outbox_events WHERE email_nid = ?", keys)
