"""Lock and suspend accounts, and show when and from where devices were last seen (whois). For
administrators; users may ask about their own devices.

spec: client-server-api#server-administration
"""

import msgspec

from federation.protocol.ids import UserID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.services.administration.moderation import AccountModeration

_UNSTABLE = "/_matrix/client/unstable/uk.timedout.msc4323/admin"


class LockBody(msgspec.Struct, frozen=True):
    locked: bool


class SuspendBody(msgspec.Struct, frozen=True):
    suspended: bool


@endpoint(
    "GET",
    "/_matrix/client/v1/admin/lock/{user_id}",
    f"{_UNSTABLE}/lock/{{user_id}}",
    auth=Auth.ADMIN,
)
async def get_lock(moderation: AccountModeration, *, user_id: UserID) -> LockBody:
    """Return whether the account is locked."""
    return LockBody((await moderation.get_account(user_id)).locked)


@endpoint(
    "PUT",
    "/_matrix/client/v1/admin/lock/{user_id}",
    f"{_UNSTABLE}/lock/{{user_id}}",
    auth=Auth.ADMIN,
)
async def put_lock(
    moderation: AccountModeration, caller: Requester, *, user_id: UserID, body: LockBody
) -> LockBody:
    """Lock or unlock the account."""
    await moderation.do_moderate(caller, user_id, locked=body.locked)
    return body


@endpoint(
    "GET",
    "/_matrix/client/v1/admin/suspend/{user_id}",
    f"{_UNSTABLE}/suspend/{{user_id}}",
    auth=Auth.ADMIN,
)
async def get_suspend(moderation: AccountModeration, *, user_id: UserID) -> SuspendBody:
    """Return whether the account is suspended."""
    return SuspendBody((await moderation.get_account(user_id)).suspended)


@endpoint(
    "PUT",
    "/_matrix/client/v1/admin/suspend/{user_id}",
    f"{_UNSTABLE}/suspend/{{user_id}}",
    auth=Auth.ADMIN,
)
async def put_suspend(
    moderation: AccountModeration, caller: Requester, *, user_id: UserID, body: SuspendBody
) -> SuspendBody:
    """Suspend the account, or lift the suspension."""
    await moderation.do_moderate(caller, user_id, suspended=body.suspended)
    return body


@endpoint(
    "GET",
    "/_matrix/client/v3/admin/whois/{user_id}",
    "/_matrix/client/r0/admin/whois/{user_id}",
    "/_synapse/admin/v1/whois/{user_id}",
    auth=Auth.USER,
)
async def get_whois(
    moderation: AccountModeration, caller: Requester, *, user_id: UserID
) -> dict[str, object]:
    """Return when and from where each device was last seen. Users may ask about themselves only,
    administrators about all users."""
    devices = await moderation.get_last_seen_devices(caller, user_id)
    return {
        "user_id": user_id,
        "devices": {
            device.device_id: {
                "sessions": [
                    {
                        "connections": [
                            {
                                "ip": device.last_seen_ip,
                                "last_seen": device.last_seen_ts,
                                "user_agent": device.last_seen_user_agent,
                            }
                        ]
                        if device.last_seen_ts is not None
                        else []
                    }
                ]
            }
            for device in devices
        },
    }
