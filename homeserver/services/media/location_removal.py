"""Takes out of a photograph where it was taken, before it is kept: in processes of their own, what
runs in them is `location_worker`.

The picture is not made anew, and no byte of it moves; what says the place is overwritten. Encrypted
files do not begin as pictures do, and are left as they are.

Whoever uploads waits for it, so pictures have turns among those who upload them, and each so much
time: those that were made to take long keep nobody else's waiting.
"""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.peers.fair_semaphore import FairSemaphore, Waits
from federation.protocol.errors import InvalidParam, LimitExceeded
from homeserver.services.media.location_worker import PHOTO_BRANDS
from homeserver.services.subprocesses.worker_processes import (
    WorkerDied,
    WorkerProcesses,
    WorkerWasBusy,
    processor_seconds,
)
from storage.engine.executors import Executor, run_in
from storage.media.spool import DiskSpool

SECONDS_A_FILE: Final = 10.0
"""On the processor."""
SLOW_SECONDS: Final = 2.0
"""Whose picture takes longer is slow."""
LONGEST_WAIT_SECONDS: Final = 30.0
"""For a turn; then who uploads is told to try again."""
MOST_WAITING: Final = 100
MOST_WAITING_OF_ONE: Final = 20
HEAD_BYTES: Final = 32
_LOOKED_AT: Final = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|....ftyp", re.DOTALL)
"""How those begin out of which a place is taken."""
_PICTURE_BRANDS: Final = re.compile(
    rb"....ftyp(?:|.{8}|.{12}|.{16}|.{20})(?:" + b"|".join(PHOTO_BRANDS) + rb")", re.DOTALL
)
_OTHERS: Final = re.compile(
    rb"....(?:ftyp|mdat)|\0...(?:moov|wide|free|skip|pnot)"  # MP4, QuickTime, and raw pictures that begin like these
    rb"|\x1aE\xdf\xa3|RIFF....AVI |\x30\x26\xb2\x75\x8e\x66\xcf\x11"  # Matroska and WebM, AVI, ASF
    rb"|II[*+]\0|MM\0[*+]|IIU\0|IIR[OS]\x08\0|MMOR\0|FUJIFILMCCD-RAW|FOVb|\0MRM"  # TIFF, and raw pictures of cameras
    rb"|GIF8[79]a|8BPS\0|\0\0\0\x0c(?:jP  |JXL )",  # GIF, PSD, JPEG 2000, JPEG XL
    re.DOTALL,
)
"""How those begin that may say a place too, which is not taken out."""


class _Job(msgspec.Struct, frozen=True):
    path: str
    size: int


class _Found(msgspec.Struct, frozen=True):
    understood: bool
    patches: tuple[tuple[int, int], ...]


class PhotoLocations:
    """The processes."""

    log = Logger()

    def __init__(
        self,
        executor: Executor,
        clock: IReactorTime,
        at_once: int,
        now: Callable[[], float] = time.monotonic,
        spent: Callable[[int], float] = processor_seconds,
        *,
        refuses_others: bool = False,
    ) -> None:
        """`at_once`: how many are looked at at the same time, as many as the executor has threads.
        `refuses_others`: files are refused that may say a place which is not taken out. `now`: a
        clock; `spent`: what a process has taken on the processor."""
        self._refuses_others = refuses_others
        self._executor = executor
        script = Path(__file__).with_name("location_worker.py")
        self._processes = WorkerProcesses(executor, script, SECONDS_A_FILE, now, spent=spent)
        self._turns = FairSemaphore[str](
            at_once,
            max(1, at_once - 1),
            max_waiting=MOST_WAITING,
            max_waiting_per_key=MOST_WAITING_OF_ONE,
            refusal=lambda _owner: LimitExceeded(
                "Many pictures are being looked at, for where they were taken: upload this one again in a while",
                retry_after_ms=5000,
            ),
            waits=Waits(clock, slow_after=SLOW_SECONDS, longest=LONGEST_WAIT_SECONDS),
        )

    async def remove(self, body: BinaryIO, whose: str) -> None:
        """Overwrite in a file what says where it was taken, and leave it at its beginning. `whose`:
        who uploads it.

        Raises `InvalidParam` for a picture whose notes cannot be understood, and where it
        `refuses_others`; `LimitExceeded`, OSError.
        """
        head = body.read(HEAD_BYTES)
        body.seek(0)
        if self._refuses_others and _OTHERS.match(head) and not _PICTURE_BRANDS.match(head):
            raise InvalidParam(
                "This server keeps no files that may say where they were taken, and cannot take that out of files of this kind, such as "
                "films: send a picture as JPEG, PNG, WebP, HEIC or AVIF"
            )
        if not _LOOKED_AT.match(head):
            return
        async with self._turns.hold(whose):
            await self._remove(body)

    async def _remove(self, body: BinaryIO) -> None:
        path = body.path if isinstance(body, DiskSpool) else None
        sent = body.read() if path is None else b""
        try:
            line, data = await self._processes.run(
                _Job("" if path is None else str(path), len(sent)), sent
            )
        except WorkerWasBusy:
            self.log.warn(
                "a picture was not looked at, for where it was taken: the machine is too busy"
            )
            raise LimitExceeded(
                "The server is too busy to look at this picture, for where it was taken: upload it again in a while",
                retry_after_ms=30_000,
            ) from None
        except WorkerDied:
            found = _Found(False, ())
        else:
            found = msgspec.json.decode(line, type=_Found)
        if not found.understood:
            self.log.info(
                "a picture was refused: its notes, which may say where it was taken, cannot be understood"
            )
            raise InvalidParam(
                "The notes in this picture, which may say where it was taken, cannot be understood; save it anew, and upload that"
            )
        await run_in(self._executor, lambda: _put(body, found, data))

    def close(self) -> None:
        """End the processes, those that are at work too."""
        self._processes.close()


def _put(body: BinaryIO, found: _Found, data: bytes) -> None:
    at = 0
    for start, size in found.patches:
        body.seek(start)
        body.write(data[at : at + size])
        at += size
    body.seek(0)
