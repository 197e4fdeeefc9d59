"""The room hierarchy of a space. spec: client-server-api#spaces"""

from typing import Any

from federation.protocol.ids import RoomID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.services.rooms.space_hierarchy import SpaceHierarchy


@endpoint(
    "GET",
    "/_matrix/client/v1/rooms/{room_id}/hierarchy",
    "/_matrix/client/unstable/org.matrix.msc2946/rooms/{room_id}/hierarchy",
    auth=Auth.USER,
    limit=Limit.HIERARCHY,
)
async def get_space_hierarchy(
    hierarchy: SpaceHierarchy,
    caller: Requester,
    *,
    room_id: RoomID,
    suggested_only: bool = False,
    max_depth: int | None = None,
    limit: int | None = None,
    from_: str | None = None,
) -> dict[str, Any]:
    """Return a page of the rooms below a space, depth first."""
    return await hierarchy.get_page(
        caller.user_id,
        room_id,
        suggested_only=suggested_only,
        max_depth=max_depth,
        limit=limit,
        from_=from_,
    )
