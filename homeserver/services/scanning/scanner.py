"""The interface of scanners: clamd, ICAP servers, forbidden types and plug-ins."""

from collections.abc import Awaitable
from typing import Protocol

import msgspec

from homeserver.services.plugins.hooks import FileToCheck


class ScannerUnavailable(Exception):
    """The scanner is unavailable: not reachable, failing or too slow. The text is for the
    operator."""


class CannotScan(Exception):
    """The scanner works but cannot scan this file. The text is for the operator."""


class ScanFinding(msgspec.Struct, frozen=True):
    """The result for a harmful file. `scanner`: its name; `threat`: its name for the threat."""

    scanner: str
    threat: str

    def __str__(self) -> str:
        return f"{self.scanner}: {self.threat}"


class Scanner(Protocol):
    """A scanner. Both methods raise ScannerUnavailable."""

    @property
    def name(self) -> str:
        """A constant name."""

    @property
    def is_antivirus(self) -> bool:
        """Whether a finding is certain: nobody can make another file match it."""

    def get_version(self) -> Awaitable[str]:
        """Return the scanner's version with that of its signatures: another text whenever these
        change."""
        ...

    def scan(self, file: FileToCheck) -> Awaitable[ScanFinding | None]:
        """Return the threat in a file; None: clean. Also raises CannotScan, and the errors of
        reading."""
        ...
