"""Pushers, as operators see them: those of a user (as Synapse's administration API shows them), and
how gateways stand."""

from typing import Any

import msgspec

from federation.protocol.ids import UserID
from homeserver.api.endpoint import Auth, endpoint
from homeserver.services.pushers.pushers import Pushers
from storage.push.pushers import PusherRow


@endpoint("GET", "/_synapse/admin/v1/users/{user_id}/pushers", auth=Auth.ADMIN)
async def get_users_pushers(pushers: Pushers, *, user_id: UserID) -> dict[str, Any]:
    """The pushers of a user. Fields of ours beside Synapse's: whether it is enabled, and how it
    stands."""
    rows = await pushers.get_rows(user_id)
    return {"pushers": [_shown(row) for row in rows], "total": len(rows)}


@endpoint("GET", "/_mahalla/admin/v1/push_gateways", auth=Auth.ADMIN)
async def get_push_gateways(pushers: Pushers) -> dict[str, Any]:
    """How many pushers each gateway has, how many of them fail, since when, and when it last took a
    push."""
    return {
        "gateways": [
            {
                "gateway": row.gateway or "e-mail",
                "pushers": row.pushers,
                "failing": row.failing,
                "failing_since_ts": row.failing_since_ts,
                "success_ts": row.success_ts,
            }
            for row in await pushers.get_gateways()
        ]
    }


def _shown(row: PusherRow) -> dict[str, Any]:
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
        "success_ts": row.success_ts,
        "error": row.error,
    }
