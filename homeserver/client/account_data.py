"""Get, set and delete global and room account data. spec: client-server-api#client-config;
deletion: MSC3391"""

import msgspec

from federation.protocol.ids import RoomID, UserID, parse_room_id
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.responses import EMPTY, Empty
from homeserver.services.account_data.account_data import MAX_CONTENT_BYTES, AccountData

_GLOBAL = "/user/{user_id}/account_data/{type_}"
_ROOM = "/user/{user_id}/rooms/{room_id}/account_data/{type_}"
_DELETE = "/_matrix/client/unstable/org.matrix.msc3391"


@endpoint("GET", "/_matrix/client/v3" + _GLOBAL, "/_matrix/client/r0" + _GLOBAL, auth=Auth.USER)
async def get_account_data(
    account_data: AccountData, caller: Requester, *, user_id: UserID, type_: str
) -> msgspec.Raw:
    """Return the account data of one type."""
    return await account_data.get(caller, user_id, None, type_)


@endpoint(
    "PUT",
    "/_matrix/client/v3" + _GLOBAL,
    "/_matrix/client/r0" + _GLOBAL,
    auth=Auth.USER,
    limit=Limit.ACCOUNT_DATA,
    max_body=MAX_CONTENT_BYTES,
    while_suspended=True,
)
async def put_account_data(
    account_data: AccountData, caller: Requester, *, user_id: UserID, type_: str, body: msgspec.Raw
) -> Empty:
    """Set the account data of one type."""
    await account_data.do_set(caller, user_id, None, type_, body)
    return EMPTY


@endpoint(
    "DELETE",
    "/_matrix/client/v3" + _GLOBAL,
    _DELETE + _GLOBAL,
    auth=Auth.USER,
    limit=Limit.ACCOUNT_DATA,
    while_suspended=True,
)
async def delete_account_data(
    account_data: AccountData, caller: Requester, *, user_id: UserID, type_: str
) -> Empty:
    """Delete the account data of one type."""
    await account_data.do_remove(caller, user_id, None, type_)
    return EMPTY


@endpoint("GET", "/_matrix/client/v3" + _ROOM, "/_matrix/client/r0" + _ROOM, auth=Auth.USER)
async def get_room_account_data(
    account_data: AccountData, caller: Requester, *, user_id: UserID, room_id: RoomID, type_: str
) -> msgspec.Raw:
    """Return a room's account data of one type."""
    return await account_data.get(caller, user_id, parse_room_id(room_id), type_)


@endpoint(
    "PUT",
    "/_matrix/client/v3" + _ROOM,
    "/_matrix/client/r0" + _ROOM,
    auth=Auth.USER,
    limit=Limit.ACCOUNT_DATA,
    max_body=MAX_CONTENT_BYTES,
    while_suspended=True,
)
async def put_room_account_data(
    account_data: AccountData,
    caller: Requester,
    *,
    user_id: UserID,
    room_id: RoomID,
    type_: str,
    body: msgspec.Raw,
) -> Empty:
    """Set a room's account data of one type."""
    await account_data.do_set(caller, user_id, parse_room_id(room_id), type_, body)
    return EMPTY


@endpoint(
    "DELETE",
    "/_matrix/client/v3" + _ROOM,
    _DELETE + _ROOM,
    auth=Auth.USER,
    limit=Limit.ACCOUNT_DATA,
    while_suspended=True,
)
async def delete_room_account_data(
    account_data: AccountData, caller: Requester, *, user_id: UserID, room_id: RoomID, type_: str
) -> Empty:
    """Delete a room's account data of one type."""
    await account_data.do_remove(caller, user_id, parse_room_id(room_id), type_)
    return EMPTY
