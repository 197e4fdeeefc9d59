"""The interface for finding events by time on other servers.

spec: server-server-api#get_matrixfederationv1timestamp_to_eventroomid
"""

from typing import Protocol

from federation.rooms.events import StoredEvent
from federation.rooms.snapshot import RoomSnapshot
from storage.events.timelines import Direction


class RemoteTimestamps(Protocol):
    """Asks other servers in a room for events by time."""

    async def find_nearest(
        self, room: RoomSnapshot, ts: int, direction: Direction, known: StoredEvent | None
    ) -> StoredEvent | None:
        """Return an event closest to a time, before or after it, from servers with more history.

        `known`: the closest stored event. Return None if there is no closer one. The returned event
        is stored and placed in the room.
        """
        ...
