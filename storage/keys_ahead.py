"""The one-time keys that are given out next, in memory: what a block has never changes, so nobody need be asked for it.

Laws:
- What is here is committed, or of the write that runs and undone with it: so a number of a block stands for that block and no other.
- How many of a block were given out is believed in the same stretch of writes alone (`WriteTransaction.stretch`); else the database
  decides (`storage/one_time_keys.py`), and what is here may be behind what other nodes gave out, or of a device that has gone.
- What is here is bounded; what was not used for longest goes first.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from functools import partial
from sys import getsizeof
from typing import Final, TypeVar

import msgspec

from storage.transaction import WriteTransaction

KeyOf = tuple[str, str, str]
"""User, device, algorithm."""
W = TypeVar("W", bound=KeyOf)
"""Whose key is wanted."""

MOST_BYTES: Final = 16 << 20
BYTES_BESIDE: Final = 500
"""What a run takes besides its keys and the names of whose they are, nearly."""


class KeyRun(msgspec.Struct, gc=False):
    """Keys of a block that follow one another."""

    block_nid: int
    first: int
    """How many of the block come before them."""
    width: int
    keys: bytes
    """Each with spaces up to the width; after the last may stand a part of another."""
    taken: int = 0
    """How many of the block were given out, if that is of this stretch."""
    stretch: int | None = None

    @property
    def end(self) -> int:
        """How many of the block come before what is behind them."""
        return self.first + len(self.keys) // self.width

    def at(self, place: int) -> bytes:
        """`"ID":CONTENT` in JSON of the key that has so many before it in the block; empty where it is not among these, as nobody sees who
        does not let a database forget what it had committed."""
        if not self.first <= place < self.end:
            return b""
        start = (place - self.first) * self.width
        return self.keys[start : start + self.width].rstrip(b" ")


class KeysAhead:
    """Of devices of our users, the keys of the block that is given out now, or some of them. For the writer's thread."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._devices: OrderedDict[tuple[str, str], dict[str, KeyRun]] = OrderedDict()

    def get_all(self, wanted: Iterable[W]) -> dict[W, KeyRun]:
        """What is known of these."""
        devices = self._devices
        found: dict[W, KeyRun] = {}
        for of in wanted:
            device = of[:2]
            if device in devices:
                devices.move_to_end(device)
                run = devices[device].get(of[2])
                if run is not None:
                    found[of] = run
        return found

    def put(self, txn: WriteTransaction, of: KeyOf, run: KeyRun) -> None:
        """Know that from now on, unless the write is undone."""
        self.remove(of)
        txn.when_undone(partial(self.remove, of))
        self._devices.setdefault(of[:2], {})[of[2]] = run
        self._devices.move_to_end(of[:2])
        self._bytes += _compute_bytes(of, run)
        while self._bytes > self._most_bytes:
            self.forget(*next(iter(self._devices)))

    def forget(self, user_id: str, device_id: str) -> None:
        """Know nothing of a device."""
        runs = self._devices.pop((user_id, device_id), {})
        self._bytes -= sum([_compute_bytes((user_id, device_id, algorithm), run) for algorithm, run in runs.items()])

    def remove(self, of: KeyOf) -> None:
        """Know nothing of that from now on."""
        runs = self._devices.get(of[:2], {})
        run = runs.pop(of[2], None)
        if run is not None:
            self._bytes -= _compute_bytes(of, run)
            if not runs:
                del self._devices[of[:2]]


def note_marks(txn: WriteTransaction, marks: Mapping[int, int], runs: Iterable[KeyRun]) -> None:
    """So many of their blocks are given out now, unless the write is undone."""
    moved = [run for run in runs if run.block_nid in marks]
    for run in moved:
        run.taken, run.stretch = marks[run.block_nid], txn.stretch
    txn.when_undone(partial(_forget_marks, moved))


def _forget_marks(runs: Iterable[KeyRun]) -> None:
    for run in runs:
        run.stretch = None


def _compute_bytes(of: KeyOf, run: KeyRun) -> int:
    """The names are clients' choice, and may be long."""
    return len(run.keys) + sum(map(getsizeof, of)) + BYTES_BESIDE
