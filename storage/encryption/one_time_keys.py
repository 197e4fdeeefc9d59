"""One-time keys, stored in blocks. The keys of one upload share a few rows, and are claimed in
order.

A block does not change. The number of its claimed keys is in a separate row of a few bytes, the
mark. So a claim writes only a few bytes, and the marks of hundreds of devices share a page of the
database.

A claimed key stays in its block until all keys of the block are claimed. The device's next upload
then replaces the block by digests of its keys. A digest is deleted after some time, or earlier if
the device has more than `MAX_USED_DIGESTS` newer ones. So if the response to an upload is lost and
the client repeats the upload, a claimed key does not become claimable again, even after other
uploads.

Laws:
- A key is given out once: the write that claims it moves the mark of the block past the key. The
  writes of all nodes run one after another (`storage/engine/writer.py`).
- Keys are claimed in the order in which they were uploaded. spec:
  client-server-api#post_matrixclientv3keysclaim
- A claim of up to `MAX_CHUNK` keys is one query. (On SQLite, which runs in the process, it is a
  query for each key and one update.)
- A block is small, however many keys are uploaded, because SQLite reads the complete block for a
  claim.
- An upload reads the IDs of the remaining keys, and a bounded number of digests. It reads the
  contents of a block only if one of its IDs is uploaded again, or if all its keys are claimed, to
  compute the digests.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from hashlib import sha256
from struct import Struct
from typing import Final

import msgspec

from storage.engine.interface import Row
from storage.engine.transaction import Transaction, WriteTransaction

DIGEST_BYTES: Final = 16
BLOCK_KEYS: Final = 100
BLOCK_BYTES: Final = 32 << 10
"""The most bytes of keys in a block, each padded to the longest. A single key may be longer."""
MAX_USED_DIGESTS: Final = 2000
"""The most digests of claimed keys of a device. An upload compares with all of them."""
KeyRequest = tuple[str, str, str]
"""A request for a key: user ID, device ID, algorithm."""

KeyName = tuple[str, str]
"""Algorithm and key ID."""


class KeyExists(Exception):
    """The device has another one-time key with this ID."""

    def __init__(self, name: KeyName, old: bytes, new: bytes) -> None:
        super().__init__(":".join(name))
        self.old, self.new = old, new


class KeyBlock(msgspec.Struct, frozen=True):
    """The metadata of a block: its key IDs and how many of its keys are claimed."""

    algorithm: str
    block_nid: int
    key_count: int
    claimed: int
    """The number of claimed keys, from the first on."""
    claimed_ts: int
    key_ids: str
    """The key IDs, a JSON array."""

    @property
    def is_placeholder(self) -> bool:
        """Return whether the block is a placeholder without keys, which makes the device publish
        some. See `replace_by_placeholders`."""
        return self.key_ids == "[]"

    @property
    def remaining(self) -> int:
        """Return the number of keys that can be claimed."""
        return 0 if self.is_placeholder else self.key_count - self.claimed


BLOCK_COLUMNS: Final = "b.algorithm, b.block_nid, b.key_count, m.claimed, m.claimed_ts, b.key_ids"
BLOCKS: Final = (
    "one_time_key_blocks AS b JOIN one_time_key_claims AS m ON m.block_nid = b.block_nid"
)

_NEXT_KEY: Final = (
    f"SELECT b.block_nid AS found_key, substr(b.keys, m.claimed * b.width + 1, b.width)"
    f" FROM {BLOCKS}"
    " WHERE b.user_id = ? AND b.device_id = ? AND b.algorithm = ? AND m.claimed < b.key_count"
    " AND b.width > 0"
    " ORDER BY b.block_nid LIMIT 1"
)
_MOVE_MARKS: Final = (
    "UPDATE one_time_key_claims SET claimed = claimed + 1, claimed_ts = ? WHERE block_nid IN {keys}"
)

_slot = msgspec.json.Decoder(dict[str, msgspec.Raw])
_names = msgspec.json.Decoder(list[str])
_used = Struct(f">q{DIGEST_BYTES}s")
"""Packs the time of a claim and the digest of the key."""


def add_keys(
    txn: WriteTransaction,
    user_id: str,
    device_id: str,
    blocks: Sequence[KeyBlock],
    used: bytes,
    keys: Mapping[KeyName, bytes],
    digests_from_ts: int,
) -> dict[str, int]:
    """Add keys to a device that has these blocks. Return the number of new keys by algorithm.
    Raises KeyExists.

    The same key again is neither an error nor new. One query, if an ID is uploaded again or a block
    is used up.

    `used`: digests of claimed keys. `digests_from_ts`: older digests are dropped.
    """
    contents = _select_contents(txn, user_id, device_id, blocks, keys)
    stored = [(claimed_ts, digest) for claimed_ts, digest in _used.iter_unpack(used)]
    just_used: list[tuple[int, bytes]] = []
    present: dict[KeyName, list[tuple[bytes, bool]]] = {}
    for block in blocks:
        for index, (key_id, content, content_digest) in enumerate(
            contents.get(block.block_nid, ())
        ):
            name = (block.algorithm, key_id)
            if block.remaining == 0:
                just_used.append((block.claimed_ts, _digest(name, content_digest)))
            elif name in keys:
                present.setdefault(name, []).append((content, index < block.claimed))
    digests = {digest for _, digest in (*stored, *just_used)}
    new: dict[str, dict[str, bytes]] = {}
    for (algorithm, key_id), content in (
        _filter_new(keys, digests, present) if digests or present else keys
    ).items():
        new.setdefault(algorithm, {})[key_id] = content
    if new:
        _insert_blocks(txn, user_id, device_id, new)
        _store_digests(txn, user_id, device_id, blocks, stored, just_used, digests_from_ts)
    return {algorithm: len(of_algorithm) for algorithm, of_algorithm in new.items()}


def claim_keys(
    txn: WriteTransaction, requests: Sequence[KeyRequest], now_ms: int
) -> list[bytes | None]:
    """Claim a key for each of these distinct requests: `"ID":CONTENT` in JSON, None if no key is
    left. One query."""
    found = txn.query_each_and_change(_NEXT_KEY, requests, _MOVE_MARKS, (now_ms,))
    return [rows[0][1].rstrip(b" ") if rows else None for rows in found]


def remove_keys(txn: WriteTransaction, user_id: str, device_id: str) -> None:
    """Remove all one-time keys of a device, and the digests of claimed keys."""
    of_device = " WHERE user_id = ? AND device_id = ?"
    for sql in (
        "DELETE FROM one_time_key_claims WHERE block_nid IN (SELECT block_nid"
        f" FROM one_time_key_blocks{of_device})",
        f"DELETE FROM one_time_key_blocks{of_device}",
        f"DELETE FROM used_one_time_keys{of_device}",
    ):
        txn.execute_later(sql, (user_id, device_id))


def replace_by_placeholders(txn: WriteTransaction) -> None:
    """Remove all keys, and leave a placeholder block for each device and algorithm. The device then
    counts as having one key until it publishes more. A count of zero might not make it publish:
    some clients treat zero as unchanged."""
    txn.execute(
        "DELETE FROM one_time_key_blocks WHERE EXISTS (SELECT 1 FROM one_time_key_blocks AS o"
        " WHERE o.user_id = one_time_key_blocks.user_id"
        " AND o.device_id = one_time_key_blocks.device_id"
        " AND o.algorithm = one_time_key_blocks.algorithm"
        " AND o.block_nid < one_time_key_blocks.block_nid)"
    )
    txn.execute(
        "UPDATE one_time_key_blocks SET key_count = 1, width = 0, key_ids = '[]', keys = ?", (b"",)
    )
    txn.execute("DELETE FROM one_time_key_claims")
    txn.execute(
        "INSERT INTO one_time_key_claims (block_nid, claimed_ts, claimed) SELECT block_nid, 0, 0"
        " FROM one_time_key_blocks"
    )


def _filter_new(
    keys: Mapping[KeyName, bytes],
    digests: Collection[bytes],
    present: Mapping[KeyName, Sequence[tuple[bytes, bool]]],
) -> dict[KeyName, bytes]:
    """Return the keys that are neither claimed, by their digests, nor in the present blocks
    (content, and whether it was claimed). Raises KeyExists."""
    new: dict[KeyName, bytes] = {}
    for name, content in keys.items():
        is_repeated = bool(digests) and _digest(name, _digest_content(content)) in digests
        for before, is_claimed in present.get(name, ()):
            if before == content:
                is_repeated = True
            elif not is_claimed:
                raise KeyExists(name, before, content)
        if not is_repeated:
            new[name] = content
    return new


def _select_contents(
    txn: Transaction,
    user_id: str,
    device_id: str,
    blocks: Sequence[KeyBlock],
    keys: Mapping[KeyName, bytes],
) -> dict[int, list[tuple[str, bytes, bytes]]]:
    """Return the keys of the blocks that are used up or contain one of these IDs: each ID with its
    content (empty if only a digest is left) and its digest."""
    relevant = [
        block.block_nid
        for block in blocks
        if block.remaining == 0
        or any((block.algorithm, key_id) in keys for key_id in _names.decode(block.key_ids))
    ]
    rows: Iterable[Row] = txn.query_in(
        "SELECT block_nid, width, key_ids, keys FROM one_time_key_blocks"
        " WHERE user_id = ? AND device_id = ?"
        " AND block_nid IN {keys}",
        relevant,
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
    """Add keys, by algorithm and ID."""
    blocks = [(algorithm, slots) for algorithm, keys in new.items() for slots in _divide(keys)]
    first = txn.allocate("one_time_key", len(blocks))
    for block_nid, (algorithm, slots) in enumerate(blocks, first):
        width = max(map(len, slots.values()))
        packed = b"".join([slot.ljust(width) for slot in slots.values()])
        txn.execute_later(
            "INSERT INTO one_time_key_blocks (user_id, device_id, algorithm, block_nid, key_count,"
            " width, key_ids, keys)"
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
            "INSERT INTO one_time_key_claims (block_nid, claimed_ts, claimed) VALUES (?, 0, 0)",
            (block_nid,),
        )


def _divide(keys: Mapping[str, bytes]) -> list[dict[str, bytes]]:
    """Encode keys by ID and divide them into blocks."""
    encode = msgspec.json.encode
    slots = {key_id: b"%b:%b" % (encode(key_id), content) for key_id, content in keys.items()}
    if len(slots) <= BLOCK_KEYS and len(slots) * max(map(len, slots.values())) <= BLOCK_BYTES:
        return [slots]
    blocks: list[dict[str, bytes]] = []
    width = 0
    for key_id, slot in slots.items():
        width = max(width, len(slot))
        if (
            not blocks
            or len(blocks[-1]) == BLOCK_KEYS
            or (len(blocks[-1]) + 1) * width > BLOCK_BYTES
        ):
            blocks.append({})
            width = len(slot)
        blocks[-1][key_id] = slot
    return blocks


def _store_digests(
    txn: WriteTransaction,
    user_id: str,
    device_id: str,
    blocks: Sequence[KeyBlock],
    stored: Sequence[tuple[int, bytes]],
    just_used: Sequence[tuple[int, bytes]],
    from_ts: int,
) -> None:
    """Replace used-up blocks by digests. Drop digests that are older than `from_ts`, and the oldest
    above the limit."""
    newest = sorted(each for each in (*stored, *just_used) if each[0] >= from_ts)[
        -MAX_USED_DIGESTS:
    ]
    used_up = [block.block_nid for block in blocks if block.remaining == 0]
    if used_up:
        txn.execute_in_later("DELETE FROM one_time_key_claims WHERE block_nid IN {keys}", used_up)
        txn.execute_in_later(
            "DELETE FROM one_time_key_blocks WHERE user_id = ? AND device_id = ?"
            " AND block_nid IN {keys}",
            used_up,
            before=(user_id, device_id),
        )
    if just_used or len(newest) < len(stored):
        txn.execute_later(
            "INSERT INTO used_one_time_keys (user_id, device_id, digests) VALUES (?, ?, ?)"
            " ON CONFLICT (user_id, device_id) DO UPDATE SET digests = excluded.digests",
            (user_id, device_id, b"".join([_used.pack(*each) for each in newest])),
        )


def _unpack(slot: bytes) -> tuple[str, bytes]:
    """Return the ID and the content of one key."""
    name, _, content = slot.partition(b'":')
    if b"\\" not in name:
        return name[1:].decode(), content.rstrip(b" ")
    ((key_id, raw),) = _slot.decode(b"{%b}" % slot).items()
    return key_id, bytes(raw)


def _digest_content(content: bytes) -> bytes:
    return sha256(content).digest()[:DIGEST_BYTES]


def _digest(name: KeyName, content_digest: bytes) -> bytes:
    return sha256(msgspec.json.encode(name) + content_digest).digest()[:DIGEST_BYTES]
