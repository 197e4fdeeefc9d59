"""Cache of the number of unused one-time keys of devices, which every /sync needs.

The counts of a device are read once. Afterwards uploads set them and claims count them down. Any
write of another node empties the whole cache, because that write may be a claim.

Laws:
- A count includes all changes that this process had seen when the count was requested. After a
  claim at another node, the count is too high for a moment, until this node learns of that node's
  write. Then this node empties the cache and wakes the device's /sync, so that the client sees the
  lower count and uploads new keys. Claims read the database, not this cache.
- A claimed key is counted down once. A count that is read from the database may include claims that
  the stream has not announced yet. So each entry stores the position up to which its count includes
  all claims, and only claims at later positions are subtracted. A count is not cached if a change
  at a later position arrived during the read.
- The cache holds a bounded number of users. It is not a `StreamCache`, since the stream announces a
  claim with the claimed keys, not with the counts that are left.

spec: client-server-api#end-to-end-encryption
"""

from collections.abc import Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from storage.cache import LRU
from storage.encryption.device_keys import DeviceKeyStore, KeyCounts, KeyCountsChanged, KeysClaimed
from storage.encryption.one_time_keys import KeyRequest
from storage.engine.streams import Change, Stage, Streams, Topic

COMMON_ALGORITHM: Final = "signed_curve25519"


def with_zero(counts: KeyCounts) -> KeyCounts:
    """Return the counts with an entry for the usual algorithm, even if it is 0: clients take a
    missing algorithm as unchanged."""
    if COMMON_ALGORITHM in counts.one_time:
        return counts
    return replace(counts, one_time={**counts.one_time, COMMON_ALGORITHM: 0})


class _Entry(msgspec.Struct):
    """The counts of a device."""

    counts: KeyCounts
    since: int
    """The counts include all claims up to this position. Later claims are subtracted."""


class OneTimeKeyCounts:
    """Caches the counts of unused one-time keys. Used only on the reactor thread."""

    def __init__(self, *, streams: Streams, keys: DeviceKeyStore, capacity: int) -> None:
        """`capacity`: the number of users whose devices are cached."""
        self._keys = keys
        self._counts: LRU[str, dict[str, _Entry]] = LRU(max_entries=capacity)
        """By user and device."""
        self._latest_change = 0
        """The position of the latest change of any key that this process has seen."""
        streams.subscribe(self._on_changes, Topic.KEY_COUNT, Topic.DEVICE, stage=Stage.CACHE)
        streams.watch(self._on_remote_write, stage=Stage.CACHE)

    @property
    def cache(self) -> LRU[str, dict[str, _Entry]]:
        """The counts by user and device, for metrics."""
        return self._counts

    async def get(self, user_id: str, device_id: str) -> KeyCounts:
        """Return the counts of a device, from the database if they are not cached."""
        known = self.get_cached(user_id, device_id)
        if known is not None:
            return known
        counts, position = await self._keys.get_counts(user_id, device_id)
        if position < self._latest_change:
            # correct at the time of the read, but changes arrived since: do not cache it
            return with_zero(counts)
        return self._put(user_id, device_id, counts, position)

    def get_cached(self, user_id: str, device_id: str) -> KeyCounts | None:
        """Return the counts of a device if they are cached."""
        entry = (self._counts.get(user_id) or {}).get(device_id)
        return None if entry is None else entry.counts

    def _on_changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.topic is Topic.KEY_COUNT or change.topic is Topic.DEVICE:
                self._latest_change = max(self._latest_change, change.position)
                detail = change.detail
                if isinstance(detail, KeysClaimed):
                    self._count_down(change.position, detail.claimed)
                elif isinstance(detail, KeyCountsChanged) and change.user_id is not None:
                    self._put(change.user_id, detail.device_id, detail.counts, change.position)
                else:
                    for user_id in change.user_ids if change.user_id is None else (change.user_id,):
                        self._counts.pop(user_id)

    def _put(self, user_id: str, device_id: str, counts: KeyCounts, position: int) -> KeyCounts:
        known = with_zero(counts)
        of_user = self._counts.peek(user_id) or {}
        of_user[device_id] = _Entry(known, position)
        self._counts.put(user_id, of_user)
        return known

    def _count_down(self, position: int, taken: Sequence[KeyRequest]) -> None:
        for user_id, device_id, algorithm in taken:
            entry = (self._counts.peek(user_id) or {}).get(device_id)
            if entry is not None and entry.since < position:
                left = {**entry.counts.one_time, algorithm: entry.counts.one_time[algorithm] - 1}
                if not left[algorithm]:
                    del left[algorithm]
                entry.counts = with_zero(replace(entry.counts, one_time=left))

    def _on_remote_write(self, _after: int, upto: int) -> None:
        """Invalidate all: another node may have served claims."""
        self._latest_change = max(self._latest_change, upto)
        self._counts.clear()
