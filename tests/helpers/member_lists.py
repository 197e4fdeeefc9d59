"""Signs federation member lists as their authority does."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from joserfc.jwk import ECKey, OKPKey
from joserfc.jws import JWSRegistry, serialize_compact

from federation.protocol.signing import encode_base64
from tests.helpers.server import START

DAY = 24 * 3600


class ListKey:
    """An Ed25519 key that signs member lists."""

    def __init__(self, seed: int = 1) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32)

    @property
    def public(self) -> bytes:
        return self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    @property
    def text(self) -> str:
        """The public key as the configuration has it."""
        return encode_base64(self.public)

    def sign(self, payload: bytes, algorithm: str = "Ed25519") -> bytes:
        pem = self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        return serialize_compact(
            {"alg": algorithm}, payload, OKPKey.import_key(pem), [algorithm]
        ).encode()


def a_list(
    *members: str | Mapping[str, Any],
    serial: int = 1,
    issued: float = START - DAY,
    expires: float = START + DAY,
) -> bytes:
    """Return the payload of a member list. Members are names or complete entries."""
    said = [{"server": each} if isinstance(each, str) else each for each in members]
    return msgspec.json.encode(
        {
            "name": "test",
            "serial": serial,
            "issued": int(issued),
            "expires": int(expires),
            "members": said,
        }
    )


class ListAuthority:
    """A certificate authority that issues certificates for member list keys."""

    def __init__(self, name: str = "authority.example") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        self.certificate = self._issue(self._name, self._key.public_key(), is_authority=True)

    def issue(
        self, name: str, *, days: tuple[float, float] = (-10, 10)
    ) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        return key, self._issue(subject, key.public_key(), days=days)

    def _issue(
        self,
        subject: x509.Name,
        public: ec.EllipticCurvePublicKey,
        *,
        is_authority: bool = False,
        days: tuple[float, float] = (-100, 100),
    ) -> x509.Certificate:
        begin = datetime.fromtimestamp(START, UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin + timedelta(days=days[0]))
            .not_valid_after(begin + timedelta(days=days[1]))
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .sign(self._key, hashes.SHA256())
        )


def sign_with_certificate(
    payload: bytes, key: ec.EllipticCurvePrivateKey, chain: Sequence[x509.Certificate]
) -> bytes:
    """Return a member list signed by the key of a certificate, with its chain (`x5c`)."""
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    header = {"alg": "ES256", "x5c": [_der(each) for each in chain]}
    registry = JWSRegistry(algorithms=["ES256"])
    registry.max_header_length = 1 << 20
    return serialize_compact(header, payload, ECKey.import_key(pem), ["ES256"], registry).encode()


def _der(certificate: x509.Certificate) -> str:
    text = encode_base64(certificate.public_bytes(Encoding.DER))
    return text + "=" * (-len(text) % 4)
