"""Scopes: a client is granted the complete client-server API, for one device.

The unstable scope names (MSC2967) are accepted too, and granted under the requested name.

spec: client-server-api#scope, RFC 6749 section 3.3
"""

import re
from typing import Final

import msgspec

from federation.protocol.errors import MatrixError
from federation.protocol.ids import ALL_DEVICES, DeviceID, parse_device_id
from homeserver.services.oauth.errors import OAuthError

PREFIXES: Final = ("urn:matrix:client:", "urn:matrix:org.matrix.msc2967.client:")
API: Final = "api:*"
DEVICE: Final = "device:"
MAX_LENGTH: Final = 1000
_SCOPE: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+(?: [\x21\x23-\x5b\x5d-\x7e]+)*")


class OAuthScope(msgspec.Struct, frozen=True):
    """A requested scope."""

    text: str
    """The scope tokens that can be granted."""
    device_id: DeviceID


def parse_scope(text: str) -> OAuthScope:
    """Parse a scope. Unknown scope tokens are not granted. Raises `OAuthError`
    (`invalid_scope`)."""
    if len(text) > MAX_LENGTH or not _SCOPE.fullmatch(text):
        raise OAuthError(
            "invalid_scope", "scope must be a list of scope tokens with a space between them"
        )
    granted, devices, has_api = [], set(), False
    for token in dict.fromkeys(text.split(" ")):
        prefix = next((each for each in PREFIXES if token.startswith(each)), "")
        rest = token.removeprefix(prefix)
        if not prefix or not (rest == API or rest.startswith(DEVICE)):
            continue
        granted.append(token)
        if rest == API:
            has_api = True
        else:
            devices.add(rest.removeprefix(DEVICE))
    if not has_api:
        raise OAuthError("invalid_scope", "The scope must have urn:matrix:client:api:*")
    if len(devices) != 1:
        raise OAuthError(
            "invalid_scope", "The scope must have exactly one urn:matrix:client:device:…"
        )
    try:
        device_id = parse_device_id(devices.pop())
    except MatrixError as error:
        raise OAuthError("invalid_scope", error.text) from None
    if device_id == ALL_DEVICES:
        raise OAuthError("invalid_scope", "A device ID cannot be *, which means all devices")
    return OAuthScope(" ".join(granted), device_id)
