"""Scans files with the ClamAV daemon. Each file is streamed to it (`INSTREAM`), so the daemon needs
no permission to read files.

For the protocol see clamd(8): commands end with a zero byte, chunks of a file have a length prefix.
"""

import struct
from contextlib import aclosing
from functools import partial
from typing import Final

from homeserver.services.plugins.hooks import FileToCheck
from homeserver.services.scanning.connection import (
    CONNECT_SECONDS,
    ScannerAddress,
    ScannerConnection,
)
from homeserver.services.scanning.scanner import CannotScan, ScanFinding, ScannerUnavailable
from storage.engine.executors import Executor, run_in

_END: Final = struct.pack(">I", 0)
_TOO_LONG: Final = "size limit exceeded"


class ClamdScanner:
    """Scans files with clamd. Implements `Scanner`."""

    name = "clamd"
    is_antivirus = True

    def __init__(self, *, place: ScannerAddress, executor: Executor, seconds: float) -> None:
        """`executor`: its threads wait for clamd. `seconds`: time limit per file."""
        self._place = place
        self._executor = executor
        self._seconds = seconds

    async def get_version(self) -> str:
        """Return clamd's own text: program, version of the signatures, and their date."""
        response = await run_in(self._executor, self._read_version)
        if not response.startswith("ClamAV"):
            raise ScannerUnavailable(
                f"{self._place} is not clamd: its response is {response[:100]!r}"
            )
        return response

    async def scan(self, file: FileToCheck) -> ScanFinding | None:
        connection = await run_in(
            self._executor, lambda: self._begin(b"zINSTREAM\0", self._seconds)
        )
        try:
            is_accepted = True
            async with aclosing(file.pieces()) as pieces:
                async for piece in pieces:
                    head = struct.pack(">I", len(piece))
                    is_accepted = await run_in(
                        self._executor, partial(connection.send, head, piece)
                    )
                    if not is_accepted:
                        break
            response = await run_in(self._executor, lambda: _finish(connection))
        finally:
            connection.close()
        return self._parse(response, is_accepted=is_accepted)

    def _read_version(self) -> str:
        connection = self._begin(b"zVERSION\0", min(self._seconds, CONNECT_SECONDS))
        try:
            return connection.read_until(b"\0").decode("utf-8", "replace")
        finally:
            connection.close()

    def _begin(self, command: bytes, seconds: float) -> ScannerConnection:
        connection = ScannerConnection(place=self._place, seconds=seconds)
        connection.send(command)
        return connection

    def _parse(self, response: str, *, is_accepted: bool) -> ScanFinding | None:
        verdict = response.removeprefix("stream: ")
        if verdict == "OK":
            return None
        if verdict.endswith(" FOUND"):
            return ScanFinding(self.name, verdict.removesuffix(" FOUND"))
        if _TOO_LONG in verdict or (not verdict and not is_accepted):
            # over TCP the response may be lost when clamd closes the connection
            raise CannotScan(
                "clamd accepts no file of this length:"
                " its StreamMaxLength is less than media_scanning.max_size"
            )
        if not verdict:
            raise ScannerUnavailable(f"{self._place} closed the connection without a response")
        # a fault of clamd, such as a full disk, and not of the file
        raise ScannerUnavailable(f"clamd responds {verdict[:200]!r}")


def _finish(connection: ScannerConnection) -> str:
    connection.send(_END)
    return connection.read_until(b"\0").decode("utf-8", "replace")
