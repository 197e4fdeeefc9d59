"""A blocking connection to a scanner, used in threads. One time limit covers connecting, sending
and receiving together."""

import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import msgspec

from homeserver.services.scanning.scanner import CannotScan, ScannerUnavailable

READ_BYTES: Final = 1 << 16
CONNECT_SECONDS: Final = 10.0
"""The time for connecting, and for reporting the version. A scanner that takes longer is
unavailable, whatever the file."""
MAX_LINE_BYTES: Final = 1 << 16
MAX_EARLY_BYTES: Final = 8 << 20
"""The maximum number of bytes of a response that are read before everything is sent. Some scanners
begin to respond early, and read no more until their response is read."""


class ScannerAddress(msgspec.Struct, frozen=True):
    """The address of a scanner: a Unix socket, or host and port."""

    path: str | None = None
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


class ScannerConnection:
    """An open connection. All methods block. They raise ScannerUnavailable, or CannotScan when the
    time limit is exceeded."""

    def __init__(
        self, *, place: ScannerAddress, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Connect. `seconds`: the limit for everything that is done with the connection."""
        self._place = place
        self._clock = clock
        self._until = clock() + seconds
        self._received = bytearray()
        try:
            self._socket = _connect(place, min(seconds, CONNECT_SECONDS))
        except OSError as error:
            raise ScannerUnavailable(f"{place} cannot be reached: {error}") from error
        self._socket.setblocking(False)

    def send(self, *pieces: bytes) -> bool:
        """Send bytes. False if the other side reads no more: a scanner may close after its verdict,
        and its response can still be read."""
        try:
            for piece in pieces:
                rest = memoryview(piece)
                while rest:
                    may_read = len(self._received) < MAX_EARLY_BYTES
                    ready = self._wait(select.POLLOUT | (select.POLLIN if may_read else 0))
                    if ready & select.POLLIN and not self._receive():
                        return False
                    if ready & (select.POLLOUT | select.POLLERR | select.POLLHUP):
                        with suppress(BlockingIOError):
                            rest = rest[self._socket.send(rest) :]
        except (BrokenPipeError, ConnectionResetError):
            return False
        except OSError as error:
            raise ScannerUnavailable(f"cannot send to {self._place}: {error}") from error
        return True

    def read_until(self, end: bytes) -> bytes:
        """Return the bytes up to `end`, without it, or all bytes if the connection ends before."""
        while (at := self._received.find(end)) < 0:
            if len(self._received) > MAX_LINE_BYTES:
                raise ScannerUnavailable(f"{self._place} sent a line that is too long")
            if not self._fill():
                at = len(self._received)
                break
        found = bytes(self._received[:at])
        del self._received[: at + len(end)]
        return found

    def read(self, size: int) -> bytes:
        """Return at least one byte and at most `size`; empty at the end."""
        if not self._received and not self._fill():
            return b""
        found = bytes(self._received[:size])
        del self._received[:size]
        return found

    def close(self) -> None:
        """Close the connection; this also wakes a thread that waits for the other side."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _fill(self) -> bool:
        try:
            self._wait(select.POLLIN)
            return self._receive()
        except ConnectionResetError:
            return False
        except OSError as error:
            raise ScannerUnavailable(f"no response from {self._place}: {error}") from error

    def _receive(self) -> bool:
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return True
        self._received += data
        return bool(data)

    def _wait(self, events: int) -> int:
        """Wait for one of the events, or for the end of the connection. Raises CannotScan."""
        left = self._until - self._clock()
        poll = select.poll()
        poll.register(self._socket, events)
        found = poll.poll(left * 1000) if left > 0 else []
        if not found:
            raise CannotScan(f"{self._place} is too slow")
        return found[0][1]


def _connect(place: ScannerAddress, seconds: float) -> socket.socket:
    if place.path is None:
        connected = socket.create_connection((place.host, place.port), seconds)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connected
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        made.settimeout(seconds)
        made.connect(place.path)
    except BaseException:
        made.close()
        raise
    return made
