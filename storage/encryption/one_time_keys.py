"""One-time keys, in blocks: keys that a device uploads together are few rows, and are given out
from the first on.

A block does not change. How far it is given out stands in its mark, a row of a few bytes: the marks
of hundreds of devices share a page.

A key that was given out stays in its block until all keys of the block were. With the next upload a
digest replaces it, which is kept for some time, or until many others were used. So an upload that
is repeated because its answer was lost does not bring the key back, even if other uploads came in
between.

Laws:
- A key is given out once: a claim moves the mark of the block past the key in the write that gives
  it out. Writes run one after another, on all nodes (`storage/engine/writer.py`).
- Keys are given out in the order in which they came. spec:
  client-server-api#post_matrixclientv3keysclaim
- A claim is one statement, however many devices it names.
- A block is small, whatever is uploaded: SQLite reads the whole of it for a claim.
- An upload reads the ids of the keys that are left, and digests of a bounded number of those that
  are not. It reads contents only where an id comes again, and once for the digest.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from hashlib import sha256
from struct import Struct
from typing import Final

import msgspec

from storage.engine.interface import Row
from storage.engine.transaction import Transaction, WriteTransaction

DIGEST_BYTES: Final = 16
KEYS_A_BLOCK: Final = 100
BYTES_A_BLOCK: Final = 32 << 10
"""Of keys, each padded to the longest. A single key may be longer."""
MOST_REMEMBERED: Final = 2000
"""Keys of a device that were given out, of blocks that are used up: an upload looks at all of
them."""
KeyOf = tuple[str, str, str]
"""User, device, algorithm."""

KeyName = tuple[str, str]
"""Algorithm and id."""


class KeyExists(Exception):
    """Another one-time key has this id."""

    def __init__(self, name: KeyName, old: bytes, new: bytes) -> None:
        super().__init__(":".join(name))
        self.old, self.new = old, new


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
    def is_empty(self) -> bool:
        """Whether it has no keys, and only says that the device is to publish some
        (`empty_blocks`)."""
        return self.names == "[]"

    @property
    def left(self) -> int:
        """How many can be given out."""
        return 0 if self.is_empty else self.number - self.taken


BLOCK_COLUMNS: Final = "b.algorithm, b.block_nid, b.number, m.taken, m.claimed_ts, b.names"
BLOCKS: Final = "one_time_key_blocks AS b JOIN one_time_key_marks AS m ON m.block_nid = b.block_nid"

_NEXT_KEY: Final = (
    f"SELECT b.block_nid AS found_key, substr(b.keys, m.taken * b.width + 1, b.width) FROM {BLOCKS}"
    " WHERE b.user_id = ? AND b.device_id = ? AND b.algorithm = ? AND m.taken < b.number"
    " AND b.width > 0"
    " ORDER BY b.block_nid LIMIT 1"
)
_MOVE_MARKS: Final = (
    "UPDATE one_time_key_marks SET taken = taken + 1, claimed_ts = ? WHERE block_nid IN {keys}"
)

_slot = msgspec.json.Decoder(dict[str, msgspec.Raw])
_names = msgspec.json.Decoder(list[str])
_used = Struct(f">q{DIGEST_BYTES}s")
"""When a key was given out, and its digest."""


def add_keys(
    txn: WriteTransaction,
    user_id: str,
    device_id: str,
    blocks: Sequence[KeyBlock],
    used: bytes,
    keys: Mapping[KeyName, bytes],
    remembered_from_ts: int,
) -> dict[str, int]:
    """Add keys to a device that has these blocks. Return how many are new, by algorithm. Raises
    KeyExists.

    The same key again is neither an error nor new. One query, if an id comes again or a block is
    used up.

    `used`: digests of keys that were given out. `remembered_from_ts`: older digests are dropped.
    """
    contents = _select_contents(txn, user_id, device_id, blocks, keys)
    remembered = [(claimed_ts, digest) for claimed_ts, digest in _used.iter_unpack(used)]
    just_used: list[tuple[int, bytes]] = []
    standing: dict[KeyName, list[tuple[bytes, bool]]] = {}
    for block in blocks:
        for place, (key_id, content, content_digest) in enumerate(
            contents.get(block.block_nid, ())
        ):
            name = (block.algorithm, key_id)
            if block.left == 0:
                just_used.append((block.claimed_ts, _digest(name, content_digest)))
            elif name in keys:
                standing.setdefault(name, []).append((content, place < block.taken))
    digests = {digest for _, digest in (*remembered, *just_used)}
    new: dict[str, dict[str, bytes]] = {}
    for (algorithm, key_id), content in (
        _without(keys, digests, standing) if digests or standing else keys
    ).items():
        new.setdefault(algorithm, {})[key_id] = content
    if new:
        _insert_blocks(txn, user_id, device_id, new)
        _remember(txn, user_id, device_id, blocks, remembered, just_used, remembered_from_ts)
    return {algorithm: len(of_algorithm) for algorithm, of_algorithm in new.items()}


def take_keys(txn: WriteTransaction, wishes: Sequence[KeyOf], now_ms: int) -> list[bytes | None]:
    """Give out a key for each of these different wishes: `"ID":CONTENT` in JSON, None where no key
    is left. One query."""
    found = txn.query_each_changing(_NEXT_KEY, wishes, _MOVE_MARKS, (now_ms,))
    return [rows[0][1].rstrip(b" ") if rows else None for rows in found]


def remove_keys(txn: WriteTransaction, user_id: str, device_id: str) -> None:
    """Remove all one-time keys of a device, and the digests of those that were given out."""
    of_device = " WHERE user_id = ? AND device_id = ?"
    for sql in (
        "DELETE FROM one_time_key_marks WHERE block_nid IN (SELECT block_nid"
        f" FROM one_time_key_blocks{of_device})",
        f"DELETE FROM one_time_key_blocks{of_device}",
        f"DELETE FROM used_one_time_keys{of_device}",
    ):
        txn.execute_later(sql, (user_id, device_id))


def empty_blocks(txn: WriteTransaction) -> None:
    """Take all keys away, and leave each device that has published some a block without any: so it
    counts as one that has a key, until it publishes others. One that is told of none might not do
    that: some clients take zero for unchanged."""
    txn.execute(
        "DELETE FROM one_time_key_blocks WHERE EXISTS (SELECT 1 FROM one_time_key_blocks AS o"
        " WHERE o.user_id = one_time_key_blocks.user_id"
        " AND o.device_id = one_time_key_blocks.device_id"
        " AND o.algorithm = one_time_key_blocks.algorithm"
        " AND o.block_nid < one_time_key_blocks.block_nid)"
    )
    txn.execute(
        "UPDATE one_time_key_blocks SET number = 1, width = 0, names = '[]', keys = ?", (b"",)
    )
    txn.execute("DELETE FROM one_time_key_marks")
    txn.execute(
        "INSERT INTO one_time_key_marks (block_nid, claimed_ts, taken) SELECT block_nid, 0, 0"
        " FROM one_time_key_blocks"
    )


def _without(
    keys: Mapping[KeyName, bytes],
    digests: Collection[bytes],
    standing: Mapping[KeyName, Sequence[tuple[bytes, bool]]],
) -> dict[KeyName, bytes]:
    """Those of the keys that are neither among the digests of keys that were given out, nor among
    these that stand in blocks, each with its content and whether it was given out. Raises
    KeyExists."""
    new: dict[KeyName, bytes] = {}
    for name, content in keys.items():
        is_again = bool(digests) and _digest(name, _digest_content(content)) in digests
        for before, is_taken in standing.get(name, ()):
            if before == content:
                is_again = True
            elif not is_taken:
                raise KeyExists(name, before, content)
        if not is_again:
            new[name] = content
    return new


def _select_contents(
    txn: Transaction,
    user_id: str,
    device_id: str,
    blocks: Sequence[KeyBlock],
    keys: Mapping[KeyName, bytes],
) -> dict[int, list[tuple[str, bytes, bytes]]]:
    """The keys of the blocks that are used up, or have the id of one of these keys: the ids, with
    the contents (empty where only a digest is left) and digests of these."""
    wanted = [
        block.block_nid
        for block in blocks
        if block.left == 0
        or any((block.algorithm, key_id) in keys for key_id in _names.decode(block.names))
    ]
    rows: Iterable[Row] = txn.query_in(
        "SELECT block_nid, width, names, keys FROM one_time_key_blocks"
        " WHERE user_id = ? AND device_id = ?"
        " AND block_nid IN {keys}",
        wanted,
        before=(user_id, device_id),
    )
    found: dict[int, list[tuple[str, bytes, bytes]]] = {}
    for block_nid, width, names, packed in rows:
        if width:
            slots = [_unpack(packed[at : at + width]) for at in range(0, len(packed), width)]
            found[block_nid] = [
                (key_id, content, _digest_content(content)) for key_id, content in slots
            ]
        else:
            found[block_nid] = [(key_id, b"", packed) for key_id in _names.decode(names)]
    return found


def _insert_blocks(
    txn: WriteTransaction, user_id: str, device_id: str, new: Mapping[str, Mapping[str, bytes]]
) -> None:
    """Add the keys, by algorithm and id."""
    blocks = [(algorithm, slots) for algorithm, keys in new.items() for slots in _divide(keys)]
    first = txn.allocate("one_time_key", len(blocks))
    for block_nid, (algorithm, slots) in enumerate(blocks, first):
        width = max(map(len, slots.values()))
        packed = b"".join([slot.ljust(width) for slot in slots.values()])
        txn.execute_later(
            "INSERT INTO one_time_key_blocks (user_id, device_id, algorithm, block_nid, number,"
            " width, names, keys)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                user_id,
                device_id,
                algorithm,
                block_nid,
                len(slots),
                width,
                msgspec.json.encode(list(slots)).decode(),
                packed,
            ),
        )
        txn.execute_later(
            "INSERT INTO one_time_key_marks (block_nid, claimed_ts, taken) VALUES (?, 0, 0)",
            (block_nid,),
        )


def _divide(keys: Mapping[str, bytes]) -> list[dict[str, bytes]]:
    """Keys by id as they are written down, in blocks."""
    encode = msgspec.json.encode
    slots = {key_id: b"%b:%b" % (encode(key_id), content) for key_id, content in keys.items()}
    if len(slots) <= KEYS_A_BLOCK and len(slots) * max(map(len, slots.values())) <= BYTES_A_BLOCK:
        return [slots]
    blocks: list[dict[str, bytes]] = []
    width = 0
    for key_id, slot in slots.items():
        width = max(width, len(slot))
        if (
            not blocks
            or len(blocks[-1]) == KEYS_A_BLOCK
            or (len(blocks[-1]) + 1) * width > BYTES_A_BLOCK
        ):
            blocks.append({})
            width = len(slot)
        blocks[-1][key_id] = slot
    return blocks


def _remember(
    txn: WriteTransaction,
    user_id: str,
    device_id: str,
    blocks: Sequence[KeyBlock],
    remembered: Sequence[tuple[int, bytes]],
    just_used: Sequence[tuple[int, bytes]],
    from_ts: int,
) -> None:
    """Put digests in the place of what is used up, and forget what was given out before then, and
    beyond so many the oldest."""
    kept = sorted(each for each in (*remembered, *just_used) if each[0] >= from_ts)[
        -MOST_REMEMBERED:
    ]
    used_up = [block.block_nid for block in blocks if block.left == 0]
    if used_up:
        txn.execute_in_later("DELETE FROM one_time_key_marks WHERE block_nid IN {keys}", used_up)
        txn.execute_in_later(
            "DELETE FROM one_time_key_blocks WHERE user_id = ? AND device_id = ?"
            " AND block_nid IN {keys}",
            used_up,
            before=(user_id, device_id),
        )
    if just_used or len(kept) < len(remembered):
        txn.execute_later(
            "INSERT INTO used_one_time_keys (user_id, device_id, used) VALUES (?, ?, ?)"
            " ON CONFLICT (user_id, device_id) DO UPDATE SET used = excluded.used",
            (user_id, device_id, b"".join([_used.pack(*each) for each in kept])),
        )


def _unpack(slot: bytes) -> tuple[str, bytes]:
    """The id and the content of one key."""
    name, _, content = slot.partition(b'":')
    if b"\\" not in name:
        return name[1:].decode(), content.rstrip(b" ")
    ((key_id, raw),) = _slot.decode(b"{%b}" % slot).items()
    return key_id, bytes(raw)


def _digest_content(content: bytes) -> bytes:
    return sha256(content).digest()[:DIGEST_BYTES]


def _digest(name: KeyName, content_digest: bytes) -> bytes:
    return sha256(msgspec.json.encode(name) + content_digest).digest()[:DIGEST_BYTES]
