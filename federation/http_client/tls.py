"""TLS for outgoing connections: the trusted authorities, and the check of the name in a
certificate.

OpenSSL checks the chain of certificates during the handshake. `check_identity` checks the name
afterwards, before anything is sent.
"""

from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

from OpenSSL.crypto import FILETYPE_PEM, load_certificate
from OpenSSL.SSL import Connection, Context
from service_identity import CertificateError, VerificationError
from service_identity.pyopenssl import verify_hostname, verify_ip_address
from twisted.internet.interfaces import IOpenSSLClientConnectionCreator
from twisted.internet.ssl import (
    Certificate,
    CertificateOptions,
    TLSVersion,
    platformTrust,
    trustRootFromCertificates,
)
from twisted.protocols.tls import TLSMemoryBIOProtocol
from zope.interface import implementer

from federation.http_client.errors import OutboundError

_BEGIN = b"-----BEGIN CERTIFICATE-----"


class BadAuthorities(Exception):
    """A file of certificate authorities cannot be used."""


class TlsTrust:
    """The trusted authorities. Reading those of the system takes some milliseconds, so make one
    instance and share it."""

    def __init__(self, *, authorities: Sequence[Path] | None = None, verify: bool = True) -> None:
        """`authorities`: PEM files instead of the system's. Without `verify`, no certificate is
        checked.

        Raises BadAuthorities.
        """
        self.verifies = verify
        if not verify:
            options = CertificateOptions(raiseMinimumTo=TLSVersion.TLSv1_2)
        elif authorities is None:
            options = CertificateOptions(
                trustRoot=platformTrust(), raiseMinimumTo=TLSVersion.TLSv1_2
            )
        else:
            roots = trustRootFromCertificates(_read(authorities))
            options = CertificateOptions(trustRoot=roots, raiseMinimumTo=TLSVersion.TLSv1_2)
        self._context: Context = options.getContext()

    def for_server(self, name: str) -> "TlsName":
        """Expect a server of that name (a host name, or an address without brackets) on one
        connection."""
        return TlsName(context=self._context, name=name, verifies=self.verifies)


@implementer(IOpenSSLClientConnectionCreator)
class TlsName:
    """Makes the TLS object of one connection, with the name in SNI. Checks that the certificate is
    for that name."""

    def __init__(self, *, context: Context, name: str, verifies: bool) -> None:
        self._context = context
        self._name = name
        self._verifies = verifies
        self._is_address = _is_address(name)

    def clientConnectionForTLS(self, tlsProtocol: TLSMemoryBIOProtocol) -> Connection:  # noqa: N803
        connection = Connection(self._context, None)
        if not self._is_address:
            connection.set_tlsext_host_name(self._name.encode("ascii"))
        return connection

    def check_identity(self, connection: Connection) -> None:
        """Check that the certificate is for this name. Raises OutboundError."""
        if not self._verifies:
            return
        try:
            if self._is_address:
                verify_ip_address(connection, self._name)
            else:
                verify_hostname(connection, self._name)
        except (VerificationError, CertificateError) as error:
            raise OutboundError(f"its certificate is not for {self._name}") from error


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _read(paths: Sequence[Path]) -> list[Certificate]:
    found = []
    for path in paths:
        try:
            parts = path.read_bytes().split(_BEGIN)[1:]
            found += [Certificate(load_certificate(FILETYPE_PEM, _BEGIN + part)) for part in parts]
        except Exception as error:
            raise BadAuthorities(f"{path}: {error}") from error
        if not parts:
            raise BadAuthorities(f"{path}: there is no PEM certificate in it")
    return found
