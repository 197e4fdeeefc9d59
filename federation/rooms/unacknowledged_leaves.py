"""Applies our last leaves when we join a room again through a server that has not received them.

A local user who leaves as our last member has left at once; other servers get the leave when they
can be reached. If a local user joins meanwhile through a server without the leave, the state in its
response lacks it. So the events in which we left become extremities again, beside the join. The
state is resolved between them, as on the other servers once the leave arrives, and our next events
follow both.

If the server has the leave, our old knowledge of the room is outdated, and only the response
counts. Resolving a state with one of its ancestors would restore outdated entries, here and on all
servers that receive it. And a wrong state here is corrected by joining again.

spec: server-server-api#room-state-resolution
"""

from federation.peers.identity import ServerIdentity
from federation.protocol.errors import Forbidden
from federation.protocol.events import StateKey
from federation.rooms.events import RoomEvents
from federation.rooms.membership_templates import MEMBER
from federation.rooms.resolve import StateResolver
from storage.persist.room_writer import StateChange


class HasLeftRoom(Forbidden):
    """The joining user has left, which other servers will learn, and may not rejoin uninvited."""


class UnacknowledgedLeaves:
    """Compares states to find leaves that another server lacks. For the reactor thread."""

    def __init__(
        self, *, events: RoomEvents, resolver: StateResolver, identity: ServerIdentity
    ) -> None:
        self._events = events
        self._resolver = resolver
        self._identity = identity

    async def find_replaced(
        self, room_nid: int, left: StateChange, received: StateChange
    ) -> dict[tuple[str, str], int]:
        """Return local memberships in our last state (`left`) that replace older ones in the
        received state (`received`).

        Those older ones were placed in the room here and had been replaced when we left. If there
        are any, the other server has not received our leave. Nothing else proves it: of remote
        events either state may be newer, if the history was forked when we left.
        """
        difference = await self._resolver.diff(room_nid, left, received)
        older = {
            key: (was, now)
            for key, (was, now) in difference.items()
            if key.type == MEMBER
            and was is not None
            and now is not None
            and now < was
            and self._is_local(key)
        }
        stored = await self._events.get_events(now for _, now in older.values())
        return {key: was for key, (was, now) in older.items() if stored[now].in_timeline}

    def _is_local(self, key: StateKey) -> bool:
        return self._identity.is_local(key.state_key)
