"""Listening on TCP, TLS and Unix sockets, and the TLS versions and protocols offered."""

# mypy: allow-untyped-calls

import datetime
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from twisted.internet.error import CannotListenError
from twisted.internet.protocol import ServerFactory
from twisted.internet.testing import MemoryReactorClock

from homeserver.http.listeners import TcpListener, TlsContext, UnixListener, listen_tcp, listen_unix


def _certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "example.org")])
    start = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(start)
        .not_valid_after(start + datetime.timedelta(days=36500))
        .sign(key, hashes.SHA256())
    )
    certificate_path, key_path = folder / "cert.pem", folder / "key.pem"
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    key_path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return certificate_path, key_path


def _handshake(server: SSL.Context, maximum: int) -> str:
    """Shake hands in memory with a client that supports TLS up to `maximum`. Return the chosen
    version."""
    context = SSL.Context(SSL.TLS_CLIENT_METHOD)
    context.set_max_proto_version(maximum)
    return _shake_hands(server, context).get_protocol_version_name()


def _shake_hands(server: SSL.Context, context: SSL.Context) -> SSL.Connection:
    """Return the server's side of a handshake in memory."""
    ours, theirs = SSL.Connection(server, None), SSL.Connection(context, None)
    ours.set_accept_state()
    theirs.set_connect_state()
    for _ in range(6):
        for here, there in ((theirs, ours), (ours, theirs)):
            with suppress(SSL.WantReadError):
                here.do_handshake()
            with suppress(SSL.WantReadError):
                there.bio_write(here.bio_read(1 << 16))
    return ours


def test_tcp_listens_on_every_address() -> None:
    reactor = MemoryReactorClock()
    ports = listen_tcp(reactor, reactor, TcpListener(8008, ("127.0.0.1", "::1")), ServerFactory())
    assert len(ports) == 2
    assert [(server[0], server[3]) for server in reactor.tcpServers] == [
        (8008, "127.0.0.1"),
        (8008, "::1"),
    ]


def test_a_taken_port_stops_start_up() -> None:
    class Taken(MemoryReactorClock):
        def listenTCP(self, port: int, *_rest: object, interface: str = "") -> NoReturn:
            raise CannotListenError(interface, port, OSError(98, "Address already in use"))

    reactor = Taken()
    with pytest.raises(CannotListenError):
        listen_tcp(reactor, reactor, TcpListener(8008, ("::", "0.0.0.0")), ServerFactory())


def test_a_unix_socket_has_its_mode(tmp_path: Path) -> None:
    reactor = MemoryReactorClock()
    listen_unix(reactor, UnixListener(tmp_path / "socket", 0o660), ServerFactory())
    assert reactor.unixServers[0][0] == str(tmp_path / "socket")
    assert reactor.unixServers[0][3] == 0o660


def _tls(folder: Path) -> TlsContext:
    certificate, key = _certificate(folder)
    return TlsContext(certificate=certificate, private_key=key)


def test_tls_is_1_2_or_newer(tmp_path: Path) -> None:
    context = _tls(tmp_path).getContext()
    assert _handshake(context, SSL.TLS1_3_VERSION) == "TLSv1.3"
    assert _handshake(context, SSL.TLS1_2_VERSION) == "TLSv1.2"
    with pytest.raises(SSL.Error):
        _handshake(context, SSL.TLS1_1_VERSION)


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [([b"h2", b"http/1.1"], b"http/1.1"), ([b"http/1.1"], b"http/1.1"), ([b"h2"], b"")],
)
def test_alpn_chooses_http_1_1(tmp_path: Path, offered: list[bytes], chosen: bytes) -> None:
    """ALPN, as browsers and most programs use it."""
    client = SSL.Context(SSL.TLS_CLIENT_METHOD)
    client.set_alpn_protos(offered)

    connection = _shake_hands(_tls(tmp_path).getContext(), client)

    assert connection.get_state_string() == b"SSL negotiation finished successfully"
    assert connection.get_alpn_proto_negotiated() == chosen


def test_reload_reads_a_renewed_certificate_and_keeps_the_old_one_on_errors(tmp_path: Path) -> None:
    certificate, key = _certificate(tmp_path)
    tls = TlsContext(certificate=certificate, private_key=key)
    reactor = MemoryReactorClock()
    listen_tcp(reactor, reactor, TcpListener(8448, ("127.0.0.1",), tls), ServerFactory())
    assert reactor.sslServers[0][2] is tls
    first = tls.getContext()
    _certificate(tmp_path)
    tls.reload()
    assert tls.getContext() is not first
    second = tls.getContext()
    certificate.write_text("nonsense")
    with pytest.raises(SSL.Error):
        tls.reload()
    assert tls.getContext() is second
