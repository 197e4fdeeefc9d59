"""Lookups in third-party networks, which application services bridge to Matrix. This server
supports no such network: it lists no protocol, and answers every lookup with `M_NOT_FOUND`.

spec: client-server-api#third-party-networks
"""

from typing import Any

from federation.protocol.errors import NotFound
from federation.protocol.ids import RoomAlias, UserID
from homeserver.api.endpoint import Auth, endpoint


def _paths(suffix: str) -> tuple[str, str]:
    return f"/_matrix/client/v3/thirdparty/{suffix}", f"/_matrix/client/r0/thirdparty/{suffix}"


@endpoint("GET", *_paths("protocols"), auth=Auth.USER)
async def get_protocols() -> dict[str, Any]:
    """Return the supported third-party protocols: none."""
    return {}


@endpoint("GET", *_paths("protocol/{protocol}"), auth=Auth.USER)
async def get_protocol_metadata(*, protocol: str) -> dict[str, Any]:
    """Raise `NotFound`: no protocol is supported."""
    raise NotFound(f"This server is not connected to {protocol[:80]!r}")


@endpoint("GET", *_paths("location/{protocol}"), auth=Auth.USER)
async def query_location_by_protocol(*, protocol: str) -> list[Any]:
    """Raise `NotFound`: no third-party location can be looked up."""
    raise NotFound(f"This server is not connected to {protocol[:80]!r}")


@endpoint("GET", *_paths("user/{protocol}"), auth=Auth.USER)
async def query_user_by_protocol(*, protocol: str) -> list[Any]:
    """Raise `NotFound`: no third-party user can be looked up."""
    raise NotFound(f"This server is not connected to {protocol[:80]!r}")


@endpoint("GET", *_paths("location"), auth=Auth.USER)
async def query_location_by_alias(*, alias: RoomAlias) -> list[Any]:
    """Raise `NotFound`: no room alias is a third-party location."""
    raise NotFound(f"{alias} is not a third-party location")


@endpoint("GET", *_paths("user"), auth=Auth.USER)
async def query_user_by_id(*, userid: UserID) -> list[Any]:
    """Raise `NotFound`: no Matrix user is a third-party user."""
    raise NotFound(f"{userid} is not a third-party user")
