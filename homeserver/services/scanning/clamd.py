"""ClamAV's daemon: each file goes to it as a stream (`INSTREAM`), so that it needs no right to read
files.

The protocol is told in clamd(8): commands end with a zero byte, pieces of a file have their length
before them.
"""

import struct
from contextlib import aclosing
from functools import partial
from typing import Final

from homeserver.services.plugins.hooks import FileToCheck
from homeserver.services.scanning.connection import CONNECT_SECONDS, Connection, Place
from homeserver.services.scanning.scanner import CannotScan, Finding, ScannerAway
from storage.engine.executors import Executor, run_in

_END: Final = struct.pack(">I", 0)
_TOO_LONG: Final = "size limit exceeded"


class Clamd:
    """Asks it. Implements `Scanner`."""

    name = "clamd"
    is_antivirus = True

    def __init__(self, place: Place, executor: Executor, seconds: float) -> None:
        """`executor`: its threads wait. `seconds`: for one file."""
        self._place = place
        self._executor = executor
        self._seconds = seconds

    async def get_version(self) -> str:
        """As it says it: program, number of the signatures, and their day."""
        answer = await run_in(self._executor, self._ask_version)
        if not answer.startswith("ClamAV"):
            raise ScannerAway(f"{self._place} is not clamd: it answers {answer[:100]!r}")
        return answer

    async def scan(self, file: FileToCheck) -> Finding | None:
        connection = await run_in(
            self._executor, lambda: self._begin(b"zINSTREAM\0", self._seconds)
        )
        try:
            is_taken = True
            async with aclosing(file.pieces()) as pieces:
                async for piece in pieces:
                    head = struct.pack(">I", len(piece))
                    is_taken = await run_in(self._executor, partial(connection.send, head, piece))
                    if not is_taken:
                        break
            answer = await run_in(self._executor, lambda: _finish(connection))
        finally:
            connection.close()
        return self._read(answer, is_taken=is_taken)

    def _ask_version(self) -> str:
        connection = self._begin(b"zVERSION\0", min(self._seconds, CONNECT_SECONDS))
        try:
            return connection.read_until(b"\0").decode("utf-8", "replace")
        finally:
            connection.close()

    def _begin(self, command: bytes, seconds: float) -> Connection:
        connection = Connection(self._place, seconds)
        connection.send(command)
        return connection

    def _read(self, answer: str, *, is_taken: bool) -> Finding | None:
        said = answer.removeprefix("stream: ")
        if said == "OK":
            return None
        if said.endswith(" FOUND"):
            return Finding(self.name, said.removesuffix(" FOUND"))
        if _TOO_LONG in said or (
            not said and not is_taken
        ):  # over TCP its answer may be lost when it hangs up
            raise CannotScan(
                "clamd takes no file of this length: its StreamMaxLength is less than media_scanning.max_size"
            )
        if not said:
            raise ScannerAway(f"{self._place} hung up without an answer")
        raise ScannerAway(
            f"clamd answers {said[:200]!r}"
        )  # its own trouble, such as a full disk: not the file's fault


def _finish(connection: Connection) -> str:
    connection.send(_END)
    return connection.read_until(b"\0").decode("utf-8", "replace")
