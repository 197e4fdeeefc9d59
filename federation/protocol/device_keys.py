"""Checks the form of device keys and cross-signing keys from clients and other servers.

spec: client-server-api#end-to-end-encryption
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from canonicaljson import encode_canonical_json

from federation.protocol.canonical_json import check_readable
from federation.protocol.errors import BadJson, InvalidParam
from federation.protocol.signing import KEY_BYTES, decode_base64

MAX_KEY_NAME: Final = 255
MAX_KEY_DEPTH: Final = 100
"""Highest nesting of objects and arrays in one published key; keys of clients have four levels. If
a server could not parse one key, it would lose all other keys in the same response too."""


class IdentityKeys(msgspec.Struct, frozen=True):
    """spec: client-server-api#post_matrixclientv3keysupload_request_devicekeys"""

    user_id: str
    device_id: str
    algorithms: list[str]
    keys: dict[str, str]
    signatures: dict[str, dict[str, str]]


class PublicKey(msgspec.Struct, frozen=True):
    """A cross-signing key: the public key in base64, which is also its name, and the published
    object as canonical JSON."""

    public_key: str
    content: bytes


def parse_identity_keys(keys: Mapping[str, Any], user_id: str, device_id: str) -> bytes:
    """The keys of that device as canonical JSON without `unsigned`. Raises BadJson,
    InvalidParam."""
    try:
        identity = msgspec.convert(keys, IdentityKeys)
    except msgspec.ValidationError as error:
        raise BadJson(f"device_keys: {error}") from None
    if identity.user_id != user_id or identity.device_id != device_id:
        raise InvalidParam("device_keys are for another user or device")
    check_readable(keys, MAX_KEY_DEPTH)
    return encode_canonical_json({key: value for key, value in keys.items() if key != "unsigned"})


def parse_cross_signing_key(user_id: str, usage: str, key: Mapping[str, Any]) -> PublicKey:
    """A key of that user for that usage (master, self_signing, user_signing). Raises InvalidParam,
    BadJson."""
    keys, usages = key.get("keys"), key.get("usage")
    if key.get("user_id") != user_id:
        raise InvalidParam(f"The {usage} key is for another user")
    if not isinstance(usages, list) or usage not in usages:
        raise InvalidParam(f"The usage of the {usage} key is another one")
    if not isinstance(keys, dict) or len(keys) != 1:
        raise InvalidParam(f"The {usage} key has to have one public key")
    ((key_id, public_key),) = keys.items()
    if not isinstance(public_key, str) or key_id != f"ed25519:{public_key}":
        raise InvalidParam(f"The {usage} key is named ed25519:KEY after itself")
    decode_ed25519(public_key)
    if not isinstance(key.get("signatures", {}), dict):
        raise InvalidParam(f"The signatures of the {usage} key are no object")
    check_readable(key, MAX_KEY_DEPTH)
    content = encode_canonical_json(
        {name: value for name, value in key.items() if name != "unsigned"}
    )
    return PublicKey(public_key, content)


def decode_ed25519(key: object) -> bytes:
    """An Ed25519 key; its name may be anything in base64. Raises InvalidParam."""
    decoded = decode_base64(key) if isinstance(key, str) else b""
    if len(decoded) != KEY_BYTES:
        raise InvalidParam("This is no key of Ed25519")
    return decoded


def is_key_name(name: str) -> bool:
    """Whether it is ALGORITHM:ID."""
    algorithm, colon, key_id = name.partition(":")
    return bool(colon and algorithm and key_id) and len(name) <= MAX_KEY_NAME and "\0" not in name
