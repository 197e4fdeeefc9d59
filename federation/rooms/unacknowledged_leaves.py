"""What we did last in a room, where a server lets us in again that has not heard of it.

Whoever leaves as the last of ours has left at once, and the others hear of it when they can be had.
If somebody of ours comes in meanwhile, by a server that does not know, the state that it tells
lacks the leave. So the events in which we left the room are its ends again, beside the join: the
state is resolved between them, here as it will be there once the leave has come, and what is said
next follows both.

Where it has heard of it, all that we knew of the room is over, and the told state counts alone:
whoever resolves a state with one that it came from brings back what the room has moved past, here
and at all who hear of it; and a state that went wrong here is put right by coming in anew.

spec: server-server-api#room-state-resolution
"""

from federation.peers.identity import ServerIdentity
from federation.protocol.errors import Forbidden
from federation.protocol.events import StateKey
from federation.rooms.events import RoomEvents
from federation.rooms.membership_templates import MEMBER
from federation.rooms.resolve import StateResolver
from storage.persist.room_writer import StateChange


class LeftBefore(Forbidden):
    """Who wants in again has left, which the others will hear of, and may not come in again by
    themselves."""


class Unheard:
    """Compares states. For the reactor thread."""

    def __init__(
        self, events: RoomEvents, resolver: StateResolver, identity: ServerIdentity
    ) -> None:
        self._events = events
        self._resolver = resolver
        self._identity = identity

    async def find_replaced(
        self, room_nid: int, left: StateChange, told: StateChange
    ) -> dict[tuple[str, str], int]:
        """What was in the state in which we left (`left`) in the place of memberships that are told
        and are older: of our own users, which stood in the room here and had been replaced by then.
        If there are any, the told state has not heard of our leaving.

        Nothing else shows it: of what others do, one state may be as new as the other, where the
        history was forked when we left.
        """
        difference = await self._resolver.diff(room_nid, left, told)
        older = {
            key: (was, now)
            for key, (was, now) in difference.items()
            if key.type == MEMBER
            and was is not None
            and now is not None
            and now < was
            and self._is_ours(key)
        }
        stored = await self._events.get_events(now for _, now in older.values())
        return {key: was for key, (was, now) in older.items() if stored[now].in_timeline}

    def _is_ours(self, key: StateKey) -> bool:
        return self._identity.is_local(key.state_key)
