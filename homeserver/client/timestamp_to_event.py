"""Find an event by its timestamp. spec:
client-server-api#get_matrixclientv1roomsroomidtimestamp_to_event"""

from typing import Any, Literal

from federation.protocol.ids import RoomID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.services.rooms.events_by_time import EventsByTime
from storage.events.timelines import Direction


@endpoint(
    "GET",
    "/_matrix/client/v1/rooms/{room_id}/timestamp_to_event",
    "/_matrix/client/unstable/org.matrix.msc3030/rooms/{room_id}/timestamp_to_event",
    auth=Auth.USER,
    limit=Limit.TIMESTAMP_TO_EVENT,
)
async def get_event_by_timestamp(
    events: EventsByTime, caller: Requester, *, room_id: RoomID, ts: int, dir: Literal["f", "b"]
) -> dict[str, Any]:
    """Return the event closest to a timestamp, in the given direction."""
    return await events.get_nearest(caller, room_id, ts, Direction(dir))
