"""Actions on one account, for administrators: deactivate it, reset its password, make it an
administrator or a normal user. Also checks whether a user name is available. The paths are
Synapse's."""

import msgspec

from federation.protocol.ids import UserID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.http.responses import EMPTY, Empty
from homeserver.services.administration.users import AccountChanges, UserAdministration

_V1 = "/_synapse/admin/v1"


class AdminDeactivateBody(msgspec.Struct, frozen=True):
    """The deactivation request. `erase` also hides the user's messages and profile from others."""

    erase: bool = False


class NewPasswordBody(msgspec.Struct, frozen=True, kw_only=True):
    new_password: str
    logout_devices: bool = True


class AdministratorBody(msgspec.Struct, frozen=True):
    admin: bool


@endpoint("POST", f"{_V1}/deactivate/{{user_id}}", auth=Auth.ADMIN)
async def post_deactivate_user(
    users: UserAdministration,
    caller: Requester,
    *,
    user_id: UserID,
    body: AdminDeactivateBody = AdminDeactivateBody(),
) -> dict[str, object]:
    """Deactivate an account permanently. Raises `InvalidParam`, `NotFound`."""
    return {
        "id_server_unbind_result": await users.do_deactivate(
            user_id, caller.user_id, erase=body.erase
        )
    }


@endpoint("POST", f"{_V1}/reset_password/{{user_id}}", auth=Auth.ADMIN)
async def post_reset_password(
    users: UserAdministration, caller: Requester, *, user_id: UserID, body: NewPasswordBody
) -> Empty:
    """Set a new password. Raises `InvalidParam`, `NotFound`, `WeakPassword`."""
    changes = AccountChanges(password=body.new_password, logout_devices=body.logout_devices)
    await users.do_change(user_id, changes, caller.user_id)
    return EMPTY


@endpoint("GET", f"{_V1}/users/{{user_id}}/admin", auth=Auth.ADMIN)
async def get_administrator(users: UserAdministration, *, user_id: UserID) -> AdministratorBody:
    """Return whether the account is an administrator. Raises `InvalidParam`, `NotFound`."""
    return AdministratorBody(await users.is_administrator(user_id))


@endpoint("PUT", f"{_V1}/users/{{user_id}}/admin", auth=Auth.ADMIN)
async def put_administrator(
    users: UserAdministration, caller: Requester, *, user_id: UserID, body: AdministratorBody
) -> Empty:
    """Make the account an administrator, or a normal user again. Raises `InvalidParam`,
    `NotFound`."""
    await users.do_change(user_id, AccountChanges(is_admin=body.admin), caller.user_id)
    return EMPTY


@endpoint("GET", f"{_V1}/username_available", auth=Auth.ADMIN)
async def get_username_available(users: UserAdministration, *, username: str) -> dict[str, object]:
    """Return that a user name is available. Raises an error with the reason if it is not."""
    await users.check_available(username)
    return {"available": True}
