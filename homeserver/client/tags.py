"""Get, set and remove room tags. spec: client-server-api#room-tagging"""

from collections.abc import Mapping

from federation.protocol.errors import BadJson
from federation.protocol.ids import RoomID, UserID, parse_room_id
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.responses import EMPTY, Empty
from homeserver.services.account_data.account_data import AccountData

_TAGS = "/user/{user_id}/rooms/{room_id}/tags"
_TAG = _TAGS + "/{tag}"


@endpoint("GET", "/_matrix/client/v3" + _TAGS, "/_matrix/client/r0" + _TAGS, auth=Auth.USER)
async def get_tags(
    account_data: AccountData, caller: Requester, *, user_id: UserID, room_id: RoomID
) -> Mapping[str, object]:
    """Return all tags of a room."""
    return {"tags": await account_data.get_tags(caller, user_id, parse_room_id(room_id))}


@endpoint(
    "PUT",
    "/_matrix/client/v3" + _TAG,
    "/_matrix/client/r0" + _TAG,
    auth=Auth.USER,
    limit=Limit.ACCOUNT_DATA,
    max_body=4096,
    while_suspended=True,
)
async def put_tag(
    account_data: AccountData,
    caller: Requester,
    *,
    user_id: UserID,
    room_id: RoomID,
    tag: str,
    body: dict[str, object],
) -> Empty:
    """Add a tag to a room. If present, `order` must be a number. Other keys are stored as they
    are."""
    order = body.get("order", 0)
    if isinstance(order, bool) or not isinstance(order, int | float):
        raise BadJson("order must be a number")
    await account_data.do_set_tag(caller, user_id, parse_room_id(room_id), tag, body)
    return EMPTY


@endpoint(
    "DELETE",
    "/_matrix/client/v3" + _TAG,
    "/_matrix/client/r0" + _TAG,
    auth=Auth.USER,
    limit=Limit.ACCOUNT_DATA,
    while_suspended=True,
)
async def delete_tag(
    account_data: AccountData, caller: Requester, *, user_id: UserID, room_id: RoomID, tag: str
) -> Empty:
    """Remove a tag from a room."""
    await account_data.do_remove_tag(caller, user_id, parse_room_id(room_id), tag)
    return EMPTY
