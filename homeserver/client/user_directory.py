"""Search the user directory. spec: client-server-api#user-directory"""

from typing import Annotated, Any

import msgspec

from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.services.directory.user_directory import UserDirectory


class UserSearch(msgspec.Struct, frozen=True):
    """The search request."""

    search_term: str
    limit: Annotated[int, msgspec.Meta(ge=0, le=2**53)] | None = None


@endpoint(
    "POST",
    "/_matrix/client/v3/user_directory/search",
    "/_matrix/client/r0/user_directory/search",
    auth=Auth.USER,
    limit=Limit.USER_DIRECTORY,
    while_suspended=True,
    cancellable=True,
)
async def search_user_directory(
    directory: UserDirectory, caller: Requester, *, body: UserSearch
) -> dict[str, Any]:
    """Return users that match by name or ID, best matches first."""
    return await directory.get_results(caller, body.search_term, body.limit)
