"""Cache of the encrypted rooms. An encrypted room stays encrypted. For the reactor thread."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from storage.engine.streams import Change, Streams, Topic
from storage.events.events import EventFlag, EventRow
from storage.rooms.partial_rooms import PartialRoom
from storage.rooms.summaries import RoomSummaryStore


class EncryptedRooms:
    """Caches one bit for each room."""

    def __init__(self, summaries: RoomSummaryStore, streams: Streams, *, capacity: int) -> None:
        self._summaries = summaries
        self._capacity = capacity
        self._encrypted: OrderedDict[int, bool] = OrderedDict()
        self._version = 0
        streams.subscribe(self._on_changes, Topic.EVENT, Topic.COMPLETENESS)
        streams.watch(self._on_remote_write)

    async def among(self, room_nids: Iterable[int]) -> set[int]:
        """Return those of the rooms that are encrypted."""
        wanted = set(room_nids)
        while missing := [nid for nid in wanted if nid not in self._encrypted]:
            version = self._version
            summaries = await self._summaries.get_summaries(missing)
            if version != self._version:
                continue
            for nid in missing:
                self._encrypted[nid] = nid in summaries and summaries[nid].encryption is not None
            break
        encrypted = {nid for nid in wanted if self._encrypted[nid]}
        while len(self._encrypted) > self._capacity:
            self._encrypted.popitem(last=False)
        return encrypted

    def _on_changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            row = change.detail
            if isinstance(row, EventRow):
                if row.type == "m.room.encryption" and row.state_key == "":
                    self._version += 1
                    self._encrypted[row.room_nid] = True
                elif row.flags & EventFlag.RESOLVED:
                    # encryption may have come with fetched state or by state resolution
                    self._invalidate(row.room_nid)
            elif isinstance(row, PartialRoom):
                self._invalidate(row.room_nid)

    def _invalidate(self, room_nid: int) -> None:
        self._version += 1
        if not self._encrypted.get(room_nid):
            self._encrypted.pop(room_nid, None)

    def _on_remote_write(self, _after: int, _upto: int) -> None:
        """Invalidate all unencrypted rooms: another node may have turned encryption on."""
        self._version += 1
        self._encrypted = OrderedDict(
            (nid, True) for nid, encrypted in self._encrypted.items() if encrypted
        )
