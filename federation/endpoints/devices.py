"""Endpoints with which other servers read the devices of our users, and query and claim their keys.

spec: server-server-api#device-management, server-server-api#end-to-end-encryption
"""

from typing import Any

import msgspec

from federation.api.endpoint import ServerAuth, endpoint
from federation.api.request import Peer
from federation.devices.local_devices import LocalDevices
from federation.protocol.ids import UserID


@endpoint(
    "GET",
    "/_matrix/federation/v1/user/devices/{user_id}",
    auth=ServerAuth.SERVER,
    resource="federation",
)
async def get_user_devices(devices: LocalDevices, peer: Peer, *, user_id: UserID) -> dict[str, Any]:  # noqa: ARG001
    """Return all devices of one of our users."""
    return await devices.get_list(user_id)


class KeyQuery(msgspec.Struct, frozen=True):
    """Device IDs by user. An empty list stands for all devices of the user."""

    device_keys: dict[str, list[str]]


@endpoint(
    "POST",
    "/_matrix/federation/v1/user/keys/query",
    auth=ServerAuth.SERVER,
    max_body=1024 * 1024,
    resource="federation",
)
async def query_user_keys(devices: LocalDevices, peer: Peer, *, body: KeyQuery) -> dict[str, Any]:  # noqa: ARG001
    """Return the device keys of our users."""
    return await devices.get_keys(body.device_keys)


class KeyClaim(msgspec.Struct, frozen=True):
    """Algorithms by user and device."""

    one_time_keys: dict[str, dict[str, str]]


@endpoint(
    "POST",
    "/_matrix/federation/v1/user/keys/claim",
    auth=ServerAuth.SERVER,
    max_body=1024 * 1024,
    resource="federation",
)
async def claim_user_keys(devices: LocalDevices, peer: Peer, *, body: KeyClaim) -> dict[str, Any]:
    """Claim one-time keys of our users. Each is returned once."""
    return {
        "one_time_keys": await devices.do_claim_for_server(peer.server_name, body.one_time_keys)
    }
