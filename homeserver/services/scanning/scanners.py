"""All scanners together: a file is clean when each of them says so."""

from collections.abc import Sequence
from typing import Final

from twisted.internet.interfaces import IReactorTime

from homeserver.services.plugins.hooks import FileToCheck
from homeserver.services.scanning.scanner import CannotScan, Finding, Scanner, ScannerAway

VERSION_SECONDS: Final = 30.0
"""For so long it is believed that they know what they knew. A verdict may so be noted under an
older version, never under a newer one."""

GUESSES: Final = ("Heuristics.", "PUA.")
"""How clamd begins what it says of a file for its shape, such as that it is encrypted, and not for
what is in it."""


class Scanners:
    """Asks them, one after the other."""

    def __init__(self, clock: IReactorTime, scanners: Sequence[Scanner]) -> None:
        self._clock = clock
        self._scanners = tuple(scanners)
        self._version: tuple[float, str] | None = None
        self._trusted = frozenset(each.name for each in scanners if each.is_antivirus)

    async def get_version(self) -> str:
        """What all of them know. Raises ScannerAway."""
        now = self._clock.seconds()
        if self._version is not None and now < self._version[0]:
            return self._version[1]
        version = "; ".join([f"{each.name} {await each.get_version()}" for each in self._scanners])
        self._version = (now + VERSION_SECONDS, version)
        return version

    async def can_be_asked(self) -> bool:
        """Whether all of them answer now."""
        self._version = None
        try:
            await self.get_version()
        except (ScannerAway, CannotScan):
            return False
        return True

    async def scan(self, file: FileToCheck) -> Finding | None:
        """What the first finds that finds anything. Raises ScannerAway, CannotScan, OSError."""
        for each in self._scanners:
            found = await each.scan(file)
            if found is not None:
                return found
        return None

    def is_certain(self, found: Finding) -> bool:
        """Whether nobody can make another file look like what was found."""
        return found.scanner in self._trusted and not found.what.startswith(GUESSES)
