"""Lists rooms that were joined with partial state, and lets requests wait for their complete state.

The head of a room says only whether its state is partial now. `PartialRooms` also lists rooms whose
state is complete by now, with the position of the completion. Clients that need all members of a
room (no lazy loading) do not get it while its state is partial. They get the complete room when
they sync past this position.
"""

from collections.abc import Mapping
from typing import Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import StateIncomplete
from storage.cache import StreamValue
from storage.engine.streams import Change, Stage, Streams, Topic
from storage.rooms.partial_rooms import PartialRoom, PartialRoomStore

MAX_WAIT: Final = 60.0
"""Seconds to wait for the rest of a state."""


class PartialRooms:
    """Reads the rooms that were joined with partial state. Use this class only on the reactor
    thread."""

    def __init__(self, *, store: PartialRoomStore, streams: Streams, clock: IReactorTime) -> None:
        self._store = store
        self._streams = streams
        self._clock = clock
        self._rooms: StreamValue[dict[int, PartialRoom]] = StreamValue(
            streams, Topic.PARTIAL_STATE, load=self._load, update=_update
        )
        self._waiting: dict[int, list[Deferred[None]]] = {}
        streams.watch(self._on_remote_write, stage=Stage.NOTIFY)

    @property
    def cached(self) -> Mapping[int, PartialRoom] | None:
        """The same as `get_all` if it is cached, else None."""
        return self._rooms.find()

    async def get_all(self) -> Mapping[int, PartialRoom]:
        """Return the rooms that were joined with partial state, by number, also completed ones.

        Makes no query while nothing changes.
        """
        return await self._rooms.get()

    async def find(self, room_nid: int) -> PartialRoom | None:
        """Return the room if its state is partial, else None."""
        room = (await self.get_all()).get(room_nid)
        return None if room is None or room.completed_position is not None else room

    async def wait(self, room_nid: int) -> None:
        """Wait until the state of the room is complete. Raises StateIncomplete after
        `MAX_WAIT`."""
        until = self._clock.seconds() + MAX_WAIT
        while await self.find(room_nid) is not None:
            done: Deferred[None] = Deferred()
            self._waiting.setdefault(room_nid, []).append(done)
            call = self._clock.callLater(max(until - self._clock.seconds(), 0), done.cancel)
            try:
                await done
            except CancelledError:
                if call.active():
                    raise  # the caller was cancelled
                raise StateIncomplete from None
            finally:
                if call.active():
                    call.cancel()
                self._waiting[room_nid].remove(done)
                if not self._waiting[room_nid]:
                    del self._waiting[room_nid]

    def notify(self, room_nid: int) -> None:
        """Wake all that wait for the room, once its new snapshot is in place."""
        for done in list(self._waiting.get(room_nid, ())):
            if not done.called:
                done.callback(None)

    async def _load(self) -> dict[int, PartialRoom]:
        return {room.room_nid: room for room in await self._store.get_rooms()}

    def _on_remote_write(self, after: int, upto: int) -> None:
        """Wake the waiting requests if another node may have completed a room."""
        changes = self._streams.get_remote_changes(after, upto)
        if changes is None or any(change.topic is Topic.PARTIAL_STATE for change in changes):
            for room_nid in list(self._waiting):
                self.notify(room_nid)


def _update(rooms: dict[int, PartialRoom], change: Change) -> bool:
    if not isinstance(change.detail, PartialRoom):
        return False
    rooms[change.detail.room_nid] = change.detail
    return True
