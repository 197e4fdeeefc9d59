"""The one-time keys that are given out next, in memory: what a block has never changes, so nobody need be asked for it.

Laws:
- Which key is given out the database decides, whatever is here (`storage/one_time_keys.py`): what is here may be behind what other
  nodes gave out, or of a device that has gone.
- What is put here is committed, so that a number of a block stands for that block and no other.
- What is here is bounded; what was not used for longest goes first.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable
from sys import getsizeof
from typing import Final

import msgspec

KeyOf = tuple[str, str, str]
"""User, device, algorithm."""

MOST_BYTES: Final = 16 << 20
BYTES_BESIDE: Final = 500
"""What a run takes besides its keys and the names of whose they are, nearly."""


class KeyRun(msgspec.Struct, frozen=True, gc=False):
    """Keys of a block that follow one another."""

    block_nid: int
    first: int
    """How many of the block come before them."""
    width: int
    keys: bytes
    """Each with spaces up to the width; after the last may stand a part of another."""

    def at(self, place: int) -> bytes:
        """`"ID":CONTENT` in JSON of the key that has so many before it in the block; empty where it is not among these, as nobody sees who
        does not let a database forget what it had committed."""
        start = (place - self.first) * self.width
        return self.keys[start : start + self.width].rstrip(b" ") if start >= 0 else b""


class KeysAhead:
    """Of devices of our users, the keys of the block that is given out now, or some of them. For the reactor thread."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._runs: OrderedDict[KeyOf, KeyRun] = OrderedDict()

    def get_all(self, wanted: Iterable[KeyOf]) -> dict[KeyOf, KeyRun]:
        """What is known of these."""
        runs = self._runs
        found = {of: runs[of] for of in wanted if of in runs}
        deque(map(runs.move_to_end, found), maxlen=0)
        return found

    def put(self, of: KeyOf, run: KeyRun | None) -> None:
        """Know that from now on; None: nothing."""
        before = self._runs.pop(of, None)
        if before is not None:
            self._bytes -= _compute_bytes(of, before)
        if run is None:
            return
        self._runs[of] = run
        self._bytes += _compute_bytes(of, run)
        while self._bytes > self._most_bytes:
            self._bytes -= _compute_bytes(*self._runs.popitem(last=False))


def _compute_bytes(of: KeyOf, run: KeyRun) -> int:
    """The names are clients' choice, and may be long."""
    return len(run.keys) + sum(map(getsizeof, of)) + BYTES_BESIDE
