"""Keys that devices publish for end-to-end encryption: identity keys, one-time keys, fallback keys.

Laws:
- A one-time key is given out once (`storage/encryption/one_time_keys.py`). If none is left, the
  fallback key is given out (`storage/encryption/fallback_keys.py`).
- A claim of up to `CLAIM_CHUNK` keys is one write. On PostgreSQL it has a fixed number of
  statements. A larger claim is several writes.
- When key counts change, the announced change (`Topic.KEY_COUNT`) contains the new counts. After a
  claim it contains the device and algorithm of each claimed key instead, and the cache of counts
  subtracts one for each. So the cache needs no query. There is one exception: when a fallback key
  is used for the first time, the change names only the users, and the cache drops their counts.
- A change of identity keys is a change of the user's device list.
- If a device publishes new identity keys, all its other keys are deleted. Its one-time and fallback
  keys were signed with the old keys and are useless. Signatures on its old keys and signatures made
  with them are deleted too.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from storage.devices.devices import announce_device_list
from storage.encryption.cross_signing import select_own_signatures
from storage.encryption.fallback_keys import (
    claim_fallback_keys,
    remove_fallback_keys,
    set_fallback_keys,
)
from storage.encryption.one_time_keys import (
    BLOCK_COLUMNS,
    BLOCKS,
    KeyBlock,
    KeyName,
    KeyRequest,
    add_keys,
    claim_keys,
    remove_keys,
)
from storage.engine.database import Database
from storage.engine.interface import MAX_CHUNK, DatabaseUnavailable, Row
from storage.engine.streams import Change, Topic
from storage.engine.transaction import POSITION, Transaction, WriteTransaction

CLAIM_CHUNK: Final = MAX_CHUNK
"""The most keys that one write claims: as many as one statement takes."""
MAX_IDENTITY_BYTES: Final = 1 << 20
"""The most bytes of identity keys of all devices of a user. Several hundred devices need less.
Everyone who shares a room with the user fetches them."""

_BLOCK, _FALLBACK, _USED, _DEVICE, _OTHERS, _HEAD = range(6)
"""The kinds of rows in a query that reads several tables."""


class DeviceKeysRow(msgspec.Struct, frozen=True):
    """The identity keys of a device, and its display name."""

    user_id: str
    device_id: str
    keys: bytes
    display_name: str | None


class KeyCounts(msgspec.Struct, frozen=True):
    """The keys that a device has left: the number of one-time keys by algorithm, and the algorithms
    with an unused fallback key."""

    one_time: Mapping[str, int]
    unused_fallback: Sequence[str]
    fallback: int = 0
    """The number of fallback keys, used or not."""


class KeyCountsChanged(msgspec.Struct, frozen=True):
    """The detail of a change of the topic KEY_COUNT: the keys that the device has left."""

    device_id: str
    counts: KeyCounts


class KeysClaimed(msgspec.Struct, frozen=True):
    """The detail of a change of the topic KEY_COUNT: one one-time key of each of these devices was
    claimed."""

    claimed: Sequence[KeyRequest]


class NewKeys(msgspec.Struct, frozen=True):
    """Keys of one device to publish: the identity keys as canonical JSON, one-time and fallback
    keys by name. There is at most one fallback key for each algorithm."""

    identity: bytes | None
    one_time: Mapping[KeyName, bytes]
    fallback: Mapping[KeyName, bytes]

    @property
    def is_empty(self) -> bool:
        """Return whether there is nothing to write."""
        return self.identity is None and not self.one_time and not self.fallback


class NoSuchDevice(Exception):
    """The device was deleted while its request was being processed."""


class TooManyIdentityKeys(Exception):
    """The user's devices would exceed the limit on bytes of identity keys."""


class DeviceKeyStore:
    """Stores the keys of devices."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_counts(self, user_id: str, device_id: str) -> tuple[KeyCounts, int]:
        """Return the device's key counts, and the position up to which all changes are included. It
        may be ahead of the stream."""
        return await self._database.read_quickly(
            "get_key_counts", _select_counts, user_id, device_id
        )

    async def claim_in_chunks(
        self, requests: Sequence[KeyRequest], now_ms: int
    ) -> list[bytes | None]:
        """Claim one key for each of these distinct requests. Return `"ID":CONTENT` in JSON for
        each, None if there is no key.

        Many requests are claimed in several writes, so that other writes come in between. If one of
        them fails, the keys claimed by the others are still returned.
        """
        claimed: list[bytes | None] = []
        try:
            for at in range(0, len(requests), CLAIM_CHUNK):
                claimed += await self._database.write(
                    "claim_keys", self.claim_keys, requests[at : at + CLAIM_CHUNK], now_ms
                )
        except DatabaseUnavailable:
            if not any(claimed):
                raise
            claimed += [None] * (len(requests) - len(claimed))
        return claimed

    def claim_keys(
        self, txn: WriteTransaction, requests: Sequence[KeyRequest], now_ms: int
    ) -> list[bytes | None]:
        """Do `claim_in_chunks` in one write, for at most `CLAIM_CHUNK` requests."""
        keys = claim_keys(txn, requests, now_ms)
        claimed = [request for request, key in zip(requests, keys, strict=True) if key is not None]
        if claimed:
            _announce_claims(txn, claimed, KeysClaimed(claimed))
        missing = [at for at, key in enumerate(keys) if key is None]
        if missing:
            fallback, newly_used = claim_fallback_keys(txn, [requests[at] for at in missing])
            for at in missing:
                keys[at] = fallback.get(requests[at])
            if newly_used:
                _announce_claims(txn, newly_used, None)
        return keys

    def set_device_keys(
        self, txn: WriteTransaction, user_id: str, device_id: str, keys: bytes
    ) -> None:
        """Publish changed identity keys."""
        txn.execute_later(
            "INSERT INTO device_keys (user_id, device_id, keys) VALUES (?, ?, ?)"
            " ON CONFLICT (user_id, device_id) DO UPDATE SET keys = excluded.keys",
            (user_id, device_id, keys),
        )
        announce_device_list(txn, user_id, [device_id])

    def upload_keys(
        self,
        txn: WriteTransaction,
        user_id: str,
        device_id: str,
        keys: NewKeys,
        digests_from_ts: int,
    ) -> KeyCounts:
        """Publish the uploaded keys of a device. Return its key counts.

        Identity keys are written if they changed. One-time keys are added; the same key again is
        neither an error nor new. A fallback key that is new counts as unused. One query, and that
        of `add_keys`. Raises NoSuchDevice, KeyExists, TooManyIdentityKeys.

        `digests_from_ts`: digests of keys that were claimed before this time are deleted.
        """
        current, is_reset = _select_current(txn, user_id, device_id), False
        if keys.identity is not None and keys.identity != current.identity:
            if current.other_identity_bytes + len(keys.identity) > MAX_IDENTITY_BYTES:
                raise TooManyIdentityKeys
            self.set_device_keys(txn, user_id, device_id, keys.identity)
            if current.identity is not None and _signed_part(current.identity) != _signed_part(
                keys.identity
            ):
                _remove_signatures_on(txn, user_id, [device_id])
            if current.identity is not None and _public_keys(current.identity) != _public_keys(
                keys.identity
            ):
                self._remove_signed_keys(txn, user_id, device_id)
                _remove_signatures_by(txn, user_id, [device_id])
                is_reset, current = (
                    True,
                    _CurrentKeys(keys.identity, current.other_identity_bytes),
                )
        added: dict[str, int] = {}
        if keys.one_time:
            added = add_keys(
                txn,
                user_id,
                device_id,
                current.blocks,
                current.used,
                keys.one_time,
                digests_from_ts,
            )
        fallback = {
            (algorithm, key_id): content
            for (algorithm, key_id), content in keys.fallback.items()
            if current.fallback_keys.get(algorithm) != (key_id, content)
        }
        set_fallback_keys(txn, user_id, device_id, fallback)
        unused = {**current.unused_fallback, **dict.fromkeys([name for name, _ in fallback], True)}
        counts = _counts(current.one_time, added, unused)
        if added or keys.fallback or is_reset:
            _announce(txn, user_id, KeyCountsChanged(device_id, counts))
        return counts

    def remove_devices(
        self, txn: WriteTransaction, user_id: str, device_ids: Sequence[str]
    ) -> None:
        """Remove all keys of deleted devices, the signatures on them and those made with them.
        Those signatures can no longer be verified, and a later device with the same ID has another
        key."""
        rows = [(user_id, device_id) for device_id in device_ids]
        for device_id in device_ids:
            self._remove_signed_keys(txn, user_id, device_id)
        txn.execute_many("DELETE FROM device_keys WHERE user_id = ? AND device_id = ?", rows)
        _remove_signatures_on(txn, user_id, device_ids)
        _remove_signatures_by(txn, user_id, device_ids)

    def _remove_signed_keys(self, txn: WriteTransaction, user_id: str, device_id: str) -> None:
        """Remove the one-time and fallback keys of a device."""
        remove_keys(txn, user_id, device_id)
        remove_fallback_keys(txn, user_id, device_id)


def _remove_signatures_on(txn: WriteTransaction, user_id: str, device_ids: Sequence[str]) -> None:
    """Remove the signatures on the keys of these devices, which were deleted or replaced."""
    for device_id in device_ids:
        txn.execute_later(
            "DELETE FROM key_signatures WHERE target_user_id = ? AND target_key = ?",
            (user_id, device_id),
        )


def _remove_signatures_by(txn: WriteTransaction, user_id: str, device_ids: Sequence[str]) -> None:
    """Remove the signatures made with the keys of these devices, which are no longer published."""
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
        " AND m.claimed < b.key_count"
        f" UNION ALL SELECT {_FALLBACK}, algorithm, used, 0, 0, 0, NULL, NULL FROM fallback_keys"
        " WHERE user_id = ? AND device_id = ?"
        f" UNION ALL SELECT {_HEAD}, NULL, value, 0, 0, 0, NULL, NULL FROM counters WHERE name = ?",
        (user_id, device_id, user_id, device_id, POSITION),
    )
    found = _by_kind(rows)
    fallback = {algorithm: not used for algorithm, used, *_ in found[_FALLBACK]}
    blocks = _blocks(found)
    one_time = {block.algorithm: 1 for block in blocks if block.is_placeholder} | _count_left(
        blocks
    )
    return _counts(one_time, {}, fallback), sum(int(value) for _, value, *_ in found[_HEAD])


def select_device_keys(txn: Transaction, user_ids: Iterable[str]) -> dict[str, list[DeviceKeysRow]]:
    """Return the identity keys of all devices of these local users; one query."""
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


class _CurrentKeys(msgspec.Struct, frozen=True):
    """The keys of a device before an upload."""

    identity: bytes | None
    other_identity_bytes: int
    """Bytes of identity keys of the user's other devices."""
    blocks: Sequence[KeyBlock] = ()
    used: bytes = b""
    """Digests of keys that were claimed before."""
    one_time: Mapping[str, int] = {}
    fallback_keys: Mapping[str, tuple[str, bytes]] = {}
    unused_fallback: Mapping[str, bool] = {}
    """By algorithm, whether the fallback key is unused."""


_SELECT_CURRENT: Final = (
    f"SELECT {_BLOCK}, {BLOCK_COLUMNS}, NULL FROM {BLOCKS} WHERE b.user_id = ? AND b.device_id = ?"
    f" UNION ALL SELECT {_FALLBACK}, algorithm, used, 0, 0, 0, key_id, content FROM fallback_keys"
    " WHERE user_id = ? AND device_id = ?"
    f" UNION ALL SELECT {_USED}, NULL, 0, 0, 0, 0, NULL, digests FROM used_one_time_keys"
    " WHERE user_id = ? AND device_id = ?"
    f" UNION ALL SELECT {_DEVICE}, NULL, 0, 0, 0, 0, NULL, k.keys FROM devices AS d"
    " LEFT JOIN device_keys AS k"
    " ON k.user_id = d.user_id AND k.device_id = d.device_id"
    " WHERE d.user_id = ? AND d.device_id = ?"
    f" UNION ALL SELECT {_OTHERS}, NULL, CAST(coalesce(sum(length(keys)), 0) AS BIGINT), 0, 0, 0,"
    " NULL, NULL"
    " FROM device_keys WHERE user_id = ? AND device_id <> ?"
)


def _select_current(txn: WriteTransaction, user_id: str, device_id: str) -> _CurrentKeys:
    found = _by_kind(txn.query(_SELECT_CURRENT, (user_id, device_id) * 5))
    if not found[_DEVICE]:
        raise NoSuchDevice
    blocks = _blocks(found)
    return _CurrentKeys(
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
    """Return the number of keys that can be claimed, by algorithm."""
    left: dict[str, int] = {}
    for block in blocks:
        if block.remaining:
            left[block.algorithm] = left.get(block.algorithm, 0) + block.remaining
    return left


def _public_keys(identity: bytes) -> object:
    """Return the public keys of a device, without its other properties and signatures."""
    return msgspec.json.decode(identity)["keys"]


def _signed_part(identity: bytes) -> bytes:
    """Return the signed part of identity keys: as bytes, since Python treats True and 1 as
    equal."""
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


def _announce_claims(
    txn: WriteTransaction, claimed: Sequence[KeyRequest], detail: KeysClaimed | None
) -> None:
    users = tuple(dict.fromkeys([user_id for user_id, _, _ in claimed]))
    txn.announce(Change(txn.next_position(), Topic.KEY_COUNT, user_ids=users, detail=detail))


def _announce(txn: WriteTransaction, user_id: str, detail: KeyCountsChanged) -> None:
    txn.announce(Change(txn.next_position(), Topic.KEY_COUNT, user_id=user_id, detail=detail))
