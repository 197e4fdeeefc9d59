"""Networks that application services connect to. There are no application services, so there are no
such networks.

spec: client-server-api#third-party-networks
"""

from typing import Any

from federation.protocol.errors import NotFound
from federation.protocol.ids import RoomAlias, UserID
from homeserver.api.endpoint import Auth, endpoint


def _paths(rest: str) -> tuple[str, str]:
    return f"/_matrix/client/v3/thirdparty/{rest}", f"/_matrix/client/r0/thirdparty/{rest}"


@endpoint("GET", *_paths("protocols"), auth=Auth.USER)
async def get_protocols() -> dict[str, Any]:
    """The networks that this server is connected to."""
    return {}


@endpoint("GET", *_paths("protocol/{protocol}"), auth=Auth.USER)
async def get_protocol_metadata(*, protocol: str) -> dict[str, Any]:
    """What is to be known of one network."""
    raise NotFound(f"This server is not connected to {protocol[:80]!r}")


@endpoint("GET", *_paths("location/{protocol}"), auth=Auth.USER)
async def query_location_by_protocol(*, protocol: str) -> list[Any]:
    """Rooms that stand for a place of a network."""
    raise NotFound(f"This server is not connected to {protocol[:80]!r}")


@endpoint("GET", *_paths("user/{protocol}"), auth=Auth.USER)
async def query_user_by_protocol(*, protocol: str) -> list[Any]:
    """Users that stand for a user of a network."""
    raise NotFound(f"This server is not connected to {protocol[:80]!r}")


@endpoint("GET", *_paths("location"), auth=Auth.USER)
async def query_location_by_alias(*, alias: RoomAlias) -> list[Any]:
    """The place of a network that a room stands for."""
    raise NotFound(f"{alias} stands for no place of another network")


@endpoint("GET", *_paths("user"), auth=Auth.USER)
async def query_user_by_id(*, userid: UserID) -> list[Any]:
    """The user of a network that a user stands for."""
    raise NotFound(f"{userid} stands for no user of another network")
