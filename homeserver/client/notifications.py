"""List a user's notifications. spec: client-server-api#listing-notifications"""

from collections.abc import Mapping
from typing import Any, Final

from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.services.notifications.notifications import Notifications

DEFAULT_LIMIT: Final = 20


@endpoint(
    "GET", "/_matrix/client/v3/notifications", "/_matrix/client/r0/notifications", auth=Auth.USER
)
async def get_notifications(
    notifications: Notifications,
    caller: Requester,
    *,
    from_: str | None = None,
    limit: int = DEFAULT_LIMIT,
    only: str | None = None,
) -> Mapping[str, Any]:
    """Return a page of notifications, newest first."""
    return await notifications.get(caller, from_, limit, only)
