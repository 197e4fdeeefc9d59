"""What devices publish of themselves for end-to-end encryption: identity keys, one-time keys, fallback keys.

Laws:
- A one-time key is given out once: it is taken in one write, and writes run one after another, on all nodes. What was
  given out is remembered, its number negative, until the device publishes further keys: a client that did not get the
  answer to an upload sends the same keys again, and they must not be given out again.
- A change of identity keys is a change of the user's list of devices.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from storage.database import Database
from storage.devices import announce_device_list
from storage.streams import Change, Topic
from storage.transaction import Transaction, WriteTransaction


@dataclass(frozen=True, slots=True)
class DeviceKeysRow:
    """The identity keys of a device, with the name that its user gave it."""

    user_id: str
    device_id: str
    keys: bytes
    display_name: str | None


@dataclass(frozen=True, slots=True)
class KeyWish:
    """Somebody needs a key of that algorithm to begin a conversation with that device."""

    user_id: str
    device_id: str
    algorithm: str


@dataclass(frozen=True, slots=True)
class ClaimedKey:
    """A key that was given out."""

    key_id: str
    content: bytes
    is_fallback: bool


@dataclass(frozen=True, slots=True)
class KeyCounts:
    """What a device has left: one-time keys by algorithm, algorithms with a fallback key that nobody used yet."""

    one_time: Mapping[str, int]
    unused_fallback: Sequence[str]


class KeyExists(Exception):
    """Another one-time key has this id."""

    def __init__(self, algorithm: str, key_id: str) -> None:
        super().__init__(f"{algorithm}:{key_id}")


class DeviceKeyStore:
    """The tables of keys of devices."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_device_keys(self, user_ids: Iterable[str]) -> Mapping[str, list[DeviceKeysRow]]:
        """The keys of all devices of these users that have published any; one query."""
        return await self._database.read("get_device_keys", _select_keys, tuple(user_ids))

    async def get_counts(self, user_id: str, device_id: str) -> KeyCounts:
        """What the device has left."""
        return await self._database.read_quickly("get_key_counts", select_counts, user_id, device_id)

    async def do_claim(self, wishes: Sequence[KeyWish]) -> Mapping[KeyWish, ClaimedKey]:
        """Take a key for each of the wishes, as far as there are keys."""
        return await self._database.write("claim_keys", _claim, wishes)

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
        self, txn: WriteTransaction, user_id: str, device_id: str, keys: Mapping[tuple[str, str], bytes]
    ) -> None:
        """Add keys by (algorithm, id). The same one again is no error, nor is it new. Raises KeyExists."""
        known = {
            (algorithm, key_id): (key_nid, content)
            for algorithm, key_id, key_nid, content in txn.query(
                "SELECT algorithm, key_id, key_nid, content FROM one_time_keys WHERE user_id = ? AND device_id = ?",
                (user_id, device_id),
            )
        }
        new = []
        again = set()
        for name, content in keys.items():
            key_nid, present = known.get(name, (-1, None))
            if present == content:
                again.add(name)
            elif key_nid > 0:
                raise KeyExists(*name)
            else:
                new.append((name, content))
        if not new:
            return
        txn.execute_many(
            "DELETE FROM one_time_keys WHERE user_id = ? AND device_id = ? AND algorithm = ? AND key_nid = ?",
            [
                (user_id, device_id, name[0], key_nid)
                for name, (key_nid, _) in known.items()
                if key_nid < 0 and name not in again
            ],
        )
        _announce_count(txn, user_id)
        first = txn.allocate("one_time_key", len(new))
        txn.execute_many(
            "INSERT INTO one_time_keys (user_id, device_id, algorithm, key_nid, key_id, content)"
            " VALUES (?, ?, ?, ?, ?, ?)",
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
        for table in ("device_keys", "one_time_keys", "fallback_keys"):
            txn.execute_many(f"DELETE FROM {table} WHERE user_id = ? AND device_id = ?", rows)
        txn.execute_many("DELETE FROM key_signatures WHERE target_user_id = ? AND target_key = ?", rows)


def select_counts(txn: Transaction, user_id: str, device_id: str) -> KeyCounts:
    """The form of `get_counts` for use inside a transaction."""
    counts: dict[str, int] = dict(
        txn.query(
            "SELECT algorithm, count(*) FROM one_time_keys WHERE user_id = ? AND device_id = ? AND key_nid > 0"
            " GROUP BY algorithm",
            (user_id, device_id),
        )
    )
    unused = txn.query(
        "SELECT algorithm FROM fallback_keys WHERE user_id = ? AND device_id = ? AND used = 0 ORDER BY algorithm",
        (user_id, device_id),
    )
    return KeyCounts(counts, [algorithm for (algorithm,) in unused])


def _select_keys(txn: Transaction, user_ids: tuple[str, ...]) -> dict[str, list[DeviceKeysRow]]:
    rows = txn.query_in(
        "SELECT k.user_id, k.device_id, k.keys, d.display_name FROM device_keys AS k LEFT JOIN devices AS d"
        " ON d.user_id = k.user_id AND d.device_id = k.device_id WHERE k.user_id IN {keys} ORDER BY k.device_id",
        user_ids,
    )
    found: dict[str, list[DeviceKeysRow]] = {}
    for row in rows:
        found.setdefault(row[0], []).append(DeviceKeysRow(*row))
    return found


def _claim(txn: WriteTransaction, wishes: Sequence[KeyWish]) -> dict[KeyWish, ClaimedKey]:
    claimed: dict[KeyWish, ClaimedKey] = {}
    for wish in wishes:
        key = (wish.user_id, wish.device_id, wish.algorithm)
        row = txn.query_one(
            "SELECT key_nid, key_id, content FROM one_time_keys WHERE user_id = ? AND device_id = ? AND algorithm = ?"
            " AND key_nid > 0 ORDER BY key_nid LIMIT 1",
            key,
        )
        if row is not None:
            txn.execute(
                "UPDATE one_time_keys SET key_nid = -key_nid"
                " WHERE user_id = ? AND device_id = ? AND algorithm = ? AND key_nid = ?",
                (*key, row[0]),
            )
            claimed[wish] = ClaimedKey(row[1], row[2], is_fallback=False)
            continue
        fallback = txn.query_one(
            "SELECT key_id, content, used FROM fallback_keys WHERE user_id = ? AND device_id = ? AND algorithm = ?", key
        )
        if fallback is not None:
            if not fallback[2]:
                txn.execute(
                    "UPDATE fallback_keys SET used = 1 WHERE user_id = ? AND device_id = ? AND algorithm = ?", key
                )
            claimed[wish] = ClaimedKey(fallback[0], fallback[1], is_fallback=True)
    for user_id in sorted({wish.user_id for wish in claimed}):
        _announce_count(txn, user_id)
    return claimed


def _announce_count(txn: WriteTransaction, user_id: str) -> None:
    txn.announce(Change(txn.next_position(), Topic.KEY_COUNT, user_id=user_id))
