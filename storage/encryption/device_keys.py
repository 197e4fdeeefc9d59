"""What devices publish of themselves for end-to-end encryption: identity keys, one-time keys,
fallback keys.

Laws:
- A one-time key is given out once (`storage/encryption/one_time_keys.py`), and a fallback key when
  none is left.
- A claim is one write with a fixed number of statements, for up to CLAIMED_AT_ONCE keys; a larger
  claim is several.
- A change of what a device has left says what changed, so that listeners need not read it.
- A change of identity keys is a change of the user's list of devices.
- A device that publishes other identity keys begins anew: its one-time and fallback keys were
  signed with those before, and whoever claimed one could do nothing with it. So it is with the
  signatures that were made of what it published, and with it.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from storage.devices.devices import announce_device_list
from storage.encryption.cross_signing import select_own_signatures
from storage.encryption.one_time_keys import (
    BLOCK_COLUMNS,
    BLOCKS,
    KeyBlock,
    KeyName,
    KeyOf,
    add_keys,
    remove_keys,
    take_keys,
)
from storage.engine.database import Database
from storage.engine.interface import LARGEST_CHUNK, DatabaseUnavailable, Row
from storage.engine.streams import Change, Topic
from storage.engine.transaction import POSITION, Transaction, WriteTransaction

CLAIMED_AT_ONCE: Final = LARGEST_CHUNK
"""Keys, by one write: as many as one statement takes."""
MOST_IDENTITY_BYTES: Final = 1 << 20
"""Of the identity keys of all devices of a user: several hundred have less. All who share a room
with them fetch these."""

_BLOCK, _FALLBACK, _USED, _DEVICE, _OTHERS, _HEAD = range(6)
"""The kinds of rows of a query that reads several tables at once."""


class DeviceKeysRow(msgspec.Struct, frozen=True):
    """The identity keys of a device, with the name that its user gave it."""

    user_id: str
    device_id: str
    keys: bytes
    display_name: str | None


class KeyCounts(msgspec.Struct, frozen=True):
    """What a device has left: one-time keys by algorithm, algorithms with a fallback key that
    nobody used yet."""

    one_time: Mapping[str, int]
    unused_fallback: Sequence[str]
    fallback: int = 0
    """How many fallback keys it has, used or not."""


class KeysLeft(msgspec.Struct, frozen=True):
    """The detail of a change of the topic KEY_COUNT: what the device has left."""

    device_id: str
    counts: KeyCounts


class KeysClaimed(msgspec.Struct, frozen=True):
    """The detail of a change of the topic KEY_COUNT: a one-time key was given out for each of
    these."""

    taken: Sequence[KeyOf]


class NewKeys(msgspec.Struct, frozen=True):
    """Keys of one device to be published: those of its identity as canonical JSON, one-time and
    fallback keys by name, of the latter one an algorithm."""

    identity: bytes | None
    one_time: Mapping[KeyName, bytes]
    fallback: Mapping[KeyName, bytes]

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to write."""
        return self.identity is None and not self.one_time and not self.fallback


class NoSuchDevice(Exception):
    """The device has gone: its request was on its way."""


class TooManyIdentityKeys(Exception):
    """The user's devices would have more bytes of identity keys than those of somebody may have."""


class DeviceKeyStore:
    """The tables of keys of devices."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_counts(self, user_id: str, device_id: str) -> tuple[KeyCounts, int]:
        """What the device has left, and the position up to which all changes are in that: it may be
        ahead of the stream."""
        return await self._database.read_quickly(
            "get_key_counts", _select_counts, user_id, device_id
        )

    async def do_claim(self, wishes: Sequence[KeyOf], now_ms: int) -> list[bytes | None]:
        """Take a key for each of the wishes, which all differ: `"ID":CONTENT` in JSON, None where
        there is none. Where they are many, in several writes, so that those of others come in
        between; where one of these fails, what others gave out is not lost."""
        claimed: list[bytes | None] = []
        try:
            for at in range(0, len(wishes), CLAIMED_AT_ONCE):
                claimed += await self._database.write(
                    "claim_keys", self.claim_keys, wishes[at : at + CLAIMED_AT_ONCE], now_ms
                )
        except DatabaseUnavailable:
            if not any(claimed):
                raise
            claimed += [None] * (len(wishes) - len(claimed))
        return claimed

    def claim_keys(
        self, txn: WriteTransaction, wishes: Sequence[KeyOf], now_ms: int
    ) -> list[bytes | None]:
        """Do the same in one write, for at most CLAIMED_AT_ONCE wishes."""
        keys = take_keys(txn, wishes, now_ms)
        taken = [wish for wish, key in zip(wishes, keys, strict=True) if key is not None]
        if taken:
            _announce_claims(txn, taken)
        missing = [at for at, key in enumerate(keys) if key is None]
        if missing:
            by_fallback = _use_fallback_keys(txn, [wishes[at] for at in missing])
            for at in missing:
                keys[at] = by_fallback.get(wishes[at])
            if by_fallback:
                users = tuple(dict.fromkeys([user_id for user_id, _, _ in by_fallback]))
                txn.announce(Change(txn.next_position(), Topic.KEY_COUNT, user_ids=users))
        return keys

    def set_device_keys(
        self, txn: WriteTransaction, user_id: str, device_id: str, keys: bytes
    ) -> None:
        """Publish identity keys that are others than before."""
        txn.execute_later(
            "INSERT INTO device_keys (user_id, device_id, keys) VALUES (?, ?, ?)"
            " ON CONFLICT (user_id, device_id) DO UPDATE SET keys = excluded.keys",
            (user_id, device_id, keys),
        )
        announce_device_list(txn, user_id, [device_id])

    def put_keys(
        self,
        txn: WriteTransaction,
        user_id: str,
        device_id: str,
        keys: NewKeys,
        remembered_from_ts: int,
    ) -> KeyCounts:
        """Publish identity keys where they are others than before; add one-time keys, where the
        same one again is no error, nor new; set fallback keys, of which a new one counts as unused.
        What the device has left then. One query, and that of `add_keys`. Raises NoSuchDevice,
        KeyExists, TooManyIdentityKeys.

        `remembered_from_ts`: what was given out before then is forgotten.
        """
        standing, begins_anew = _select_standing(txn, user_id, device_id), False
        if keys.identity is not None and keys.identity != standing.identity:
            if standing.identity_bytes_of_others + len(keys.identity) > MOST_IDENTITY_BYTES:
                raise TooManyIdentityKeys
            self.set_device_keys(txn, user_id, device_id, keys.identity)
            if standing.identity is not None and _signed_part(standing.identity) != _signed_part(
                keys.identity
            ):
                _remove_signatures_on(txn, user_id, [device_id])
            if standing.identity is not None and _public_keys(standing.identity) != _public_keys(
                keys.identity
            ):
                self._remove_signed_keys(txn, user_id, device_id)
                _remove_signatures_by(txn, user_id, [device_id])
                begins_anew, standing = (
                    True,
                    _Standing(keys.identity, standing.identity_bytes_of_others),
                )
        added: dict[str, int] = {}
        if keys.one_time:
            added = add_keys(
                txn,
                user_id,
                device_id,
                standing.blocks,
                standing.used,
                keys.one_time,
                remembered_from_ts,
            )
        unused = dict(standing.unused_fallback)
        for (algorithm, key_id), content in keys.fallback.items():
            if standing.fallback_keys.get(algorithm) == (key_id, content):
                continue
            unused[algorithm] = True
            txn.execute_later(
                "INSERT INTO fallback_keys (user_id, device_id, algorithm, key_id, content, used)"
                " VALUES (?, ?, ?, ?, ?, 0) ON CONFLICT (user_id, device_id, algorithm)"
                " DO UPDATE SET"
                " used = 0, key_id = excluded.key_id, content = excluded.content",
                (user_id, device_id, algorithm, key_id, content),
            )
        counts = _counts(standing.one_time, added, unused)
        if added or keys.fallback or begins_anew:
            _announce(txn, user_id, KeysLeft(device_id, counts))
        return counts

    def remove_devices(
        self, txn: WriteTransaction, user_id: str, device_ids: Sequence[str]
    ) -> None:
        """Remove all keys of devices that go, and the signatures on them and of them: nobody finds
        the key any more by which they could be checked, and a later device of the id has
        another."""
        rows = [(user_id, device_id) for device_id in device_ids]
        for device_id in device_ids:
            self._remove_signed_keys(txn, user_id, device_id)
        txn.execute_many("DELETE FROM device_keys WHERE user_id = ? AND device_id = ?", rows)
        _remove_signatures_on(txn, user_id, device_ids)
        _remove_signatures_by(txn, user_id, device_ids)

    def _remove_signed_keys(self, txn: WriteTransaction, user_id: str, device_id: str) -> None:
        """Remove the one-time and fallback keys of a device."""
        remove_keys(txn, user_id, device_id)
        txn.execute_later(
            "DELETE FROM fallback_keys WHERE user_id = ? AND device_id = ?", (user_id, device_id)
        )


def _remove_signatures_on(txn: WriteTransaction, user_id: str, device_ids: Sequence[str]) -> None:
    """Remove the signatures on what these devices published: it is gone, or there is something
    else."""
    for device_id in device_ids:
        txn.execute_later(
            "DELETE FROM key_signatures WHERE target_user_id = ? AND target_key = ?",
            (user_id, device_id),
        )


def _remove_signatures_by(txn: WriteTransaction, user_id: str, device_ids: Sequence[str]) -> None:
    """Remove what was signed with the keys of these devices, which nobody finds any more."""
    signers = {f"ed25519:{device_id}" for device_id in device_ids}
    made = [
        (user_id, signature.target_key, user_id, signature.signer_key_id)
        for signature in select_own_signatures(txn, [user_id]).get(user_id, ())
        if signature.signer_key_id in signers
    ]
    if made:
        txn.execute_many(
            "DELETE FROM key_signatures WHERE target_user_id = ? AND target_key = ?"
            " AND signer_user_id = ?"
            " AND signer_key_id = ?",
            made,
        )
        announce_device_list(txn, user_id, [None])


def _select_counts(txn: Transaction, user_id: str, device_id: str) -> tuple[KeyCounts, int]:
    rows = txn.query(
        f"SELECT {_BLOCK}, {BLOCK_COLUMNS}, NULL FROM {BLOCKS}"
        " WHERE b.user_id = ? AND b.device_id = ?"
        " AND m.taken < b.number"
        f" UNION ALL SELECT {_FALLBACK}, algorithm, used, 0, 0, 0, NULL, NULL FROM fallback_keys"
        " WHERE user_id = ? AND device_id = ?"
        f" UNION ALL SELECT {_HEAD}, NULL, value, 0, 0, 0, NULL, NULL FROM counters WHERE name = ?",
        (user_id, device_id, user_id, device_id, POSITION),
    )
    found = _by_kind(rows)
    fallback = {algorithm: not used for algorithm, used, *_ in found[_FALLBACK]}
    blocks = _blocks(found)
    told = {block.algorithm: 1 for block in blocks if block.is_empty} | _count_left(blocks)
    return _counts(told, {}, fallback), sum(int(value) for _, value, *_ in found[_HEAD])


def select_device_keys(txn: Transaction, user_ids: Iterable[str]) -> dict[str, list[DeviceKeysRow]]:
    """The keys of all devices of these users of ours that have published any; one query."""
    rows = txn.query_in(
        "SELECT k.user_id, k.device_id, k.keys, d.display_name FROM device_keys AS k"
        " LEFT JOIN devices AS d"
        " ON d.user_id = k.user_id AND d.device_id = k.device_id WHERE k.user_id IN {keys}"
        " ORDER BY k.device_id",
        user_ids,
    )
    found: dict[str, list[DeviceKeysRow]] = {}
    for row in rows:
        found.setdefault(row[0], []).append(DeviceKeysRow(*row))
    return found


class _Standing(msgspec.Struct, frozen=True):
    """What a device has before an upload."""

    identity: bytes | None
    identity_bytes_of_others: int
    """What the user's other devices have of identity keys."""
    blocks: Sequence[KeyBlock] = ()
    used: bytes = b""
    """What is remembered of the keys that were given out before."""
    one_time: Mapping[str, int] = {}
    fallback_keys: Mapping[str, tuple[str, bytes]] = {}
    unused_fallback: Mapping[str, bool] = {}
    """By algorithm, whether nobody has used it yet."""


_STANDING: Final = (
    f"SELECT {_BLOCK}, {BLOCK_COLUMNS}, NULL FROM {BLOCKS} WHERE b.user_id = ? AND b.device_id = ?"
    f" UNION ALL SELECT {_FALLBACK}, algorithm, used, 0, 0, 0, key_id, content FROM fallback_keys"
    " WHERE user_id = ? AND device_id = ?"
    f" UNION ALL SELECT {_USED}, NULL, 0, 0, 0, 0, NULL, used FROM used_one_time_keys"
    " WHERE user_id = ? AND device_id = ?"
    f" UNION ALL SELECT {_DEVICE}, NULL, 0, 0, 0, 0, NULL, k.keys FROM devices AS d"
    " LEFT JOIN device_keys AS k"
    " ON k.user_id = d.user_id AND k.device_id = d.device_id"
    " WHERE d.user_id = ? AND d.device_id = ?"
    f" UNION ALL SELECT {_OTHERS}, NULL, CAST(coalesce(sum(length(keys)), 0) AS BIGINT), 0, 0, 0,"
    " NULL, NULL"
    " FROM device_keys WHERE user_id = ? AND device_id <> ?"
)


def _select_standing(txn: WriteTransaction, user_id: str, device_id: str) -> _Standing:
    found = _by_kind(txn.query(_STANDING, (user_id, device_id) * 5))
    if not found[_DEVICE]:
        raise NoSuchDevice
    blocks = _blocks(found)
    return _Standing(
        found[_DEVICE][0][6],
        int(found[_OTHERS][0][1]),
        blocks,
        b"".join([row[6] for row in found[_USED]]),
        _count_left(blocks),
        {row[0]: (row[5], row[6]) for row in found[_FALLBACK]},
        {row[0]: not row[1] for row in found[_FALLBACK]},
    )


def _by_kind(rows: Iterable[Row]) -> dict[int, list[Row]]:
    found: dict[int, list[Row]] = {kind: [] for kind in range(6)}
    for row in rows:
        found[row[0]].append(row[1:])
    return found


def _blocks(found: Mapping[int, Sequence[Row]]) -> list[KeyBlock]:
    return [KeyBlock(*row[:-1]) for row in found[_BLOCK]]


def _count_left(blocks: Iterable[KeyBlock]) -> dict[str, int]:
    """How many keys can be given out, by algorithm."""
    left: dict[str, int] = {}
    for block in blocks:
        if block.left:
            left[block.algorithm] = left.get(block.algorithm, 0) + block.left
    return left


def _public_keys(identity: bytes) -> object:
    """The keys themselves, whatever else is said of the device, and whoever signed that."""
    return msgspec.json.decode(identity)["keys"]


def _signed_part(identity: bytes) -> bytes:
    """What a signature is of: as bytes, since true and 1 are the same to Python."""
    return msgspec.json.encode(
        {k: v for k, v in msgspec.json.decode(identity).items() if k != "signatures"}
    )


def _counts(
    one_time: Mapping[str, int], added: Mapping[str, int], fallback: Mapping[str, bool]
) -> KeyCounts:
    sums = {
        algorithm: one_time.get(algorithm, 0) + added.get(algorithm, 0)
        for algorithm in one_time.keys() | added.keys()
    }
    return KeyCounts(
        {algorithm: sums[algorithm] for algorithm in sorted(sums) if sums[algorithm]},
        [algorithm for algorithm in sorted(fallback) if fallback[algorithm]],
        len(fallback),
    )


def _use_fallback_keys(txn: WriteTransaction, wishes: Sequence[KeyOf]) -> dict[KeyOf, bytes]:
    claimed: dict[KeyOf, bytes] = {}
    unused: list[KeyOf] = []
    for user_id, device_id, algorithm, key_id, content, used in txn.query_with(
        "wishes",
        ("user_id", "device_id", "algorithm"),
        wishes,
        "SELECT f.user_id, f.device_id, f.algorithm, f.key_id, f.content, f.used FROM wishes AS w"
        " JOIN fallback_keys AS f"
        " ON f.user_id = w.user_id AND f.device_id = w.device_id AND f.algorithm = w.algorithm",
    ):
        wish = (user_id, device_id, algorithm)
        claimed[wish] = b"%b:%b" % (msgspec.json.encode(key_id), content)
        if not used:
            unused.append(wish)
    if unused:
        txn.execute_many(
            "UPDATE fallback_keys SET used = 1 WHERE user_id = ? AND device_id = ?"
            " AND algorithm = ?",
            unused,
        )
    return claimed


def _announce_claims(txn: WriteTransaction, taken: Sequence[KeyOf]) -> None:
    users = tuple(dict.fromkeys([user_id for user_id, _, _ in taken]))
    txn.announce(
        Change(txn.next_position(), Topic.KEY_COUNT, user_ids=users, detail=KeysClaimed(taken))
    )


def _announce(txn: WriteTransaction, user_id: str, detail: KeysLeft) -> None:
    txn.announce(Change(txn.next_position(), Topic.KEY_COUNT, user_id=user_id, detail=detail))
