"""Applies our last leaves when we rejoin a room through a server that has not received them.

When our last member leaves a room, the leave takes effect here immediately. Other servers receive
it when they can be reached. A local user may then join again through a server that does not have
the leave yet. The state in that server's response lacks the leave too. So the events with which we
left become forward extremities again, beside the join. The current state is the resolution of the
states after all of them, as on the other servers when the leave arrives. Our next events follow all
of these extremities.

If the server has the leave, the state in its response is newer than our stored state, and only the
response is used. Resolving it with our older state would restore outdated entries, on this server
and on all servers that receive our next events. So if it is uncertain whether the server has the
leave, only the response is used too: a wrong state on this server alone can be corrected by joining
again.

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
    """The joining user has left the room, and may not rejoin without an invite. Other servers have
    not received the leave yet."""


class UnacknowledgedLeaves:
    """Compares states to find leaves that another server has not received. Use this class
    only on the reactor thread."""

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
