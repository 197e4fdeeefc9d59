"""Lets scripts and playbooks that know the shared secret (`registration_shared_secret`) register
accounts. The path is Synapse's."""

import msgspec

from federation.api.request import RequestContext
from federation.protocol.ids import parse_device_id
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.services.accounts.registration import RegistrationRequest
from homeserver.services.accounts.shared_secret_registration import (
    SharedSecretRegistration,
    SignedRegistrationRequest,
)
from homeserver.services.devices.devices import check_device_name
from homeserver.services.login.sessions import session_response
from homeserver.services.profiles.profiles import Profiles

_PATH = "/_synapse/admin/v1/register"


class AdminRegisterBody(msgspec.Struct, frozen=True, kw_only=True):
    """The registration request. Any truthy `admin` counts. An empty or null `user_type` means
    none."""

    nonce: str | None = None
    username: str | None = None
    password: str | None = None
    admin: object = False
    user_type: str | None = None
    mac: str | None = None
    displayname: str | None = None
    inhibit_login: bool = False
    device_id: str | None = None
    initial_device_display_name: str | None = None
    refresh_token: bool = False


@endpoint("GET", _PATH, auth=Auth.NONE, limit=Limit.REGISTRATION)
async def get_nonce(registration: SharedSecretRegistration) -> dict[str, object]:
    """Return a nonce for one request."""
    return {"nonce": await registration.do_create_nonce()}


@endpoint("POST", _PATH, auth=Auth.NONE)
async def post_register(
    registration: SharedSecretRegistration,
    profiles: Profiles,
    context: RequestContext,
    *,
    body: AdminRegisterBody,
) -> dict[str, object]:
    """Register an account."""
    request = RegistrationRequest(
        username=body.username,
        password=body.password,
        device_id=None if body.device_id is None else parse_device_id(body.device_id),
        device_name=check_device_name(body.initial_device_display_name),
        inhibit_login=body.inhibit_login,
        refreshable=body.refresh_token,
        is_admin=bool(body.admin),
        user_type=body.user_type or None,
        address=context.client_ip,
    )
    registered = await registration.do_register(
        SignedRegistrationRequest(body.nonce, body.mac, request)
    )
    if body.displayname:
        await profiles.do_set_display_name(registered.user_id, body.displayname)
    return session_response(registered.user_id, registered.session)
