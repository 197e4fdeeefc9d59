"""Search messages. spec: client-server-api#server-side-search"""

from typing import Any

import msgspec

from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.services.search.request import Categories
from homeserver.services.search.search import MessageSearch


class SearchBody(msgspec.Struct, frozen=True):
    """The search criteria by category."""

    search_categories: Categories


@endpoint(
    "POST",
    "/_matrix/client/v3/search",
    "/_matrix/client/r0/search",
    auth=Auth.USER,
    limit=Limit.SEARCH,
    while_suspended=True,
    cancellable=True,
)
async def search(
    messages: MessageSearch, caller: Requester, *, body: SearchBody, next_batch: str | None = None
) -> dict[str, Any]:
    """Return a page of matching events."""
    return await messages.get_results(caller, body.search_categories, next_batch)
