"""Parses requests to the content scanner about an encrypted file. A client sends the address, key
and hash of the file, as plain JSON or in a body encrypted for this server.

source: client-server-api#sending-encrypted-attachments; the encrypted body is like the session data
of a key backup, client-server-api#backup-algorithm-mmegolm_backupv1curve25519-aes-sha2
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


class MalformedScanRequest(Exception):
    """The body is malformed. The text tells the client why."""


class DecryptionFailed(Exception):
    """The encrypted body cannot be decrypted: it was encrypted for another key, or damaged."""


class EncryptedFile(msgspec.Struct, frozen=True):
    """An encrypted file and its key. `hash`: SHA-256 of the stored, encrypted content."""

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


class EncryptedBodyReader:
    """Decrypts bodies with a key that is derived from the server's signing key. So every node has
    it, also after a restart."""

    def __init__(self, signing_key: SigningKey) -> None:
        seed = HKDF(SHA256(), KEY_BYTES, None, b"mahalla content scanner 1").derive(
            signing_key.seed
        )
        secret = vodozemac.Curve25519SecretKey.from_bytes(seed)
        self._decryption = vodozemac.PkDecryption.from_key(secret)
        self.public_key = self._decryption.public_key.to_base64()
        """Unpadded base64."""

    def parse(self, body: bytes) -> EncryptedFile:
        """Parse a request body. Raises MalformedScanRequest, DecryptionFailed."""
        parsed = _decode(body)
        if parsed.encrypted_body is None:
            return _read(parsed)
        try:
            return _read(_decode(self._decrypt(parsed.encrypted_body)))
        except MalformedScanRequest as error:
            # the authentication of these bodies is weak: an error that shows whether a body was
            # decrypted would be a padding oracle
            raise DecryptionFailed from error

    def _decrypt(self, body: _EncryptedBody) -> bytes:
        parts = (each.rstrip("=") for each in (body.ciphertext, body.mac, body.ephemeral))
        try:
            return self._decryption.decrypt(vodozemac.Message.from_base64(*parts))
        except ValueError as error:
            raise DecryptionFailed from error


def _read(body: _Body) -> EncryptedFile:
    file = body.file
    if file is None:
        raise MalformedScanRequest("file is missing")
    address = _ADDRESS.fullmatch(file.url)
    if address is None or not is_server_name(address[1]):
        raise MalformedScanRequest("file.url must be an mxc:// address")
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
        raise MalformedScanRequest(str(error)) from error


def _bytes(name: str, text: str, size: int) -> bytes:
    """Decode base64 of either alphabet, with or without padding."""
    try:
        found = decode_base64(text)
    except InvalidParam:
        found = b""
    if len(found) != size:
        raise MalformedScanRequest(f"{name} must be {size} bytes in base64")
    return found
