"""What we did last in a room, where a server lets us in again that has not heard of it.

Whoever leaves as the last of ours has left at once, and the others hear of it when they can be had. If somebody of ours comes in
meanwhile, by a server that does not know, the state that it tells lacks the leave. So the events in which we left the room are
its ends again, beside the join: the state is resolved between them, here as it will be there once the leave has come, and what is
said next follows both.

spec: server-server-api#room-state-resolution
"""

from collections.abc import Collection, Sequence

from federation.protocol.errors import Forbidden
from federation.rooms.resolve import StateResolver
from federation.rooms.room_events import RoomEvents, StoredEvent
from storage.room_writer import StateChange


class LeftBefore(Forbidden):
    """Who wants in again has left, which the others will hear of, and may not come in again by themselves."""


class Unheard:
    """Compares states. For the reactor thread."""

    def __init__(self, events: RoomEvents, resolver: StateResolver) -> None:
        self._events = events
        self._resolver = resolver

    async def find(self, room_nid: int, ends: Collection[int], told: StateChange) -> Sequence[StoredEvent]:
        """The events in which we left a room, by number, if what they left behind is newer than the told state; else none.

        That is so where the told state has an entry which stood in the room here, and had been replaced by the time when we left.
        """
        left = list((await self._events.get_events(ends)).values())
        for end in left:
            difference = await self._resolver.diff(room_nid, StateChange(end.state_root), told)
            older = [now for was, now in difference.values() if was is not None and now is not None and now < end.nid]
            if any(stored.in_timeline for stored in (await self._events.get_events(older)).values()):
                return left
        return ()
