"""The endpoint that returns the name and version of this server.

spec: server-server-api#server-implementation
"""

import msgspec

from federation.api.endpoint import ServerAuth, endpoint


class Implementation(msgspec.Struct, frozen=True):
    name: str
    version: str


class VersionResponse(msgspec.Struct, frozen=True):
    server: Implementation


@endpoint("GET", "/_matrix/federation/v1/version", auth=ServerAuth.NONE, resource="federation")
async def get_implementation(implementation: Implementation) -> VersionResponse:
    """Return the name and version of the program."""
    return VersionResponse(implementation)
