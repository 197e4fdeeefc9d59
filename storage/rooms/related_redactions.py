"""Redactions that take along what relates to their target.

Laws:
- They are noted in the write that redacts the target, and stay: what comes later is to go too.
- Whoever is at what was there at the time has it to themselves until a time. If they end without a
  word, others go on then; if they come back after that, or it was noted anew meanwhile, they find
  that it is not theirs any more.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction

ANY_TYPE = "*"
"""Stands for all types of relations."""
ALL_TIMES: Final = 2**62
"""Later than any time at which something is due."""


class RelatedRedaction(msgspec.Struct, frozen=True):
    """That children of an event, by one type of relation, are redacted too. Times are milliseconds
    since 1970."""

    target: str
    sender: str
    rel_type: str
    room_nid: int
    reason: str | None
    only_own: bool = False
    """Only those that the sender has sent."""
    due_ts: int | None = None
    """Until when somebody is at what was there at the time; None: that is done."""
    tries: int = 0
    """That were in vain, one after the other."""


_COLUMNS = "target, sender, rel_type, room_nid, reason, only_own, due_ts, tries"
_IS_IT = "target = ? AND sender = ? AND rel_type = ?"


class RelatedRedactionStore:
    """The table of such redactions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def set_finished(self, note: RelatedRedaction) -> None:
        """All that was there has been redacted, by whoever took it."""
        await self._database.write("set_related_redactions_finished", _put_off, note, None, 0)

    async def put_off(self, note: RelatedRedaction, due_ts: int, tries: int) -> None:
        """Somebody is to go on then, after so many tries in vain."""
        await self._database.write("put_related_redactions_off", _put_off, note, due_ts, tries)

    async def reopen(self, note: RelatedRedaction, due_ts: int, tries: int) -> None:
        """Something has come since it was done with which somebody is to go on then; nothing where
        it is not done."""
        await self._database.write("reopen_related_redactions", _reopen, note, due_ts, tries)

    async def get_redactions(self, target: str) -> list[RelatedRedaction]:
        """What was noted of an event."""
        return await self._database.read_quickly("get_related_redactions", _select, target)

    async def take_due(self, now: int, until: int, limit: int) -> list[RelatedRedaction]:
        """Up to so many that are due; they are the caller's until then."""
        if not await self._database.read_quickly("has_related_redactions", _select_due, now, 1):
            return []

        def write(txn: WriteTransaction) -> list[RelatedRedaction]:
            due = _select_due(txn, now, limit)
            for note in due:
                _put_off(txn, note, until, note.tries)
            return [msgspec.structs.replace(note, due_ts=until) for note in due]

        return await self._database.write("take_related_redactions", write)


def add_redactions(txn: WriteTransaction, redactions: Iterable[RelatedRedaction]) -> None:
    """Note what is to be done, anew if it was noted before; it takes along what either does."""
    txn.execute_many(
        f"INSERT INTO related_redactions ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, 0)"
        " ON CONFLICT (target, sender, rel_type) DO UPDATE SET due_ts = excluded.due_ts, tries = 0, reason = excluded.reason,"
        " only_own = related_redactions.only_own * excluded.only_own",
        [
            (
                each.target,
                each.sender,
                each.rel_type,
                each.room_nid,
                each.reason,
                int(each.only_own),
                each.due_ts,
            )
            for each in redactions
        ],
    )


def _put_off(txn: WriteTransaction, note: RelatedRedaction, due_ts: int | None, tries: int) -> None:
    txn.execute(
        f"UPDATE related_redactions SET due_ts = ?, tries = ? WHERE {_IS_IT} AND due_ts = ?",
        (due_ts, tries, note.target, note.sender, note.rel_type, note.due_ts),
    )


def _reopen(txn: WriteTransaction, note: RelatedRedaction, due_ts: int, tries: int) -> None:
    txn.execute(
        f"UPDATE related_redactions SET due_ts = ?, tries = ? WHERE {_IS_IT} AND due_ts IS NULL",
        (due_ts, tries, note.target, note.sender, note.rel_type),
    )


def _select(txn: Transaction, target: str) -> list[RelatedRedaction]:
    return [
        _note(row)
        for row in txn.query(
            f"SELECT {_COLUMNS} FROM related_redactions WHERE target = ?", (target,)
        )
    ]


def _select_due(txn: Transaction, now: int, limit: int) -> list[RelatedRedaction]:
    sql = f"SELECT {_COLUMNS} FROM related_redactions WHERE due_ts <= ? ORDER BY due_ts LIMIT ?"
    return [_note(row) for row in txn.query(sql, (now, limit))]


def _note(row: tuple[str, str, str, int, str | None, int, int | None, int]) -> RelatedRedaction:
    return RelatedRedaction(*row[:5], bool(row[5]), *row[6:])
