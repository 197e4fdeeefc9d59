"""What people have published for encryption, that of our users from memory: a question for their keys costs no query.

Laws:
- Read once, then forgotten when the stream tells that a user's devices or keys changed. What a change overtakes while it is read
  is not kept. Keys of other servers' users are read each time.
- What is answered is no older than what anybody has been told of. The stream tells of what other processes wrote a moment later
  than they tell their clients: where there may be others, one question shows whether what is kept is the newest.

For the reactor thread.
"""

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from typing import Generic, TypeVar

from storage.cross_signing import CrossSigningKey, KeySignature
from storage.device_keys import DeviceKeysRow
from storage.published_keys import PublishedKeys, PublishedKeyStore
from storage.streams import Change, Streams, Topic

V = TypeVar("V")


class KeysOfPeople:
    """A cache of keys of our users, and of what each of them has signed of others."""

    def __init__(self, store: PublishedKeyStore, streams: Streams, *, capacity: int, is_alone: bool) -> None:
        """`capacity`: devices, and users who sign, of which something is kept. `is_alone`: no other process writes."""
        self._store = store
        self._is_alone = is_alone
        self._keys: _Recent[PublishedKeys] = _Recent(capacity)
        self._signed: _Recent[Mapping[str, Sequence[KeySignature]]] = _Recent(capacity)
        self._changes_heard = 0
        streams.subscribe(self._hear, Topic.DEVICE, Topic.SIGNATURE)

    async def get_published(
        self,
        ours: Collection[str],
        others: Collection[str] = (),
        reader: str | None = None,
        *,
        at_least: int = 0,
    ) -> PublishedKeys:
        """Keys of users of ours and of others. `reader`: who asks, if it is one of our users; they see what they signed.

        `at_least`: a position up to which all changes of users of ours are in them, also one that nobody has been told of yet.
        """
        devices: dict[str, Sequence[DeviceKeysRow]] = {}
        cross_signing: dict[str, Mapping[str, CrossSigningKey]] = {}
        signatures: dict[str, Sequence[KeySignature]] = {}
        newest: Mapping[str, int] = {}
        signed: Mapping[str, Sequence[KeySignature]] = {}
        if not self._is_alone:
            newest, signed = await self._store.get_newest([each for each in ours if each in self._keys], reader)
        elif reader is not None:
            signed = await self._signed_by(reader)
        for keys in await self._known(ours, others, newest, at_least):
            devices.update(keys.devices)
            cross_signing.update(keys.cross_signing)
            signatures.update(keys.signatures)
        for user_id in signed.keys() & {*ours, *others}:
            signatures[user_id] = (*signatures.get(user_id, ()), *signed[user_id])
        return PublishedKeys(devices, cross_signing, signatures)

    async def _known(
        self, ours: Collection[str], others: Collection[str], newest: Mapping[str, int], at_least: int
    ) -> Sequence[PublishedKeys]:
        """What is published, in parts. `newest`: where users changed last, as far as that was looked at."""
        parts: list[PublishedKeys] = []
        missing: list[str] = []
        for user_id in ours:
            known = self._keys.get(user_id)
            if known is None or _position(known, user_id) < max(at_least, newest.get(user_id, 0)):
                missing.append(user_id)
            else:
                parts.append(known)
        if missing or others:
            heard = self._changes_heard
            read = await self._store.get_published(missing, others)
            parts.append(read)
            if heard == self._changes_heard:
                for user_id in missing:
                    self._keys.put(user_id, _of_user(read, user_id), 1 + len(read.devices.get(user_id, ())))
        return parts

    async def _signed_by(self, reader: str) -> Mapping[str, Sequence[KeySignature]]:
        known = self._signed.get(reader)
        if known is not None:
            return known
        heard = self._changes_heard
        signed = await self._store.get_signed_by(reader)
        if heard == self._changes_heard:
            self._signed.put(reader, signed, 1 + len(signed))
        return signed

    def _hear(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.user_id is None:
                continue
            if change.topic is Topic.DEVICE:
                self._changes_heard += 1
                self._keys.drop(change.user_id)
            elif change.topic is Topic.SIGNATURE:
                self._changes_heard += 1
                self._signed.drop(change.user_id)


def _of_user(keys: PublishedKeys, user_id: str) -> PublishedKeys:
    return PublishedKeys(
        {user_id: keys.devices.get(user_id, ())},
        {user_id: keys.cross_signing.get(user_id, {})},
        {user_id: keys.signatures.get(user_id, ())},
        {user_id: _position(keys, user_id)},
    )


def _position(keys: PublishedKeys, user_id: str) -> int:
    return keys.positions.get(user_id, 0)


class _Recent(Generic[V]):
    """Values by user, those least used forgotten where they weigh too much together."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._weight = 0
        self._values: OrderedDict[str, tuple[V, int]] = OrderedDict()

    def __contains__(self, user_id: str) -> bool:
        return user_id in self._values

    def get(self, user_id: str) -> V | None:
        entry = self._values.get(user_id)
        if entry is None:
            return None
        self._values.move_to_end(user_id)
        return entry[0]

    def put(self, user_id: str, value: V, weight: int) -> None:
        self.drop(user_id)
        self._values[user_id] = (value, weight)
        self._weight += weight
        while self._weight > self._capacity:
            self.drop(next(iter(self._values)))

    def drop(self, user_id: str) -> None:
        entry = self._values.pop(user_id, None)
        if entry is not None:
            self._weight -= entry[1]
