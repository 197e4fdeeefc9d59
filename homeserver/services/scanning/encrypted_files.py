"""Encrypted files as clients describe them to the content scanner: in the open, or in a body that
is encrypted for this server.

source: client-server-api#sending-encrypted-attachments; the encrypted body is made like the
sessions of a key backup, client-server-api#backup-algorithm-mmegolm_backupv1curve25519-aes-sha2
"""

import re
from typing import Final, Literal

import msgspec
import vodozemac
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from federation.protocol.errors import InvalidParam
from federation.protocol.ids import ServerName, is_server_name
from federation.protocol.signing import SigningKey, decode_base64

KEY_BYTES: Final = 32
IV_BYTES: Final = 16
_ADDRESS: Final = re.compile(r"mxc://([^/]{1,255})/([A-Za-z0-9_-]{1,255})")


class Malformed(Exception):
    """What came is not what it should be. The text says why, for the client."""


class NotForThisKey(Exception):
    """The encrypted body cannot be opened: it was made for another key, or broke on its way."""


class EncryptedFile(msgspec.Struct, frozen=True):
    """Where it is, and what opens it. `hash`: SHA-256 of it as it is kept."""

    server_name: ServerName
    media_id: str
    key: bytes
    iv: bytes
    hash: bytes


class _Key(msgspec.Struct, frozen=True):
    k: str
    alg: Literal["A256CTR"] = "A256CTR"
    kty: Literal["oct"] = "oct"


class _Hashes(msgspec.Struct, frozen=True):
    sha256: str


class _File(msgspec.Struct, frozen=True):
    url: str
    key: _Key
    iv: str
    hashes: _Hashes
    v: Literal["v2"] = "v2"


class _EncryptedBody(msgspec.Struct, frozen=True):
    ciphertext: str
    mac: str
    ephemeral: str


class _Body(msgspec.Struct, frozen=True):
    file: _File | None = None
    encrypted_body: _EncryptedBody | None = None


class EncryptedBodies:
    """Reads such bodies, with a key that is made of the server's signing key: so every node has it,
    and it is there after a start."""

    def __init__(self, signing_key: SigningKey) -> None:
        seed = HKDF(SHA256(), KEY_BYTES, None, b"mahalla content scanner 1").derive(
            signing_key.seed
        )
        secret = vodozemac.Curve25519SecretKey.from_bytes(seed)
        self._decryption = vodozemac.PkDecryption.from_key(secret)
        self.public_key = self._decryption.public_key.to_base64()
        """In unpadded base64."""

    def parse(self, body: bytes) -> EncryptedFile:
        """Raises Malformed, NotForThisKey."""
        parsed = _decode(body)
        if parsed.encrypted_body is None:
            return _read(parsed)
        try:
            return _read(_decode(self._open(parsed.encrypted_body)))
        except Malformed as error:
            # What is authenticated so badly must not tell an opened body from one that was not:
            # else its padding is an oracle
            raise NotForThisKey from error

    def _open(self, body: _EncryptedBody) -> bytes:
        parts = (each.rstrip("=") for each in (body.ciphertext, body.mac, body.ephemeral))
        try:
            return self._decryption.decrypt(vodozemac.Message.from_base64(*parts))
        except ValueError as error:
            raise NotForThisKey from error


def _read(body: _Body) -> EncryptedFile:
    file = body.file
    if file is None:
        raise Malformed("file is missing")
    address = _ADDRESS.fullmatch(file.url)
    if address is None or not is_server_name(address[1]):
        raise Malformed("file.url must be an mxc:// address")
    return EncryptedFile(
        ServerName(address[1]),
        address[2],
        _bytes("file.key.k", file.key.k, KEY_BYTES),
        _bytes("file.iv", file.iv, IV_BYTES),
        _bytes("file.hashes.sha256", file.hashes.sha256, 32),
    )


def _decode(body: bytes) -> _Body:
    try:
        return msgspec.json.decode(body, type=_Body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Malformed(str(error)) from error


def _bytes(name: str, text: str, size: int) -> bytes:
    """Bytes out of base64, of either alphabet, with or without padding."""
    try:
        found = decode_base64(text)
    except InvalidParam:
        found = b""
    if len(found) != size:
        raise Malformed(f"{name} must be {size} bytes in base64")
    return found
