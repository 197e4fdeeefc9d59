"""Log in, create login tokens for further clients, and refresh access tokens.

Refreshes have a rate limit of their own, because all clients of an office behind one address may
refresh their tokens every few minutes.

spec: client-server-api#legacy-login, client-server-api#refreshing-access-tokens
"""

import msgspec

from federation.api.request import RequestContext
from federation.protocol.errors import Forbidden, MatrixError, MissingParam, Unrecognized
from federation.protocol.ids import parse_device_id
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.services.application_services.application_services import LOGIN_TYPE as SERVICE_TYPE
from homeserver.services.application_services.application_services import ApplicationServiceRequests
from homeserver.services.devices.devices import check_device_name
from homeserver.services.discovery.client import ClientDiscovery
from homeserver.services.login.login_tokens import LoginTokens
from homeserver.services.login.password_login import SignIn, parse_identifier
from homeserver.services.login.sessions import Sessions, session_response
from homeserver.services.upstream.identity import OfferedProviders
from homeserver.services.upstream.jwt import LOGIN_TYPE as JWT_TYPE
from homeserver.services.upstream.jwt import JWTSignIn


class UnknownLoginType(MatrixError):
    default_text = "This server does not support this login type"


class LoginBody(msgspec.Struct, frozen=True, kw_only=True):
    """The login request. `user`, `medium` and `address` are older forms of `identifier`."""

    type: str
    identifier: dict[str, object] | None = None
    user: str | None = None
    medium: str | None = None
    address: str | None = None
    password: str | None = None
    token: str | None = None
    device_id: str | None = None
    initial_device_display_name: str | None = None
    refresh_token: bool = False


class GetTokenBody(msgspec.Struct, frozen=True):
    auth: dict[str, object] | None = None


class RefreshBody(msgspec.Struct, frozen=True):
    refresh_token: str


@endpoint("GET", "/_matrix/client/v3/login", "/_matrix/client/r0/login", auth=Auth.NONE)
async def get_login(
    sign_in: SignIn,
    login_tokens: LoginTokens,
    offered: OfferedProviders,
    jwt_sign_in: JWTSignIn,
    acting: ApplicationServiceRequests,
) -> dict[str, object]:
    """Return the login types that this server offers."""
    flows: list[dict[str, object]] = []
    if sign_in.in_login_flows:
        flows.append({"type": "m.login.password"})
    if offered.flow is not None:
        flows.append(offered.flow)
    if login_tokens.issued_to_sessions:
        flows.append({"type": "m.login.token", "get_login_token": True})
    elif login_tokens.is_enabled:
        flows.append({"type": "m.login.token"})
    if jwt_sign_in.is_offered:
        flows.append({"type": JWT_TYPE})
    if acting.has_services:
        flows.append({"type": SERVICE_TYPE})
    if not flows:
        raise Unrecognized("This server offers no legacy login")
    return {"flows": flows}


@endpoint(
    "POST",
    "/_matrix/client/v3/login",
    "/_matrix/client/r0/login",
    auth=Auth.NONE,
    limit=Limit.LOGIN,
)
async def post_login(
    sign_in: SignIn,
    login_tokens: LoginTokens,
    jwt_sign_in: JWTSignIn,
    acting: ApplicationServiceRequests,
    discovery: ClientDiscovery,
    context: RequestContext,
    *,
    body: LoginBody,
    access_token: str = "",
) -> dict[str, object]:
    """Log in. An application service may send its token in the `access_token` query parameter."""
    device_id = None if body.device_id is None else parse_device_id(body.device_id)
    device_name = check_device_name(body.initial_device_display_name)
    by_token = {
        "m.login.token": login_tokens if login_tokens.is_enabled else None,
        JWT_TYPE: jwt_sign_in if jwt_sign_in.is_offered else None,
    }.get(body.type)
    if by_token is not None:
        if body.token is None:
            raise MissingParam("token is missing")
        session = await by_token.do_sign_in(
            body.token,
            context.client_ip,
            device_id=device_id,
            device_name=device_name,
            refreshable=body.refresh_token,
        )
        return session_response(session.user_id, session) | discovery.in_login
    if body.type not in ("m.login.password", SERVICE_TYPE):
        raise UnknownLoginType
    if body.type != SERVICE_TYPE and not sign_in.accepts_passwords:
        raise Forbidden("This server does not accept passwords")
    older = {"user": body.user, "medium": body.medium, "address": body.address}
    name = parse_identifier(
        {
            key: value
            for key, value in {"identifier": body.identifier, **older}.items()
            if value is not None
        }
    )
    if body.type == SERVICE_TYPE:
        session = await acting.do_sign_in(
            acting.find_token(context, access_token),
            name,
            context.client_ip,
            device_id=device_id,
            device_name=device_name,
            refreshable=body.refresh_token,
        )
        return session_response(session.user_id, session) | discovery.in_login
    if body.password is None:
        raise MissingParam("password is missing")
    session = await sign_in.do_sign_in(
        name,
        body.password,
        context.client_ip,
        device_id=device_id,
        device_name=device_name,
        refreshable=body.refresh_token,
    )
    return session_response(session.user_id, session) | discovery.in_login


@endpoint(
    "POST",
    "/_matrix/client/v1/login/get_token",
    "/_matrix/client/unstable/org.matrix.msc3882/login/get_token",
    auth=Auth.USER,
    while_suspended=True,
)
async def post_get_token(
    login_tokens: LoginTokens,
    caller: Requester,
    context: RequestContext,
    *,
    body: GetTokenBody = GetTokenBody(),
) -> dict[str, object]:
    """Create a login token, with which another client of the caller logs in."""
    token, lifetime = await login_tokens.do_issue(caller, body.auth, context.client_ip)
    return {"login_token": token, "expires_in_ms": lifetime}


@endpoint(
    "POST",
    "/_matrix/client/v3/refresh",
    "/_matrix/client/v1/refresh",
    "/_matrix/client/unstable/org.matrix.msc2918.refresh_token/refresh",
    auth=Auth.NONE,
    limit=Limit.REFRESH,
)
async def post_refresh(
    sessions: Sessions, context: RequestContext, *, body: RefreshBody
) -> dict[str, object]:
    """Exchange a refresh token for new tokens."""
    response = session_response(
        None, await sessions.do_refresh(body.refresh_token, context.client_ip)
    )
    return {
        key: response[key]
        for key in ("access_token", "refresh_token", "expires_in_ms")
        if key in response
    }
