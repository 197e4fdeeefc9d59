"""What other servers ask about our people and rooms: profiles, aliases, the public directory.

The answers come from the layer that knows them: `QueryAnswers` is filled where the server is put
together.

spec: server-server-api#querying-for-information, server-server-api#published-room-directory
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Annotated, Any

import msgspec

from federation.api.endpoint import ServerAuth, endpoint
from federation.protocol.errors import Unrecognized
from federation.protocol.ids import RoomAlias, RoomID, ServerName, UserID
from federation.remote.directory import DirectoryQuery


class QueryAnswers(msgspec.Struct, frozen=True):
    """Who answers."""

    get_profile: Callable[[UserID, str | None], Awaitable[Mapping[str, object]]]
    """All of one of our users' profile, or one field. Raises NotFound, Forbidden."""
    get_alias: Callable[[RoomAlias], Awaitable[tuple[RoomID, Sequence[ServerName]]]]
    """The room of an alias of ours, and servers in it. Raises NotFound."""
    get_public_rooms: Callable[[DirectoryQuery], Awaitable[dict[str, Any]]]
    """A page of our directory. Raises Forbidden, InvalidParam."""


@endpoint(
    "GET", "/_matrix/federation/v1/query/profile", auth=ServerAuth.SERVER, resource="federation"
)
async def query_profile(
    answers: QueryAnswers, *, user_id: UserID, field: str | None = None
) -> Mapping[str, object]:
    """A user's profile, or one field of it."""
    return await answers.get_profile(user_id, field)


@endpoint(
    "GET", "/_matrix/federation/v1/query/directory", auth=ServerAuth.SERVER, resource="federation"
)
async def query_directory(answers: QueryAnswers, *, room_alias: RoomAlias) -> dict[str, Any]:
    """The room of an alias."""
    room_id, servers = await answers.get_alias(room_alias)
    return {"room_id": room_id, "servers": list(servers)}


@endpoint(
    "GET",
    "/_matrix/federation/v1/query/{query_type}",
    auth=ServerAuth.SERVER,
    resource="federation",
)
async def query_other(*, query_type: str) -> dict[str, Any]:
    """Anything else: that is not known here. spec:
    server-server-api#get_matrixfederationv1queryquerytype"""
    raise Unrecognized(f"This server does not answer queries of the type {query_type[:40]!r}")


@endpoint(
    "GET", "/_matrix/federation/v1/publicRooms", auth=ServerAuth.SERVER, resource="federation"
)
async def get_public_rooms(
    answers: QueryAnswers,
    *,
    limit: int = 0,
    since: str | None = None,
    include_all_networks: bool = False,
    third_party_instance_id: str | None = None,
) -> dict[str, Any]:
    """A page of the directory."""
    return await answers.get_public_rooms(
        DirectoryQuery(limit, since, None, None, include_all_networks, third_party_instance_id)
    )


class Filter(msgspec.Struct, frozen=True):
    """What to look for; a null among the room types is the type of rooms that have none."""

    generic_search_term: str | None = None
    room_types: Annotated[tuple[str | None, ...], msgspec.Meta(max_length=100)] | None = None


class Query(msgspec.Struct, frozen=True):
    """A query of the directory."""

    limit: int = 0
    since: str | None = None
    filter: Filter | None = None
    include_all_networks: bool = False
    third_party_instance_id: str | None = None


@endpoint(
    "POST", "/_matrix/federation/v1/publicRooms", auth=ServerAuth.SERVER, resource="federation"
)
async def query_public_rooms(answers: QueryAnswers, *, body: Query) -> dict[str, Any]:
    """A page of the directory, filtered."""
    wanted = body.filter or Filter()
    return await answers.get_public_rooms(
        DirectoryQuery(
            body.limit,
            body.since,
            wanted.generic_search_term,
            wanted.room_types,
            body.include_all_networks,
            body.third_party_instance_id,
        )
    )
