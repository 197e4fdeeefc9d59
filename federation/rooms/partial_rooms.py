"""Rooms of which only a part of the state is here yet: which they are, and waiting for the rest.

Whether a room is whole is said by its head, which the engine has in memory. Here is what is known
besides, also of the rooms that have become whole since: those who were told nothing of a room
before are told all of it then.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import StateIncomplete
from storage.engine.streams import Change, Streams, Topic
from storage.rooms.partial_rooms import PartialRoom, PartialRoomStore

LONGEST_WAIT: Final = 60.0
"""Seconds that somebody waits for the rest of a state."""


class PartialRooms:
    """Knows the rooms that were entered with a part of their state. For the reactor thread."""

    def __init__(self, store: PartialRoomStore, streams: Streams, clock: IReactorTime) -> None:
        self._store = store
        self._streams = streams
        self._clock = clock
        self.known: dict[int, PartialRoom] | None = None
        """What `get_all` gives, as far as it is in memory."""
        self._changes_heard = 0
        self._waiting: dict[int, list[Deferred[None]]] = {}
        streams.subscribe(self._hear, Topic.COMPLETENESS)
        streams.watch(self._heed_others)

    async def get_all(self) -> Mapping[int, PartialRoom]:
        """By number all rooms that were entered so, the complete ones too. No query while nothing
        changes."""
        while self.known is None:
            heard = self._changes_heard
            rooms = {room.room_nid: room for room in await self._store.get_rooms()}
            if heard == self._changes_heard:
                self.known = rooms
        return self.known

    async def find(self, room_nid: int) -> PartialRoom | None:
        """The room, if a part of its state is lacking."""
        room = (await self.get_all()).get(room_nid)
        return None if room is None or room.completed is not None else room

    async def wait(self, room_nid: int) -> None:
        """Return when all of the room's state is here. Raises StateIncomplete when that takes too
        long."""
        until = self._clock.seconds() + LONGEST_WAIT
        while await self.find(room_nid) is not None:
            done: Deferred[None] = Deferred()
            self._waiting.setdefault(room_nid, []).append(done)
            call = self._clock.callLater(max(until - self._clock.seconds(), 0), done.cancel)
            try:
                await done
            except CancelledError:
                if call.active():
                    raise  # who asked has gone
                raise StateIncomplete from None
            finally:
                if call.active():
                    call.cancel()
                self._waiting[room_nid].remove(done)
                if not self._waiting[room_nid]:
                    del self._waiting[room_nid]

    def tell(self, room_nid: int) -> None:
        """Those who wait for the room may look again: its snapshot is the new one."""
        for done in list(self._waiting.get(room_nid, ())):
            if not done.called:
                done.callback(None)

    def _hear(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if change.topic is Topic.COMPLETENESS:
                self._changes_heard += 1
                if self.known is not None and isinstance(change.detail, PartialRoom):
                    self.known[change.detail.room_nid] = change.detail
                else:
                    self.known = None

    def _heed_others(self, after: int, upto: int) -> None:
        """Another node wrote: where it has not said that it did not, it may have completed a
        room."""
        told = self._streams.told(after, upto)
        if told is not None and all(change.topic is not Topic.COMPLETENESS for change in told):
            return
        self._changes_heard += 1
        self.known = None
        for room_nid in list(self._waiting):
            self.tell(room_nid)
