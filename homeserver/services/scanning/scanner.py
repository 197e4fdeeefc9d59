"""What a scanner is: it is shown a file, and says what it has found."""

from collections.abc import Awaitable
from typing import Protocol

import msgspec

from homeserver.services.plugins.hooks import FileToCheck


class ScannerAway(Exception):
    """It cannot be asked: not there, out of order, or too slow. The text is for the operator."""


class CannotScan(Exception):
    """It can be asked, and cannot scan this file. The text is for the operator."""


class Finding(msgspec.Struct, frozen=True):
    """What was found. `scanner`: its name; `what`: in its words."""

    scanner: str
    what: str

    def __str__(self) -> str:
        return f"{self.scanner}: {self.what}"


class Scanner(Protocol):
    """A scanner. Both raise ScannerAway."""

    @property
    def name(self) -> str:
        """A word that never changes."""

    @property
    def is_antivirus(self) -> bool:
        """Whether it knows what it finds so well that nobody can make another file look like it."""

    def get_version(self) -> Awaitable[str]:
        """Which one it is, and what it knows: another text as soon as it knows something else."""
        ...

    def scan(self, file: FileToCheck) -> Awaitable[Finding | None]:
        """What is harmful in a file. Raises also CannotScan, and what reading it raises."""
        ...
