"""Which rooms are encrypted, from memory. A room that is encrypted stays so. For the reactor
thread."""

from collections import OrderedDict
from collections.abc import Iterable, Sequence

from storage.engine.streams import Change, Streams, Topic
from storage.events.events import EventFlag, EventRow
from storage.rooms.partial_rooms import PartialRoom
from storage.rooms.summaries import RoomSummaryStore


class EncryptedRooms:
    """A cache of one bit a room."""

    def __init__(self, summaries: RoomSummaryStore, streams: Streams, *, capacity: int) -> None:
        self._summaries = summaries
        self._capacity = capacity
        self._known: OrderedDict[int, bool] = OrderedDict()
        self._changes_heard = 0
        streams.subscribe(self._hear, Topic.EVENT, Topic.COMPLETENESS)
        streams.watch(self._heed_others)

    async def among(self, room_nids: Iterable[int]) -> set[int]:
        """Those of the rooms that are encrypted."""
        wanted = set(room_nids)
        while missing := [nid for nid in wanted if nid not in self._known]:
            heard = self._changes_heard
            summaries = await self._summaries.get_summaries(missing)
            if heard != self._changes_heard:
                continue
            for nid in missing:
                self._known[nid] = nid in summaries and summaries[nid].encryption is not None
            break
        encrypted = {nid for nid in wanted if self._known[nid]}
        while len(self._known) > self._capacity:
            self._known.popitem(last=False)
        return encrypted

    def _hear(self, changes: Sequence[Change]) -> None:
        for change in changes:
            row = change.detail
            if isinstance(row, EventRow):
                if row.type == "m.room.encryption" and row.state_key == "":
                    self._changes_heard += 1
                    self._known[row.room_nid] = True
                elif row.flags & EventFlag.RESOLVED:
                    self._doubt(row.room_nid)  # it may have come with the state, or by a fork
            elif isinstance(row, PartialRoom):
                self._doubt(row.room_nid)

    def _doubt(self, room_nid: int) -> None:
        self._changes_heard += 1
        if not self._known.get(room_nid):
            self._known.pop(room_nid, None)

    def _heed_others(self, _after: int, _upto: int) -> None:
        """Another node may have turned encryption on."""
        self._changes_heard += 1
        self._known = OrderedDict(
            (nid, True) for nid, encrypted in self._known.items() if encrypted
        )
