"""What devices publish of themselves for end-to-end encryption: identity keys, one-time keys, fallback keys.

Laws:
- A one-time key is given out once: it is taken in one write, and writes run one after another, on all nodes. What was
  given out is remembered for a time: a client that did not get the answer to an upload sends the same keys again, maybe
  after others, and they must not be given out again.
- Keys are given out in the order in which they came: clients forget the oldest. spec: client-server-api#post_matrixclientv3keysclaim
- However many keys are asked for, a claim is a fixed number of statements for each few hundred of them.
- A change of identity keys is a change of the user's list of devices.
"""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Final

import msgspec

from storage.database import Database
from storage.devices import announce_device_list
from storage.engine import Row
from storage.streams import Change, Topic
from storage.transaction import Transaction, WriteTransaction

DIGEST_BYTES: Final = 16


class DeviceKeysRow(msgspec.Struct, frozen=True):
    """The identity keys of a device, with the name that its user gave it."""

    user_id: str
    device_id: str
    keys: bytes
    display_name: str | None


class KeyWish(msgspec.Struct, frozen=True):
    """Somebody needs a key of that algorithm to begin a conversation with that device."""

    user_id: str
    device_id: str
    algorithm: str


class ClaimedKey(msgspec.Struct, frozen=True):
    """A key that was given out."""

    key_id: str
    content: bytes
    is_fallback: bool


class KeyCounts(msgspec.Struct, frozen=True):
    """What a device has left: one-time keys by algorithm, algorithms with a fallback key that nobody used yet."""

    one_time: Mapping[str, int]
    unused_fallback: Sequence[str]
    fallback: int = 0
    """How many fallback keys it has, used or not."""


class KeyExists(Exception):
    """Another one-time key has this id."""

    def __init__(self, algorithm: str, key_id: str) -> None:
        super().__init__(f"{algorithm}:{key_id}")


class DeviceKeyStore:
    """The tables of keys of devices."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_counts(self, user_id: str, device_id: str) -> KeyCounts:
        """What the device has left."""
        return await self._database.read_quickly("get_key_counts", select_counts, user_id, device_id)

    async def do_claim(self, wishes: Sequence[KeyWish], now_ms: int) -> Mapping[KeyWish, ClaimedKey]:
        """Take a key for each of the wishes, as far as there are keys."""
        return await self._database.write("claim_keys", _claim, wishes, now_ms)

    def has_device(self, txn: Transaction, user_id: str, device_id: str) -> bool:
        """Whether there is such a device: it may have gone while its request was on its way."""
        sql = "SELECT 1 FROM devices WHERE user_id = ? AND device_id = ?"
        return txn.query_one(sql, (user_id, device_id)) is not None

    def set_device_keys(self, txn: WriteTransaction, user_id: str, device_id: str, keys: bytes) -> bool:
        """Publish identity keys; False where they are the same as before."""
        before = txn.query_one("SELECT keys FROM device_keys WHERE user_id = ? AND device_id = ?", (user_id, device_id))
        if before is not None and before[0] == keys:
            return False
        txn.execute(
            "INSERT INTO device_keys (user_id, device_id, keys) VALUES (?, ?, ?)"
            " ON CONFLICT (user_id, device_id) DO UPDATE SET keys = excluded.keys",
            (user_id, device_id, keys),
        )
        announce_device_list(txn, user_id, [device_id])
        return True

    def add_one_time_keys(
        self,
        txn: WriteTransaction,
        user_id: str,
        device_id: str,
        keys: Mapping[tuple[str, str], bytes],
        remembered_from_ts: int,
    ) -> None:
        """Add keys by (algorithm, id). The same one again is no error, nor is it new. Raises KeyExists.

        `remembered_from_ts`: what was given out before then is forgotten.
        """
        key_ids = {key_id for _, key_id in keys}
        present = {
            (algorithm, key_id): content
            for algorithm, key_id, content in txn.query_in(
                "SELECT algorithm, key_id, content FROM one_time_keys WHERE user_id = ? AND device_id = ?"
                " AND key_id IN {keys}",
                key_ids,
                before=(user_id, device_id),
            )
        }
        claimed = {
            ((algorithm, key_id), bytes(digest))
            for algorithm, key_id, digest in txn.query_in(
                "SELECT algorithm, key_id, digest FROM claimed_one_time_keys WHERE user_id = ? AND device_id = ?"
                " AND key_id IN {keys}",
                key_ids,
                before=(user_id, device_id),
            )
        }
        new = []
        for name, content in keys.items():
            if name in present:
                if present[name] != content:
                    raise KeyExists(*name)
            elif (name, _digest(content)) not in claimed:
                new.append((name, content))
        if not new:
            return
        txn.execute(
            "DELETE FROM claimed_one_time_keys WHERE user_id = ? AND device_id = ? AND claimed_ts < ?",
            (user_id, device_id, remembered_from_ts),
        )
        _announce_count(txn, user_id)
        first = txn.allocate("one_time_key", len(new))
        txn.insert_rows(
            "one_time_keys",
            ("user_id", "device_id", "algorithm", "key_nid", "key_id", "content"),
            [
                (user_id, device_id, algorithm, first + index, key_id, content)
                for index, ((algorithm, key_id), content) in enumerate(new)
            ],
        )

    def set_fallback_keys(
        self, txn: WriteTransaction, user_id: str, device_id: str, keys: Mapping[tuple[str, str], bytes]
    ) -> None:
        """Set fallback keys by (algorithm, id), one an algorithm. A new one counts as unused."""
        _announce_count(txn, user_id)
        for (algorithm, key_id), content in keys.items():
            txn.execute(
                "INSERT INTO fallback_keys (user_id, device_id, algorithm, key_id, content, used)"
                " VALUES (?, ?, ?, ?, ?, 0) ON CONFLICT (user_id, device_id, algorithm) DO UPDATE SET"
                " used = CASE WHEN fallback_keys.key_id = excluded.key_id AND fallback_keys.content = excluded.content"
                " THEN fallback_keys.used ELSE 0 END, key_id = excluded.key_id, content = excluded.content",
                (user_id, device_id, algorithm, key_id, content),
            )

    def remove_devices(self, txn: WriteTransaction, user_id: str, device_ids: Sequence[str]) -> None:
        """Remove all keys of devices that go."""
        rows = [(user_id, device_id) for device_id in device_ids]
        for table in ("device_keys", "one_time_keys", "claimed_one_time_keys", "fallback_keys"):
            txn.execute_many(f"DELETE FROM {table} WHERE user_id = ? AND device_id = ?", rows)
        txn.execute_many("DELETE FROM key_signatures WHERE target_user_id = ? AND target_key = ?", rows)


def select_counts(txn: Transaction, user_id: str, device_id: str) -> KeyCounts:
    """The form of `get_counts` for use inside a transaction."""
    rows = txn.query(
        "SELECT algorithm, count(*), NULL FROM one_time_keys WHERE user_id = ? AND device_id = ? GROUP BY algorithm"
        " UNION ALL SELECT algorithm, 0, used FROM fallback_keys WHERE user_id = ? AND device_id = ? ORDER BY algorithm",
        (user_id, device_id, user_id, device_id),
    )
    fallback = [(algorithm, used) for algorithm, _, used in rows if used is not None]
    return KeyCounts(
        {algorithm: count for algorithm, count, used in rows if used is None},
        [algorithm for algorithm, used in fallback if not used],
        len(fallback),
    )


def select_device_keys(txn: Transaction, user_ids: Iterable[str]) -> dict[str, list[DeviceKeysRow]]:
    """The keys of all devices of these users of ours that have published any; one query."""
    rows = txn.query_in(
        "SELECT k.user_id, k.device_id, k.keys, d.display_name FROM device_keys AS k LEFT JOIN devices AS d"
        " ON d.user_id = k.user_id AND d.device_id = k.device_id WHERE k.user_id IN {keys} ORDER BY k.device_id",
        user_ids,
    )
    found: dict[str, list[DeviceKeysRow]] = {}
    for row in rows:
        found.setdefault(row[0], []).append(DeviceKeysRow(*row))
    return found


def _claim(txn: WriteTransaction, wishes: Sequence[KeyWish], now_ms: int) -> dict[KeyWish, ClaimedKey]:
    claimed: dict[KeyWish, ClaimedKey] = {}
    taken = _query_wishes(
        txn,
        wishes,
        # the oldest are found once: PostgreSQL would look for each of them three times
        ", oldest AS MATERIALIZED (SELECT w.user_id, w.device_id, w.algorithm, (SELECT min(k.key_nid)"
        " FROM one_time_keys AS k WHERE k.user_id = w.user_id AND k.device_id = w.device_id"
        " AND k.algorithm = w.algorithm) FROM wishes AS w)"
        " DELETE FROM one_time_keys WHERE (user_id, device_id, algorithm, key_nid) IN (SELECT * FROM oldest)"
        " RETURNING user_id, device_id, algorithm, key_id, content",
    )
    for user_id, device_id, algorithm, key_id, content in taken:
        claimed[KeyWish(user_id, device_id, algorithm)] = ClaimedKey(key_id, content, is_fallback=False)
    if taken:
        txn.insert_rows(
            "claimed_one_time_keys",
            ("user_id", "device_id", "algorithm", "key_id", "digest", "claimed_ts"),
            [(*row[:4], _digest(row[4]), now_ms) for row in taken],
        )
    rest = [wish for wish in wishes if wish not in claimed]
    if rest:
        claimed |= _use_fallback_keys(txn, rest)
    for user_id in sorted({wish.user_id for wish in claimed}):
        _announce_count(txn, user_id)
    return claimed


def _use_fallback_keys(txn: WriteTransaction, wishes: Sequence[KeyWish]) -> dict[KeyWish, ClaimedKey]:
    claimed: dict[KeyWish, ClaimedKey] = {}
    unused: list[KeyWish] = []
    for user_id, device_id, algorithm, key_id, content, used in _query_wishes(
        txn,
        wishes,
        "SELECT f.user_id, f.device_id, f.algorithm, f.key_id, f.content, f.used FROM wishes AS w"
        " JOIN fallback_keys AS f"
        " ON f.user_id = w.user_id AND f.device_id = w.device_id AND f.algorithm = w.algorithm",
    ):
        wish = KeyWish(user_id, device_id, algorithm)
        claimed[wish] = ClaimedKey(key_id, content, is_fallback=True)
        if not used:
            unused.append(wish)
    if unused:
        txn.execute_many(
            "UPDATE fallback_keys SET used = 1 WHERE user_id = ? AND device_id = ? AND algorithm = ?",
            [(wish.user_id, wish.device_id, wish.algorithm) for wish in unused],
        )
    return claimed


def _query_wishes(txn: Transaction, wishes: Sequence[KeyWish], sql: str) -> list[Row]:
    """Run a statement that reads the table `wishes`."""
    rows = [(wish.user_id, wish.device_id, wish.algorithm) for wish in wishes]
    return txn.query_with("wishes", ("user_id", "device_id", "algorithm"), rows, sql)


def _digest(content: bytes) -> bytes:
    return sha256(content).digest()[:DIGEST_BYTES]


def _announce_count(txn: WriteTransaction, user_id: str) -> None:
    txn.announce(Change(txn.next_position(), Topic.KEY_COUNT, user_id=user_id))
