"""What administrators see of scans, and what they may begin."""

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
    ScanState.FREED: "freed",
}


class Finding(msgspec.Struct, frozen=True):
    """What was found, and the files that have it."""

    scan: ScanRow
    files: Sequence[ScannedFile]


class ScanAdministration:
    """Looks into scans. Without `rescans` nothing is scanned here."""

    def __init__(
        self, clock: IReactorTime, own: str, store: MediaScanStore, rescans: Rescans | None
    ) -> None:
        """`own`: this server's name."""
        self._clock = clock
        self._own = own
        self._store = store
        self._rescans = rescans

    async def get_findings(self, start: int, limit: int) -> Sequence[Finding]:
        """What was found harmful, the latest first."""
        rows = await self._store.get_findings(start, limit)
        files: Mapping[bytes, Sequence[ScannedFile]] = await self._store.get_files(
            self._own, {row.hash for row in rows}
        )
        return [Finding(row, files.get(row.hash, ())) for row in rows]

    async def get_rescan(self) -> tuple[Rescan | None, int]:
        """The rescan that is under way, or was last; how many contents are left."""
        return (None, 0) if self._rescans is None else await self._rescans.get()

    async def do_rescan(self, newer_than_ms: int | None) -> Rescan:
        """Scan again what has come within this time; None: all. Raises InvalidParam."""
        if self._rescans is None:
            raise InvalidParam("This server scans no files: media_scanning names no scanner")
        since = 0 if newer_than_ms is None else int(self._clock.seconds() * 1000) - newer_than_ms
        return await self._rescans.do_start(since)


def shown_scan(row: ScanRow | None) -> dict[str, Any] | None:
    """What was said of a file, as people see it; None where nothing has to do with scans.

    `state`: `waiting`, `clean`, `harmful`, or `freed` (harmful, and an administrator has given it
    free).
    """
    if row is None:
        return None
    return {"state": _STATES[row.state], "found": row.found, "scanned_ts": row.scanned_ts or None}
