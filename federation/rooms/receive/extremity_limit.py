"""Limits the forward extremities of a room: an event that would add one too many waits.

The current state is the resolution of the states after all forward extremities, so each of them
makes every further event more expensive. Honest servers build upon all extremities that they know,
so there is rarely more than one per server. But a server in the room may send any number of events
that follow one and the same event.

So each server may have a few extremities, and the room a larger number. An event beyond that waits
in the inbox. Events that replace or merge extremities are always received, and make room.

The specification has no such limit. It does not matter when an event is received: its position in
the DAG stays the same.
"""

from collections import Counter
from typing import Final

from federation.protocol.events import Event
from federation.protocol.ids import domain_of
from federation.rooms.events import RoomEvents
from federation.rooms.snapshot import RoomSnapshot

MAX_PER_SERVER: Final = 10
MAX_EXTREMITIES: Final = 100


async def exceeds_extremity_limit(snapshot: RoomSnapshot, event: Event, events: RoomEvents) -> bool:
    """Return whether the event would exceed the extremities of its server or of the room."""
    extremities = snapshot.head.extremities
    if len(extremities) < MAX_PER_SERVER or not {
        event_id for _, event_id in extremities
    }.isdisjoint(event.prev_events):
        return False
    if len(extremities) >= MAX_EXTREMITIES:
        return True
    loaded = await events.get_events(nid for nid, _ in extremities)
    by_server = Counter(domain_of(stored.event.sender) for stored in loaded.values())
    return by_server[domain_of(event.sender)] >= MAX_PER_SERVER
