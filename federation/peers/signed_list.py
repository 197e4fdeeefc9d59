"""Checks the signature of the member list of a closed federation. The signed list is a compact JWS
(RFC 7515).

Laws:
- The list must be signed with a key that the configuration pins, or with the key of a certificate
  in the JWS header (`x5c`). The chain of the certificate must end at a configured authority. The
  certificate must be valid now and carry the configured name. The name is checked because an
  authority issues certificates to others too.
- The type of the key decides which signature algorithms are accepted. The algorithm in the JWS
  header must be one of them.
"""

from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, OKPKey, RSAKey
from joserfc.jws import CompactSignature, JWSRegistry, extract_compact, validate_compact
from OpenSSL.crypto import X509, X509Store, X509StoreContext, X509StoreContextError

from federation.protocol.member_list import BadMemberList, MemberList, parse_member_list

MAX_BYTES: Final = 8 << 20
MAX_CERTIFICATES: Final = 10
MAX_CERTIFICATE_CHARS: Final = 16_384
MAX_CLOCK_SKEW_SECONDS: Final = 300
"""Allowed difference between the clocks."""

Key = OKPKey | ECKey | RSAKey


class _Registry(JWSRegistry):
    """Limits that allow a list with certificates."""

    max_header_length = MAX_CERTIFICATES * MAX_CERTIFICATE_CHARS
    max_payload_length = MAX_BYTES


_REGISTRY: Final = _Registry(strict_check_header=False)


class MemberListTrust(msgspec.Struct, frozen=True):
    """The keys and certificates that may sign the list."""

    keys: tuple[bytes, ...] = ()
    """Pinned Ed25519 keys, 32 bytes each."""
    authorities: tuple[x509.Certificate, ...] = ()
    signer: str | None = None
    """The required name in the signing certificate: one of its DNS names, or its common name."""


def read_authorities(path: Path) -> tuple[x509.Certificate, ...]:
    """Read the certificates of a PEM file. Raises OSError, ValueError."""
    return tuple(x509.load_pem_x509_certificates(path.read_bytes()))


def read_signed_list(document: bytes, trust: MemberListTrust, now: float) -> MemberList:
    """Return the list after checking signature and time. `now` in seconds.

    Raises BadMemberList.
    """
    members = read_possibly_expired_list(document, trust, now)
    check_time(members, now)
    return members


def read_possibly_expired_list(document: bytes, trust: MemberListTrust, now: float) -> MemberList:
    """Return the list after checking its signature. It may have expired. Raises BadMemberList."""
    if len(document) > MAX_BYTES:
        raise BadMemberList("it is too long")
    try:
        signature = extract_compact(document.strip(), registry=_REGISTRY)
        return _check(signature, trust, now)
    except (JoseError, ValueError, RecursionError) as error:
        if isinstance(error, BadMemberList):
            raise
        raise BadMemberList(f"it is no signed list: {error}") from error


def check_time(members: MemberList, now: float) -> None:
    """Check that a list is valid now; `now` in seconds. Raises BadMemberList."""
    if members.issued > now + MAX_CLOCK_SKEW_SECONDS:
        raise BadMemberList("it is issued in the future: is the clock right?")
    if members.expires <= now:
        raise BadMemberList(f"it has expired, at {members.expires} (seconds since 1970)")


def _check(signature: CompactSignature, trust: MemberListTrust, now: float) -> MemberList:
    chain = signature.headers().get("x5c")
    if chain is not None and trust.authorities:
        keys: Sequence[Key] = [_key_of(_trusted_certificate(chain, trust, now))]
    else:
        keys = [OKPKey.import_key(_ed25519_jwk(key)) for key in trust.keys]
    if not keys:
        raise BadMemberList(
            "it is signed by a key, and the configuration pins none "
            "(federation_member_list.verify_keys)"
        )
    if not any(_is_signed_by(signature, key) for key in keys):
        raise BadMemberList("its signature is not by a key that the configuration trusts")
    return parse_member_list(signature.payload)


def _is_signed_by(signature: CompactSignature, key: Key) -> bool:
    try:
        registry = _Registry(algorithms=_algorithms_for(key), strict_check_header=False)
        return validate_compact(signature, key, registry=registry)
    except JoseError:
        return False


def _algorithms_for(key: Key) -> list[str]:
    if isinstance(key, OKPKey):
        return ["EdDSA", "Ed25519"]
    if isinstance(key, RSAKey):
        return ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"]
    return ["ES256", "ES384", "ES512"]


def _ed25519_jwk(key: bytes) -> dict[str, Any]:
    return {"kty": "OKP", "crv": "Ed25519", "x": b64encode(key, b"-_").rstrip(b"=").decode()}


def _trusted_certificate(chain: object, trust: MemberListTrust, now: float) -> x509.Certificate:
    """Return the signing certificate, the first of the chain. Raises BadMemberList, ValueError."""
    if not isinstance(chain, list) or not 1 <= len(chain) <= MAX_CERTIFICATES:
        raise BadMemberList("its certificates (x5c) are no list of certificates")
    certificates = [_read_certificate(each) for each in chain]
    store = X509Store()
    for authority in trust.authorities:
        store.add_cert(X509.from_cryptography(authority))
    store.set_time(datetime.fromtimestamp(now, UTC).replace(tzinfo=None))
    context = X509StoreContext(
        store,
        X509.from_cryptography(certificates[0]),
        [X509.from_cryptography(each) for each in certificates[1:]],
    )
    try:
        context.verify_certificate()
    except X509StoreContextError as error:
        raise BadMemberList(
            f"its certificate does not lead to a trusted authority: {error}"
        ) from error
    if trust.signer is None or trust.signer.lower() not in _names_of(certificates[0]):
        raise BadMemberList(f"its certificate is not for {trust.signer}")
    return certificates[0]


def _read_certificate(text: object) -> x509.Certificate:
    if not isinstance(text, str) or len(text) > MAX_CERTIFICATE_CHARS:
        raise BadMemberList("its certificates (x5c) are no list of certificates")
    try:
        return x509.load_der_x509_certificate(b64decode(text, validate=True))
    except (Base64Error, ValueError) as error:
        raise BadMemberList("one of its certificates (x5c) is none") from error


def _names_of(certificate: x509.Certificate) -> frozenset[str]:
    names = [
        str(each.value)
        for each in certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    ]
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        pass
    else:
        names += extension.value.get_values_for_type(x509.DNSName)
    return frozenset(name.lower() for name in names)


def _key_of(certificate: x509.Certificate) -> Key:
    key = certificate.public_key()
    if isinstance(key, Ed25519PublicKey):
        return OKPKey.import_key(_ed25519_jwk(key.public_bytes(Encoding.Raw, PublicFormat.Raw)))
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    if isinstance(key, RSAPublicKey):
        return RSAKey.import_key(pem)
    if isinstance(key, EllipticCurvePublicKey):
        return ECKey.import_key(pem)
    raise BadMemberList(
        "its certificate has a key of an unknown type; Ed25519, EC and RSA are supported"
    )
