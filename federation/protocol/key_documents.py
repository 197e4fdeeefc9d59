"""Parses and verifies the signed key documents of `/_matrix/key/v2/`.

spec: server-server-api#publishing-keys
"""

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from federation.protocol.errors import InvalidParam, Unauthorized
from federation.protocol.ids import KeyID, ServerName
from federation.protocol.signing import is_signed_by, parse_public_key

MAX_KEYS: Final = 100
"""Keys of one server, of each kind. Further keys in a document are ignored."""
LONGEST_VALID_MS: Final = 7 * 24 * 3600 * 1000
"""Longest validity of a key from now on, whatever its document states."""
LONGEST_TIME_MS: Final = (1 << 53) - 1


class VerifyKey(msgspec.Struct, frozen=True):
    """A server's key, and until when it is valid, in milliseconds."""

    public_key: bytes
    valid_until_ms: int


class KeyDocument(msgspec.Struct, frozen=True):
    """The keys that a server publishes."""

    server_name: ServerName
    keys: Mapping[KeyID, VerifyKey]
    """Present and former keys."""
    valid_until_ms: int
    """As it says, at most seven days from now."""
    signed: Mapping[str, Any]
    """The document itself, with no signatures but the server's own."""


def read_keys(server: ServerName, document: Mapping[str, Any], now_ms: int) -> KeyDocument:
    """The keys of a document that the server has signed itself. Raises Unauthorized for any other
    document.

    A key that it used to use is valid until it ceased to, which is no moment in the future.
    """
    verify, old = document.get("verify_keys"), document.get("old_verify_keys", {})
    until = document.get("valid_until_ts")
    if document.get("server_name") != server or not isinstance(verify, dict) or not _is_time(until):
        raise Unauthorized(f"The document of keys is not one of {server}")
    assert isinstance(until, int)
    until = min(until, now_ms + LONGEST_VALID_MS)
    keys: dict[KeyID, VerifyKey] = {}
    for key_id, entry in list(old.items())[:MAX_KEYS] if isinstance(old, dict) else ():
        expired = entry.get("expired_ts") if isinstance(entry, dict) else None
        if isinstance(expired, int) and _is_time(expired):
            _add(keys, key_id, entry, min(expired, now_ms))
    current: dict[KeyID, VerifyKey] = {}
    for key_id, entry in list(verify.items())[:MAX_KEYS]:
        _add(current, key_id, entry, until)
    if not is_signed_by(
        document, server, {key_id: key.public_key for key_id, key in current.items()}
    ):
        raise Unauthorized(f"{server} has not signed its keys")
    signed = {**document, "signatures": {server: document["signatures"][server]}}
    signed.pop("unsigned", None)
    return KeyDocument(server, keys | current, until, signed)


def valid_keys(keys: Mapping[KeyID, VerifyKey], wanted: Mapping[KeyID, int]) -> dict[KeyID, bytes]:
    """Return the wanted keys that are known and were valid at the wanted time in milliseconds."""
    return {
        key_id: keys[key_id].public_key
        for key_id, at_ms in wanted.items()
        if key_id in keys and keys[key_id].valid_until_ms >= at_ms
    }


def _add(keys: dict[KeyID, VerifyKey], key_id: str, entry: object, valid_until_ms: int) -> None:
    key = entry.get("key") if isinstance(entry, dict) else None
    if isinstance(key, str):
        try:
            keys[KeyID(key_id)] = VerifyKey(parse_public_key(key_id, key), valid_until_ms)
        except InvalidParam:
            return


def _is_time(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LONGEST_TIME_MS
