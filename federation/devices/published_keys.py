"""The keys that users have published for encryption; a cache of those of our users.

Laws:
- A change of a user's devices or keys drops the user. A value that a change overtakes while it is
  read is not cached. Keys of users of other servers are read each time.
- An answer is no older than anything that any client was told on any node. The stream announces
  the writes of other nodes a moment after their clients know of them. So where there may be other
  nodes, a query asks whether they have written anything since, and if so, another one asks whether
  the cached keys are the newest. This is why it is no `StreamCache`.
- Keys that all readers see alike are encoded once.

For the reactor thread.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import msgspec

from storage.cache import LRU
from storage.encryption.cross_signing import CrossSigningKey, KeySignature
from storage.encryption.device_keys import DeviceKeysRow
from storage.encryption.published_keys import PublishedKeys, PublishedKeyStore
from storage.engine.streams import Change, Stage, Streams, Topic


class ShownKeys(msgspec.Struct, frozen=True, gc=False):
    """What any client sees of one of our users who is not its own, and of whom its user has signed
    nothing."""

    devices: msgspec.Raw
    """All of them by id."""
    cross_signing: Mapping[str, msgspec.Raw]
    """By usage."""
    size: int
    """In bytes."""


_Signed = tuple[Mapping[str, Sequence[KeySignature]], int]
"""The signatures that a user made, and the position up to which all changes are in them."""


class _Known:
    """The cached keys of a user."""

    __slots__ = ("checked", "keys", "shown")

    def __init__(self, keys: PublishedKeys, checked: int) -> None:
        self.keys = keys
        self.checked = checked
        """The position up to which all changes are in it; of this process's, all."""
        self.shown: ShownKeys | None = None


class KeysOfPeople:
    """A cache of the keys of our users, and of the signatures that each made of others' keys."""

    def __init__(
        self,
        store: PublishedKeyStore,
        streams: Streams,
        show: Callable[[str, PublishedKeys], ShownKeys],
        *,
        capacity: int,
    ) -> None:
        """`show` encodes what is shown of a user. `capacity`: devices and users; and signatures and
        users who sign."""
        self._store = store
        self._streams = streams
        self._show = show
        self._is_alone = store.is_alone
        self._keys: LRU[str, _Known] = LRU(max_weight=capacity, weigh=_weigh_keys)
        self._signed: LRU[str, _Signed] = LRU(
            max_weight=capacity, weigh=lambda _, signed: 1 + len(signed[0])
        )
        """By the user who signed."""
        self._changes = 0
        """Rises whenever keys or signatures of our users have changed."""
        self._remote_upto = 0
        """The latest position that another process is known to have written."""
        streams.subscribe(self._on_changes, Topic.DEVICE, Topic.SIGNATURE, stage=Stage.CACHE)
        streams.watch(self._on_remote_write, stage=Stage.CACHE)

    @property
    def cache(self) -> LRU[str, _Known]:
        """The keys by user, for metrics."""
        return self._keys

    async def get_published(
        self,
        ours: Collection[str],
        others: Collection[str] = (),
        reader: str | None = None,
        *,
        at_least: int = 0,
    ) -> PublishedKeys:
        """Keys of users of ours and of others. `reader`: who asks, if it is one of our users; they
        see what they signed.

        `at_least`: a position up to which all changes of users of ours are in them, also one that
        nobody has been told of yet.
        """
        began = self._streams.current()
        devices: dict[str, Sequence[DeviceKeysRow]] = {}
        cross_signing: dict[str, Mapping[str, CrossSigningKey]] = {}
        signatures: dict[str, Sequence[KeySignature]] = {}
        newest: Mapping[str, int] = {}
        signed: Mapping[str, Sequence[KeySignature]] = {}
        if not self._is_alone:
            changes = self._changes
            kept = [each for each in ours if each in self._keys]
            newest, signed = await self._store.get_newest(kept, reader)
            newest = {**dict.fromkeys(kept, 0), **newest}
            if reader is not None and changes == self._changes:
                self._signed.put(reader, (signed, began))
        elif reader is not None:
            signed = await self._signed_by(reader)
        for keys in await self._known(ours, others, newest, at_least, began):
            devices.update(keys.devices)
            cross_signing.update(keys.cross_signing)
            signatures.update(keys.signatures)
        for user_id in signed.keys() & {*ours, *others}:
            signatures[user_id] = (*signatures.get(user_id, ()), *signed[user_id])
        return PublishedKeys(devices, cross_signing, signatures)

    async def is_current(self, ours: Collection[str]) -> bool:
        """Whether what is in memory of some of these users is the newest: a question where other
        processes may write."""
        if self._is_alone:
            return True
        return (
            any(map(self._is_checked, ours))
            and await self._store.get_head() <= self._streams.current()
        )

    async def get_shown(self, ours: Collection[str], reader: str) -> Mapping[str, ShownKeys]:
        """What the reader sees of those of the users of whom it is in memory, and what everybody
        sees. What is in memory was the newest (`is_current`) when the reader asked, so it is no
        older."""
        others = {reader, *await self._signed_by(reader)}
        upto = self._remote_upto
        return {
            user_id: known.shown or self._encode(user_id, known)
            for user_id, known in self._keys.get_many(ours).items()
            if known.checked >= upto and user_id not in others
        }

    def _encode(self, user_id: str, known: _Known) -> ShownKeys:
        known.shown = self._show(user_id, known.keys)
        return known.shown

    def _is_checked(self, user_id: str) -> bool:
        known = self._keys.get(user_id)
        return known is not None and known.checked >= self._remote_upto

    async def _known(
        self,
        ours: Collection[str],
        others: Collection[str],
        newest: Mapping[str, int],
        at_least: int,
        began: int,
    ) -> Sequence[PublishedKeys]:
        """What is published, in parts. `newest`: where users changed last, of those of whom
        something was kept when that was looked at (another read may have kept more since, which is
        perhaps older); all up to `began` was to be seen then."""
        parts: list[PublishedKeys] = []
        missing: list[str] = []
        for user_id in ours:
            known = self._keys.get(user_id)
            is_looked_at = self._is_alone or user_id in newest
            least = max(at_least, newest.get(user_id, 0))
            if known is None or not is_looked_at or _position(known.keys, user_id) < least:
                missing.append(user_id)
            else:
                known.checked = max(known.checked, began)
                parts.append(known.keys)
        if missing or others:
            changes = self._changes
            read = await self._store.get_published(missing, others)
            parts.append(read)
            if changes == self._changes:
                for user_id in missing:
                    self._keys.put(user_id, _Known(_of_user(read, user_id), began))
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


def _weigh_keys(user_id: str, known: _Known) -> int:
    return 1 + len(known.keys.devices.get(user_id, ()))
