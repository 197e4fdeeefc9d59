"""Queries and claims keys of other servers' users, and checks the responses.

Malformed entries of a response are left out. Clients verify the signatures themselves, because they
trust no server to do it. This module checks the owner of each key, so that a server can only
provide keys of its own users.

spec: server-server-api#end-to-end-encryption, server-server-api#device-management
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeGuard

import msgspec
from canonicaljson import encode_canonical_json

from federation.peers.client import FederationClient, RefusedByRemote, make_path
from federation.protocol.canonical_json import check_readable
from federation.protocol.device_keys import (
    MAX_KEY_DEPTH,
    PublicKey,
    is_key_name,
    parse_cross_signing_key,
    parse_identity_keys,
)
from federation.protocol.errors import MatrixError, RemoteError
from federation.protocol.ids import ServerName, domain_of

MAX_DEVICES: Final = 2000
"""Devices of one user."""
MAX_LIST_BYTES: Final = 1 << 20
"""Size of the keys of all devices of a user: several hundred take less. Clients receive them
together with those of all others in a room."""
MAX_DEVICE_ID: Final = 255
MAX_KEY_BYTES: Final = 64 << 10
"""Size of the keys of one device, or of one key."""
MAX_ANSWER_BYTES: Final = 16 << 20
MAX_LIST_RESPONSE_BYTES: Final = 8 << 20
"""Size of a device list response: some bots have thousands of devices."""
QUERY_BASE_BYTES: Final = 4 << 20
BYTES_PER_USER: Final = 64 << 10
"""Size of a query response, and more for each user."""
CLAIM_BASE_BYTES: Final = 1 << 20
BYTES_PER_CLAIM: Final = 4 << 10
"""Size of a claim response, and more for each key."""
USAGES: Final = ("master", "self_signing")


class UserKeys(msgspec.Struct):
    """The published keys of a user: device keys by device ID, and cross-signing keys by usage."""

    devices: dict[str, bytes] = msgspec.field(default_factory=dict)
    names: dict[str, str] = msgspec.field(default_factory=dict)
    cross_signing: dict[str, PublicKey] = msgspec.field(default_factory=dict)
    device_bytes: int = 0


class DeviceList(msgspec.Struct, frozen=True):
    """All devices of a user, and the stream ID of the latest change."""

    stream_id: int
    keys: UserKeys


class DeviceKeyClient:
    """Fetches keys from other servers."""

    def __init__(self, requests: FederationClient) -> None:
        self._requests = requests

    async def get_list(self, user_id: str, seconds: float) -> DeviceList:
        """Return the devices of a user, or none if their server does not know the user.

        An unknown user is no failure of the server:
        spec: client-server-api#post_matrixclientv3keysquery. Raises RemoteError, Forbidden.
        """
        server = domain_of(user_id)
        path = make_path("/_matrix/federation/v1/user/devices/{}", user_id)
        try:
            answer = await self._requests.get(
                server, path, seconds=seconds, max_bytes=MAX_LIST_RESPONSE_BYTES
            )
        except RefusedByRemote as error:
            if (error.status, error.errcode) != (404, "M_NOT_FOUND"):
                raise
            return DeviceList(0, UserKeys())
        stream_id, devices = answer.get("stream_id"), answer.get("devices")
        if (
            answer.get("user_id") != user_id
            or not is_stream_id(stream_id)
            or not isinstance(devices, list)
        ):
            raise RemoteError(
                server, "the answer is no list of the user's devices", retryable=False
            )
        keys = UserKeys()
        for device in devices[:MAX_DEVICES]:
            if isinstance(device, dict):
                name = device.get("device_display_name")
                add_device(keys, user_id, device.get("device_id"), device.get("keys"), name)
        for usage in USAGES:
            add_cross_signing_key(keys, user_id, usage, answer.get(f"{usage}_key"))
        return DeviceList(stream_id, keys)

    async def query(
        self, server: ServerName, wanted: Mapping[str, Sequence[str]], seconds: float
    ) -> dict[str, UserKeys]:
        """Return the keys of users of one server, each with the wanted devices (none: all).

        Raises RemoteError, Forbidden.
        """
        path, limit = (
            "/_matrix/federation/v1/user/keys/query",
            QUERY_BASE_BYTES + BYTES_PER_USER * len(wanted),
        )
        answer = await self._post(server, path, {"device_keys": wanted}, seconds, limit)
        found: dict[str, UserKeys] = {}
        for user_id, devices in _objects(answer.get("device_keys")):
            if user_id in wanted:
                keys = found[user_id] = UserKeys()
                for device_id, content in list(devices.items())[:MAX_DEVICES]:
                    add_device(keys, user_id, device_id, content)
        for usage in USAGES:
            for user_id, key in _objects(answer.get(f"{usage}_keys")):
                if user_id in wanted:
                    add_cross_signing_key(
                        found.setdefault(user_id, UserKeys()), user_id, usage, key
                    )
        return found

    async def claim(
        self, server: ServerName, wanted: Mapping[str, Mapping[str, str]], seconds: float
    ) -> dict[str, dict[str, dict[str, msgspec.Raw]]]:
        """Claim one-time keys. Return them by user, device and key ID.

        Raises RemoteError, Forbidden.
        """
        path, limit = (
            "/_matrix/federation/v1/user/keys/claim",
            CLAIM_BASE_BYTES + BYTES_PER_CLAIM * sum(map(len, wanted.values())),
        )
        answer = await self._post(server, path, {"one_time_keys": wanted}, seconds, limit)
        claimed: dict[str, dict[str, dict[str, msgspec.Raw]]] = {}
        for user_id, devices in _objects(answer.get("one_time_keys")):
            for device_id, keys in _objects(devices):
                algorithm = wanted.get(user_id, {}).get(device_id)
                if algorithm is None:
                    continue
                for name, key in list(keys.items())[:1]:
                    content = _encode(key)
                    if (
                        is_key_name(name)
                        and name.startswith(f"{algorithm}:")
                        and content is not None
                    ):
                        claimed.setdefault(user_id, {})[device_id] = {name: msgspec.Raw(content)}
        return claimed

    async def _post(
        self, server: ServerName, path: str, body: Mapping[str, Any], seconds: float, limit: int
    ) -> dict[str, Any]:
        # many servers are asked at once, so the limit is the memory that each response may take
        answer = await self._requests.post(
            server, path, body, seconds=seconds, max_bytes=min(limit, MAX_ANSWER_BYTES)
        )
        if not isinstance(answer, dict):
            raise RemoteError(server, "the answer is no JSON object", retryable=False)
        return answer


def is_stream_id(value: object) -> TypeGuard[int]:
    """Return whether the value is a valid stream ID of a device list."""
    return type(value) is int and 0 <= value < 1 << 53


def add_device(
    keys: UserKeys, user_id: str, device_id: object, content: object, name: object = None
) -> None:
    """Add the keys of a device, if they are of this user and fit beside the others.

    `name`: the display name, if it is not in the `unsigned` of the keys.
    """
    if (
        not isinstance(device_id, str)
        or not is_device_id(device_id)
        or not isinstance(content, dict)
    ):
        return
    try:
        encoded = parse_identity_keys(content, user_id, device_id)
    except MatrixError:
        return
    if len(encoded) <= MAX_KEY_BYTES and keys.device_bytes + len(encoded) <= MAX_LIST_BYTES:
        keys.devices[device_id] = encoded
        keys.device_bytes += len(encoded)
        unsigned = content.get("unsigned")
        if name is None and isinstance(unsigned, dict):
            name = unsigned.get("device_display_name")
        if isinstance(name, str):
            keys.names[device_id] = name[:MAX_DEVICE_ID].replace("\0", "")


def add_cross_signing_key(keys: UserKeys, user_id: str, usage: str, content: object) -> None:
    """Add a cross-signing key, if it is of this user."""
    if not isinstance(content, dict):
        return
    try:
        key = parse_cross_signing_key(user_id, usage, content)
    except MatrixError:
        return
    if len(key.content) <= MAX_KEY_BYTES:
        keys.cross_signing[usage] = key


def is_device_id(device_id: str) -> bool:
    """Return whether the device ID can be stored."""
    return 0 < len(device_id) <= MAX_DEVICE_ID and "\0" not in device_id


def _encode(key: object) -> bytes | None:
    if not isinstance(key, str | dict):
        return None
    try:
        check_readable(key, MAX_KEY_DEPTH)
        encoded = encode_canonical_json(key)
    except MatrixError:
        return None
    return encoded if len(encoded) <= MAX_KEY_BYTES else None


def _objects(value: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return the entries of an object that are objects."""
    if isinstance(value, dict):
        for name, entry in value.items():
            if isinstance(entry, dict):
                yield name, entry
