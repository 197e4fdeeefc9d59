"""Combines all scanners: a file is clean when each of them accepts it."""

from collections.abc import Sequence
from typing import Final

from twisted.internet.interfaces import IReactorTime

from homeserver.services.plugins.hooks import FileToCheck
from homeserver.services.scanning.scanner import (
    CannotScan,
    ScanFinding,
    Scanner,
    ScannerUnavailable,
)

VERSION_SECONDS: Final = 30.0
"""The time for which versions are cached. A verdict may so be stored under an older version, never
under a newer one."""

HEURISTIC_PREFIXES: Final = ("Heuristics.", "PUA.")
"""Prefixes of clamd's findings that are based on the form of a file, such as encryption, and not on
its content."""


class Scanners:
    """Asks the scanners, one after the other."""

    def __init__(self, *, clock: IReactorTime, scanners: Sequence[Scanner]) -> None:
        self._clock = clock
        self._scanners = tuple(scanners)
        self._version: tuple[float, str] | None = None
        self._trusted = frozenset(each.name for each in scanners if each.is_antivirus)

    async def get_version(self) -> str:
        """Return the versions of all scanners. Raises ScannerUnavailable."""
        now = self._clock.seconds()
        if self._version is not None and now < self._version[0]:
            return self._version[1]
        version = "; ".join([f"{each.name} {await each.get_version()}" for each in self._scanners])
        self._version = (now + VERSION_SECONDS, version)
        return version

    async def are_available(self) -> bool:
        """Whether all of them are available now."""
        self._version = None
        try:
            await self.get_version()
        except (ScannerUnavailable, CannotScan):
            return False
        return True

    async def scan(self, file: FileToCheck) -> ScanFinding | None:
        """Return the first finding, if any. Raises ScannerUnavailable, CannotScan, OSError."""
        for each in self._scanners:
            found = await each.scan(file)
            if found is not None:
                return found
        return None

    def is_conclusive(self, found: ScanFinding) -> bool:
        """Whether nobody can make another file match this finding."""
        return found.scanner in self._trusted and not found.threat.startswith(HEURISTIC_PREFIXES)
