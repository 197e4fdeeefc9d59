"""Upload, query and claim keys of end-to-end encryption. spec:
client-server-api#end-to-end-encryption"""

from collections.abc import Mapping
from typing import Any

import msgspec

from federation.api.request import RequestContext
from homeserver.api.endpoint import Auth, endpoint
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.responses import EMPTY, Empty
from homeserver.services.encryption.cross_signing import CrossSigning, KeySet
from homeserver.services.encryption.device_keys import DeviceKeys, KeyUpload
from homeserver.services.encryption.device_lists import DeviceLists
from homeserver.services.encryption.key_queries import KeyQueries
from homeserver.services.streams.sync_tokens import parse_sync_token


def _paths(suffix: str) -> tuple[str, str]:
    return f"/_matrix/client/v3/keys/{suffix}", f"/_matrix/client/r0/keys/{suffix}"


@endpoint("POST", *_paths("upload"), auth=Auth.GUEST, max_body=1024 * 1024, while_suspended=True)
async def upload_keys(
    keys: DeviceKeys, caller: Requester, *, body: KeyUpload = KeyUpload()
) -> dict[str, Any]:
    """Publish keys of the caller's device, and return its one-time key counts."""
    return {"one_time_key_counts": dict(await keys.do_upload(caller, body))}


class KeyQueryBody(msgspec.Struct, frozen=True):
    """Device IDs by user. An empty list means all devices of the user."""

    device_keys: dict[str, list[str]]
    timeout: int = 10_000


@endpoint(
    "POST",
    *_paths("query"),
    auth=Auth.GUEST,
    max_body=4 * 1024 * 1024,
    limit=Limit.KEY_REQUEST,
    while_suspended=True,
)
async def query_keys(keys: KeyQueries, caller: Requester, *, body: KeyQueryBody) -> dict[str, Any]:
    """Return the device keys and cross-signing keys of users."""
    keys.check_query_limits(caller, len(body.device_keys))
    return await keys.query(caller, body.device_keys, body.timeout)


class KeyClaimBody(msgspec.Struct, frozen=True):
    """Key algorithms by user and device."""

    one_time_keys: dict[str, dict[str, str]]
    timeout: int = 10_000


@endpoint(
    "POST",
    *_paths("claim"),
    auth=Auth.GUEST,
    max_body=4 * 1024 * 1024,
    limit=Limit.KEY_REQUEST,
    while_suspended=True,
)
async def claim_keys(keys: KeyQueries, caller: Requester, *, body: KeyClaimBody) -> dict[str, Any]:
    """Claim one-time keys of devices."""
    keys.check_claim_limits(caller, sum(map(len, body.one_time_keys.values())))
    return await keys.claim(caller, body.one_time_keys, body.timeout)


@endpoint("GET", *_paths("changes"), auth=Auth.GUEST)
async def get_keys_changes(
    device_lists: DeviceLists, caller: Requester, *, from_: str, to: str
) -> Mapping[str, list[str]]:
    """Return the users whose device lists changed between two sync tokens."""
    return await device_lists.get_changes(
        caller.user_id, parse_sync_token(from_).position, parse_sync_token(to).position
    )


class CrossSigningBody(KeySet, frozen=True):
    """Cross-signing keys, with the authentication that replacing them needs."""

    auth: dict[str, Any] | None = None


@endpoint(
    "POST",
    *_paths("device_signing/upload"),
    "/_matrix/client/unstable/keys/device_signing/upload",
    auth=Auth.USER,
    limit=Limit.DEVICE_CHANGE,
    while_suspended=True,
)
async def upload_cross_signing_keys(
    cross_signing: CrossSigning,
    caller: Requester,
    context: RequestContext,
    *,
    body: CrossSigningBody,
) -> Empty:
    """Set the caller's cross-signing keys."""
    await cross_signing.do_upload(caller, body, body.auth, context.client_ip)
    return EMPTY


@endpoint(
    "POST",
    *_paths("signatures/upload"),
    "/_matrix/client/unstable/keys/signatures/upload",
    auth=Auth.USER,
    limit=Limit.DEVICE_CHANGE,
    max_body=1024 * 1024,
    while_suspended=True,
)
async def upload_cross_signing_signatures(
    cross_signing: CrossSigning, caller: Requester, *, body: dict[str, Any]
) -> dict[str, Any]:
    """Add signatures to device keys and master keys."""
    return await cross_signing.do_sign(
        caller, {user: keys for user, keys in body.items() if isinstance(keys, dict)}
    )
