"""Letters that are to be sent, until they are: over restarts, and by one node at a time.

Who takes letters puts off when they are due, so that nobody else takes them meanwhile; if it dies,
they are due again.

A letter about what somebody missed has the text of messages: where one of them loses its content,
the write that takes it takes the letter too, and the pusher is set back, so that another letter
tells of the rest.
"""

from collections.abc import Collection, Sequence

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction


class OutgoingMailRow(msgspec.Struct, frozen=True):
    """A letter, encoded. Times are milliseconds since 1970."""

    mail_nid: int
    created_ts: int
    attempts: int
    recipient: str
    message: bytes


class LetterOf(msgspec.Struct, frozen=True):
    """What a letter tells that is about what somebody missed."""

    pusher_nid: int
    told_position: int
    """Up to where the letter before it had told."""
    event_nids: Collection[int]


class OutgoingMailStore:
    """The table of letters."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_mail(
        self,
        txn: WriteTransaction,
        recipient: str,
        message: bytes,
        now: int,
        tells: LetterOf | None = None,
    ) -> None:
        """Queue a letter."""
        mail_nid = txn.allocate("mail")
        sql = (
            "INSERT INTO outgoing_mail (mail_nid, next_ts, created_ts, attempts, recipient,"
            " message, pusher_nid, told_position)"
            " VALUES (?, ?, ?, 0, ?, ?, ?, ?)"
        )
        pusher = (None, None) if tells is None else (tells.pusher_nid, tells.told_position)
        txn.execute(sql, (mail_nid, now, now, recipient, message, *pusher))
        if tells is not None:
            sql = "INSERT INTO outgoing_mail_events (event_nid, mail_nid) VALUES (?, ?)"
            txn.execute_many(sql, [(nid, mail_nid) for nid in sorted(set(tells.event_nids))])

    async def get_told(self, mail_nid: int) -> tuple[int | None, list[int]] | None:
        """For which pusher a letter was written, None for another kind of letter, and the numbers
        of the events that it tells, if it tells any; None for a letter that waits no longer."""

        def read(txn: Transaction) -> tuple[int | None, list[int]] | None:
            rows = txn.query(
                "SELECT m.pusher_nid, e.event_nid FROM outgoing_mail AS m"
                " LEFT JOIN outgoing_mail_events AS e ON e.mail_nid = m.mail_nid"
                " WHERE m.mail_nid = ? ORDER BY e.event_nid",
                (mail_nid,),
            )
            return (rows[0][0], [nid for _, nid in rows if nid is not None]) if rows else None

        return await self._database.read_quickly("get_told_events", read)

    async def withdraw_mail(self, mail_nid: int) -> None:
        """A letter tells what is to be told no longer: another will tell the rest."""
        await self._database.write("withdraw_mail", _withdraw, [mail_nid])

    async def take_due(self, now: int, until: int, limit: int) -> Sequence[OutgoingMailRow]:
        """Up to `limit` letters that are due, oldest first; nobody else is given them before
        `until`."""

        def write(txn: WriteTransaction) -> list[OutgoingMailRow]:
            rows = txn.query(
                "SELECT mail_nid, created_ts, attempts, recipient, message FROM outgoing_mail"
                " WHERE next_ts <= ?"
                " ORDER BY next_ts LIMIT ?",
                (now, limit),
            )
            taken = [OutgoingMailRow(*row) for row in rows]
            for row in taken:
                sql = (
                    "UPDATE outgoing_mail SET next_ts = ?, attempts = attempts + 1"
                    " WHERE mail_nid = ?"
                )
                txn.execute(sql, (until, row.mail_nid))
            return taken

        return await self._database.write("take_mail", write)

    async def set_due(self, mail_nid: int, next_ts: int) -> None:
        """Try a letter again then."""
        await self._database.write("set_mail_due", _set_due, mail_nid, next_ts)

    async def put_off(self, mail_nid: int, next_ts: int, now: int, error: str) -> None:
        """A letter was not taken: try it again then. The pusher that it was written for fails."""

        def write(txn: WriteTransaction) -> None:
            _set_due(txn, mail_nid, next_ts)
            _note_failure(txn, mail_nid, now, error)

        await self._database.write("put_off_mail", write)

    async def note_sent(self, mail_nid: int, now: int) -> None:
        """A letter was taken."""

        def write(txn: WriteTransaction) -> None:
            sql = (
                "UPDATE pushers SET failing_since_ts = NULL, tried_ts = ?, success_ts = ?, error"
                f" = NULL WHERE {_PUSHER}"
            )
            txn.execute(sql, (now, now, mail_nid))
            _remove(txn, [mail_nid])

        await self._database.write("remove_mail", write)

    async def give_up(self, mail_nid: int, now: int, error: str) -> None:
        """A letter is sent to nobody. The pusher that it was written for fails."""

        def write(txn: WriteTransaction) -> None:
            _note_failure(txn, mail_nid, now, error)
            _remove(txn, [mail_nid])

        await self._database.write("give_up_mail", write)

    async def get_next_time(self) -> int | None:
        """When the next letter is due, if there is one."""

        def read(txn: Transaction) -> int | None:
            row = txn.query_one("SELECT MIN(next_ts) FROM outgoing_mail")
            return None if row is None else row[0]

        return await self._database.read_quickly("get_next_mail", read)


_PUSHER = "pusher_nid = (SELECT pusher_nid FROM outgoing_mail WHERE mail_nid = ?)"


def _set_due(txn: WriteTransaction, mail_nid: int, next_ts: int) -> None:
    txn.execute("UPDATE outgoing_mail SET next_ts = ? WHERE mail_nid = ?", (next_ts, mail_nid))


def _note_failure(txn: WriteTransaction, mail_nid: int, now: int, error: str) -> None:
    sql = (
        "UPDATE pushers SET failing_since_ts = COALESCE(failing_since_ts, ?),"
        f" tried_ts = ?, error = ? WHERE {_PUSHER}"
    )
    txn.execute(sql, (now, now, error, mail_nid))


def withdraw_letters(txn: WriteTransaction, event_nids: Collection[int]) -> None:
    """These events lose their content: no letter tells it that was not sent yet."""
    rows = txn.query_in(
        "SELECT mail_nid FROM outgoing_mail_events WHERE event_nid IN {keys}", event_nids
    )
    if rows:
        _withdraw(txn, sorted({nid for (nid,) in rows}))


def _withdraw(txn: WriteTransaction, mail_nids: Collection[int]) -> None:
    pushers = txn.query_in(
        "SELECT told_position, pusher_nid FROM outgoing_mail"
        " WHERE pusher_nid IS NOT NULL AND mail_nid IN {keys}",
        mail_nids,
    )
    sql = "UPDATE pushers SET position = ?, due_ts = 0 WHERE pusher_nid = ? AND position > ?"
    txn.execute_many(sql, [(position, pusher_nid, position) for position, pusher_nid in pushers])
    _remove(txn, mail_nids)


def _remove(txn: WriteTransaction, mail_nids: Collection[int]) -> None:
    keys = [(nid,) for nid in mail_nids]
    txn.execute_many("DELETE FROM outgoing_mail WHERE mail_nid = ?", keys)
    txn.execute_many("DELETE FROM outgoing_mail_events WHERE mail_nid = ?", keys)
