"""OpenID tokens, which prove a user's identity to other services. spec: client-server-api#openid"""

from federation.protocol.ids import UserID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.services.login.openid import OpenID

_PATH = "/user/{user_id}/openid/request_token"


@endpoint(
    "POST",
    "/_matrix/client/v3" + _PATH,
    "/_matrix/client/r0" + _PATH,
    auth=Auth.USER,
    while_suspended=True,
)
async def request_openid_token(
    openid: OpenID, caller: Requester, *, user_id: UserID
) -> dict[str, object]:
    """Create an OpenID token, valid for an hour."""
    return await openid.do_request_token(caller, user_id)


@endpoint("GET", "/_matrix/federation/v1/openid/userinfo", auth=Auth.NONE, resource="openid")
async def exchange_openid_token(openid: OpenID, *, access_token: str = "") -> dict[str, object]:
    """Return the owner of an OpenID token. The services that receive such tokens call this."""
    return {"sub": await openid.get_user(access_token)}
