"""A connection to a scanner, used in threads: bytes out, bytes in, within one limit of time for all
of it."""

import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import msgspec

from homeserver.services.scanning.scanner import CannotScan, ScannerAway

READ_BYTES: Final = 1 << 16
CONNECT_SECONDS: Final = 10.0
"""For being reached at all, and for answering what it is: one that does not is away, and no file is
to blame."""
LONGEST_LINE: Final = 1 << 16
MOST_EARLY: Final = 8 << 20
"""Bytes of an answer that are taken before all is sent: some begin to answer with what they have,
and take no more until it is read."""


class Place(msgspec.Struct, frozen=True):
    """Where a scanner is: a Unix socket, or host and port."""

    path: str | None = None
    host: str = ""
    port: int = 0

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"


class Connection:
    """An open one. All of it blocks, and raises ScannerAway, or CannotScan once the time is
    over."""

    def __init__(
        self, place: Place, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Connect. `seconds`: for all that is done with it."""
        self._place = place
        self._clock = clock
        self._until = clock() + seconds
        self._received = bytearray()
        try:
            self._socket = _connect(place, min(seconds, CONNECT_SECONDS))
        except OSError as error:
            raise ScannerAway(f"{place} cannot be reached: {error}") from error
        self._socket.setblocking(False)

    def send(self, *pieces: bytes) -> bool:
        """Whether the other side still takes bytes: one that has made up its mind may hang up, and
        its answer is there."""
        try:
            for piece in pieces:
                rest = memoryview(piece)
                while rest:
                    may_read = len(self._received) < MOST_EARLY
                    ready = self._wait(select.POLLOUT | (select.POLLIN if may_read else 0))
                    if ready & select.POLLIN and not self._receive():
                        return False
                    if ready & (select.POLLOUT | select.POLLERR | select.POLLHUP):
                        with suppress(BlockingIOError):
                            rest = rest[self._socket.send(rest) :]
        except (BrokenPipeError, ConnectionResetError):
            return False
        except OSError as error:
            raise ScannerAway(f"{self._place} takes nothing: {error}") from error
        return True

    def read_until(self, end: bytes) -> bytes:
        """What comes up to these bytes, without them; all of it where the other side ends
        before."""
        while (at := self._received.find(end)) < 0:
            if len(self._received) > LONGEST_LINE:
                raise ScannerAway(f"{self._place} answers with too long a line")
            if not self._fill():
                at = len(self._received)
                break
        found = bytes(self._received[:at])
        del self._received[: at + len(end)]
        return found

    def read(self, size: int) -> bytes:
        """At most so many bytes, at least one; none at the end."""
        if not self._received and not self._fill():
            return b""
        found = bytes(self._received[:size])
        del self._received[:size]
        return found

    def close(self) -> None:
        """Hang up; whoever waits in a thread for the other side waits no longer."""
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
            raise ScannerAway(f"{self._place} does not answer: {error}") from error

    def _receive(self) -> bool:
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return True
        self._received += data
        return bool(data)

    def _wait(self, events: int) -> int:
        """Until one of them, or an end. Raises CannotScan."""
        left = self._until - self._clock()
        poll = select.poll()
        poll.register(self._socket, events)
        found = poll.poll(left * 1000) if left > 0 else []
        if not found:
            raise CannotScan(f"{self._place} is too slow")
        return found[0][1]


def _connect(place: Place, seconds: float) -> socket.socket:
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
