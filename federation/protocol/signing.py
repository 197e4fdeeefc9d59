"""Ed25519 keys and signed JSON: who vouches for a JSON object, and under which key.

A signature is made over the canonical JSON of an object without its `signatures` and `unsigned`.
Events are signed in their redacted form: `event_signing` does that. Whether a key belongs to a
server, and was valid at the time, is for the keyring to say; here keys are given.

Keys are made of seeds that the caller draws: this package has no randomness of its own.

spec: appendices#signing-json, appendices#checking-for-a-signature
"""

import re
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Iterable, Mapping
from typing import Any, Final

from nacl.bindings import crypto_sign, crypto_sign_BYTES, crypto_sign_open, crypto_sign_seed_keypair
from nacl.exceptions import CryptoError

from federation.protocol.canonical_json import encode_canonical
from federation.protocol.errors import InvalidParam
from federation.protocol.ids import KeyID, parse_key_id

ALGORITHM: Final = "ed25519"
SEED_BYTES: Final = 32
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
    """A private Ed25519 key with the id that it is published under."""

    __slots__ = ("_secret", "key_id", "public_key", "seed")

    def __init__(self, name: str, seed: bytes) -> None:
        """`name` is the part of the key id after `ed25519:`; `seed` is 32 random bytes. Raises
        `ValueError`."""
        if _KEY_NAME.fullmatch(name) is None:
            raise ValueError(
                f"The name of a signing key may only have letters, digits and _: {name!r}"
            )
        if len(seed) != SEED_BYTES:
            raise ValueError(
                f"The seed of a signing key must have {SEED_BYTES} bytes, not {len(seed)}"
            )
        self.key_id = KeyID(f"{ALGORITHM}:{name}")
        self.seed = seed
        self.public_key: bytes
        self._secret: bytes
        self.public_key, self._secret = crypto_sign_seed_keypair(seed)

    def __repr__(self) -> str:
        return f"<SigningKey {self.key_id}>"

    def sign(self, message: bytes) -> str:
        """The signature in unpadded base64."""
        signed: bytes = crypto_sign(message, self._secret)
        return b64encode(signed[:crypto_sign_BYTES])[:86].decode()


def parse_signing_keys(text: str) -> list[SigningKey]:
    """The keys of a signing-key file: a line for each, `ed25519 NAME SEED` with the seed in
    unpadded base64.

    Empty lines and lines that begin with `#` are passed over. Raises `ValueError` with the number
    of the line.
    """
    keys = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 3 or words[0] != ALGORITHM:
            raise ValueError(f"line {number}: want `{ALGORITHM} NAME SEED`")
        try:
            keys.append(SigningKey(words[1], decode_base64(words[2])))
        except (InvalidParam, ValueError) as error:
            raise ValueError(f"line {number}: {error}") from error
    if not keys:
        raise ValueError("there is no signing key in it")
    return keys


def format_signing_keys(keys: Iterable[SigningKey]) -> str:
    """The text of a signing-key file; `parse_signing_keys` reads it."""
    return "".join(
        f"{ALGORITHM} {key.key_id.partition(':')[2]} {encode_base64(key.seed)}\n" for key in keys
    )


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


def encode_signed_part(value: Mapping[str, Any]) -> bytes:
    """What a signature of a JSON object is made over. Raises `BadJson`."""
    return encode_canonical(
        {key: item for key, item in value.items() if key != "signatures" and key != "unsigned"}
    )


def sign_json(value: Mapping[str, Any], entity: str, key: SigningKey) -> dict[str, Any]:
    """A copy of a JSON object with the entity's (a server's or a user's) signature added to those
    it has."""
    return add_signature(value, entity, key.key_id, key.sign(encode_signed_part(value)))


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
    """Whether the entity has signed this JSON object with one of these keys of its own."""
    signatures = signatures_of(value, entity)
    return bool(signatures) and are_signatures_valid(
        encode_signed_part(value), signatures, public_keys
    )
