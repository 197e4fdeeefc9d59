"""Endpoints with which other servers query profiles, aliases and the public room directory.

`QueryHandlers` holds functions of the profile, alias and directory services. They are passed in at
start-up, because `federation` does not import `homeserver`.

spec: server-server-api#querying-for-information, server-server-api#published-room-directory
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any

import msgspec

from federation.api.endpoint import ServerAuth, endpoint
from federation.protocol.errors import Unrecognized
from federation.protocol.ids import RoomAlias, RoomID, ServerName, UserID
from federation.remote.directory import RoomDirectoryQuery


class QueryHandlers(msgspec.Struct, frozen=True):
    """The functions that answer queries."""

    get_profile: Callable[[UserID, str | None], Awaitable[Mapping[str, object]]]
    """Returns the profile of one of our users, or one field. Raises NotFound, Forbidden."""
    get_alias: Callable[[RoomAlias], Awaitable[tuple[RoomID, Sequence[ServerName]]]]
    """Returns the room of a local alias, and servers in it. Raises NotFound."""
    get_public_rooms: Callable[[RoomDirectoryQuery], Awaitable[dict[str, Any]]]
    """Returns a page of our directory. Raises Forbidden, InvalidParam."""


@endpoint(
    "GET", "/_matrix/federation/v1/query/profile", auth=ServerAuth.SERVER, resource="federation"
)
async def query_profile(
    answers: QueryHandlers, *, user_id: UserID, field: str | None = None
) -> Mapping[str, object]:
    """Return the profile of a user, or one field."""
    return await answers.get_profile(user_id, field)


@endpoint(
    "GET", "/_matrix/federation/v1/query/directory", auth=ServerAuth.SERVER, resource="federation"
)
async def query_directory(answers: QueryHandlers, *, room_alias: RoomAlias) -> dict[str, Any]:
    """Return the room of an alias."""
    room_id, servers = await answers.get_alias(room_alias)
    return {"room_id": room_id, "servers": list(servers)}


@endpoint(
    "GET",
    "/_matrix/federation/v1/query/{query_type}",
    auth=ServerAuth.SERVER,
    resource="federation",
)
async def query_other(*, query_type: str) -> dict[str, Any]:
    """Refuse any other query type.

    spec: server-server-api#get_matrixfederationv1queryquerytype
    """
    raise Unrecognized(f"This server does not answer queries of the type {query_type[:40]!r}")


@endpoint(
    "GET", "/_matrix/federation/v1/publicRooms", auth=ServerAuth.SERVER, resource="federation"
)
async def get_public_rooms(
    answers: QueryHandlers,
    *,
    limit: int = 0,
    since: str | None = None,
    include_all_networks: bool = False,
    third_party_instance_id: str | None = None,
) -> dict[str, Any]:
    """Return a page of the directory."""
    return await answers.get_public_rooms(
        RoomDirectoryQuery(limit, since, None, None, include_all_networks, third_party_instance_id)
    )


class PublicRoomsFilter(msgspec.Struct, frozen=True):
    """A filter of rooms. A null among the room types selects rooms without a type."""

    generic_search_term: str | None = None
    room_types: Annotated[tuple[str | None, ...], msgspec.Meta(max_length=100)] | None = None


class PublicRoomsRequest(msgspec.Struct, frozen=True):
    """A directory query."""

    limit: int = 0
    since: str | None = None
    filter: PublicRoomsFilter | None = None
    include_all_networks: bool = False
    third_party_instance_id: str | None = None


@endpoint(
    "POST", "/_matrix/federation/v1/publicRooms", auth=ServerAuth.SERVER, resource="federation"
)
async def query_public_rooms(answers: QueryHandlers, *, body: PublicRoomsRequest) -> dict[str, Any]:
    """Return a page of the filtered directory."""
    wanted = body.filter or PublicRoomsFilter()
    return await answers.get_public_rooms(
        RoomDirectoryQuery(
            body.limit,
            body.since,
            wanted.generic_search_term,
            wanted.room_types,
            body.include_all_networks,
            body.third_party_instance_id,
        )
    )
