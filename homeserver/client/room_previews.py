"""Return the summary of a room. spec:
client-server-api#get_matrixclientv1room_summaryroomidoralias"""

from typing import Annotated, Any

from federation.api.endpoint import QueryNames
from federation.protocol.ids import ServerName
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.services.rooms.summaries import RoomPreviews


@endpoint(
    "GET",
    "/_matrix/client/v1/room_summary/{room_id_or_alias}",
    "/_matrix/client/unstable/im.nheko.summary/summary/{room_id_or_alias}",
    "/_matrix/client/unstable/im.nheko.summary/rooms/{room_id_or_alias}/summary",
    auth=Auth.OPTIONAL,
)
async def get_room_summary(
    previews: RoomPreviews,
    caller: Requester | None,
    *,
    room_id_or_alias: str,
    via: Annotated[list[ServerName] | None, QueryNames("via", "server_name")] = None,
) -> dict[str, Any]:
    """Return the summary of a room, for users who may want to join it."""
    return await previews.get_summary(caller, room_id_or_alias, via or ())
