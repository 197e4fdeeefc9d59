"""Register accounts. spec: client-server-api#account-registration"""

from enum import Enum
from typing import Final

import msgspec

from federation.api.request import RequestContext
from federation.protocol.ids import parse_device_id
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.services.accounts.registration import Registration, RegistrationRequest
from homeserver.services.application_services.application_services import (
    LOGIN_TYPE,
    ApplicationServiceRequests,
)
from homeserver.services.devices.devices import check_device_name
from homeserver.services.login.sessions import session_response

PREPARATION_COST: Final = 0.05
"""The rate limit cost of a request that only prepares a registration: reading the stages, checking
the user name, each stage."""


class AccountKind(Enum):
    """The kind of the account."""

    USER = "user"
    GUEST = "guest"


class RegisterBody(msgspec.Struct, frozen=True, kw_only=True):
    """The registration request."""

    type: str | None = None
    """`m.login.application_service` if an application service registers the user."""
    auth: dict[str, object] | None = None
    username: str | None = None
    password: str | None = None
    device_id: str | None = None
    initial_device_display_name: str | None = None
    inhibit_login: bool = False
    refresh_token: bool = False
    guest_access_token: str | None = None


@endpoint(
    "POST",
    "/_matrix/client/v3/register",
    "/_matrix/client/r0/register",
    auth=Auth.NONE,
    limit=Limit.REGISTRATION,
    cost=PREPARATION_COST,
)
async def post_register(
    registration: Registration,
    acting: ApplicationServiceRequests,
    context: RequestContext,
    *,
    body: RegisterBody = RegisterBody(),
    kind: AccountKind = AccountKind.USER,
    access_token: str = "",
) -> dict[str, object]:
    """Register a user or a guest.

    Guests need no authentication, and only their device name is used. An application service may
    send its token in the `access_token` query parameter.
    """
    device_name = check_device_name(body.initial_device_display_name)
    if kind is AccountKind.GUEST:
        registered = await registration.do_register_guest(
            device_name, body.refresh_token, context.client_ip
        )
    else:
        request = RegistrationRequest(
            username=body.username,
            password=body.password,
            device_id=None if body.device_id is None else parse_device_id(body.device_id),
            device_name=device_name,
            inhibit_login=body.inhibit_login,
            refreshable=body.refresh_token,
            languages=context.languages,
            address=context.client_ip,
            guest_token=body.guest_access_token,
        )
        if body.type == LOGIN_TYPE:
            registered = await acting.do_register(acting.find_token(context, access_token), request)
        else:
            registered = await registration.do_register(request, body.auth, context.client_ip)
    return session_response(registered.user_id, registered.session)


@endpoint(
    "GET",
    "/_matrix/client/v3/register/available",
    "/_matrix/client/r0/register/available",
    auth=Auth.NONE,
    limit=Limit.REGISTRATION,
    cost=PREPARATION_COST,
)
async def get_available(registration: Registration, *, username: str) -> dict[str, object]:
    """Return that the user name is available. Raises an error with the reason if it is not."""
    await registration.check_available(username)
    return {"available": True}


@endpoint(
    "GET",
    "/_matrix/client/v1/register/m.login.registration_token/validity",
    "/_matrix/client/unstable/org.matrix.msc3231/register/"
    "org.matrix.msc3231.login.registration_token/validity",
    auth=Auth.NONE,
    limit=Limit.REGISTRATION_TOKEN,
)
async def get_registration_token_validity(
    registration: Registration, *, token: str
) -> dict[str, object]:
    """Return whether a registration token is valid now."""
    return {"valid": await registration.is_token_valid(token)}
