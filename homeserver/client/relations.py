"""List the child events of an event, and the threads of one room or of all rooms of the caller. The
list for all rooms has only threads with events after an earlier sliding sync (MSC4360).

spec: client-server-api#relationships-api, client-server-api#threading
"""

from typing import Annotated, Any, Literal

from federation.api.endpoint import QueryNames
from federation.protocol.ids import EventID, RoomID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.services.rooms.reading import DEFAULT_PAGE
from homeserver.services.rooms.relations import RoomRelations
from homeserver.services.rooms.thread_updates import MAX_UPDATES, ThreadUpdates
from storage.events.timelines import Direction


def _paths(suffix: str) -> tuple[str, str]:
    path = f"rooms/{{room_id}}/relations/{{event_id}}{suffix}"
    return f"/_matrix/client/v1/{path}", f"/_matrix/client/unstable/{path}"


@endpoint(
    "GET",
    *_paths("/{rel_type}/{event_type}"),
    *_paths("/{rel_type}"),
    *_paths(""),
    auth=Auth.GUEST,
)
async def get_relating_events(
    relations: RoomRelations,
    caller: Requester,
    *,
    room_id: RoomID,
    event_id: EventID,
    rel_type: str | None = None,
    event_type: str | None = None,
    dir: Literal["b", "f"] = "b",
    from_: str | None = None,
    to: str | None = None,
    limit: int = DEFAULT_PAGE,
    recurse: Annotated[bool | None, QueryNames("recurse", "org.matrix.msc3981.recurse")] = None,
) -> dict[str, Any]:
    """Return the child events of an event."""
    return await relations.get_relations(
        caller, room_id, event_id, rel_type, event_type, Direction(dir), from_, to, limit, recurse
    )


@endpoint(
    "GET",
    "/_matrix/client/v1/rooms/{room_id}/threads",
    "/_matrix/client/unstable/org.matrix.msc3856/rooms/{room_id}/threads",
    auth=Auth.GUEST,
    limit=Limit.THREADS,
)
async def get_thread_roots(
    relations: RoomRelations,
    caller: Requester,
    *,
    room_id: RoomID,
    include: Literal["all", "participated"] = "all",
    from_: str | None = None,
    limit: int = DEFAULT_PAGE,
) -> dict[str, Any]:
    """Return the thread roots of a room."""
    return await relations.get_threads(
        caller, room_id, from_, limit, participated=include == "participated"
    )


@endpoint(
    "GET",
    "/_matrix/client/v1/thread_updates",
    "/_matrix/client/unstable/io.element.msc4360/thread_updates",
    auth=Auth.USER,
    limit=Limit.THREADS,
)
async def get_thread_updates(
    updates: ThreadUpdates,
    caller: Requester,
    *,
    dir: Literal["b"],
    from_: str | None = None,
    to: str | None = None,
    limit: int = MAX_UPDATES,
) -> dict[str, Any]:
    """Return the threads with new events for which a sliding sync response had no space, from all
    rooms of the caller. Proposal: MSC4360."""
    return await updates.get_page(caller, from_, to, limit)
