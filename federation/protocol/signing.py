"""Ed25519 keys and signed JSON objects: reads key files, makes signatures and verifies them.

The signature of a JSON object covers its canonical JSON without `signatures` and `unsigned`. This
module uses signedjson for keys, key files and signed objects. `event_signing` signs events in their
redacted form, and `request_signing` signs requests. Both use the keys of this module, but encode
JSON with `canonical_json.py`, because that is faster than signedjson. The keyring
(`federation/peers/keyring.py`) decides whether a key belongs to a server and was valid at a time.

The caller passes the random seed of a new key, so `federation.protocol` is deterministic.

spec: appendices#signing-json, appendices#checking-for-a-signature
"""

import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Iterable, Mapping
from io import StringIO
from typing import Any, Final

import signedjson.sign
from nacl.bindings import crypto_sign_BYTES, crypto_sign_open
from nacl.exceptions import CryptoError
from signedjson.key import (
    decode_signing_key_base64,
    decode_verify_key_bytes,
    read_signing_keys,
    write_signing_keys,
)
from signedjson.sign import SignatureVerifyException, verify_signed_json

from federation.protocol.errors import BadJson, InvalidParam
from federation.protocol.ids import KeyID, parse_key_id

ALGORITHM: Final = "ed25519"
KEY_BYTES: Final = 32

_KEY_NAME = re.compile(r"[A-Za-z0-9_]+")
_URL_SAFE = str.maketrans("-_", "+/")


def encode_base64(data: bytes) -> str:
    """Unpadded. spec: appendices#unpadded-base64"""
    return b64encode(data).rstrip(b"=").decode()


def decode_base64(text: str) -> bytes:
    """Reads unpadded and padded, standard and URL-safe. Raises `InvalidParam`."""
    stripped = text.rstrip("=").translate(_URL_SAFE)
    try:
        return b64decode(stripped + "=" * (-len(stripped) % 4), validate=True)
    except (Base64Error, ValueError) as error:
        raise InvalidParam("Not valid base64") from error


class SigningKey:
    """A private Ed25519 key with the id under which it is published."""

    __slots__ = ("key", "key_id", "public_key", "seed")

    def __init__(self, name: str, seed: bytes) -> None:
        """`name` is the part of the key id after `ed25519:`; `seed` is 32 random bytes. Raises
        `ValueError`."""
        if _KEY_NAME.fullmatch(name) is None:
            raise ValueError(
                f"The name of a signing key may only have letters, digits and _: {name!r}"
            )
        self.key = decode_signing_key_base64(ALGORITHM, name, encode_base64(seed))
        """As signedjson has it."""
        self.key_id = KeyID(f"{ALGORITHM}:{name}")
        self.seed = seed
        self.public_key = bytes(self.key.verify_key)

    def __repr__(self) -> str:
        return f"<SigningKey {self.key_id}>"

    def sign(self, message: bytes) -> str:
        """Make a signature, in unpadded base64."""
        return b64encode(self.key.sign(message).signature)[:86].decode()


def parse_signing_keys(text: str) -> list[SigningKey]:
    """Read the keys of a signing-key file: a line for each, `ed25519 NAME SEED`, the seed in
    unpadded base64.

    Skips empty lines and lines that begin with `#`. Raises `ValueError` with the number of the
    line.
    """
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            (key,) = read_signing_keys([line])
            keys.append(SigningKey(key.version, key.encode()))
        except ValueError as error:
            form = f"`{ALGORITHM} NAME SEED` with the seed in unpadded base64"
            raise ValueError(f"line {number}: want {form}: {error}") from error
    if not keys:
        raise ValueError("there is no signing key in it")
    return keys


def format_signing_keys(keys: Iterable[SigningKey]) -> str:
    """Write the text of a signing-key file, as `parse_signing_keys` reads it."""
    text = StringIO()
    write_signing_keys(text, [each.key for each in keys])
    return text.getvalue()


def parse_public_key(key_id: str, key: str) -> bytes:
    """The 32 bytes of a published key. Raises `InvalidParam` for other algorithms and malformed
    keys."""
    if not parse_key_id(key_id).startswith(ALGORITHM + ":"):
        raise InvalidParam(f"Keys of this algorithm are not known: {key_id!a}")
    public_key = decode_base64(key)
    if len(public_key) != KEY_BYTES:
        raise InvalidParam(f"An Ed25519 key has {KEY_BYTES} bytes, not {len(public_key)}")
    return public_key


def is_signature_valid(public_key: bytes, message: bytes, signature: str) -> bool:
    """Whether `signature` (base64) is that key's over the message. False for malformed ones too."""
    try:
        decoded = decode_base64(signature)
        if len(decoded) != crypto_sign_BYTES or len(public_key) != KEY_BYTES:
            return False
        crypto_sign_open(decoded + message, public_key)
    except (InvalidParam, CryptoError):
        return False
    return True


def sign_json(value: Mapping[str, Any], entity: str, key: SigningKey) -> dict[str, Any]:
    """Copy a JSON object and add the signature of an entity (a server or a user). Raises
    `BadJson`."""
    signatures = {name: dict(of_entity) for name, of_entity in value.get("signatures", {}).items()}
    try:
        return signedjson.sign.sign_json({**value, "signatures": signatures}, entity, key.key)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadJson(f"This value has no canonical JSON form: {error}") from error


def add_signature(
    value: Mapping[str, Any], entity: str, key_id: KeyID, signature: str
) -> dict[str, Any]:
    """A copy of a JSON object with one signature more."""
    signatures = value.get("signatures", {})
    of_entity = {**signatures.get(entity, {}), key_id: signature}
    return {**value, "signatures": {**signatures, entity: of_entity}}


def signatures_of(value: Mapping[str, Any], entity: str) -> dict[KeyID, str]:
    """The Ed25519 signatures of an entity on a JSON object, by key id; what is malformed is left
    out."""
    signatures = value.get("signatures")
    of_entity = signatures.get(entity) if isinstance(signatures, Mapping) else None
    if not isinstance(of_entity, Mapping):
        return {}
    return {
        KeyID(key_id): signature
        for key_id, signature in of_entity.items()
        if isinstance(key_id, str)
        and key_id.startswith(ALGORITHM + ":")
        and isinstance(signature, str)
    }


def are_signatures_valid(
    message: bytes, signatures: Mapping[KeyID, str], public_keys: Mapping[KeyID, bytes]
) -> bool:
    """Whether one signature at least is by a known key, and all that are by known keys are right.

    Signatures by other keys are passed over.
    spec: server-server-api#validating-hashes-and-signatures-on-received-events
    """
    known = [
        (public_keys[key_id], signature)
        for key_id, signature in signatures.items()
        if key_id in public_keys
    ]
    return bool(known) and all(
        is_signature_valid(key, message, signature) for key, signature in known
    )


def is_signed_by(value: Mapping[str, Any], entity: str, public_keys: Mapping[KeyID, bytes]) -> bool:
    """Whether one of these keys at least signed this JSON object for the entity, and no signature
    by one of them is wrong.

    An object that has no canonical JSON form is signed by nobody.
    """
    signatures = signatures_of(value, entity)
    known = [key_id for key_id in signatures if key_id in public_keys]
    return bool(known) and all(
        _is_signature_on(value, entity, key_id, signatures[key_id], public_keys[key_id])
        for key_id in known
    )


def _is_signature_on(
    value: Mapping[str, Any], entity: str, key_id: KeyID, signature: str, public_key: bytes
) -> bool:
    try:
        decode_base64(signature)  # signedjson overlooks characters that are not base64
        verify_signed_json(dict(value), entity, decode_verify_key_bytes(key_id, public_key))
    except (InvalidParam, SignatureVerifyException, TypeError, ValueError, RecursionError):
        return False
    return True
