"""Store and return filters. spec: client-server-api#filtering"""

import msgspec

from federation.protocol.ids import UserID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.services.filters.filters import Filters

_ALL = "/user/{user_id}/filter"
_ONE = _ALL + "/{filter_id}"


@endpoint(
    "POST",
    "/_matrix/client/v3" + _ALL,
    "/_matrix/client/r0" + _ALL,
    auth=Auth.GUEST,
    limit=Limit.ACCOUNT_DATA,
    while_suspended=True,
)
async def post_filter(
    filters: Filters, caller: Requester, *, user_id: UserID, body: dict[str, object]
) -> dict[str, object]:
    """Store a filter, and return its ID."""
    return {"filter_id": await filters.do_add(caller, user_id, body)}


@endpoint("GET", "/_matrix/client/v3" + _ONE, "/_matrix/client/r0" + _ONE, auth=Auth.GUEST)
async def get_filter(
    filters: Filters, caller: Requester, *, user_id: UserID, filter_id: str
) -> msgspec.Raw:
    """Return a filter as it was uploaded."""
    return await filters.get_definition(caller, user_id, filter_id)
