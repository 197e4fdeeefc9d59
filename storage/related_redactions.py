"""Redactions that take along what relates to their target."""

from collections.abc import Iterable

import msgspec

from storage.database import Database
from storage.transaction import Transaction, WriteTransaction

ANY_TYPE = "*"
"""Stands for all types of relations."""


class RelatedRedaction(msgspec.Struct, frozen=True):
    """That children of an event, by one type of relation, are redacted too."""

    target: str
    sender: str
    rel_type: str
    room_nid: int
    reason: str | None


_COLUMNS = "target, sender, rel_type, room_nid, reason"


class RelatedRedactionStore:
    """The table of such redactions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def set_finished(self, target: str, sender: str) -> None:
        """All that was there has been redacted."""
        await self._database.write("set_related_redactions_finished", _finish, target, sender)

    async def get_redactions(self, target: str) -> list[RelatedRedaction]:
        """What was noted of an event."""
        return await self._database.read_quickly("get_related_redactions", _select, target)

    async def get_unfinished(self) -> list[RelatedRedaction]:
        """What was not done when the server stopped."""
        return await self._database.read("get_unfinished_redactions", _select_unfinished)


def add_redactions(txn: WriteTransaction, redactions: Iterable[RelatedRedaction]) -> None:
    """Note what is to be done, anew if it was noted before."""
    txn.execute_many(
        f"INSERT INTO related_redactions ({_COLUMNS}, finished) VALUES (?, ?, ?, ?, ?, 0)"
        " ON CONFLICT (target, sender, rel_type) DO UPDATE SET finished = 0, reason = excluded.reason",
        [(each.target, each.sender, each.rel_type, each.room_nid, each.reason) for each in redactions],
    )


def _finish(txn: WriteTransaction, target: str, sender: str) -> None:
    txn.execute("UPDATE related_redactions SET finished = 1 WHERE target = ? AND sender = ?", (target, sender))


def _select(txn: Transaction, target: str) -> list[RelatedRedaction]:
    return [
        RelatedRedaction(*row)
        for row in txn.query(f"SELECT {_COLUMNS} FROM related_redactions WHERE target = ?", (target,))
    ]


def _select_unfinished(txn: Transaction) -> list[RelatedRedaction]:
    rows = txn.query(f"SELECT {_COLUMNS} FROM related_redactions WHERE finished = 0 ORDER BY target, sender, rel_type")
    return [RelatedRedaction(*row) for row in rows]
