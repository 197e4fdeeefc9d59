"""Making an account. spec: client-server-api#account-registration"""

from enum import Enum
from typing import Final

import msgspec

from federation.api.request import RequestContext
from federation.protocol.ids import parse_device_id
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.services.accounts.registration import Registration, Wish
from homeserver.services.application_services.application_services import LOGIN_TYPE, ActingServices
from homeserver.services.devices.devices import check_device_name
from homeserver.services.login.sessions import session_answer

COST_OF_ASKING: Final = 0.05
"""Of a request that only leads up to an account, as several do: which stages there are, is the name
free, each stage."""


class Kind(Enum):
    """Of an account."""

    USER = "user"
    GUEST = "guest"


class Register(msgspec.Struct, frozen=True, kw_only=True):
    """The account that is wanted."""

    type: str | None = None
    """`m.login.application_service`, where one makes it."""
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
    cost=COST_OF_ASKING,
)
async def post_register(
    registration: Registration,
    acting: ActingServices,
    context: RequestContext,
    *,
    body: Register = Register(),
    kind: Kind = Kind.USER,
    access_token: str = "",
) -> dict[str, object]:
    """Make an account; guests confirm nothing, and all that they ask for but the device's name is
    passed over. `access_token`: an application service's, which may come in the address."""
    device_name = check_device_name(body.initial_device_display_name)
    if kind is Kind.GUEST:
        registered = await registration.do_register_guest(
            device_name, body.refresh_token, context.client_ip
        )
    else:
        wish = Wish(
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
            registered = await acting.do_register(acting.find_token(context, access_token), wish)
        else:
            registered = await registration.do_register(wish, body.auth, context.client_ip)
    return session_answer(registered.user_id, registered.session)


@endpoint(
    "GET",
    "/_matrix/client/v3/register/available",
    "/_matrix/client/r0/register/available",
    auth=Auth.NONE,
    limit=Limit.REGISTRATION,
    cost=COST_OF_ASKING,
)
async def get_available(registration: Registration, *, username: str) -> dict[str, object]:
    """Whether a name is free: yes, or an error that says why not."""
    await registration.check_available(username)
    return {"available": True}


@endpoint(
    "GET",
    "/_matrix/client/v1/register/m.login.registration_token/validity",
    "/_matrix/client/unstable/org.matrix.msc3231/register/org.matrix.msc3231.login.registration_token/validity",
    auth=Auth.NONE,
    limit=Limit.REGISTRATION_TOKEN,
)
async def get_registration_token_validity(
    registration: Registration, *, token: str
) -> dict[str, object]:
    """Whether a registration token would be taken now."""
    return {"valid": await registration.is_token_valid(token)}
