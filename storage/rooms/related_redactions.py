"""Redactions that also redact the events that relate to their target (MSC3912).

Such a redaction names relation types. For each of them a row is stored, the *request*: redact the
events that relate to the target with this type.

Laws:
- A request is stored in the write that redacts the target. It remains stored, because events that
  arrive later and relate to the target are redacted too.
- One node at a time redacts the events that already relate to the target. It holds a lease on the
  request, and `due_ts` is the expiry. If the node dies, another node continues after the expiry. If
  the first node then returns, it finds that it has lost the lease. A node also loses it if the
  same user redacts the target again, because this stores the request again.
"""

from collections.abc import Iterable
from typing import Final

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction

ANY_TYPE = "*"
"""Stands for all relation types."""
NEVER: Final = 2**62
"""Later than any due time."""


class RelatedRedaction(msgspec.Struct, frozen=True):
    """A request to redact the children of an event with one relation type. Times are milliseconds
    since 1970."""

    target: str
    sender: str
    rel_type: str
    room_nid: int
    reason: str | None
    only_own: bool = False
    """Redact only events of the redaction's sender."""
    due_ts: int | None = None
    """The expiry of the lease, or the time of the next attempt. None: the related events are
    redacted, or the node has given up."""
    attempts: int = 0
    """The number of consecutive failures."""


_COLUMNS = "target, sender, rel_type, room_nid, reason, only_own, due_ts, attempts"
_BY_KEY = "target = ? AND sender = ? AND rel_type = ?"


class RelatedRedactionStore:
    """Reads and writes the table `related_redactions`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def set_finished(self, request: RelatedRedaction) -> None:
        """Record that the lease holder has redacted the related events, or has given up."""
        await self._database.write("set_related_redactions_finished", _postpone, request, None, 0)

    async def postpone(self, request: RelatedRedaction, due_ts: int, attempts: int) -> None:
        """Schedule the next attempt after `attempts` failures."""
        await self._database.write(
            "postpone_related_redactions", _postpone, request, due_ts, attempts
        )

    async def reopen(self, request: RelatedRedaction, due_ts: int, attempts: int) -> None:
        """Schedule work for events that arrived after the request was finished. Does nothing if it
        is not finished."""
        await self._database.write("reopen_related_redactions", _reopen, request, due_ts, attempts)

    async def get_redactions(self, target: str) -> list[RelatedRedaction]:
        """Return the requests for an event."""
        return await self._database.read_quickly("get_related_redactions", _select, target)

    async def lease_due(self, now: int, until: int, limit: int) -> list[RelatedRedaction]:
        """Lease up to `limit` due requests until `until`."""
        if not await self._database.read_quickly("has_due_related_redactions", _select_due, now, 1):
            return []

        def write(txn: WriteTransaction) -> list[RelatedRedaction]:
            due = _select_due(txn, now, limit)
            for request in due:
                _postpone(txn, request, until, request.attempts)
            return [msgspec.structs.replace(request, due_ts=until) for request in due]

        return await self._database.write("lease_related_redactions", write)


def add_redactions(txn: WriteTransaction, redactions: Iterable[RelatedRedaction]) -> None:
    """Add requests, or renew existing ones; the result redacts what either request does."""
    txn.execute_many(
        f"INSERT INTO related_redactions ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, 0)"
        " ON CONFLICT (target, sender, rel_type) DO UPDATE"
        " SET due_ts = excluded.due_ts, attempts = 0, reason = excluded.reason,"
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


def _postpone(
    txn: WriteTransaction, request: RelatedRedaction, due_ts: int | None, attempts: int
) -> None:
    txn.execute(
        f"UPDATE related_redactions SET due_ts = ?, attempts = ? WHERE {_BY_KEY} AND due_ts = ?",
        (due_ts, attempts, request.target, request.sender, request.rel_type, request.due_ts),
    )


def _reopen(txn: WriteTransaction, request: RelatedRedaction, due_ts: int, attempts: int) -> None:
    txn.execute(
        f"UPDATE related_redactions SET due_ts = ?, attempts = ? WHERE {_BY_KEY}"
        f" AND due_ts IS NULL",
        (due_ts, attempts, request.target, request.sender, request.rel_type),
    )


def _select(txn: Transaction, target: str) -> list[RelatedRedaction]:
    return [
        _row(row)
        for row in txn.query(
            f"SELECT {_COLUMNS} FROM related_redactions WHERE target = ?", (target,)
        )
    ]


def _select_due(txn: Transaction, now: int, limit: int) -> list[RelatedRedaction]:
    sql = f"SELECT {_COLUMNS} FROM related_redactions WHERE due_ts <= ? ORDER BY due_ts LIMIT ?"
    return [_row(row) for row in txn.query(sql, (now, limit))]


def _row(row: tuple[str, str, str, int, str | None, int, int | None, int]) -> RelatedRedaction:
    return RelatedRedaction(*row[:5], bool(row[5]), *row[6:])
