"""One-time keys, in blocks: what a device uploads together is few rows, and is given out from the
first on.

Blocks do not change. How far each is given out stands beside it, in rows that are a few bytes, and
the rows of hundreds of devices share a page. Where the keys that come next are known from before
(`storage/encryption/keys_ahead.py`), a claim moves these marks and reads nothing; while nobody else
writes, it is even known where they are, and the claim is one row, which is settled in the marks
later (`storage/encryption/claim_log.py`).

A key that was given out stays in its block until all of the block were. With the next upload a
digest takes its place, which is kept until some time has passed, or many others were used: so an
upload that is repeated because its answer was lost does not bring it back, though others came in
between.

Laws:
- A key is given out once: a claim moves the mark of its block from the key that it gives out to the
  next. Where the mark was the database says, but where nobody else has written since it was known.
  Writes run one after another, on all nodes (`storage/engine/writer.py`).
- A mark holds if no claim is in the log, or with the log. Who moves marks themselves sees to it
  that the log is empty.
- Keys are given out in the order in which they came. spec:
  client-server-api#post_matrixclientv3keysclaim
- However many keys a write claims, it asks the database nothing, or a fixed number of times.
- A block that is known is the oldest of which a key is left, or none of it is left: marks go one
  way, and what is uploaded later is younger.
- A block is small, whatever is uploaded: SQLite reads the whole of it for a claim.
- An upload reads the ids of the keys that are left, and digests of a bounded number of those that
  are not; contents only where an id comes again, or for its digest, once.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from hashlib import sha256
from struct import Struct
from typing import Final

import msgspec

from storage.encryption.claim_log import IS_SETTLED, ClaimLog
from storage.encryption.keys_ahead import KeyOf, KeyRun, KeysAhead, forget_marks
from storage.engine.interface import Row
from storage.engine.transaction import Transaction, WriteTransaction

DIGEST_BYTES: Final = 16
KEYS_A_BLOCK: Final = 100
BYTES_A_BLOCK: Final = 32 << 10
"""Of keys, each padded to the longest. A single key may be longer."""
MOST_REMEMBERED: Final = 2000
"""Keys of a device that were given out, of blocks that are used up: an upload looks at all of
them."""
READ_AHEAD: Final = 1536
"""Bytes that a claim reads after a key that it has to read: several keys, as clients make them."""
MOST_READ_AHEAD: Final = 512 << 10
"""Bytes that it reads after those that had been read before, all together, unless these are of very
many devices."""

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


BLOCK_COLUMNS: Final = "b.algorithm, b.block_nid, b.number, m.settled, m.claimed_ts, b.names"
BLOCKS: Final = "one_time_key_blocks AS b JOIN one_time_key_marks AS m ON m.block_nid = b.block_nid"

MOVE_MARK: Final = (
    "UPDATE one_time_key_marks SET settled = settled + 1, claimed_ts = ? WHERE block_nid = ? AND settled < ?"
    f" AND {IS_SETTLED} RETURNING block_nid, settled"
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
) -> tuple[dict[str, int], dict[str, KeyRun]]:
    """Add keys to a device that has these blocks, and of which it is remembered that these were
    used; how many are new, and those of the oldest block of these, by algorithm. The same one again
    is no error, nor is it new. One query, if an id comes again or a block is used up. Raises
    KeyExists.

    `remembered_from_ts`: what was given out before then is forgotten.
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
    first: dict[str, KeyRun] = {}
    if new:
        first = _insert_blocks(txn, user_id, device_id, new)
        _remember(txn, user_id, device_id, blocks, remembered, just_used, remembered_from_ts)
    return {algorithm: len(of_algorithm) for algorithm, of_algorithm in new.items()}, first


def take_keys(
    txn: WriteTransaction,
    wishes: Sequence[KeyOf],
    ahead: KeysAhead,
    log: ClaimLog,
    position: int,
    now_ms: int,
) -> list[bytes | None]:
    """Give out a key for each of these that have any: `"ID":CONTENT` in JSON. `position`: that of
    the claim. No query where all is known and nobody else writes, and at most six else."""
    known = ahead.get_all(wishes)
    txn.when_undone(partial(forget_marks, known))
    if not txn.is_alone:
        return _take_among_others(txn, wishes, known, ahead, log, now_ms)
    keys: list[bytes | None] = []
    marks: list[tuple[int, int]] = []
    for run in known:
        if run is not None and run.stretch == txn.stretch and (key := run.take()):
            keys.append(key)
            marks.append((run.block_nid, run.taken))
        else:
            keys.append(None)
    if None in keys:
        rest = [
            at
            for at, key in enumerate(keys)
            if key is None and not ahead.have_none(txn, wishes[at])
        ]
        for at, run in zip(
            rest, _find_runs(txn, {wishes[at]: known[at] for at in rest}, ahead, log), strict=True
        ):
            if run is not None and (key := run.take()):
                keys[at] = key
                marks.append((run.block_nid, run.taken))
    if marks:
        log.add(txn, position, now_ms, marks)
    return keys


def _find_runs(
    txn: WriteTransaction, known: Mapping[KeyOf, KeyRun | None], ahead: KeysAhead, log: ClaimLog
) -> list[KeyRun | None]:
    """The keys that come next, while nobody else writes, where what is known of them says nothing
    of that."""
    after: dict[KeyOf, int] = {}
    for of, run in known.items():
        if run is None or run.stretch != txn.stretch:
            after[of] = 0
        elif run.left == 0:
            after[of] = run.block_nid
    runs = dict(known)
    if after:
        for of, next_run in zip(after, _find_oldest(txn, after, log), strict=True):
            before = known[of]
            if next_run is None:
                ahead.remove(of)
                ahead.note_none(txn, of)
                runs[of] = None
            elif (
                before is not None
                and before.block_nid == next_run.block_nid
                and before.has(next_run.taken)
            ):
                before.taken, before.stretch = next_run.taken, txn.stretch
            else:
                runs[of] = next_run
                ahead.put(txn, of, next_run)
    behind = [(of, run) for of, run in runs.items() if run is not None and not run.has(run.taken)]
    if behind:
        _read_on(txn, behind, ahead)
    return [*runs.values()]


def _find_oldest(
    txn: WriteTransaction, after: Mapping[KeyOf, int], log: ClaimLog
) -> list[KeyRun | None]:
    """Of each of these the block that is given out now, the oldest after that one of which a key is
    left, and how far; with keys from where its mark stands, which may be before that."""
    log.learn(txn)
    rows = [(*of, block_nid) for of, block_nid in after.items()]
    found = _select_oldest(txn, rows, log)
    used_up = [at for at, run in enumerate(found) if run is not None and run.left == 0]
    if used_up:
        # only the log says so, and may say so of others of these as well
        of = [rows[at] for at in used_up]
        blocks = txn.query_each(
            "SELECT block_nid FROM one_time_key_blocks"
            " WHERE user_id = ? AND device_id = ? AND algorithm = ? AND block_nid > ?",
            of,
        )
        log.settle_some(txn, [block_nid for each in blocks for (block_nid,) in each])
        for at, run in zip(used_up, _select_oldest(txn, of, log), strict=True):
            found[at] = run
    return found


def _select_oldest(
    txn: WriteTransaction, after: Sequence[tuple[str, str, str, int]], log: ClaimLog
) -> list[KeyRun | None]:
    """By the marks, and how far by the log, too."""
    runs: list[KeyRun | None] = []
    for rows in txn.query_each(f"SELECT b.block_nid, {_next_keys()}", after):
        run = None
        for block_nid, number, settled, width, packed in rows:
            taken = max(settled, log.find_taken(block_nid))
            run = KeyRun(block_nid, settled, number, width, packed, taken, txn.stretch)
        runs.append(run)
    return runs


def _read_on(
    txn: WriteTransaction, behind: Sequence[tuple[KeyOf, KeyRun]], ahead: KeysAhead
) -> None:
    """Read more of these blocks, of which it is known how far they are given out. Who was claimed
    from several times will be again: so it is the rest of each, if there is room for that."""
    room = max(READ_AHEAD, MOST_READ_AHEAD // len(behind))
    found = txn.query_each(
        "SELECT substr(keys, CAST(? AS INTEGER), CAST(? AS INTEGER)) FROM one_time_key_blocks"
        " WHERE user_id = ? AND device_id = ? AND algorithm = ? AND block_nid = ?",
        [(run.taken * run.width + 1, run.width + room, *of, run.block_nid) for of, run in behind],
    )
    for (of, run), rows in zip(behind, found, strict=True):
        for (packed,) in rows:
            ahead.remove(of)
            run.first, run.keys = run.taken, packed
            ahead.put(txn, of, run)


def _take_among_others(
    txn: WriteTransaction,
    wishes: Sequence[KeyOf],
    known: Sequence[KeyRun | None],
    ahead: KeysAhead,
    log: ClaimLog,
    now_ms: int,
) -> list[bytes | None]:
    """The next keys, where other nodes may have given out some since: the marks are moved."""
    keys = _move_marks(txn, known, now_ms)
    rest = [
        at for at, key in enumerate(keys) if key is None and not ahead.have_none(txn, wishes[at])
    ]
    if rest:
        others = _take_others(txn, [wishes[at] for at in rest], ahead, log, now_ms)
        for at, key in zip(rest, others, strict=True):
            keys[at] = key
    return keys


def _move_marks(
    txn: WriteTransaction, known: Sequence[KeyRun | None], now_ms: int
) -> list[bytes | None]:
    """The next keys of those of which it is known what comes next, but not that it does. Those are
    missing of which something else has become the next; all, where claims have not been settled. No
    query where nothing is known, or none of it is left."""
    runs = [run for run in known if run is not None]
    moved: dict[int, int] = {}
    if runs:
        moved = dict(
            txn.change_each(MOVE_MARK, (now_ms,), [(run.block_nid, run.end) for run in runs])
        )
    for run in runs:
        if run.block_nid in moved:
            run.taken, run.stretch = moved[run.block_nid] - 1, txn.stretch
    return [
        run.take() or None if run is not None and run.block_nid in moved else None for run in known
    ]


def _take_others(
    txn: WriteTransaction, wishes: Sequence[KeyOf], ahead: KeysAhead, log: ClaimLog, now_ms: int
) -> list[bytes | None]:
    """The next keys of those of which nothing is known, or what is no longer so."""
    log.settle(txn)
    found = txn.query_each_changing(
        f"SELECT b.block_nid AS found_key, {_next_keys()}",
        [(*wish, 0) for wish in wishes],
        "UPDATE one_time_key_marks SET settled = settled + 1, claimed_ts = ? WHERE block_nid IN {keys}",
        (now_ms,),
    )
    keys: list[bytes | None] = []
    for wish, rows in zip(wishes, found, strict=True):
        ahead.remove(wish)
        key = None
        for block_nid, number, taken, width, packed in rows:
            run = KeyRun(block_nid, taken, number, width, packed, taken, txn.stretch)
            key = run.take()
            ahead.put(txn, wish, run)
        if key is None:
            ahead.note_none(txn, wish)
        keys.append(key)
    return keys


def _next_keys() -> str:
    """Columns and the rest of a query for the block that is given out now, by the marks, of those
    after one: how many keys it has, how many of them were given out, their width, and those that
    come next."""
    return (
        f"b.number, m.settled, b.width, substr(b.keys, m.settled * b.width + 1, b.width + {READ_AHEAD}) FROM {BLOCKS}"
        " WHERE b.user_id = ? AND b.device_id = ? AND b.algorithm = ? AND b.block_nid > ?"
        " AND m.settled < b.number AND b.width > 0 ORDER BY b.block_nid LIMIT 1"
    )


def remove_keys(txn: WriteTransaction, user_id: str, device_id: str) -> None:
    """Remove all one-time keys of a device that goes, and what is remembered of them. It takes a
    position: so other nodes believe no longer that they know where its marks are."""
    txn.next_position()
    of_device = " WHERE user_id = ? AND device_id = ?"
    for sql in (
        f"DELETE FROM one_time_key_marks WHERE block_nid IN (SELECT block_nid FROM one_time_key_blocks{of_device})",
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
        " WHERE o.user_id = one_time_key_blocks.user_id AND o.device_id = one_time_key_blocks.device_id"
        " AND o.algorithm = one_time_key_blocks.algorithm AND o.block_nid < one_time_key_blocks.block_nid)"
    )
    txn.execute(
        "UPDATE one_time_key_blocks SET number = 1, width = 0, names = '[]', keys = ?", (b"",)
    )
    for table in ("one_time_key_marks", "key_claims"):
        txn.execute(f"DELETE FROM {table}")
    txn.execute("UPDATE gathered_claims SET marks = NULL")
    txn.execute(
        "INSERT INTO one_time_key_marks (block_nid, claimed_ts, settled) SELECT block_nid, 0, 0 FROM one_time_key_blocks"
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
        "SELECT block_nid, width, names, keys FROM one_time_key_blocks WHERE user_id = ? AND device_id = ?"
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
) -> dict[str, KeyRun]:
    """Add the keys, by algorithm and id; the first block of each algorithm."""
    oldest: dict[str, KeyRun] = {}
    blocks = [(algorithm, slots) for algorithm, keys in new.items() for slots in _divide(keys)]
    first = txn.allocate("one_time_key", len(blocks))
    for block_nid, (algorithm, slots) in enumerate(blocks, first):
        width = max(map(len, slots.values()))
        packed = b"".join([slot.ljust(width) for slot in slots.values()])
        oldest.setdefault(
            algorithm, KeyRun(block_nid, 0, len(slots), width, packed, stretch=txn.stretch)
        )
        txn.execute_later(
            "INSERT INTO one_time_key_blocks (user_id, device_id, algorithm, block_nid, number, width, names, keys)"
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
            "INSERT INTO one_time_key_marks (block_nid, claimed_ts, settled) VALUES (?, 0, 0)",
            (block_nid,),
        )
    return oldest


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
            "DELETE FROM one_time_key_blocks WHERE user_id = ? AND device_id = ? AND block_nid IN {keys}",
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
