"""Rooms in common with somebody. spec: client-server-api#mutual-rooms"""

from typing import Any

from federation.protocol.endpoint import Auth, Requester, endpoint
from homeserver.services.mutual_rooms import MutualRooms


@endpoint(
    "GET",
    "/_matrix/client/v1/mutual_rooms",
    "/_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms",
    auth=Auth.USER,
)
async def get_mutual_rooms(
    mutual_rooms: MutualRooms, caller: Requester, *, user_id: str, from_: str | None = None
) -> dict[str, Any]:
    """The rooms that the caller and another user are in."""
    return await mutual_rooms.get_page(caller, user_id, from_)
