"""Reads the published encryption keys of users. Caches the keys of our users.

Laws:
- A change of a user's devices or keys invalidates the user's cache entry. If any key changes during
  a read, the result is not cached. Keys of other servers' users are never cached.
- A result is at least as new as what any client has seen on any node. A client may learn of a
  change on another node a moment before this node learns of it. So on PostgreSQL, where several
  nodes may exist, cached keys are checked against the database before they are returned.
  `get_published` reads the position of each user's latest change, and does not use cached keys that
  are older. `is_current` is cheaper: it only checks that no node has written anything that this
  node has not read yet. A `StreamCache` (`storage/cache.py`) would return cached keys without such
  a check, so it is not used here.
- Keys that are the same for all readers are encoded once.

The cache is used only on the reactor thread.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from storage.cache import LRU
from storage.encryption.cross_signing import CrossSigningKey, KeySignature
from storage.encryption.device_keys import DeviceKeysRow
from storage.encryption.published_keys import PublishedKeys, PublishedKeyStore
from storage.engine.streams import Change, Stage, Streams, Topic


class EncodedKeys(msgspec.Struct, frozen=True, gc=False):
    """The encoded keys of one of our users, for readers other than this user and users who have
    signed the user's keys."""

    devices: msgspec.Raw
    """All devices by ID."""
    cross_signing: Mapping[str, msgspec.Raw]
    """Cross-signing keys by usage."""
    size: int
    """Size in bytes."""


_Signed = tuple[Mapping[str, Sequence[KeySignature]], int]
"""The signatures that a user made, and the position up to which they are current."""


class _CachedKeys:
    """The cached keys of a user."""

    __slots__ = ("checked", "keys", "shown")

    def __init__(self, *, keys: PublishedKeys, checked: int) -> None:
        self.keys = keys
        self.checked = checked
        """The position up to which all changes are included. Changes of this process always are."""
        self.shown: EncodedKeys | None = None


class PublishedKeyCache:
    """Caches the keys of our users, and the signatures that our users made on other users' keys."""

    def __init__(
        self,
        *,
        store: PublishedKeyStore,
        streams: Streams,
        show: Callable[[str, PublishedKeys], EncodedKeys],
        capacity: int,
    ) -> None:
        """`show` encodes the keys of a user for other readers. `capacity`: bound for devices and
        users, and for signatures and their users."""
        self._store = store
        self._streams = streams
        self._show = show
        self._is_alone = store.is_single_process
        self._keys: LRU[str, _CachedKeys] = LRU(max_weight=capacity, weigh=_weigh_keys)
        self._signed: LRU[str, _Signed] = LRU(
            max_weight=capacity, weigh=lambda _, signatures: 1 + len(signatures[0])
        )
        """Signatures by the user who made them."""
        self._changes = 0
        """Number of changes of our users' keys and signatures so far."""
        self._remote_upto = 0
        """The latest position that another process is known to have written."""
        streams.subscribe(self._on_changes, Topic.DEVICE, Topic.SIGNATURE, stage=Stage.CACHE)
        streams.watch(self._on_remote_write, stage=Stage.CACHE)

    @property
    def cache(self) -> LRU[str, _CachedKeys]:
        """The keys by user, for metrics."""
        return self._keys

    async def get_published(
        self,
        local_users: Collection[str],
        remote_users: Collection[str] = (),
        reader: str | None = None,
        *,
        at_least: int = 0,
    ) -> PublishedKeys:
        """Return keys of our users and of others.

        `reader`: the local user who asks, whose own signatures are included. `at_least`: a position
        up to which all changes of our users are included, even if it was not announced yet.
        """
        began = self._streams.current()
        devices: dict[str, Sequence[DeviceKeysRow]] = {}
        cross_signing: dict[str, Mapping[str, CrossSigningKey]] = {}
        signatures: dict[str, Sequence[KeySignature]] = {}
        newest: Mapping[str, int] = {}
        signed: Mapping[str, Sequence[KeySignature]] = {}
        if not self._is_alone:
            changes = self._changes
            cached = [each for each in local_users if each in self._keys]
            newest, signed = await self._store.get_positions_and_signatures(cached, reader)
            newest = {**dict.fromkeys(cached, 0), **newest}
            if reader is not None and changes == self._changes:
                self._signed.put(reader, (signed, began))
        elif reader is not None:
            signed = await self._signed_by(reader)
        for keys in await self._get_keys(local_users, remote_users, newest, at_least, began):
            devices.update(keys.devices)
            cross_signing.update(keys.cross_signing)
            signatures.update(keys.signatures)
        for user_id in signed.keys() & {*local_users, *remote_users}:
            signatures[user_id] = (*signatures.get(user_id, ()), *signed[user_id])
        return PublishedKeys(devices, cross_signing, signatures)

    async def is_current(self, local_users: Collection[str]) -> bool:
        """Return whether the cached keys of some of these users are the newest. One query if other
        processes may write."""
        if self._is_alone:
            return True
        return (
            any(map(self._is_checked, local_users))
            and await self._store.get_head() <= self._streams.current()
        )

    async def get_encoded(
        self, local_users: Collection[str], reader: str
    ) -> Mapping[str, EncodedKeys]:
        """Return the cached keys of users that look the same to the reader as to everybody.

        Call this after `is_current` has returned True. The result then includes all changes up to
        that call.
        """
        excluded = {reader, *await self._signed_by(reader)}
        upto = self._remote_upto
        return {
            user_id: cached.shown or self._encode(user_id, cached)
            for user_id, cached in self._keys.get_many(local_users).items()
            if cached.checked >= upto and user_id not in excluded
        }

    def _encode(self, user_id: str, cached: _CachedKeys) -> EncodedKeys:
        cached.shown = self._show(user_id, cached.keys)
        return cached.shown

    def _is_checked(self, user_id: str) -> bool:
        known = self._keys.get(user_id)
        return known is not None and known.checked >= self._remote_upto

    async def _get_keys(
        self,
        local_users: Collection[str],
        remote_users: Collection[str],
        newest: Mapping[str, int],
        at_least: int,
        began: int,
    ) -> Sequence[PublishedKeys]:
        """Return the published keys in parts, from the cache or the database.

        `newest`: the latest change of each user that was cached when this was looked up. Another
        read may have cached more users since, perhaps with older keys. Changes up to `began` were
        visible then.
        """
        parts: list[PublishedKeys] = []
        missing: list[str] = []
        for user_id in local_users:
            known = self._keys.get(user_id)
            is_checked = self._is_alone or user_id in newest
            minimum = max(at_least, newest.get(user_id, 0))
            if known is None or not is_checked or _position(known.keys, user_id) < minimum:
                missing.append(user_id)
            else:
                known.checked = max(known.checked, began)
                parts.append(known.keys)
        if missing or remote_users:
            changes = self._changes
            read = await self._store.get_published(missing, remote_users)
            parts.append(read)
            if changes == self._changes:
                for user_id in missing:
                    self._keys.put(
                        user_id, _CachedKeys(keys=_of_user(read, user_id), checked=began)
                    )
        return parts

    async def _signed_by(self, reader: str) -> Mapping[str, Sequence[KeySignature]]:
        known = self._signed.get(reader)
        if known is not None and known[1] >= self._remote_upto:
            return known[0]
        changes, began = self._changes, self._streams.current()
        signed = await self._store.get_signed_by(reader)
        if changes == self._changes:
            self._signed.put(reader, (signed, began))
        return signed

    def _on_changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.user_id is None:
                continue
            if change.topic is Topic.DEVICE:
                self._changes += 1
                self._keys.pop(change.user_id)
            elif change.topic is Topic.SIGNATURE:
                self._changes += 1
                self._signed.pop(change.user_id)

    def _on_remote_write(self, _after: int, upto: int) -> None:
        self._remote_upto = max(self._remote_upto, upto)


def _of_user(keys: PublishedKeys, user_id: str) -> PublishedKeys:
    return PublishedKeys(
        {user_id: keys.devices.get(user_id, ())},
        {user_id: keys.cross_signing.get(user_id, {})},
        {user_id: keys.signatures.get(user_id, ())},
        {user_id: _position(keys, user_id)},
    )


def _position(keys: PublishedKeys, user_id: str) -> int:
    return keys.positions.get(user_id, 0)


def _weigh_keys(user_id: str, cached: _CachedKeys) -> int:
    return 1 + len(cached.keys.devices.get(user_id, ()))
