"""Finds the thread that an event belongs to. Uses cached events where possible.

spec: client-server-api#threaded-read-receipts
"""

from collections.abc import Iterable, Mapping

from msgspec.structs import replace

from federation.protocol.events import Event
from federation.protocol.ids import EventID
from federation.rooms.events import RoomEvents, StoredEvent
from federation.rooms.relations import parse_relation
from storage.events.event_threads import EventThread, ThreadLinks, ThreadWalk, links_of


async def find_thread_root(events: RoomEvents, room_nid: int, event: Event) -> EventID | None:
    """Return the root of a new event's thread, by its own relation or that of its target.

    None: the main timeline. The root is what the event names, whether or not we have it.
    """
    found = await _follow(
        events, {event.event_id: (room_nid, links_of(parse_relation(event.content)))}
    )
    root = found[event.event_id].root
    return None if root is None else EventID(root)


async def find_threads(
    events: RoomEvents, wanted: Iterable[StoredEvent]
) -> Mapping[EventID, EventThread]:
    """Return the threads of stored events, by event ID; makes a fixed number of queries."""
    return await _follow(
        events, {event.event.event_id: (event.room_nid, _links(event)) for event in wanted}
    )


async def _follow(
    events: RoomEvents, at: Mapping[EventID, tuple[int, ThreadLinks]]
) -> dict[EventID, EventThread]:
    walks = {event_id: ThreadWalk() for event_id in at}
    while at:
        parents = {
            event_id: (room_nid, EventID(parent))
            for event_id, (room_nid, links) in at.items()
            if (parent := walks[event_id].step(links)) is not None
        }
        found = await events.get_in_any_room({parent for _, parent in parents.values()})
        at = {
            event_id: (room_nid, _links(found[parent]))
            for event_id, (room_nid, parent) in parents.items()
            if parent in found and found[parent].room_nid == room_nid
        }
    return {event_id: walk.result for event_id, walk in walks.items()}


def _links(stored: StoredEvent) -> ThreadLinks:
    return replace(
        links_of(parse_relation(stored.event.content)),
        thread_root=stored.thread_root,
        is_redacted=stored.redacted_by is not None,
        redacts=stored.event.redacts,
    )
