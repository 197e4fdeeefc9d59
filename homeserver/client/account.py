"""The caller's own account: whoami, password change and deactivation.

spec: client-server-api#current-account-information, client-server-api#legacy-account-management
"""

import msgspec

from federation.api.request import RequestContext
from federation.protocol.errors import GuestAccessForbidden
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.http.responses import EMPTY, Empty
from homeserver.services.accounts.accounts import Accounts


class ChangePasswordBody(msgspec.Struct, frozen=True, kw_only=True):
    new_password: str
    logout_devices: bool = True
    auth: dict[str, object] | None = None


class DeactivateBody(msgspec.Struct, frozen=True, kw_only=True):
    erase: bool = False
    auth: dict[str, object] | None = None


@endpoint(
    "GET", "/_matrix/client/v3/account/whoami", "/_matrix/client/r0/account/whoami", auth=Auth.GUEST
)
async def get_whoami(caller: Requester) -> dict[str, object]:
    """Return the user and the device of the access token."""
    response: dict[str, object] = {"user_id": caller.user_id, "is_guest": caller.is_guest}
    if caller.device_id is not None:
        response["device_id"] = caller.device_id
    return response


@endpoint(
    "POST",
    "/_matrix/client/v3/account/password",
    "/_matrix/client/r0/account/password",
    auth=Auth.OPTIONAL,
    while_suspended=True,
)
async def post_password(
    accounts: Accounts,
    caller: Requester | None,
    context: RequestContext,
    *,
    body: ChangePasswordBody,
) -> Empty:
    """Change the password. A caller without a token resets it by a confirmed e-mail address or
    phone number."""
    if caller is None:
        await accounts.do_reset_password(
            body.new_password, body.auth, context.client_ip, log_out=body.logout_devices
        )
        return EMPTY
    if caller.is_guest:
        raise GuestAccessForbidden
    await accounts.do_change_password(
        caller, body.new_password, body.auth, context.client_ip, log_out_others=body.logout_devices
    )
    return EMPTY


@endpoint(
    "POST",
    "/_matrix/client/v3/account/deactivate",
    "/_matrix/client/r0/account/deactivate",
    auth=Auth.USER,
    while_suspended=True,
)
async def post_deactivate(
    accounts: Accounts,
    caller: Requester,
    context: RequestContext,
    *,
    body: DeactivateBody = DeactivateBody(),
) -> dict[str, object]:
    """Deactivate the account, and unbind the addresses that this server bound at an identity
    server."""
    unbound = await accounts.do_deactivate_self(
        caller, body.auth, context.client_ip, erase=body.erase
    )
    return {"id_server_unbind_result": unbound}
