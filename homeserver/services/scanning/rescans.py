"""Scanning again: when the scanners know something new, and when an administrator wishes it. How it
is done and where it stands is kept by `storage.media.rescans`."""

from collections.abc import Callable
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater
from twisted.logger import Logger

from federation.protocol.errors import InvalidParam
from homeserver.services.scanning.scanner import CannotScan, ScannerAway
from homeserver.services.scanning.scanners import Scanners
from storage.media.rescans import MediaRescanStore, Rescan

FOLLOW_SECONDS: Final = 1.0
"""Between two looks at how far it is."""


class AlreadyUnderWay(InvalidParam):
    default_text = "Files are being scanned again already: wait until that has ended"


async def follow_rescan(
    store: MediaRescanStore, clock: IReactorTime, tell: Callable[[str], object]
) -> None:
    """Tell a person how far the last rescan is, each time that it has gone on, until it has
    ended."""
    told = ""
    while True:
        rescan, left = await store.get()
        if rescan is None:
            return
        line = describe_rescan(rescan, left)
        if line != told:
            tell(line)
            told = line
        if rescan.ended_ts is not None:
            return
        await deferLater(clock, FOLLOW_SECONDS)


def describe_rescan(rescan: Rescan, left: int) -> str:
    """How far it is, in a line. `left`: contents that are to be scanned still."""
    total = f"{rescan.total}" if rescan.is_marked else f"{rescan.total} so far"
    where = "ended" if rescan.ended_ts is not None else f"{left} left"
    return f"{total} to be scanned again, {where}, {rescan.found} harmful"


class Rescans:
    """Begins rescans, and drives them."""

    log = Logger(namespace="homeserver.scanning")

    def __init__(
        self,
        clock: IReactorTime,
        store: MediaRescanStore,
        scanners: Scanners,
        *,
        on_new_signatures: bool,
        interval_ms: int,
        newer_than_ms: int | None,
    ) -> None:
        """`interval_ms`: new signatures begin one so often at most, of files that have come since
        `newer_than_ms`."""
        self._clock = clock
        self._store = store
        self._scanners = scanners
        self._on_new_signatures = on_new_signatures
        self._interval_ms = interval_ms
        self._newer_than_ms = newer_than_ms

    async def do_start(self, since_ms: int) -> Rescan:
        """Scan again what has come since. Raises AlreadyUnderWay."""
        started = await self._store.start("administrator", self._now_ms(), since_ms)
        if started is None:
            raise AlreadyUnderWay
        return started

    async def get(self) -> tuple[Rescan | None, int]:
        """The one that is under way, or was last; how many contents are left."""
        return await self._store.get()

    # What jobs do.

    async def do_mark(self, limit: int) -> int:
        """Go on with marking what is to be scanned again: at most so many; how many."""
        return await self._store.mark(limit, self._now_ms())

    async def do_follow(self, _limit: int) -> int:
        """Look whether the scanners know something new."""
        try:
            version = await self._scanners.get_version()
        except (ScannerAway, CannotScan) as error:
            self.log.warn("a scanner cannot be asked for its version: {error}", error=str(error))
            return 0
        if not await self._store.note_version(version) or not self._on_new_signatures:
            return 0
        last, _ = await self._store.get()
        now = self._now_ms()
        if last is not None and now < last.began_ts + self._interval_ms:
            return 0
        since = 0 if self._newer_than_ms is None else now - self._newer_than_ms
        if await self._store.start("signatures", now, since) is not None:
            self.log.info(
                "the scanners know something new ({version}): files are scanned again",
                version=version,
            )
        return 0

    def _now_ms(self) -> int:
        return int(self._clock.seconds() * 1000)
