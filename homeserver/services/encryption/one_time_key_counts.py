"""How many one-time keys devices have left: on the path of every /sync, so from memory.

It is read for a device once. From then on uploads say what is left, and claims what was given out.

Laws:
- Who asks is told what the device had left at a moment no earlier than what had been heard of by
  then.
- A key that was given out is counted down once. What is read may be ahead of what is heard of, so
  it is known of each device up to where all is in it; and what is read is kept only if nothing
  later was heard of meanwhile.
- What is kept is bounded, by users, and by devices that were claimed from and have not asked since.

spec: client-server-api#end-to-end-encryption
"""

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from storage.encryption.device_keys import DeviceKeyStore, KeyCounts, KeysClaimed, KeysLeft
from storage.encryption.keys_ahead import KeyOf
from storage.engine.streams import Change, Streams, Topic

MOST_UNCOUNTED: Final = 2000
"""Devices (for each algorithm) of which keys were given out that are still to be counted down: that
takes 1 us for each."""
USUAL_ALGORITHM: Final = "signed_curve25519"


def with_zero(counts: KeyCounts) -> KeyCounts:
    """With the usual algorithm even where nothing is left of it: clients take what is missing for
    unchanged."""
    if USUAL_ALGORITHM in counts.one_time:
        return counts
    return replace(counts, one_time={**counts.one_time, USUAL_ALGORITHM: 0})


class _Left(msgspec.Struct):
    """What is known of a device."""

    counts: KeyCounts
    upto: int
    """The position up to which all changes are in it."""

    def count_down(self, taken: Mapping[str, int]) -> None:
        """So many keys were given out, by algorithm."""
        left = {
            algorithm: count - taken.get(algorithm, 0)
            for algorithm, count in self.counts.one_time.items()
        }
        self.counts = with_zero(
            replace(
                self.counts,
                one_time={algorithm: count for algorithm, count in left.items() if count},
            )
        )


class KeyCountsInMemory:
    """What devices have left. For the reactor thread."""

    def __init__(self, streams: Streams, keys: DeviceKeyStore, *, capacity: int) -> None:
        """`capacity`: of how many users' devices it is kept."""
        self._keys = keys
        self._capacity = capacity
        self._known: OrderedDict[str, dict[str, _Left]] = OrderedDict()
        """By user and device."""
        self._heard_upto = 0
        """Up to where changes of anybody's keys were heard of."""
        self._read_upto = 0
        """Up to where what was read of a device may be ahead of what was heard of."""
        self._taken: Counter[KeyOf] = Counter()
        """How many keys were given out that are still to be counted down, where something is known:
        devices are asked for more often than they ask."""
        streams.subscribe(self._hear, Topic.KEY_COUNT, Topic.DEVICE)
        streams.watch(self._heed_others)

    async def get(self, user_id: str, device_id: str) -> KeyCounts:
        """What a device has left."""
        known = self.find(user_id, device_id)
        if known is not None:
            return known
        counts, position = await self._keys.get_counts(user_id, device_id)
        if position < self._heard_upto:
            return with_zero(
                counts
            )  # it was true when it was asked for; what came meanwhile is not in it
        self._read_upto = max(self._read_upto, position)
        return self._note(user_id, device_id, counts, position)

    def find(self, user_id: str, device_id: str) -> KeyCounts | None:
        """The same as far as it is in memory."""
        known = self._left_of(user_id, device_id)
        if known is None:
            return None
        self._known.move_to_end(user_id)
        if self._taken:
            taken = self._pop_taken(user_id, device_id, known.counts)
            if taken:
                known.count_down(taken)
        return known.counts

    def _hear(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.topic is Topic.KEY_COUNT or change.topic is Topic.DEVICE:
                self._heard_upto = max(self._heard_upto, change.position)
                detail = change.detail
                if isinstance(detail, KeysClaimed):
                    self._note_claim(change.position, detail.taken)
                elif isinstance(detail, KeysLeft) and change.user_id is not None:
                    self._note(change.user_id, detail.device_id, detail.counts, change.position)
                else:
                    for user_id in change.user_ids if change.user_id is None else (change.user_id,):
                        self._known.pop(user_id, None)

    def _note(self, user_id: str, device_id: str, counts: KeyCounts, position: int) -> KeyCounts:
        known = with_zero(counts)
        self._pop_taken(user_id, device_id, known)  # that is in it
        self._known.setdefault(user_id, {})[device_id] = _Left(known, position)
        self._known.move_to_end(user_id)
        if len(self._known) > self._capacity:
            self._known.popitem(last=False)
        return known

    def _note_claim(self, position: int, taken: Sequence[KeyOf]) -> None:
        if position <= self._read_upto:  # what was read of some may have it in it already
            taken = [wish for wish in taken if self._is_behind(wish, position)]
        self._taken.update(taken)
        if len(self._taken) > MOST_UNCOUNTED:
            for (user_id, device_id, algorithm), number in self._taken.items():
                known = self._left_of(user_id, device_id)
                if known is not None:
                    known.count_down({algorithm: number})
            self._taken.clear()

    def _is_behind(self, wish: KeyOf, position: int) -> bool:
        known = self._left_of(*wish[:2])
        return known is not None and known.upto < position

    def _left_of(self, user_id: str, device_id: str) -> _Left | None:
        of_user = self._known.get(user_id)
        return None if of_user is None else of_user.get(device_id)

    def _pop_taken(self, user_id: str, device_id: str, counts: KeyCounts) -> dict[str, int]:
        """Of a device that has keys of these algorithms, how many were given out, by algorithm,
        that have not been counted down."""
        taken: dict[str, int] = {}
        for algorithm in counts.one_time:
            number = self._taken.pop((user_id, device_id, algorithm), 0)
            if number:
                taken[algorithm] = number
        return taken

    def _heed_others(self, _after: int, upto: int) -> None:
        """Another node may have given keys out."""
        self._heard_upto = max(self._heard_upto, upto)
        self._known.clear()
        self._taken.clear()
