"""Rescans of files, when a scanner has new signatures or an administrator asks for one.
`storage.media.rescans` stores their progress."""

from collections.abc import Callable
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from federation.protocol.errors import InvalidParam
from homeserver.services.scanning.scanner import CannotScan, ScannerUnavailable
from homeserver.services.scanning.scanners import Scanners
from storage.media.rescans import MediaRescanStore, Rescan

POLL_SECONDS: Final = 1.0
"""The interval at which progress is read."""


class RescanRunning(InvalidParam):
    default_text = "A rescan is already running: wait until it has ended"


async def follow_rescan(
    store: MediaRescanStore, clock: IReactorTime, report: Callable[[str], object]
) -> None:
    """Call `report` with a line about the last rescan whenever it has progressed, until it has
    ended."""
    sent = ""
    while True:
        rescan, left = await store.get()
        if rescan is None:
            return
        line = describe_rescan(rescan, left)
        if line != sent:
            report(line)
            sent = line
        if rescan.ended_ts is not None:
            return
        await deferLater(clock, POLL_SECONDS)


def describe_rescan(rescan: Rescan, left: int) -> str:
    """Return the progress in a line. `left`: contents that are still to be scanned."""
    total = f"{rescan.total}" if rescan.is_marked else f"{rescan.total} so far"
    state = "ended" if rescan.ended_ts is not None else f"{left} left"
    return f"{total} to be scanned again, {state}, {rescan.found} harmful"


class Rescans:
    """Starts rescans and runs their jobs."""

    log = Logger(namespace="homeserver.scanning")

    def __init__(
        self,
        *,
        clock: IReactorTime,
        store: MediaRescanStore,
        scanners: Scanners,
        on_new_signatures: bool,
        interval_ms: int,
        newer_than_ms: int | None,
    ) -> None:
        """New signatures start at most one rescan per `interval_ms`, of files that arrived within
        `newer_than_ms`."""
        self._clock = clock
        self._store = store
        self._scanners = scanners
        self._on_new_signatures = on_new_signatures
        self._interval_ms = interval_ms
        self._newer_than_ms = newer_than_ms

    async def do_start(self, since_ms: int) -> Rescan:
        """Rescan files that arrived since this time. Raises RescanRunning."""
        started = await self._store.start("administrator", self._now_ms(), since_ms)
        if started is None:
            raise RescanRunning
        return started

    async def get(self) -> tuple[Rescan | None, int]:
        """Return the running or last rescan, and the number of contents left to scan."""
        return await self._store.get()

    # Jobs.

    async def do_mark(self, limit: int) -> int:
        """Continue to mark contents for rescanning, at most `limit`; return the number."""
        return await self._store.mark(limit, self._now_ms())

    async def do_check_version(self, _limit: int) -> int:
        """Start a rescan if the scanners have new signatures."""
        try:
            version = await self._scanners.get_version()
        except (ScannerUnavailable, CannotScan) as error:
            self.log.warn("cannot read the version of a scanner: {error}", error=str(error))
            return 0
        if not await self._store.record_version(version) or not self._on_new_signatures:
            return 0
        last, _ = await self._store.get()
        now = self._now_ms()
        if last is not None and now < last.began_ts + self._interval_ms:
            return 0
        since = 0 if self._newer_than_ms is None else now - self._newer_than_ms
        if await self._store.start("signatures", now, since) is not None:
            self.log.info(
                "the scanners have new signatures ({version}): files are scanned again",
                version=version,
            )
        return 0

    def _now_ms(self) -> int:
        return int(self._clock.seconds() * 1000)
