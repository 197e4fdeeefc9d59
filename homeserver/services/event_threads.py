"""In which thread an event stands. spec: client-server-api#threaded-read-receipts"""

from collections.abc import Iterable, Mapping
from typing import Final

from federation.protocol.events import Event
from federation.protocol.ids import EventID, is_event_id
from federation.rooms.room_events import RoomEvents

THREAD: Final = "m.thread"
MOST_HOPS: Final = 3
"""Over how many events that relate to each other a thread is looked for."""


async def find_thread_root(events: RoomEvents, room_nid: int, event: Event) -> EventID | None:
    """The root of the thread that an event stands in, itself or by what it relates to; None: in the main timeline.

    The root is what the event says, whether or not this server has it.
    """
    return (await find_thread_roots(events, [(room_nid, event)]))[event.event_id]


async def find_thread_roots(
    events: RoomEvents, wanted: Iterable[tuple[int, Event]]
) -> Mapping[EventID, EventID | None]:
    """As `find_thread_root`, of many events with the numbers of their rooms; a fixed number of queries."""
    at = {event.event_id: (room_nid, event) for room_nid, event in wanted}
    roots: dict[EventID, EventID | None] = dict.fromkeys(at)
    for _ in range(MOST_HOPS):
        parents = _step(at, roots)
        if not parents:
            return roots
        found = await events.get_anywhere({parent for _, parent in parents.values()})
        at = {
            event_id: (room_nid, found[parent].event)
            for event_id, (room_nid, parent) in parents.items()
            if parent in found and found[parent].room_nid == room_nid
        }
    _step(at, roots)
    return roots


def _step(
    at: Mapping[EventID, tuple[int, Event]], roots: dict[EventID, EventID | None]
) -> dict[EventID, tuple[int, EventID]]:
    """Note the roots that are named here; where to look further for the others."""
    parents: dict[EventID, tuple[int, EventID]] = {}
    for event_id, (room_nid, event) in at.items():
        rel_type, target = _relation(event)
        if rel_type == THREAD:
            roots[event_id] = target
        elif target is not None:
            parents[event_id] = (room_nid, target)
    return parents


def _relation(event: Event) -> tuple[object, EventID | None]:
    relation = event.content.get("m.relates_to")
    if not isinstance(relation, Mapping) or not isinstance(relation.get("rel_type"), str):
        return None, None
    target = relation.get("event_id")
    return relation["rel_type"], EventID(target) if isinstance(target, str) and is_event_id(target) else None
