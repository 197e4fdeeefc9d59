"""Shows the results of malware scans to administrators, and starts rescans."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec
from twisted.internet.interfaces import IReactorTime

from federation.protocol.errors import InvalidParam
from homeserver.services.scanning.rescans import Rescans
from storage.media.rescans import Rescan
from storage.media.scans import MediaScanStore, ScannedFile, ScanRow, ScanState

_STATES: Final[Mapping[ScanState, str]] = {
    ScanState.UNKNOWN: "waiting",
    ScanState.CLEAN: "clean",
    ScanState.HARMFUL: "harmful",
    ScanState.RELEASED: "freed",
}


class HarmfulContent(msgspec.Struct, frozen=True):
    """A finding, and the files with that content."""

    scan: ScanRow
    files: Sequence[ScannedFile]


class ScanAdministration:
    """Reads scans. Without `rescans` this server scans nothing."""

    def __init__(
        self, *, clock: IReactorTime, own: str, store: MediaScanStore, rescans: Rescans | None
    ) -> None:
        """`own`: this server's name."""
        self._clock = clock
        self._own = own
        self._store = store
        self._rescans = rescans

    async def get_findings(self, start: int, limit: int) -> Sequence[HarmfulContent]:
        """Return harmful contents, the latest first."""
        rows = await self._store.get_findings(start, limit)
        files: Mapping[bytes, Sequence[ScannedFile]] = await self._store.get_files(
            self._own, {row.hash for row in rows}
        )
        return [HarmfulContent(row, files.get(row.hash, ())) for row in rows]

    async def get_rescan(self) -> tuple[Rescan | None, int]:
        """Return the running or last rescan, and the number of contents left to scan."""
        return (None, 0) if self._rescans is None else await self._rescans.get()

    async def do_rescan(self, newer_than_ms: int | None) -> Rescan:
        """Rescan files that arrived within this time; None: all. Raises InvalidParam."""
        if self._rescans is None:
            raise InvalidParam("This server does not scan files: media_scanning names no scanner")
        since = 0 if newer_than_ms is None else int(self._clock.seconds() * 1000) - newer_than_ms
        return await self._rescans.do_start(since)


def scan_json(row: ScanRow | None) -> dict[str, Any] | None:
    """Return a file's scan as administrators and users see it; None if the file was never to be
    scanned.

    Its `state` is `waiting`, `clean`, `harmful`, or `freed` (harmful, but released by an
    administrator).
    """
    if row is None:
        return None
    return {"state": _STATES[row.state], "found": row.finding, "scanned_ts": row.scanned_ts or None}
