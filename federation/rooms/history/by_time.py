"""Events by time: whom else to ask for an event that is nearer to some time than what this server
has.

spec: server-server-api#get_matrixfederationv1timestamp_to_eventroomid
"""

from typing import Protocol

from federation.rooms.events import StoredEvent
from federation.rooms.snapshot import RoomSnapshot
from storage.events.timelines import Direction


class RemoteTimes(Protocol):
    """Asks other servers in a room."""

    async def find_nearest(
        self, room: RoomSnapshot, ts: int, direction: Direction, known: StoredEvent | None
    ) -> StoredEvent | None:
        """An event from before or after a time, as servers name it that have more of the room's
        past; None: there is none.

        `known` is the nearest that is stored: who finds none that is nearer gives None. What is
        given is stored, in its place in the room.
        """
        ...
