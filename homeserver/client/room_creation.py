"""Create rooms. spec: client-server-api#creation"""

from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.services.rooms.creation import CreateRoomRequest, RoomCreation


@endpoint(
    "POST",
    "/_matrix/client/v3/createRoom",
    "/_matrix/client/r0/createRoom",
    auth=Auth.USER,
    limit=Limit.ROOM_CREATION,
    max_body=1024 * 1024,
)
async def create_room(
    creation: RoomCreation, caller: Requester, *, body: CreateRoomRequest
) -> dict[str, str]:
    """Create a room, and return its ID."""
    return {"room_id": await creation.do_create(caller, body)}
