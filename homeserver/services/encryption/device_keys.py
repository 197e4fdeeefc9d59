"""Upload of device keys, and the responses that contain users' keys.

Laws:
- Keys are stored and returned as canonical JSON, so that signatures on them stay valid. The server
  adds its own data only in `unsigned`.
- Signatures that were uploaded later than the keys are added to them in a response, but only if the
  owner of the keys or the user who requests the keys made these signatures.
- The number and the size of keys are bounded, per upload and per device.

spec: client-server-api#end-to-end-encryption
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
from canonicaljson import encode_canonical_json

from federation.devices.local_devices import add_signatures, encode_key, group_signatures_by_target
from federation.devices.published_keys import EncodedKeys
from federation.protocol.canonical_json import check_readable, encode_checked
from federation.protocol.device_keys import MAX_KEY_DEPTH, MAX_KEY_NAME, parse_identity_keys
from federation.protocol.errors import BadJson, InvalidParam, UnknownToken
from federation.protocol.ids import UserID
from homeserver.api.limits import Limit
from homeserver.api.requester import Requester
from homeserver.http.parameters import json_decoder
from homeserver.http.rate_limits import RateLimiter
from homeserver.services.encryption.one_time_key_counts import OneTimeKeyCounts, with_zero
from storage.encryption.cross_signing import KeySignature
from storage.encryption.device_keys import (
    MAX_IDENTITY_BYTES,
    DeviceKeysRow,
    DeviceKeyStore,
    KeyCounts,
    NewKeys,
    NoSuchDevice,
    TooManyIdentityKeys,
)
from storage.encryption.one_time_keys import KeyExists
from storage.encryption.published_keys import PublishedKeys
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction

MAX_ONE_TIME_KEYS: Final = 1000
"""Limit for a device, in one upload and in total."""
MAX_ALGORITHMS: Final = 10
"""Limit for the one-time keys of a device."""
MAX_FALLBACK_KEYS: Final = 10
"""Limit for a device, which has one for each algorithm."""
MAX_QUOTED_NAME: Final = 255
"""Characters of a key's name that an error quotes."""
MAX_KEY_BYTES: Final = 4096
"""Size limit of a one-time or fallback key with its signatures."""
MAX_DEVICE_KEYS_BYTES: Final = 64 << 10
"""Size limit of the identity keys of a device, as on other servers."""
CLAIM_RETENTION_MS: Final = 7 * 24 * 3600 * 1000
"""The retention period of the record of a claimed key. A repeated upload in that time does not
bring the key back."""
PUBLIC_USAGES: Final = ("master", "self_signing")
"""The cross-signing keys that other users see."""

Key = str | dict[str, Any]
_NONE: Final = msgspec.Raw(b"{}")
_decode_common: Final = msgspec.json.Decoder(
    dict[str, str | dict[str, str | bool | dict[str, dict[str, str]]]]
).decode
"""Decodes keys in the usual forms. They contain no floats and do not nest, which saves these
checks."""
_read: Final = json_decoder(dict[str, Key], may_be_empty=False)


class KeyUpload(msgspec.Struct, frozen=True):
    """The body of /keys/upload. One-time and fallback keys are not decoded yet."""

    device_keys: dict[str, Any] | None = None
    one_time_keys: msgspec.Raw = _NONE
    fallback_keys: msgspec.Raw = _NONE
    unstable_fallback_keys: msgspec.Raw = msgspec.field(
        name="org.matrix.msc2732.fallback_keys", default=_NONE
    )


def parse_upload(user_id: str, device_id: str, upload: KeyUpload) -> NewKeys:
    """Check and return the keys of an upload for that device. Raises InvalidParam, BadJson,
    NotJson."""
    identity = (
        None
        if upload.device_keys is None
        else parse_identity_keys(upload.device_keys, user_id, device_id)
    )
    if identity is not None and len(identity) > MAX_DEVICE_KEYS_BYTES:
        raise InvalidParam(f"device_keys may have at most {MAX_DEVICE_KEYS_BYTES} bytes")
    fallback = {
        **_parse_keys("org.matrix.msc2732.fallback_keys", upload.unstable_fallback_keys),
        **_parse_keys("fallback_keys", upload.fallback_keys),
    }
    if len({algorithm for algorithm, _ in fallback}) != len(fallback):
        raise InvalidParam("A device has one fallback key per algorithm")
    return NewKeys(identity, _parse_keys("one_time_keys", upload.one_time_keys), fallback)


class DeviceKeys:
    """Stores uploaded device keys."""

    def __init__(
        self,
        *,
        database: Database,
        keys: DeviceKeyStore,
        counts: OneTimeKeyCounts,
        limiter: RateLimiter,
        now_ms: Callable[[], int],
    ) -> None:
        self._database = database
        self._keys = keys
        self._counts = counts
        self._limiter = limiter
        self._now_ms = now_ms

    async def do_upload(self, caller: Requester, upload: KeyUpload) -> Mapping[str, int]:
        """Store keys of the caller's device and return its one-time key counts by algorithm.

        Raises InvalidParam, BadJson, NotJson, LimitExceeded; UnknownToken if the device was deleted
        meanwhile: nobody should encrypt for it.
        """
        if caller.device_id is None:
            raise InvalidParam("This session has no device to publish keys for")
        user_id, device_id = caller.user_id, caller.device_id
        keys = parse_upload(user_id, device_id, upload)
        if keys.is_empty:
            return (await self._counts.get(user_id, device_id)).one_time
        # clients send identity keys only if they are new, or if the response was lost
        if keys.identity is not None and caller.rate_limited:
            self._limiter.check(Limit.DEVICE_CHANGE, user_id)
        counts = await self._database.write("upload_keys", self.put_keys, user_id, device_id, keys)
        return with_zero(counts).one_time

    def put_keys(
        self, txn: WriteTransaction, user_id: str, device_id: str, keys: NewKeys
    ) -> KeyCounts:
        """Write the result of `parse_upload` and return the new counts of the device. Raises
        InvalidParam, UnknownToken."""
        try:
            counts = self._keys.upload_keys(
                txn, user_id, device_id, keys, self._now_ms() - CLAIM_RETENTION_MS
            )
        except NoSuchDevice:
            raise UnknownToken("The session has ended") from None
        except TooManyIdentityKeys:
            raise InvalidParam(
                f"The keys of all your devices may have at most {MAX_IDENTITY_BYTES} bytes: sign "
                "out of devices that you no longer use"
            ) from None
        except KeyExists as error:
            # matrix-rust-sdk parses this text to tell the user that the client has lost keys
            old, new = error.old.decode(), error.new.decode()
            raise InvalidParam(
                f"One time key {error} already exists. Old key: {old}; new key: {new}"
            ) from None
        if sum(counts.one_time.values()) > MAX_ONE_TIME_KEYS:
            raise InvalidParam(f"A device may have at most {MAX_ONE_TIME_KEYS} one-time keys")
        if len(counts.one_time) > MAX_ALGORITHMS:
            raise InvalidParam(
                f"A device may have one-time keys of at most {MAX_ALGORITHMS} algorithms"
            )
        if counts.fallback > MAX_FALLBACK_KEYS:
            raise InvalidParam(
                f"A device may have fallback keys of at most {MAX_FALLBACK_KEYS} algorithms"
            )
        return counts


def present_keys(
    published: PublishedKeys, reader: UserID | None, wanted: Mapping[str, Sequence[str]]
) -> dict[str, Any]:
    """Return users' keys as `reader` (None: anybody) sees them: device keys, and cross-signing keys
    by usage. `wanted`: devices by user; an empty list means all devices."""
    response: dict[str, Any] = {"device_keys": {}}
    for user_id, devices in wanted.items():
        rows = published.signatures.get(user_id)
        signatures = group_signatures_by_target(rows) if rows else {}
        user_devices = response["device_keys"][user_id] = {}
        named = frozenset(devices)  # a set: both lists may be very long
        for row in published.devices.get(user_id, ()):
            if not named or row.device_id in named:
                user_devices[row.device_id] = _present_device(
                    row, signatures.get(row.device_id, ())
                )
        for usage, key in published.cross_signing.get(user_id, {}).items():
            if usage != "user_signing" or user_id == reader:
                response.setdefault(f"{usage}_keys", {})[user_id] = encode_key(
                    key, signatures.get(key.public_key, ())
                )
    return response


def build_public_keys(user_id: str, published: PublishedKeys) -> EncodedKeys:
    """Return the keys of one of our users as anybody sees them."""
    seen = present_keys(published, None, {user_id: ()})
    devices = msgspec.json.encode(seen["device_keys"][user_id])
    cross_signing = {
        usage: seen[f"{usage}_keys"][user_id] for usage in PUBLIC_USAGES if f"{usage}_keys" in seen
    }
    size = len(devices) + sum(len(bytes(key)) for key in cross_signing.values())
    return EncodedKeys(msgspec.Raw(devices), cross_signing, size)


def _parse_keys(field: str, raw: msgspec.Raw) -> dict[tuple[str, str], bytes]:
    """Return the keys of a field by algorithm and ID, as canonical JSON. Raises InvalidParam,
    BadJson, NotJson."""
    if raw == _NONE:
        return {}
    keys: Mapping[str, Key]
    encode: Callable[[object], bytes]
    try:
        keys, encode = _decode_common(raw), encode_checked
    except ValueError:
        try:
            keys, encode = _read(bytes(raw)), encode_canonical_json
        except BadJson as error:
            raise BadJson(f"{field}: {error.text}") from None
        for key in keys.values():
            check_readable(key, MAX_KEY_DEPTH)
    if len(keys) > MAX_ONE_TIME_KEYS:
        raise InvalidParam(f"{field} may have at most {MAX_ONE_TIME_KEYS} keys")
    found: dict[tuple[str, str], bytes] = {}
    for name, key in keys.items():
        algorithm, _, key_id = name.partition(":")
        if not algorithm or not key_id or len(name) > MAX_KEY_NAME or "\0" in name:
            raise InvalidParam(f"{name[:MAX_QUOTED_NAME]!r} is not a key name: ALGORITHM:ID")
        encoded = encode(key)
        if len(encoded) > MAX_KEY_BYTES:
            raise InvalidParam(f"A one-time or fallback key may have at most {MAX_KEY_BYTES} bytes")
        found[algorithm, key_id] = encoded
    return found


def _present_device(row: DeviceKeysRow, signatures: Sequence[KeySignature]) -> msgspec.Raw:
    keys = bytes(add_signatures(row.keys, signatures)) if signatures else row.keys
    if row.display_name is None:
        return msgspec.Raw(keys[:-1] + b',"unsigned":{}}')
    name = msgspec.json.encode(row.display_name)
    return msgspec.Raw(b'%b,"unsigned":{"device_display_name":%b}}' % (keys[:-1], name))
