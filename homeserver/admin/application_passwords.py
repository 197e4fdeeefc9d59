"""Application passwords of accounts, for administrators: list and revoke them."""

from federation.protocol.ids import UserID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.http.responses import EMPTY, Empty
from homeserver.services.login.application_passwords import ApplicationPasswords

PATH = "/_mahalla/admin/v1/users/{user_id}/application_passwords"


@endpoint("GET", PATH, auth=Auth.ADMIN)
async def get_application_passwords(
    passwords: ApplicationPasswords, *, user_id: UserID
) -> dict[str, object]:
    """Return the application passwords of an account, oldest first. Times are milliseconds since
    1970. Secrets are not included."""
    return {
        "application_passwords": [
            {
                "id": row.password_id,
                "name": row.name,
                "created_ts": row.created_ts,
                "expires_ts": row.expires_ts,
                "last_used_ts": row.used_ts,
            }
            for row in await passwords.get_passwords(user_id)
        ]
    }


@endpoint("DELETE", PATH + "/{password_id}", auth=Auth.ADMIN)
async def delete_application_password(
    passwords: ApplicationPasswords, caller: Requester, *, user_id: UserID, password_id: str
) -> Empty:
    """Revoke an application password, and end the sessions that logged in with it. Raises
    `NotFound`."""
    await passwords.do_revoke(user_id, password_id, by=caller.user_id)
    return EMPTY
