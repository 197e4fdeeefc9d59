"""What people have published for encryption, that of our users from memory: a question for their
keys costs no query.

Laws:
- Read once, then forgotten when the stream tells that a user's devices or keys changed. What a
  change overtakes while it is read is not kept. Keys of other servers' users are read each time.
- What is answered is no older than what anybody has been told of. The stream tells of what other
  processes wrote a moment later than they tell their clients: where there may be others, one
  question shows whether they have written anything that this one has not heard of; after they have,
  one whether what is kept is the newest.
- What all readers see alike is encoded once.

For the reactor thread.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

import msgspec

from storage.encryption.cross_signing import CrossSigningKey, KeySignature
from storage.encryption.device_keys import DeviceKeysRow
from storage.encryption.published_keys import PublishedKeys, PublishedKeyStore
from storage.engine.streams import Change, Streams, Topic

V = TypeVar("V")


class ShownKeys(msgspec.Struct, frozen=True, gc=False):
    """What any client sees of one of our users who is not its own, and of whom its user has signed
    nothing."""

    devices: msgspec.Raw
    """All of them by id."""
    cross_signing: Mapping[str, msgspec.Raw]
    """By usage."""
    size: int
    """In bytes."""


class _Known:
    """What is kept of a user."""

    __slots__ = ("checked", "keys", "shown")

    def __init__(self, keys: PublishedKeys, checked: int) -> None:
        self.keys = keys
        self.checked = checked
        """The position up to which all changes are in it; of this process's, all."""
        self.shown: ShownKeys | None = None


class KeysOfPeople:
    """A cache of keys of our users, and of what each of them has signed of others."""

    def __init__(
        self,
        store: PublishedKeyStore,
        streams: Streams,
        show: Callable[[str, PublishedKeys], ShownKeys],
        *,
        capacity: int,
    ) -> None:
        """`show` encodes what is shown of a user. `capacity`: devices, and users who sign, of which
        something is kept."""
        self._store = store
        self._streams = streams
        self._show = show
        self._is_alone = store.is_alone
        self._keys: _Recent[_Known] = _Recent(capacity)
        self._signed: _Recent[tuple[Mapping[str, Sequence[KeySignature]], int]] = _Recent(capacity)
        """By who signed, with the position up to which all changes are in it."""
        self._changes_heard = 0
        self._others_upto = 0
        """The latest position that another process is known to have written."""
        streams.subscribe(self._hear, Topic.DEVICE, Topic.SIGNATURE)
        streams.watch(self._heed_others)

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
            heard = self._changes_heard
            kept = [each for each in ours if each in self._keys]
            newest, signed = await self._store.get_newest(kept, reader)
            newest = {**dict.fromkeys(kept, 0), **newest}
            if reader is not None and heard == self._changes_heard:
                self._signed.put(reader, (signed, began), 1 + len(signed))
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
        upto = self._others_upto
        return {
            user_id: known.shown or self._encode(user_id, known)
            for user_id, known in self._keys.get_all(ours).items()
            if known.checked >= upto and user_id not in others
        }

    def _encode(self, user_id: str, known: _Known) -> ShownKeys:
        known.shown = self._show(user_id, known.keys)
        return known.shown

    def _is_checked(self, user_id: str) -> bool:
        known = self._keys.get(user_id)
        return known is not None and known.checked >= self._others_upto

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
            heard = self._changes_heard
            read = await self._store.get_published(missing, others)
            parts.append(read)
            if heard == self._changes_heard:
                for user_id in missing:
                    known = _Known(_of_user(read, user_id), began)
                    self._keys.put(user_id, known, 1 + len(read.devices.get(user_id, ())))
        return parts

    async def _signed_by(self, reader: str) -> Mapping[str, Sequence[KeySignature]]:
        known = self._signed.get(reader)
        if known is not None and known[1] >= self._others_upto:
            return known[0]
        heard, began = self._changes_heard, self._streams.current()
        signed = await self._store.get_signed_by(reader)
        if heard == self._changes_heard:
            self._signed.put(reader, (signed, began), 1 + len(signed))
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

    def _heed_others(self, _after: int, upto: int) -> None:
        self._others_upto = max(self._others_upto, upto)


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

    def get_all(self, user_ids: Iterable[str]) -> dict[str, V]:
        """Of those of whom something is kept."""
        values = self._values
        found = {user_id: values[user_id][0] for user_id in user_ids if user_id in values}
        deque(map(values.move_to_end, found), maxlen=0)
        return found

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
