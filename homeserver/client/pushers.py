"""List and set pushers. spec: client-server-api#push-notifications"""

from typing import Any

import msgspec

from federation.protocol.errors import MissingParam
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.requester import Requester
from homeserver.http.responses import EMPTY, Empty
from homeserver.services.pushers.pushers import NO_COUNTS, PusherRequest, Pushers, check_key


class PusherBody(msgspec.Struct, frozen=True, kw_only=True):
    """The request body of a pusher. A null `kind` deletes the pusher."""

    kind: str | msgspec.UnsetType | None = msgspec.UNSET
    app_id: str
    pushkey: str
    app_display_name: str | None = None
    device_display_name: str | None = None
    profile_tag: str | None = None
    lang: str | None = None
    data: dict[str, Any] | None = None
    append: bool = False
    enabled: bool | None = msgspec.field(default=None, name="org.matrix.msc3881.enabled")
    no_counts: bool = msgspec.field(default=False, name=NO_COUNTS)


@endpoint("GET", "/_matrix/client/v3/pushers", "/_matrix/client/r0/pushers", auth=Auth.USER)
async def get_pushers(pushers: Pushers, caller: Requester) -> dict[str, Any]:
    """Return the pushers of all devices of the caller."""
    return {"pushers": await pushers.get(caller.user_id)}


@endpoint(
    "POST",
    "/_matrix/client/v3/pushers/set",
    "/_matrix/client/r0/pushers/set",
    auth=Auth.USER,
    while_suspended=True,
)
async def post_pusher(pushers: Pushers, caller: Requester, *, body: PusherBody) -> Empty:
    """Set or delete a pusher."""
    if body.kind is msgspec.UNSET:
        raise MissingParam("Missing parameters: kind")
    if body.kind is None:
        check_key(body.app_id, body.pushkey)
        await pushers.do_remove(caller.user_id, body.app_id, body.pushkey)
        return EMPTY
    request = PusherRequest(
        kind=body.kind,
        app_id=body.app_id,
        pushkey=body.pushkey,
        app_display_name=body.app_display_name,
        device_display_name=body.device_display_name,
        profile_tag=body.profile_tag,
        lang=body.lang,
        data=body.data,
        enabled=body.enabled,
        no_counts=body.no_counts,
        append=body.append,
    )
    await pushers.do_set(caller, request)
    return EMPTY
