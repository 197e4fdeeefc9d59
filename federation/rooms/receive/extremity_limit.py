"""Limits the forward extremities of a room. An event above the limit waits in the inbox.

The current state is the resolution of the states after all forward extremities. So each extremity
makes every further event more expensive. Honest servers build upon all extremities that they have
received, so there is rarely more than one per server. But a server in the room may send any number
of events with the same `prev_events`.

Therefore each server may have a few extremities, and the room a larger number. An event that
follows an extremity replaces it, so it is always accepted.

The specification has no such limit, but a delay is harmless: the position of an event in the room's
graph depends on its `prev_events`, not on its arrival.
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
