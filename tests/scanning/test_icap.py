"""Scanners that speak ICAP: c-icap with its antivirus service, and servers that answer in other
ways."""

import socket
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from homeserver.config.scanning import InvalidClamdAddress, split_clamd
from homeserver.services.plugins.hooks import FileToCheck
from homeserver.services.scanning import connection as connections
from homeserver.services.scanning.clamd import ClamdScanner
from homeserver.services.scanning.connection import ScannerAddress
from homeserver.services.scanning.icap import ICAPScanner, Method, parse_icap_url
from homeserver.services.scanning.scanner import (
    CannotScan,
    ScanFinding,
    Scanner,
    ScannerUnavailable,
)
from storage.engine.executors import InlineExecutor
from tests.helpers.ports import free_port
from tests.helpers.scanners import EICAR, RunningScanners, running_scanners

T = TypeVar("T")
OPTIONS = (
    b'ICAP/1.0 200 OK\r\nMethods: RESPMOD\r\nISTag: "%s"\r\nService: Test\r\nEncapsulated:'
    b" null-body=0\r\n\r\n"
)
NO_CONTENT = b"ICAP/1.0 204 No Content\r\n\r\n"


def file_of(data: bytes, piece: int = 65536) -> FileToCheck:
    async def pieces() -> AsyncGenerator[bytes, None]:
        for start in range(0, len(data), piece):
            yield data[start : start + piece]

    return FileToCheck(len(data), pieces)


def result(work: Coroutine[Any, Any, T]) -> T:
    """Return the result of work that ends at once. Raises what it raises."""
    outcome: list[T | Failure] = []
    Deferred.fromCoroutine(work).addBoth(outcome.append)
    (found,) = outcome
    if isinstance(found, Failure):
        found.raiseException()
    return found


async def _scan(scanner: Scanner, data: bytes) -> ScanFinding | None:
    return await scanner.scan(file_of(data))


async def _version(scanner: Scanner) -> str:
    return await scanner.get_version()


def scan(scanner: Scanner, data: bytes) -> ScanFinding | None:
    """Return the scanner's finding for a file."""
    return result(_scan(scanner, data))


def version(scanner: Scanner) -> str:
    """Return the scanner's version."""
    return result(_version(scanner))


@pytest.fixture(scope="module")
def scanners() -> Iterator[RunningScanners]:
    with running_scanners() as running:
        running.start_icap()
        yield running


@pytest.mark.parametrize("method", ["RESPMOD", "REQMOD"])
def test_c_icap_finds_viruses(scanners: RunningScanners, method: Method) -> None:
    antivirus = ICAPScanner(url=scanners.icap, method=method, executor=InlineExecutor(), seconds=20)
    assert version(antivirus).startswith("C-ICAP/")
    found = ScanFinding("icap", "Eicar-Test-Signature.UNOFFICIAL")
    for data, wanted in (
        (b"hello", None),
        (b"", None),
        (bytes(3 << 20), None),
        (EICAR, found),
        (EICAR + bytes(3 << 20), found),
    ):
        assert scan(antivirus, data) == wanted
    echo = ICAPScanner(url=scanners.icap_echo, method=method, executor=InlineExecutor(), seconds=20)
    assert [scan(echo, data) for data in (b"hello", EICAR, bytes(3 << 20))] == [None] * 3
    missing = ICAPScanner(
        url=scanners.icap + "-none", method=method, executor=InlineExecutor(), seconds=20
    )
    for ask in (lambda: version(missing), lambda: scan(missing, b"hello")):
        with pytest.raises(ScannerUnavailable, match="404"):
            ask()


class ServerSide:
    """The server's side of a connection: the bytes it received, and its answers."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._received = b""

    def read_until(self, end: bytes) -> bytes:
        """All up to these bytes."""
        while end not in self._received:
            data = self._connection.recv(65536)
            if not data:
                return self._received
            self._received += data
        before, _, self._received = self._received.partition(end)
        return before

    def whole(self) -> bytes:
        """A request to the end of its body; the bytes of the body."""
        head = self.read_until(b"\r\n\r\n")
        for _ in range(head.count(b"-hdr=")):
            self.read_until(b"\r\n\r\n")
        body = b""
        while size := int(self.read_until(b"\r\n"), 16):
            while len(self._received) < size + 2:
                self._received += self._connection.recv(65536)
            body += self._received[:size]
            self._received = self._received[size + 2 :]
        return body

    def say(self, data: bytes) -> None:
        self._connection.sendall(data)


Script = Callable[[ServerSide], None]


@contextmanager
def scripted_server(script: Script) -> Iterator[int]:
    """Run a server that does this with each connection. Returns its port."""
    listening = socket.create_server(("127.0.0.1", 0))
    faults: list[BaseException] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            with connection:
                try:
                    script(ServerSide(connection))
                except (BrokenPipeError, ConnectionResetError):
                    continue  # who asks has hung up
                except BaseException as error:
                    faults.append(error)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1]
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(60)
        assert not faults


@contextmanager
def scripted(
    script: Script, method: Method = "RESPMOD", seconds: float = 60
) -> Iterator[ICAPScanner]:
    """Run a server that does this with each connection. Returns a scanner that uses it."""
    with scripted_server(script) as port:
        yield ICAPScanner(
            url=f"icap://127.0.0.1:{port}/scan",
            method=method,
            executor=InlineExecutor(),
            seconds=seconds,
        )


def chunks(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def modified(http: bytes, body: bytes, more: bytes = b"", part: bytes = b"res") -> bytes:
    head = b"ICAP/1.0 200 OK\r\n%sEncapsulated: %s-hdr=0, %s-body=%d\r\n\r\n" % (
        more,
        part,
        part,
        len(http),
    )
    return head + http + chunks(body)


def says(answer: bytes) -> Script:
    def script(peer: ServerSide) -> None:
        peer.whole()
        peer.say(answer)

    return script


OK = b"HTTP/1.1 200 OK\r\n\r\n"
FORBIDDEN = b"HTTP/1.1 403 Forbidden\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (NO_CONTENT, None),
        (b"ICAP/1.0 100 Continue\r\n\r\n" + NO_CONTENT, None),
        (modified(OK, b"hello"), None),
        (modified(OK, b"hullo"), "refused"),
        (modified(OK, b""), "refused"),
        (modified(FORBIDDEN, b"hello"), "refused"),
        (modified(b"GET / HTTP/1.1\r\n\r\n", b"hello", part=b"req"), "refused"),
        (b"ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=0, null-body=19\r\n\r\n" + OK, "refused"),
        (
            modified(
                FORBIDDEN, b"no", b"X-Infection-Found: Type=0; Resolution=2; Threat=Worm.A;\r\n"
            ),
            "Worm.A",
        ),
        (modified(OK, b"hello", b"X-Virus-ID: Worm.B\r\n"), "Worm.B"),
        (b"ICAP/1.0 204 No Content\r\nX-Virus-ID: Worm.C\r\n\r\n", "Worm.C"),
    ],
)
def test_responses_are_interpreted(answer: bytes, found: str | None) -> None:
    with scripted(says(answer)) as scanner:
        assert scan(scanner, b"hello") == (None if found is None else ScanFinding("icap", found))


def test_a_response_to_reqmod_is_interpreted() -> None:
    with scripted(
        says(modified(b"PUT / HTTP/1.1\r\n\r\n", b"hello", part=b"req")), "REQMOD"
    ) as scanner:
        assert scan(scanner, b"hello") is None
    with scripted(says(modified(FORBIDDEN, b"hello")), "REQMOD") as scanner:
        assert scan(scanner, b"hello") == ScanFinding("icap", "refused")


def test_an_empty_file_in_the_response_is_clean() -> None:
    with scripted(
        says(b"ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=0, null-body=19\r\n\r\n" + OK)
    ) as scanner:
        assert scan(scanner, b"") is None


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", ScannerUnavailable),
        (b"HTTP/1.1 200 OK\r\n\r\n", ScannerUnavailable),
        (b"ICAP/1.0 many\r\n\r\n", ScannerUnavailable),
        (b"ICAP/1.0 503 Overloaded\r\n\r\n", ScannerUnavailable),
        (b"ICAP/1.0 413 Too large\r\n\r\n", CannotScan),
        (b"ICAP/1.0 200 OK\r\n" + b"X: y\r\n" * 200, ScannerUnavailable),
        (b"ICAP/1.0 200 OK\r\n" + b"X" * 200_000, ScannerUnavailable),
        (modified(OK, b"hello")[:-20], ScannerUnavailable),
        (
            b"ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=0, res-body=19\r\n\r\n"
            + OK
            + b"zz\r\nhello\r\n",
            ScannerUnavailable,
        ),
    ],
)
def test_unclear_responses_are_errors(answer: bytes, error: type[Exception]) -> None:
    with scripted(says(answer)) as scanner, pytest.raises(error):
        scan(scanner, b"hello")


def test_a_silent_server_times_out() -> None:
    waiting = threading.Event()

    def script(peer: ServerSide) -> None:
        peer.whole()
        waiting.wait(60)

    with scripted(script, seconds=0.1) as scanner:
        with pytest.raises(CannotScan, match="too slow"):
            scan(scanner, b"hello")
        waiting.set()


def test_an_unreachable_scanner_is_reported_as_away() -> None:
    scanner = ICAPScanner(
        url=f"icap://127.0.0.1:{free_port()}/scan",
        method="RESPMOD",
        executor=InlineExecutor(),
        seconds=5,
    )
    for ask in (lambda: version(scanner), lambda: scan(scanner, b"hello")):
        with pytest.raises(ScannerUnavailable):
            ask()


def test_a_server_that_echoes_during_the_request_is_supported() -> None:
    """More than sockets hold: a client that only sent, or only read, would wait for ever."""
    data = bytes(range(256)) * (6 << 12)

    def script(peer: ServerSide) -> None:
        head = peer.read_until(b"\r\n\r\n")
        for _ in range(head.count(b"-hdr=")):
            peer.read_until(b"\r\n\r\n")
        peer.say(b"ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=0, res-body=19\r\n\r\n" + OK)
        while size := int(peer.read_until(b"\r\n"), 16):
            while len(peer._received) < size + 2:
                peer._received += peer._connection.recv(65536)
            peer.say(b"%x\r\n%s\r\n" % (size, peer._received[:size]))
            peer._received = peer._received[size + 2 :]
        peer.say(b"0\r\n\r\n")

    with scripted(script, seconds=60) as scanner:
        assert scan(scanner, data) is None


def test_a_response_before_the_end_of_the_request_is_accepted() -> None:
    def script(peer: ServerSide) -> None:
        peer.read_until(b"\r\n\r\n")
        peer.say(b"ICAP/1.0 200 OK\r\nX-Virus-ID: Worm\r\n\r\n")

    with scripted(script) as scanner:
        # what is sent after its end may undo its answer on the way, which then counts for nothing
        try:
            found = scan(scanner, bytes(8 << 20))
        except ScannerUnavailable:
            return
        assert found == ScanFinding("icap", "Worm")


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_EARLY_BYTES", 1 << 20)
    ended = threading.Event()

    def script(peer: ServerSide) -> None:
        peer.read_until(b"\r\n\r\n")
        peer.say(b"ICAP/1.0 200 OK\r\nEncapsulated: res-hdr=0, res-body=19\r\n\r\n" + OK)
        while not ended.is_set():
            peer.say(b"10000\r\n" + bytes(65536) + b"\r\n")

    with scripted(script, seconds=0.5) as scanner:
        with pytest.raises(CannotScan, match="too slow"):
            scan(scanner, bytes(64 << 20))
        ended.set()


def test_the_version_is_read_from_the_server() -> None:
    tags = iter((b"one", b"two"))

    def script(peer: ServerSide) -> None:
        assert peer.read_until(b"\r\n\r\n").startswith(b"OPTIONS icap://127.0.0.1:")
        peer.say(OPTIONS % next(tags))

    with scripted(script) as scanner:
        assert [version(scanner), version(scanner)] == ['Test "one"', 'Test "two"']
    with (
        scripted(lambda peer: peer.say(OPTIONS % b"x"), "REQMOD") as scanner,
        pytest.raises(ScannerUnavailable, match="REQMOD"),
    ):
        version(scanner)


@pytest.mark.parametrize(
    "url", ["http://a/b", "icap:///scan", "icap://a:b/c", "icap://a/ b", "icap://a/é"]
)
def test_invalid_icap_urls_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r"icap|Port"):
        parse_icap_url(url)


def test_a_server_that_is_not_clamd_is_an_error() -> None:
    def script(peer: ServerSide) -> None:
        peer.read_until(b"\0")
        peer.say(b"SSH-2.0-OpenSSH\0")

    with scripted_server(script) as port:
        clamd = ClamdScanner(
            place=ScannerAddress(host="127.0.0.1", port=port),
            executor=InlineExecutor(),
            seconds=5,
        )
        with pytest.raises(ScannerUnavailable, match="is not clamd"):
            version(clamd)
        with pytest.raises(ScannerUnavailable, match="SSH"):
            scan(clamd, b"hello")


@pytest.mark.parametrize(
    "address", ["unix:relative", "unix:", "tcp:host", "tcp::1", "host:1", "tcp:host:x"]
)
def test_invalid_clamd_addresses_are_refused(address: str) -> None:
    with pytest.raises(InvalidClamdAddress):
        split_clamd(address)
