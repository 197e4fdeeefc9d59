"""The event endpoints that /sync replaced. Some of them serve room previews to non-members.

spec: client-server-api#room-previews
"""

from typing import Any

import msgspec

from federation.protocol.ids import EventID, RoomID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.services.streams.sync_tokens import parse_sync_token
from homeserver.services.sync.initial_sync import InitialSync

DEFAULT_LIMIT = 10
DEFAULT_TIMEOUT_MS = 30_000


@endpoint(
    "GET",
    "/_matrix/client/v3/rooms/{room_id}/initialSync",
    "/_matrix/client/r0/rooms/{room_id}/initialSync",
    auth=Auth.GUEST,
)
async def room_initial_sync(
    initial_sync: InitialSync, caller: Requester, *, room_id: RoomID, limit: int = DEFAULT_LIMIT
) -> dict[str, Any]:
    """Return a room with its latest messages. Non-members may read world-readable rooms."""
    return await initial_sync.get_room(caller, room_id, limit)


@endpoint("GET", "/_matrix/client/v3/initialSync", "/_matrix/client/r0/initialSync", auth=Auth.USER)
async def initial_sync(
    initial_sync: InitialSync,
    caller: Requester,
    *,
    limit: int = DEFAULT_LIMIT,
    archived: bool = False,
) -> dict[str, Any]:
    """Return all rooms of the caller with their latest messages."""
    return await initial_sync.get_all(caller, limit, archived=archived)


@endpoint(
    "GET", "/_matrix/client/v3/events", "/_matrix/client/r0/events", auth=Auth.GUEST, long_poll=True
)
async def get_events(
    initial_sync: InitialSync,
    caller: Requester,
    *,
    from_: str | None = None,
    timeout: int = DEFAULT_TIMEOUT_MS,
    room_id: RoomID | None = None,
) -> dict[str, Any]:
    """Return new events, in one room or in all rooms of the caller."""
    since = parse_sync_token(from_) if from_ else None
    return await initial_sync.get_events(caller, room_id, since, timeout)


@endpoint(
    "GET",
    "/_matrix/client/v3/events/{event_id}",
    "/_matrix/client/r0/events/{event_id}",
    auth=Auth.USER,
)
async def get_one_event(
    initial_sync: InitialSync, caller: Requester, *, event_id: EventID
) -> msgspec.Raw:
    """Return one event from any room that the caller may read."""
    return await initial_sync.get_event(caller, event_id)
