"""The one-time keys that are given out next, in memory: what a block has never changes, so nobody
need be asked for it.

Laws:
- What is here is committed, or of the write that runs and undone with it: so a number of a block
  stands for that block and no other.
- How many of a block were given out, and who has no key left, is believed in the same stretch of
  writes alone (`WriteTransaction.stretch`); else the database decides
  (`storage/encryption/one_time_keys.py`), and what is here may be behind what other nodes gave out,
  or of a device that has gone.
- What is here is bounded; of whom nothing came for longest goes first.
"""

from collections import OrderedDict
from collections.abc import Iterable
from functools import partial
from sys import getsizeof
from typing import Final

import msgspec

from storage.engine.transaction import WriteTransaction

KeyOf = tuple[str, str, str]
"""User, device, algorithm."""

MOST_BYTES: Final = 16 << 20
MOST_WITHOUT: Final = 10_000
LONGEST_WITHOUT: Final = 3 * 255
"""Characters: no device of ours has longer names, and whoever claims may make some up."""
BYTES_BESIDE: Final = 700
"""What a run takes besides its keys and the names of whose they are, nearly."""


class KeyRun(msgspec.Struct, gc=False):
    """Keys of a block that follow one another."""

    block_nid: int
    first: int
    """How many of the block come before them."""
    number: int
    """How many keys the block has."""
    width: int
    keys: bytes
    """Each with spaces up to the width; after the last may stand a part of another."""
    taken: int = 0
    """How many of the block were given out, in that stretch."""
    stretch: int | None = None

    @property
    def end(self) -> int:
        """How many of the block come before what is behind them."""
        return self.first + len(self.keys) // self.width

    @property
    def left(self) -> int:
        """How many of the block are not given out."""
        return self.number - self.taken

    def has(self, taken: int) -> bool:
        """Whether the key is among these before which so many of the block come."""
        return self.first <= taken < self.end

    def take(self) -> bytes:
        """`"ID":CONTENT` in JSON of the key that comes next, which is given out now; empty where it
        is not among these."""
        start = (self.taken - self.first) * self.width
        end = start + self.width
        if start < 0 or end > len(self.keys):
            return b""
        self.taken += 1
        return self.keys[start:end].rstrip(b" ")


class KeysAhead:
    """Of devices of our users, the keys of the block that is given out now, or some of them. For
    the writer's thread."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._runs: dict[KeyOf, KeyRun] = {}
        """In the order in which they came."""
        self._algorithms: dict[tuple[str, str], set[str]] = {}
        """Of which something is known, by user and device."""
        self._without: OrderedDict[KeyOf, int] = OrderedDict()
        """Of which no key is left, and the stretch in which that is so."""

    def get_all(self, wanted: Iterable[KeyOf]) -> list[KeyRun | None]:
        """What is known of each of these."""
        return [*map(self._runs.get, wanted)]

    def have_none(self, txn: WriteTransaction, of: KeyOf) -> bool:
        """Whether it is known that none is left."""
        return txn.stretch is not None and self._without.get(of) == txn.stretch

    def note_none(self, txn: WriteTransaction, of: KeyOf) -> None:
        """Know that none is left, unless the write is undone. Of a device that is away, and has its
        fallback key alone, all ask again and again."""
        if txn.stretch is not None and sum(map(len, of)) <= LONGEST_WITHOUT:
            txn.when_undone(partial(self._forget_none, of))
            self._without[of] = txn.stretch
            if len(self._without) > MOST_WITHOUT:
                self._without.popitem(last=False)

    def put(self, txn: WriteTransaction, of: KeyOf, run: KeyRun) -> None:
        """Know that from now on, unless the write is undone."""
        self.remove(of)
        self._forget_none(of)
        txn.when_undone(partial(self.remove, of))
        user_id, device_id, algorithm = of
        self._runs[of] = run
        self._algorithms.setdefault((user_id, device_id), set()).add(algorithm)
        self._bytes += _compute_bytes(of, run)
        while self._bytes > self._most_bytes:
            self.remove(next(iter(self._runs)))

    def _forget_none(self, of: KeyOf) -> None:
        self._without.pop(of, None)

    def forget(self, user_id: str, device_id: str) -> None:
        """Know nothing of a device."""
        for algorithm in [*self._algorithms.get((user_id, device_id), ())]:
            self.remove((user_id, device_id, algorithm))

    def remove(self, of: KeyOf) -> None:
        """Know nothing of that from now on."""
        run = self._runs.pop(of, None)
        if run is not None:
            self._bytes -= _compute_bytes(of, run)
            user_id, device_id, algorithm = of
            algorithms = self._algorithms[user_id, device_id]
            algorithms.remove(algorithm)
            if not algorithms:
                del self._algorithms[user_id, device_id]


def forget_marks(runs: Iterable[KeyRun | None]) -> None:
    """How many of their blocks were given out is not known any more."""
    for run in runs:
        if run is not None:
            run.stretch = None


def _compute_bytes(of: KeyOf, run: KeyRun) -> int:
    """The names are clients' choice, and may be long."""
    return len(run.keys) + sum(map(getsizeof, of)) + BYTES_BESIDE
