"""ICAP, the protocol of many vendors' scanners: a file is sent as an HTTP response, or as a
request.

The server responds with 204 (unmodified), or with 200 and a replacement for the file. The
replacement is only compared: a file that comes back unchanged is clean, any other is not.

source: RFC 3507; the headers that name the threat are those of draft-stecher-icap-subid.
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Final, Literal
from urllib.parse import urlsplit

from homeserver.services.plugins.hooks import FileToCheck
from homeserver.services.scanning.connection import (
    CONNECT_SECONDS,
    ScannerAddress,
    ScannerConnection,
)
from homeserver.services.scanning.scanner import CannotScan, ScanFinding, ScannerUnavailable
from storage.engine.executors import Executor, run_in

DEFAULT_PORT: Final = 1344
MAX_HEADERS: Final = 100
FOUND_HEADERS: Final = ("x-infection-found", "x-virus-id", "x-violations-found")
_READ_BYTES: Final = 1 << 16

Method = Literal["RESPMOD", "REQMOD"]
Headers = Mapping[str, str]


class ICAPScanner:
    """Scans files with an ICAP server. Implements `Scanner`."""

    name = "icap"
    is_antivirus = False  # it may refuse a file because of a policy

    def __init__(self, *, url: str, method: Method, executor: Executor, seconds: float) -> None:
        """`url`: `icap://host:port/service`. `executor`: its threads wait for the server.
        `seconds`: time limit per file."""
        self._url = url
        self._method: Method = method
        self._executor = executor
        self._seconds = seconds
        self._place = parse_icap_url(url)

    async def get_version(self) -> str:
        """Return the server's ISTag, which changes with its signatures. Raises ScannerUnavailable,
        also if the server does not offer the method."""
        return await run_in(self._executor, self._ask_options)

    async def scan(self, file: FileToCheck) -> ScanFinding | None:
        connection = await run_in(self._executor, lambda: self._begin(file.size))
        sent = hashlib.sha256()
        try:
            is_accepted = True
            async with aclosing(file.pieces()) as pieces:
                async for piece in pieces:
                    sent.update(piece)
                    chunk = (b"%x\r\n" % len(piece), piece, b"\r\n")
                    is_accepted = await run_in(self._executor, partial(connection.send, *chunk))
                    if not is_accepted:
                        break
            digest = sent.digest() if is_accepted else b""
            return await run_in(self._executor, lambda: self._finish(connection, digest))
        finally:
            connection.close()

    def _ask_options(self) -> str:
        connection = ScannerConnection(
            place=self._place, seconds=min(self._seconds, CONNECT_SECONDS)
        )
        try:
            connection.send(self._head("OPTIONS", "Encapsulated: null-body=0"))
            status, headers = self._read_head(connection)
        finally:
            connection.close()
        if status != 200:
            raise ScannerUnavailable(f"{self._url} responds {status} to OPTIONS")
        if self._method not in headers.get("methods", self._method):
            raise ScannerUnavailable(
                f"{self._url} does not offer {self._method}, but {headers['methods'][:100]}"
            )
        service = headers.get("service", "").strip()[:100]
        return f"{service} {headers.get('istag', '').strip()[:100]}".strip() or "unknown"

    def _begin(self, size: int) -> ScannerConnection:
        request = b"GET http://media.invalid/file HTTP/1.1\r\nHost: media.invalid\r\n\r\n"
        described = b"Content-Type: application/octet-stream\r\nContent-Length: %d\r\n\r\n" % size
        if self._method == "REQMOD":
            parts = [request.replace(b"GET", b"PUT", 1)[:-2] + described]
            offsets = f"req-hdr=0, req-body={len(parts[0])}"
        else:
            parts = [request, b"HTTP/1.1 200 OK\r\n" + described]
            offsets = f"req-hdr=0, res-hdr={len(request)}, res-body={len(request) + len(parts[1])}"
        connection = ScannerConnection(place=self._place, seconds=self._seconds)
        connection.send(self._head(self._method, "Allow: 204", f"Encapsulated: {offsets}"), *parts)
        return connection

    def _head(self, method: str, *lines: str) -> bytes:
        host = urlsplit(self._url).netloc
        lines_sent = (
            f"{method} {self._url} ICAP/1.0",
            f"Host: {host}",
            "User-Agent: Mahalla",
            "Connection: close",
            *lines,
        )
        return ("\r\n".join(lines_sent) + "\r\n\r\n").encode("ascii")

    def _finish(self, connection: ScannerConnection, digest: bytes) -> ScanFinding | None:
        """End the request and read the verdict. `digest`: SHA-256 of what was sent; empty if that
        was not the complete file."""
        connection.send(b"0\r\n\r\n")
        status, headers = self._read_head(connection)
        if status == 100:
            status, headers = self._read_head(connection)
        found = next(
            (headers[name] for name in FOUND_HEADERS if headers.get(name, "").strip()), None
        )
        if found is not None:
            return ScanFinding(self.name, _threat_in(found))
        if status == 204:
            return None
        if status == 200:
            same = digest and self._hash_replacement(connection, headers) == digest
            return None if same else ScanFinding(self.name, "refused")
        if status in (413, 418):
            raise CannotScan(f"{self._url} responds {status}")
        raise ScannerUnavailable(f"{self._url} responds {status}")

    def _hash_replacement(self, connection: ScannerConnection, headers: Headers) -> bytes | None:
        """Return SHA-256 of the body that replaces the file; None if the response is of another
        kind."""
        parts = [
            part.strip().partition("=")[0]
            for part in headers.get("encapsulated", "").lower().split(",")
        ]
        if "req-body" in parts if self._method == "RESPMOD" else "res-hdr" in parts:
            return None
        for part in parts[:-1]:
            lines = _read_lines(connection)
            if part == "res-hdr" and lines and " 200" not in lines[0][:15]:
                return None
        body = hashlib.sha256()
        if parts[-1] in ("", "null-body"):
            return body.digest()
        while size := _chunk_size(connection):
            while size:
                piece = connection.read(min(size, _READ_BYTES))
                if not piece:
                    raise ScannerUnavailable(f"{self._url} closed the connection in its response")
                body.update(piece)
                size -= len(piece)
            connection.read_until(b"\r\n")
        return body.digest()

    def _read_head(self, connection: ScannerConnection) -> tuple[int, Headers]:
        lines = _read_lines(connection)
        words = lines[0].split(" ") if lines else []
        if len(words) < 2 or not words[0].startswith("ICAP/") or not words[1].isdigit():
            raise ScannerUnavailable(f"{self._url} does not speak ICAP, or closed the connection")
        pairs = (line.partition(":") for line in lines[1:])
        return int(words[1]), {name.strip().lower(): value.strip() for name, _, value in pairs}


def parse_icap_url(url: str) -> ScannerAddress:
    """Return host and port of a URL. Raises ValueError if it is not an ICAP URL."""
    parts = urlsplit(url)
    if (
        parts.scheme != "icap"
        or not parts.hostname
        or not url.isascii()
        or any(each.isspace() for each in url)
    ):
        raise ValueError("must be icap://host:port/service")
    return ScannerAddress(host=parts.hostname, port=parts.port or DEFAULT_PORT)


def _threat_in(header: str) -> str:
    """Return the threat in `Type=0; Resolution=2; Threat=Eicar;`, or the header's text."""
    for field in header.split(";"):
        name, _, value = field.strip().partition("=")
        if name.lower() == "threat" and value:
            return value.strip()
    return header.strip()


def _read_lines(connection: ScannerConnection) -> Sequence[str]:
    """Return the lines up to an empty one."""
    lines: list[str] = []
    while line := connection.read_until(b"\r\n"):
        lines.append(line.decode("latin-1"))
        if len(lines) > MAX_HEADERS:
            raise ScannerUnavailable("an ICAP server sent too many header lines")
    return lines


def _chunk_size(connection: ScannerConnection) -> int:
    line = connection.read_until(b"\r\n").partition(b";")[0].strip()
    try:
        return int(line, 16)
    except ValueError:
        raise ScannerUnavailable("an ICAP server sent an invalid chunk size") from None
