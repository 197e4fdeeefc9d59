"""Cache of whether rooms are encrypted. It is used only on the reactor thread. An encrypted room
stays encrypted, so changes invalidate only the entries of unencrypted rooms."""

from collections.abc import Iterable, Mapping, Sequence

from storage.cache import StreamCache
from storage.engine.streams import Change, Streams, Topic
from storage.events.events import EventFlag, EventRow, EventSummary
from storage.rooms.partial_rooms import PartialRoom
from storage.rooms.summaries import RoomSummaryStore

ENCRYPTION = "m.room.encryption"


class EncryptedRoomCache:
    """Caches whether rooms are encrypted."""

    def __init__(self, *, summaries: RoomSummaryStore, streams: Streams, capacity: int) -> None:
        """`capacity`: rooms."""
        self._summaries = summaries
        self._cache: StreamCache[int, bool] = StreamCache(
            streams,
            Topic.EVENT,
            Topic.PARTIAL_STATE,
            load=self._load,
            keys_of=_rooms_of,
            update=lambda is_encrypted, _: is_encrypted,
            max_entries=capacity,
        )

    @property
    def cache(self) -> StreamCache[int, bool]:
        """The rooms, for metrics."""
        return self._cache

    async def filter_encrypted(self, room_nids: Iterable[int]) -> set[int]:
        """Return those of the rooms that are encrypted."""
        found = await self._cache.get_many(set(room_nids))
        return {nid for nid, is_encrypted in found.items() if is_encrypted}

    async def _load(self, room_nids: Sequence[int]) -> Mapping[int, bool]:
        found = await self._summaries.get_summaries(room_nids)
        return {nid: nid in found and found[nid].encryption is not None for nid in room_nids}


def _rooms_of(change: Change) -> Sequence[int] | None:
    """Return the room whose encryption may have changed, by an event or by fetched state; None for
    all rooms."""
    row = change.detail
    if isinstance(row, EventRow | EventSummary):
        is_concerned = row.type == ENCRYPTION or row.flags & EventFlag.RESOLVED
        return (row.room_nid,) if is_concerned else ()
    return (row.room_nid,) if isinstance(row, PartialRoom) else None
