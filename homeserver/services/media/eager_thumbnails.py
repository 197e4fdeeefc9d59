"""Thumbnails that are made before anybody asks: in the background, a picture of each who uploads at
a time, by turns among them.

What cannot be made, or has no room to wait, is made when somebody asks. spec:
client-server-api#thumbnails
"""

from collections.abc import Sequence
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.peers.fair_semaphore import FairSemaphore, Waits
from federation.protocol.errors import LimitExceeded, MatrixError
from homeserver.services.media.repository import LONGEST_WAIT_MS
from homeserver.services.media.thumbnails import SLOW_SECONDS, Thumbnails, ThumbnailSize
from homeserver.services.scanning.gate import ScanGate
from storage.media.media import Content

SPECIFIED_SIZES: Final = (
    ThumbnailSize(32, 32, "crop"),
    ThumbnailSize(96, 96, "crop"),
    ThumbnailSize(320, 240, "scale"),
    ThumbnailSize(640, 480, "scale"),
    ThumbnailSize(800, 600, "scale"),
)
MOST_WAITING: Final = 100
MOST_WAITING_OF_ONE: Final = 20


class EarlyThumbnails:
    """Makes them."""

    log = Logger()

    def __init__(
        self,
        thumbnails: Thumbnails,
        gate: ScanGate,
        clock: IReactorTime,
        sizes: Sequence[ThumbnailSize],
        at_once: int,
        *,
        programs: bool,
    ) -> None:
        """`at_once`: as of `thumbnails`. `programs`: also of films and documents, out of which
        other programs take pictures."""
        self._thumbnails = thumbnails
        self._gate = gate
        self._sizes = sizes
        self._types = ("image/", "video/", "application/pdf") if programs else ("image/",)
        self._turns = FairSemaphore[str](
            at_once,
            max(1, at_once - 1),
            max_waiting=MOST_WAITING,
            max_waiting_per_key=MOST_WAITING_OF_ONE,
            refusal=lambda _owner: LimitExceeded("Many pictures have come"),
            waits=Waits(clock, slow_after=SLOW_SECONDS),
        )

    def begin(self, content: Content, whose: str) -> None:
        """A file has come; its thumbnails are made soon, if there can be any, and there is room."""
        if content.type.lower().startswith(self._types):
            Deferred.fromCoroutine(self._make(content, whose)).addErrback(
                lambda failure: self.log.failure(
                    "cannot make the thumbnails of a file that has come", failure
                )
            )

    async def _make(self, content: Content, whose: str) -> None:
        try:
            await self._gate.check(
                "local", content, LONGEST_WAIT_MS, whose
            )  # before anything decodes it
            async with self._turns.hold(whose):
                for size in self._sizes:
                    made = await self._thumbnails.get(content, *size, whose, whose, animated=False)
                    if made.file is not None:
                        made.file.source.close()
        except MatrixError as error:
            self.log.debug("no thumbnails of a file that has come: {error}", error=error.text)
