"""One-time keys, in blocks: what a device uploads together is one row, and is given out from the first on.

A key that was given out stays in its block until all of the block were given out and some time has passed, or many later blocks
were used up: so an upload that is
repeated because its answer was lost does not bring it back, though others came in between.

Laws:
- A key is given out once: a claim moves the mark in its block, in one write, and writes run one after another, on all nodes.
- Keys are given out in the order in which they came. spec: client-server-api#post_matrixclientv3keysclaim
- However many keys are claimed, it is one statement for each few hundred of them.
- An upload reads ids, and contents only where an id comes again.
"""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any, Final

import msgspec

from storage.engine import Row
from storage.transaction import Transaction, WriteTransaction

DIGEST_BYTES: Final = 16
MOST_REMEMBERED: Final = 300
"""Blocks of a device that are used up: an upload looks at all of them."""
FORGOTTEN_AT_ONCE: Final = 500
"""Blocks, by one upload."""

KeyName = tuple[str, str]
"""Algorithm and id."""


class KeyExists(Exception):
    """Another one-time key has this id."""

    def __init__(self, algorithm: str, key_id: str) -> None:
        super().__init__(f"{algorithm}:{key_id}")


class KeyBlock(msgspec.Struct, frozen=True):
    """A block of keys of a device, without the keys."""

    algorithm: str
    block_nid: int
    number: int
    taken: int
    """How many of them were given out, from the first on."""
    claimed_ts: int
    names: str
    """Their ids, a JSON array."""

    @property
    def left(self) -> int:
        """How many can be given out."""
        return self.number - self.taken


BLOCK_COLUMNS: Final = "algorithm, block_nid, number, taken, claimed_ts, names"

_slot = msgspec.json.Decoder(dict[str, msgspec.Raw])
_names = msgspec.json.Decoder(list[str])


def add_keys(
    txn: WriteTransaction,
    user_id: str,
    device_id: str,
    blocks: Sequence[KeyBlock],
    keys: Mapping[KeyName, bytes],
) -> dict[str, int]:
    """Add keys to a device that has these blocks; how many are new, by algorithm. The same one again is no error, nor is it
    new. Raises KeyExists."""
    known = _select_known(txn, user_id, device_id, blocks, keys)
    new: dict[str, dict[str, bytes]] = {}
    for (algorithm, key_id), content in keys.items():
        is_again = False
        for before, is_taken in known.get((algorithm, key_id), ()):
            if before == content or (is_taken and before == _digest(content)):
                is_again = True
            elif not is_taken:
                raise KeyExists(algorithm, key_id)
        if not is_again:
            new.setdefault(algorithm, {})[key_id] = content
    if new:
        first = txn.allocate("one_time_key", len(new))
        for block_nid, (algorithm, of_block) in enumerate(new.items(), first):
            width, packed = _pack(of_block)
            txn.execute_later(
                "INSERT INTO one_time_key_blocks (user_id, device_id, algorithm, block_nid, number, taken, used_up,"
                " claimed_ts, width, names, keys) VALUES (?, ?, ?, ?, ?, 0, 0, 0, ?, ?, ?)",
                (
                    user_id,
                    device_id,
                    algorithm,
                    block_nid,
                    len(of_block),
                    width,
                    msgspec.json.encode(list(of_block)).decode(),
                    packed,
                ),
            )
    return {algorithm: len(of_block) for algorithm, of_block in new.items()}


def forget_taken(
    txn: WriteTransaction, user_id: str, device_id: str, blocks: Iterable[KeyBlock], before_ts: int
) -> None:
    """Forget those of these blocks whose keys were all given out before then, and beyond so many of them the oldest."""
    used_up = sorted((block for block in blocks if block.left == 0), key=lambda block: block.claimed_ts, reverse=True)
    gone = [block for at, block in enumerate(used_up) if at >= MOST_REMEMBERED or block.claimed_ts < before_ts]
    for block in gone[:FORGOTTEN_AT_ONCE]:
        txn.execute_later(
            "DELETE FROM one_time_key_blocks WHERE user_id = ? AND device_id = ? AND algorithm = ? AND block_nid = ?",
            (user_id, device_id, block.algorithm, block.block_nid),
        )


def take_keys(
    txn: WriteTransaction, wishes: Sequence[tuple[str, str, str]], now_ms: int
) -> list[tuple[str, str, str, str, bytes]]:
    """Give out a key for each (user, device, algorithm) that has one: with these its id and content."""
    rows = txn.query_with(
        "wishes",
        ("of_user", "of_device", "of_algorithm"),
        wishes,
        # the oldest are found once: PostgreSQL would look for each of them three times
        ", oldest AS MATERIALIZED (SELECT of_user, of_device, of_algorithm, (SELECT min(k.block_nid)"
        " FROM one_time_key_blocks AS k WHERE k.user_id = of_user AND k.device_id = of_device"
        " AND k.algorithm = of_algorithm AND k.used_up = 0) AS nid FROM wishes)"
        " UPDATE one_time_key_blocks SET taken = taken + 1, claimed_ts = ?,"
        " used_up = CASE WHEN taken + 1 = number THEN 1 ELSE 0 END FROM oldest"
        " WHERE user_id = of_user AND device_id = of_device AND algorithm = of_algorithm AND block_nid = nid"
        " RETURNING user_id, device_id, algorithm, substr(keys, (taken - 1) * width + 1, width)",
        (now_ms,),
    )
    return [(user_id, device_id, algorithm, *_unpack(slot)) for user_id, device_id, algorithm, slot in rows]


def _select_known(
    txn: Transaction, user_id: str, device_id: str, blocks: Sequence[KeyBlock], keys: Mapping[KeyName, Any]
) -> dict[KeyName, list[tuple[bytes, bool]]]:
    """What is in the blocks by the names of these keys, or its digest, and whether it was given out."""
    places: dict[tuple[str, int], dict[int, str]] = {}
    for block in blocks:
        names = _names.decode(block.names)
        at = {place: key_id for place, key_id in enumerate(names) if (block.algorithm, key_id) in keys}
        if at:
            places[block.algorithm, block.block_nid] = at
    taken = {(block.algorithm, block.block_nid): block.taken for block in blocks}
    rows: Iterable[Row] = txn.query_in(
        "SELECT algorithm, block_nid, width, keys FROM one_time_key_blocks WHERE user_id = ? AND device_id = ?"
        " AND block_nid IN {keys}",
        (block_nid for _, block_nid in places),
        before=(user_id, device_id),
    )
    known: dict[KeyName, list[tuple[bytes, bool]]] = {}
    for algorithm, block_nid, width, packed in rows:
        for place, key_id in places.get((algorithm, block_nid), {}).items():
            content = packed
            if width:
                _, content = _unpack(packed[place * width : (place + 1) * width])
            known.setdefault((algorithm, key_id), []).append((content, place < taken[algorithm, block_nid]))
    return known


def _pack(keys: Mapping[str, bytes]) -> tuple[int, bytes]:
    """Keys by id, each in as many bytes as the longest takes; how many that is."""
    slots = [b"%b:%b" % (msgspec.json.encode(key_id), content) for key_id, content in keys.items()]
    width = max(map(len, slots))
    return width, b"".join([slot.ljust(width) for slot in slots])


def _unpack(slot: bytes) -> tuple[str, bytes]:
    """The id and the content of one key."""
    name, _, content = slot.partition(b'":')
    if b"\\" not in name:
        return name[1:].decode(), content.rstrip(b" ")
    ((key_id, raw),) = _slot.decode(b"{%b}" % slot).items()
    return key_id, bytes(raw)


def _digest(content: bytes) -> bytes:
    return sha256(content).digest()[:DIGEST_BYTES]
