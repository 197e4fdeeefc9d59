"""Claims of one-time keys as they came, a row each: how far blocks are given out that have not been settled in their marks.

A row is a tenth of what marks cost that are moved one by one. It may be written only by who knows where the marks are, that is while nobody
else writes (`WriteTransaction.stretch`); everybody reads it.

Laws:
- Of a block, that number holds which is largest: in its mark, or in any row.
- What lies here is bounded, so that who reads marks may read all of it.
"""

from collections.abc import Iterable, Mapping
from struct import Struct
from typing import Final

from storage.engine import Row
from storage.transaction import WriteTransaction

MOST_CLAIMS: Final = 64
MOST_MARKS: Final = 1000
"""In all rows, but for those of one claim."""

LOGGED: Final = "SELECT claim_nid, claimed_ts, marks FROM key_claims"
SETTLE: Final = (
    "UPDATE one_time_key_marks SET settled = ?, claimed_ts = ? WHERE block_nid = ? AND settled < ? RETURNING block_nid"
)
_mark = Struct(">qH")


class ClaimLog:
    """Writes the log, and empties it. For the writer's thread."""

    def __init__(self) -> None:
        self._claims = 0
        self._marks = 0
        self._stretch: int | None = None
        """In which it is known what may be there at most."""

    def add(self, txn: WriteTransaction, position: int, now_ms: int, marks: Mapping[int, int]) -> None:
        """Write down how many of these blocks are given out now; no query, but one or two where the log has become long, or it is not known
        how long."""
        if self._stretch != txn.stretch or self._claims >= MOST_CLAIMS or self._marks >= MOST_MARKS:
            self.settle(txn)
        self._claims += 1
        self._marks += len(marks)
        txn.execute_later(
            "INSERT INTO key_claims (claim_nid, claimed_ts, marks) VALUES (?, ?, ?)",
            (position, now_ms, b"".join([_mark.pack(*mark) for mark in marks.items()])),
        )

    def settle(self, txn: WriteTransaction) -> None:
        """Move the marks by what is in the log, and empty it. One query, and another if there is anything; none where it is known to be
        empty."""
        if txn.stretch is not None and self._stretch == txn.stretch and not self._claims:
            return
        self._claims, self._marks, self._stretch = 0, 0, txn.stretch
        txn.when_undone(self._forget)
        rows = txn.query(LOGGED)
        if rows:
            latest = read_marks(rows)
            txn.change_each(SETTLE, (), [(taken, ts, block_nid, taken) for block_nid, (taken, ts) in latest.items()])
            txn.execute_later("DELETE FROM key_claims WHERE claim_nid <= ?", (max(row[0] for row in rows),))

    def _forget(self) -> None:
        self._stretch = None


def read_marks(rows: Iterable[Row]) -> dict[int, tuple[int, int]]:
    """Of rows of the log: how many of a block were given out, and when the latest was, by block."""
    latest: dict[int, tuple[int, int]] = {}
    for _, claimed_ts, marks in rows:
        for block_nid, taken in _mark.iter_unpack(marks):
            if block_nid not in latest or latest[block_nid][0] < taken:
                latest[block_nid] = (taken, claimed_ts)
    return latest
