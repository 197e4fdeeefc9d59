"""Room aliases and the public room directory. spec: client-server-api#room-aliases"""

from typing import Annotated, Any, Literal

import msgspec

from federation.protocol.errors import InvalidParam
from federation.protocol.ids import RoomAlias, RoomID, ServerName, parse_room_id
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.responses import EMPTY, Empty
from homeserver.services.directory.room_directory import RoomDirectory

_ALIAS = (
    "/_matrix/client/v3/directory/room/{room_alias}",
    "/_matrix/client/r0/directory/room/{room_alias}",
)
_LISTED = (
    "/_matrix/client/v3/directory/list/room/{room_id}",
    "/_matrix/client/r0/directory/list/room/{room_id}",
)
_PUBLIC = ("/_matrix/client/v3/publicRooms", "/_matrix/client/r0/publicRooms")


@endpoint("GET", *_ALIAS, auth=Auth.IF_USABLE)
async def get_room_id_by_alias(
    directory: RoomDirectory, caller: Requester | None, *, room_alias: RoomAlias
) -> dict[str, Any]:
    """Return the room that an alias points to."""
    room_id, servers = await directory.get_alias(caller, room_alias)
    return {"room_id": room_id, "servers": list(servers)}


class AliasBody(msgspec.Struct, frozen=True):
    """The room that the alias points to."""

    room_id: str


@endpoint("PUT", *_ALIAS, auth=Auth.USER, limit=Limit.ALIAS)
async def set_room_alias(
    directory: RoomDirectory, caller: Requester, *, room_alias: RoomAlias, body: AliasBody
) -> Empty:
    """Create an alias of a room."""
    await directory.do_add_alias(caller, room_alias, parse_room_id(body.room_id))
    return EMPTY


@endpoint("DELETE", *_ALIAS, auth=Auth.USER, limit=Limit.ALIAS)
async def delete_room_alias(
    directory: RoomDirectory, caller: Requester, *, room_alias: RoomAlias
) -> Empty:
    """Delete an alias."""
    await directory.do_remove_alias(caller, room_alias)
    return EMPTY


@endpoint(
    "GET",
    "/_matrix/client/v3/rooms/{room_id}/aliases",
    "/_matrix/client/r0/rooms/{room_id}/aliases",
    "/_matrix/client/unstable/org.matrix.msc2432/rooms/{room_id}/aliases",
    auth=Auth.USER,
)
async def get_local_aliases(
    directory: RoomDirectory, caller: Requester, *, room_id: RoomID
) -> dict[str, list[str]]:
    """Return this server's aliases of a room."""
    return {"aliases": await directory.get_aliases_of_room(caller, room_id)}


@endpoint("GET", *_LISTED, auth=Auth.IF_USABLE)
async def get_room_visibility_on_directory(
    directory: RoomDirectory, caller: Requester | None, *, room_id: RoomID
) -> dict[str, str]:
    """Return whether a room is in the public directory."""
    return {"visibility": await directory.get_visibility(caller, room_id)}


class VisibilityBody(msgspec.Struct, frozen=True):
    """Whether the directory lists the room."""

    visibility: Literal["public", "private"] = "public"


@endpoint("PUT", *_LISTED, auth=Auth.USER, limit=Limit.ALIAS)
async def set_room_visibility_on_directory(
    directory: RoomDirectory,
    caller: Requester,
    *,
    room_id: RoomID,
    body: VisibilityBody = VisibilityBody(),
) -> Empty:
    """Add a room to the public directory, or remove it."""
    await directory.do_set_visibility(caller, room_id, body.visibility)
    return EMPTY


@endpoint("GET", *_PUBLIC, auth=Auth.OPTIONAL)
async def get_public_rooms(
    directory: RoomDirectory,
    caller: Requester | None,
    *,
    limit: int | None = None,
    since: str | None = None,
    server: ServerName | None = None,
) -> dict[str, Any]:
    """Return a page of the public room directory."""
    return await directory.get_public_rooms(
        caller, limit=limit, since=since, term=None, room_types=None, server=server
    )


class DirectoryFilter(msgspec.Struct, frozen=True):
    """The search filter. A null among the room types matches rooms without a type."""

    generic_search_term: str | None = None
    room_types: Annotated[tuple[str | None, ...], msgspec.Meta(max_length=100)] | None = None


class DirectoryQueryBody(msgspec.Struct, frozen=True):
    """A search in the public room directory."""

    limit: int | None = None
    since: str | None = None
    filter: DirectoryFilter = DirectoryFilter()
    include_all_networks: bool = False
    third_party_instance_id: str | None = None


@endpoint("POST", *_PUBLIC, auth=Auth.USER, while_suspended=True)
async def query_public_rooms(
    directory: RoomDirectory,
    caller: Requester,
    *,
    body: DirectoryQueryBody = DirectoryQueryBody(),
    server: ServerName | None = None,
) -> dict[str, Any]:
    """Return a filtered page of the directory. No local room belongs to a third-party network."""
    if body.third_party_instance_id is not None:
        if body.include_all_networks:
            raise InvalidParam(
                "third_party_instance_id names one network, include_all_networks asks for all"
            )
        return {"chunk": [], "total_room_count_estimate": 0}
    return await directory.get_public_rooms(
        caller,
        limit=body.limit,
        since=body.since,
        term=body.filter.generic_search_term,
        room_types=body.filter.room_types,
        server=server,
    )
