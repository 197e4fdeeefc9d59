"""Log out. spec: client-server-api#post_matrixclientv3logout"""

from federation.api.request import RequestContext
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.http.responses import EMPTY, Empty
from homeserver.services.login.sessions import Sessions


@endpoint(
    "POST",
    "/_matrix/client/v3/logout",
    "/_matrix/client/r0/logout",
    auth=Auth.GUEST,
    while_locked=True,
    while_suspended=True,
    while_expired=True,
)
async def post_logout(sessions: Sessions, caller: Requester, context: RequestContext) -> Empty:
    """End this session and delete its device."""
    await sessions.do_log_out(caller, context.client_ip)
    return EMPTY


@endpoint(
    "POST",
    "/_matrix/client/v3/logout/all",
    "/_matrix/client/r0/logout/all",
    auth=Auth.GUEST,
    while_locked=True,
    while_suspended=True,
    while_expired=True,
)
async def post_logout_all(sessions: Sessions, caller: Requester, context: RequestContext) -> Empty:
    """End all sessions of the caller and delete all devices."""
    await sessions.do_log_out_everywhere(caller.user_id, context.client_ip)
    return EMPTY
