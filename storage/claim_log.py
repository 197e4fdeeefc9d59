"""The log of claims of one-time keys: a row for each claim, which says how far the blocks are given out now that it took a key of.

How far a block is given out is otherwise what its mark says (`storage/one_time_keys.py`). A row costs a tenth of marks that are moved one
by one; so claims gather here, and at times the log is *settled*: all marks are moved to where it says, each once, and its rows go.

Laws:
- Of a block, that number holds which is largest: that of its mark, or that in the latest row. So who reads marks reads the log, too.
- A row is written only by who knows where the marks are, that is while no other process writes (`WriteTransaction.stretch`).
- The log is bounded, and reading it costs the same however many claims there were: what comes before `settled_claims` is not looked at.
"""

from collections.abc import Iterable, Sequence
from struct import Struct
from typing import Final

from storage.engine import Row
from storage.transaction import WriteTransaction

MOST_CLAIMS: Final = 64
MOST_MARKS: Final = 1000
"""In all rows, but for those of one claim."""

UNSETTLED: Final = "claim_nid > coalesce((SELECT upto FROM settled_claims), 0)"
"""Which rows of `key_claims` there can be: the index finds them, past those that went and that PostgreSQL has not yet cleared away."""
IS_SETTLED: Final = f"(SELECT count(*) FROM key_claims WHERE {UNSETTLED}) = 0"
"""Whether there is none; to find out if one EXISTS, PostgreSQL might begin to read the table."""
LOGGED: Final = f"SELECT claim_nid, claimed_ts, marks FROM key_claims WHERE {UNSETTLED}"
SETTLE: Final = (
    "UPDATE one_time_key_marks SET settled = ?, claimed_ts = ? WHERE block_nid = ? AND settled < ? RETURNING block_nid"
)
_mark = Struct(">qH")
_number = Struct(">q")


class ClaimLog:
    """Writes the log, and empties it. For the writer's thread."""

    def __init__(self) -> None:
        self._claims = 0
        self._marks = 0
        self._stretch: int | None = None
        """In which it is known what may be there at most."""

    def add(self, txn: WriteTransaction, position: int, now_ms: int, marks: Sequence[tuple[int, int]]) -> None:
        """Write down how many keys of these blocks, by number, are given out now. Settles first where the log has become long, or where it
        is not known how long it is; else no query."""
        if self._stretch != txn.stretch or self._claims >= MOST_CLAIMS or self._marks >= MOST_MARKS:
            self.settle(txn)
        self._claims += 1
        self._marks += len(marks)
        txn.execute_later(
            "INSERT INTO key_claims (claim_nid, claimed_ts, marks) VALUES (?, ?, ?)",
            (position, now_ms, b"".join([_mark.pack(*mark) for mark in marks])),
        )

    def settle(self, txn: WriteTransaction) -> None:
        """Move the marks to where the log says, and empty it. One query, and a fixed number more if there is anything; none where it is
        known to be empty."""
        if txn.stretch is not None and self._stretch == txn.stretch and not self._claims:
            return
        self._claims, self._marks, self._stretch = 0, 0, txn.stretch
        txn.when_undone(self._forget)
        rows = txn.query(LOGGED)
        if rows:
            latest = read_marks(rows)
            txn.change_each(SETTLE, (), [(taken, ts, block_nid, taken) for block_nid, (taken, ts) in latest.items()])
            positions = [row[0] for row in rows]
            txn.execute_later(
                "DELETE FROM key_claims WHERE claim_nid BETWEEN ? AND ?", (min(positions), max(positions))
            )
            txn.execute_later(
                "INSERT INTO settled_claims (id, upto) VALUES (0, ?) ON CONFLICT (id) DO UPDATE SET upto = excluded.upto",
                (max(positions),),
            )

    def _forget(self) -> None:
        self._stretch = None


def read_marks(rows: Iterable[Row]) -> dict[int, tuple[int, int]]:
    """Of rows of the log: how many of a block were given out, and when the latest was, by block."""
    return {
        block_nid: (taken, claimed_ts)
        for _, claimed_ts, marks in sorted(rows)
        for block_nid, taken in _mark.iter_unpack(marks)
    }


def find_marks(rows: Iterable[Row], block_nids: Iterable[int]) -> dict[int, tuple[int, int]]:
    """As `read_marks`, of these blocks alone: where they are few, it takes a fraction of that."""
    found: dict[int, tuple[int, int]] = {}
    latest_first = sorted(rows, reverse=True)
    for block_nid in block_nids:
        packed = _number.pack(block_nid)
        for _, claimed_ts, marks in latest_first:
            at = marks.find(packed)
            while at >= 0 and at % _mark.size:  # those bytes stand elsewhere too
                at = marks.find(packed, at + 1)
            if at >= 0:
                found[block_nid] = (_mark.unpack_from(marks, at)[1], claimed_ts)
                break
    return found
