"""How many ends the history of a room may have at once: what would add one too many waits until
others have met.

The current state is the resolution of the states after all forward extremities, so each of them
makes every further event dearer. Honest servers build upon all that they know, their own events
first: there is rarely more than one end of each. But whoever is in a room may send any number of
events that follow one and the same.

So a server gets a few ends of its own, and all together some more. Beyond that an event that would
add one waits in the inbox; events that go on from an end, or join some, are taken in always, and
make room.

The specification has no such limit; that an event is placed later changes nothing about where it
stands.
"""

from collections import Counter
from typing import Final

from federation.protocol.events import Event
from federation.protocol.ids import domain_of
from federation.rooms.events import RoomEvents
from federation.rooms.snapshot import RoomSnapshot

MOST_OF_SERVER: Final = 10
MOST: Final = 100


async def is_one_too_many(snapshot: RoomSnapshot, event: Event, events: RoomEvents) -> bool:
    """Whether an event would add an end to a room that has as many as its server, or all, may
    have."""
    ends = snapshot.head.extremities
    if len(ends) < MOST_OF_SERVER or not {event_id for _, event_id in ends}.isdisjoint(
        event.prev_events
    ):
        return False
    if len(ends) >= MOST:
        return True
    loaded = await events.get_events(nid for nid, _ in ends)
    by_server = Counter(domain_of(stored.event.sender) for stored in loaded.values())
    return by_server[domain_of(event.sender)] >= MOST_OF_SERVER
