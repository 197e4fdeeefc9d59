"""Shows the pushers of a user and the state of push gateways, for administrators. The path of a
user's pushers is Synapse's."""

from typing import Any

import msgspec

from federation.protocol.ids import UserID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.services.pushers.pushers import Pushers
from storage.push.pushers import PusherRow


@endpoint("GET", "/_synapse/admin/v1/users/{user_id}/pushers", auth=Auth.ADMIN)
async def get_users_pushers(pushers: Pushers, *, user_id: UserID) -> dict[str, Any]:
    """Return the pushers of a user. Fields in addition to Synapse's: whether the pusher is enabled,
    and the state of its delivery."""
    rows = await pushers.get_rows(user_id)
    return {"pushers": [_describe(row) for row in rows], "total": len(rows)}


@endpoint("GET", "/_mahalla/admin/v1/push_gateways", auth=Auth.ADMIN)
async def get_push_gateways(pushers: Pushers) -> dict[str, Any]:
    """Return for each push gateway how many pushers it has, how many of them fail and since when,
    and when it last accepted a push."""
    return {
        "gateways": [
            {
                "gateway": row.gateway or "e-mail",
                "pushers": row.pushers,
                "failing": row.failing,
                "failing_since_ts": row.failing_since_ts,
                "success_ts": row.last_success_ts,
            }
            for row in await pushers.get_gateways()
        ]
    }


def _describe(row: PusherRow) -> dict[str, Any]:
    return {
        "app_id": row.app_id,
        "app_display_name": row.app_display_name,
        "device_display_name": row.device_display_name,
        "device_id": row.device_id,
        "kind": row.kind,
        "lang": row.lang,
        "profile_tag": row.profile_tag or "",
        "pushkey": row.pushkey,
        "data": msgspec.Raw(row.data),
        "enabled": row.enabled,
        "failing_since_ts": row.failing_since_ts,
        "success_ts": row.last_success_ts,
        "error": row.error,
    }
