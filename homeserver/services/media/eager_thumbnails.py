"""Makes thumbnails of new uploads in the background, before they are requested. Uploaders get fair
turns.

If the queue is full or an attempt fails, the thumbnails are made on request.

spec: client-server-api#thumbnails
"""

from collections.abc import Sequence
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.peers.fair_semaphore import FairSemaphore, WaitLimits
from federation.protocol.errors import LimitExceeded, MatrixError
from homeserver.services.media.repository import MAX_WAIT_MS
from homeserver.services.media.thumbnails import SLOW_SECONDS, Thumbnails, ThumbnailSize
from homeserver.services.scanning.gate import ScanGate
from storage.media.media import MediaContent

SPECIFIED_SIZES: Final = (
    ThumbnailSize(32, 32, "crop"),
    ThumbnailSize(96, 96, "crop"),
    ThumbnailSize(320, 240, "scale"),
    ThumbnailSize(640, 480, "scale"),
    ThumbnailSize(800, 600, "scale"),
)
MAX_WAITING: Final = 100
MAX_WAITING_PER_USER: Final = 20


class EagerThumbnails:
    """Makes thumbnails of new uploads."""

    log = Logger()

    def __init__(
        self,
        *,
        thumbnails: Thumbnails,
        gate: ScanGate,
        clock: IReactorTime,
        sizes: Sequence[ThumbnailSize],
        max_concurrent: int,
        programs: bool,
    ) -> None:
        """`max_concurrent`: as for `thumbnails`. `programs`: also make thumbnails of videos and
        documents with external programs."""
        self._thumbnails = thumbnails
        self._gate = gate
        self._sizes = sizes
        self._types = ("image/", "video/", "application/pdf") if programs else ("image/",)
        self._slots = FairSemaphore[str](
            permits=max_concurrent,
            permits_per_key=max(1, max_concurrent - 1),
            max_waiting=MAX_WAITING,
            max_waiting_per_key=MAX_WAITING_PER_USER,
            refusal=lambda _owner: LimitExceeded("Many pictures were uploaded"),
            wait_limits=WaitLimits(clock, slow_after=SLOW_SECONDS),
        )

    def schedule(self, content: MediaContent, owner: str) -> None:
        """Schedule the thumbnails of a new file, if it can have any and the queue has room."""
        if content.type.lower().startswith(self._types):
            Deferred.fromCoroutine(self._make(content, owner)).addErrback(
                lambda failure: self.log.failure(
                    "cannot make the thumbnails of a new file", failure
                )
            )

    async def _make(self, content: MediaContent, owner: str) -> None:
        try:
            # a file is scanned before anything decodes it
            await self._gate.check("local", content, MAX_WAIT_MS, owner)
            async with self._slots.hold(owner):
                for size in self._sizes:
                    thumbnail = await self._thumbnails.get(
                        content, *size, owner, owner, animated=False
                    )
                    if thumbnail.file is not None:
                        thumbnail.file.source.close()
        except MatrixError as error:
            self.log.debug("no thumbnails of a new file: {error}", error=error.text)
