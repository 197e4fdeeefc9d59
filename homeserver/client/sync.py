"""The /sync endpoint. spec: client-server-api#syncing"""

from typing import Annotated, Any, Literal

from federation.api.endpoint import QueryNames
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.services.filters.filters import Filters
from homeserver.services.presence.presence import Presence
from homeserver.services.streams.sync_tokens import parse_sync_token
from homeserver.services.sync.request import (
    STATE_AFTER,
    STATE_BEFORE,
    UNSTABLE_STATE_AFTER,
    SyncRequest,
)
from homeserver.services.sync.sync import Sync


@endpoint(
    "GET", "/_matrix/client/v3/sync", "/_matrix/client/r0/sync", auth=Auth.GUEST, long_poll=True
)
async def get_sync(
    sync: Sync,
    filters: Filters,
    presence: Presence,
    caller: Requester,
    *,
    filter: str | None = None,
    since: str | None = None,
    full_state: bool = False,
    set_presence: Literal["offline", "online", "unavailable"] | None = None,
    timeout: int = 0,
    use_state_after: bool = False,
    unstable_state_after: Annotated[bool, QueryNames("org.matrix.msc4222.use_state_after")] = False,
) -> dict[str, Any]:
    """Return all updates for the caller since a token."""
    request = SyncRequest(
        caller=caller,
        since=parse_sync_token(since) if since else None,
        filter=await filters.get_filter(caller.user_id, filter),
        full_state=full_state,
        state_section=STATE_AFTER
        if use_state_after
        else UNSTABLE_STATE_AFTER
        if unstable_state_after
        else STATE_BEFORE,
        token=since or "",
    )
    presence.start_sync(caller, set_presence)
    try:
        return await sync.sync(request, timeout)
    finally:
        presence.end_sync(caller)
