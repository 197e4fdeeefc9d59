"""Scanners inside the server: forbidden file types, detected by content, and plug-ins."""

from collections.abc import Iterable
from contextlib import aclosing
from typing import Final

import filetype
from twisted.internet.defer import CancelledError
from twisted.logger import Logger

from homeserver.services.plugins.hooks import FileToCheck, Plugins
from homeserver.services.scanning.scanner import ScanFinding, ScannerUnavailable

HEAD_BYTES: Final = 8192
"""The bytes by which a type is detected."""
TYPE_SCANNER: Final = "type"


class ForbiddenTypes:
    """Refuses files whose first bytes match certain types. Implements `Scanner`."""

    name = TYPE_SCANNER
    is_antivirus = False

    def __init__(self, types: Iterable[str]) -> None:
        self._types = frozenset(each.lower() for each in types)

    async def get_version(self) -> str:
        return " ".join(sorted(self._types))

    async def scan(self, file: FileToCheck) -> ScanFinding | None:
        head = b""
        async with aclosing(file.pieces()) as pieces:
            async for piece in pieces:
                head += piece[: HEAD_BYTES - len(head)]
                if len(head) == HEAD_BYTES:
                    break
        found = filetype.guess_mime(head)
        return ScanFinding(self.name, found) if found in self._types else None


class PluginRules:
    """Asks plug-ins. Implements `Scanner`."""

    log = Logger()
    name = "plug-in"
    is_antivirus = False

    def __init__(self, plugins: Plugins) -> None:
        self._plugins = plugins

    async def get_version(self) -> str:
        try:
            return self._plugins.file_rules()
        except Exception as error:  # third-party code may raise anything
            raise self._unavailable(error) from error

    async def scan(self, file: FileToCheck) -> ScanFinding | None:
        try:
            found = await self._plugins.check_file(file)
        except (CancelledError, OSError):
            raise  # the time limit is exceeded, or the file cannot be read
        except Exception as error:  # third-party code may raise anything
            raise self._unavailable(error) from error
        return None if found is None else ScanFinding(self.name, str(found))

    def _unavailable(self, error: Exception) -> ScannerUnavailable:
        self.log.failure("a plug-in failed to check a file")
        return ScannerUnavailable(f"a plug-in failed: {type(error).__name__}")
