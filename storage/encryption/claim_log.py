"""The log of claims of one-time keys: a row for each claim, which says how far the blocks are given
out now that it took a key of.

How far a block is given out is otherwise what its mark says
(`storage/encryption/one_time_keys.py`). A row costs a tenth of marks that are moved one by one; so
claims lie here, and at times what they say is *gathered* in one row, of each block once. Where that
is of too many blocks, or where other processes claim, the log is *settled*: all marks are moved to
where it says, and it is empty.

Laws:
- Of a block, that number holds which is largest: that of its mark, or that in the latest row. So
  who reads marks reads the log, too, or knows what is in it.
- A row is written only by who knows where the marks are, that is while no other process writes
  (`WriteTransaction.stretch`); and only where that is likely to stay so, as others would have to
  settle it (`WriteTransaction.is_alone`).
- The log is bounded, and reading it costs the same however many claims there were: rows that were
  gathered are not looked at.
"""

from collections.abc import Collection, Iterable
from itertools import starmap
from struct import Struct
from typing import Final

from storage.engine.interface import Row
from storage.engine.transaction import WriteTransaction

MOST_CLAIMS: Final = 128
MOST_MARKS: Final = 2000
"""In all rows that are not gathered, but for those of one claim."""
MOST_GATHERED: Final = 2000
"""Blocks. What is said of each is written again whenever claims are gathered."""

_UNGATHERED: Final = "claim_nid > coalesce((SELECT upto FROM gathered_claims), 0)"
"""Which rows of `key_claims` there can be: the index finds them, past those that went and that
PostgreSQL has not yet cleared away."""
IS_SETTLED: Final = f"(SELECT count(*) FROM key_claims WHERE {_UNGATHERED}) + (SELECT count(marks) FROM gathered_claims) = 0"
"""Whether there is none; to find out if one EXISTS, PostgreSQL might begin to read the table."""
LOGGED: Final = (
    f"SELECT claim_nid, claimed_ts, marks FROM key_claims WHERE {_UNGATHERED}"
    " UNION ALL SELECT upto, claimed_ts, marks FROM gathered_claims WHERE marks IS NOT NULL"
)
"""The rows by position. That which is gathered has the position of the latest claim in it."""
SETTLE: Final = "UPDATE one_time_key_marks SET settled = ?, claimed_ts = ? WHERE block_nid = ? AND settled < ? RETURNING block_nid"
_mark = Struct(">qH")
_number = Struct(">q")


class ClaimLog:
    """Writes the log, gathers and settles it, and knows what is in it. For the writer's thread."""

    def __init__(self) -> None:
        self._stretch: int | None = None
        """In which that holds which follows."""
        self._taken: dict[int, int] = {}
        """How many of a block were given out, as the log says, where its mark may say less."""
        self._claims = 0
        """Rows that are not gathered, at most."""
        self._marks = 0
        """In these, at most."""
        self._upto = 0
        """The position of the latest row."""
        self._claimed_ts = 0
        """That of the latest row."""

    def add(
        self, txn: WriteTransaction, position: int, now_ms: int, marks: Collection[tuple[int, int]]
    ) -> None:
        """Write down how many keys of these blocks, by number, are given out now. No query, but for
        the first of a stretch, and where the log has become long."""
        self.learn(txn)
        if self._claims >= MOST_CLAIMS or self._marks >= MOST_MARKS:
            self._gather(txn)
        self._taken.update(marks)
        self._claims += 1
        self._marks += len(marks)
        self._upto, self._claimed_ts = position, now_ms
        txn.execute_later(
            "INSERT INTO key_claims (claim_nid, claimed_ts, marks) VALUES (?, ?, ?)",
            (position, now_ms, _pack(marks)),
        )

    def learn(self, txn: WriteTransaction, found: Iterable[Row] | None = None) -> None:
        """See to it that all is known; unless the write is undone. A query where it is not, and its
        rows were not `found`."""
        txn.when_undone(self._forget)
        if self.is_known(txn):
            return
        rows = sorted(txn.query(LOGGED) if found is None else found)
        latest = read_marks(rows)
        self._taken = {block_nid: taken for block_nid, (taken, _) in latest.items()}
        self._claims = len(rows)
        self._marks = sum(len(marks) for _, _, marks in rows) // _mark.size
        self._upto, self._claimed_ts, _ = rows[-1] if rows else (0, 0, b"")
        self._stretch = txn.stretch

    def is_known(self, txn: WriteTransaction) -> bool:
        """Whether all that is in the log is in memory."""
        return txn.stretch is not None and self._stretch == txn.stretch

    def find_known(self, block_nids: Iterable[int]) -> dict[int, tuple[int, int]]:
        """As `find_marks`, where all is known; no block was last claimed later than it says."""
        taken = self._taken
        return {
            block_nid: (taken[block_nid], self._claimed_ts)
            for block_nid in block_nids
            if block_nid in taken
        }

    def find_taken(self, block_nid: int) -> int:
        """How many of a block were given out, where all is known: as many, or as its mark says, if
        that is more."""
        return self._taken.get(block_nid, 0)

    def settle(self, txn: WriteTransaction) -> None:
        """Move all marks to where the log says, and empty it. A query where it is not known, and a
        fixed number where there is anything."""
        self.learn(txn)
        self.settle_some(txn, [*self._taken])
        if self._upto:
            self._replace(txn, b"")

    def settle_some(self, txn: WriteTransaction, block_nids: Iterable[int]) -> None:
        """Move the marks of these blocks to where the log says, if it does; for who knows the
        log."""
        known = self.find_known(block_nids)
        if known:
            txn.change_each(
                SETTLE,
                (),
                [(taken, ts, block_nid, taken) for block_nid, (taken, ts) in known.items()],
            )
            for block_nid in known:
                del self._taken[block_nid]

    def _gather(self, txn: WriteTransaction) -> None:
        if len(self._taken) > MOST_GATHERED:
            self.settle(txn)
        else:
            self._replace(txn, _pack(self._taken.items()))

    def _replace(self, txn: WriteTransaction, marks: bytes) -> None:
        """Let that stand for all rows."""
        txn.execute_later(f"DELETE FROM key_claims WHERE {_UNGATHERED}")
        txn.execute_later(
            "INSERT INTO gathered_claims (id, upto, claimed_ts, marks) VALUES (0, ?, ?, ?)"
            " ON CONFLICT (id) DO UPDATE SET upto = excluded.upto, claimed_ts = excluded.claimed_ts, marks = excluded.marks",
            (self._upto, self._claimed_ts, marks or None),
        )
        self._claims = self._marks = 0
        if not marks:
            self._upto = 0

    def _forget(self) -> None:
        self._stretch = None


def _pack(marks: Iterable[tuple[int, int]]) -> bytes:
    return b"".join(starmap(_mark.pack, marks))


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
