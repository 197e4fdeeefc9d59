"""Rooms shared with another user. spec: client-server-api#mutual-rooms"""

from typing import Annotated, Any

from federation.api.endpoint import QueryNames
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.services.rooms.mutual_rooms import MutualRooms


@endpoint(
    "GET",
    "/_matrix/client/v1/mutual_rooms",
    "/_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms",
    auth=Auth.USER,
)
async def get_mutual_rooms(
    mutual_rooms: MutualRooms,
    caller: Requester,
    *,
    user_id: str,
    from_: Annotated[str | None, QueryNames("from", "batch_token")] = None,
) -> dict[str, Any]:
    """Return rooms that the caller shares with another user. Clients call the page token
    `batch_token` on the unstable path."""
    return await mutual_rooms.get_page(caller, user_id, from_)
