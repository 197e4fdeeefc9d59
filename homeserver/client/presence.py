"""Get and set presence. spec: client-server-api#presence"""

from typing import Literal

import msgspec

from federation.protocol.ids import UserID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.responses import EMPTY, Empty
from homeserver.services.presence.presence import Presence

_PATHS = (
    "/_matrix/client/v3/presence/{user_id}/status",
    "/_matrix/client/r0/presence/{user_id}/status",
)


class PresenceBody(msgspec.Struct, frozen=True):
    """The caller's presence and status message."""

    presence: Literal["online", "unavailable", "offline"]
    status_msg: str | None = None


@endpoint("GET", *_PATHS, auth=Auth.USER)
async def get_presence(
    presence: Presence, caller: Requester, *, user_id: UserID
) -> dict[str, object]:
    """Return a user's presence."""
    return await presence.get_status(caller, user_id)


@endpoint(
    "PUT", *_PATHS, auth=Auth.USER, limit=Limit.PRESENCE, max_body=16 * 1024, before_consent=True
)
async def set_presence(
    presence: Presence, caller: Requester, *, user_id: UserID, body: PresenceBody
) -> Empty:
    """Set the caller's presence."""
    status = None if caller.is_shadow_banned else body.status_msg
    await presence.do_set(caller, user_id, body.presence, status)
    return EMPTY
