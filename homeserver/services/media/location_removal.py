"""Removes the location from photos before they are stored. Worker processes, which run
`location_worker.py`, find it; this module overwrites it.

The picture is not encoded again and no byte moves. Encrypted files do not look like pictures and
stay as they are.

An upload waits for the removal. Uploaders get fair turns and each picture has a time limit, so that
crafted pictures do not delay other users.
"""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from federation.peers.fair_semaphore import FairSemaphore, WaitLimits
from federation.protocol.errors import InvalidParam, LimitExceeded
from homeserver.services.media.location_worker import PHOTO_BRANDS
from homeserver.services.subprocesses.worker_processes import (
    WorkerDied,
    WorkerProcesses,
    WorkerStarved,
    get_cpu_seconds,
)
from storage.engine.executors import Executor, run_in
from storage.media.spool import DiskSpool

FILE_SECONDS: Final = 10.0
"""CPU time."""
SLOW_SECONDS: Final = 2.0
"""A picture that takes longer is slow."""
MAX_WAIT_SECONDS: Final = 30.0
"""The time limit for waiting in the queue; then the user is asked to try again."""
MAX_WAITING: Final = 100
MAX_WAITING_PER_USER: Final = 20
HEAD_BYTES: Final = 32
_SUPPORTED: Final = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|....ftyp", re.DOTALL)
"""The first bytes of files whose location is removed."""
_PICTURE_BRANDS: Final = re.compile(
    rb"....ftyp(?:|.{8}|.{12}|.{16}|.{20})(?:" + b"|".join(PHOTO_BRANDS) + rb")", re.DOTALL
)
_UNSUPPORTED: Final = re.compile(
    # MP4, QuickTime, and raw pictures that begin like these
    rb"....(?:ftyp|mdat)|\0...(?:moov|wide|free|skip|pnot)"
    # Matroska and WebM, AVI, ASF
    rb"|\x1aE\xdf\xa3|RIFF....AVI |\x30\x26\xb2\x75\x8e\x66\xcf\x11"
    # TIFF, and raw pictures of cameras
    rb"|II[*+]\0|MM\0[*+]|IIU\0|IIR[OS]\x08\0|MMOR\0|FUJIFILMCCD-RAW|FOVb|\0MRM"
    # GIF, PSD, JPEG 2000, JPEG XL
    rb"|GIF8[79]a|8BPS\0|\0\0\0\x0c(?:jP  |JXL )",
    re.DOTALL,
)
"""The first bytes of other files that may contain a location, which is not removed."""


class _Job(msgspec.Struct, frozen=True):
    path: str
    size: int


class _Found(msgspec.Struct, frozen=True):
    understood: bool
    patches: tuple[tuple[int, int], ...]


class LocationRemover:
    """Runs the worker processes."""

    log = Logger()

    def __init__(
        self,
        *,
        executor: Executor,
        clock: IReactorTime,
        max_concurrent: int,
        now: Callable[[], float] = time.monotonic,
        cpu_time: Callable[[int], float] = get_cpu_seconds,
        refuses_unsupported: bool = False,
    ) -> None:
        """`max_concurrent`: the number of concurrent workers, as many as the executor has threads.
        `refuses_unsupported`: refuse files that may contain a location which is not removed. `now`:
        a clock; `cpu_time`: the CPU time of a process."""
        self._refuses_unsupported = refuses_unsupported
        self._executor = executor
        script = Path(__file__).with_name("location_worker.py")
        self._processes = WorkerProcesses(
            executor=executor, script=script, seconds=FILE_SECONDS, clock=now, cpu_time_of=cpu_time
        )
        self._slots = FairSemaphore[str](
            permits=max_concurrent,
            permits_per_key=max(1, max_concurrent - 1),
            max_waiting=MAX_WAITING,
            max_waiting_per_key=MAX_WAITING_PER_USER,
            refusal=lambda _owner: LimitExceeded(
                "Many pictures are being processed to remove their location:"
                " upload this one again later",
                retry_after_ms=5000,
            ),
            wait_limits=WaitLimits(clock, slow_after=SLOW_SECONDS, max_wait=MAX_WAIT_SECONDS),
        )

    async def remove(self, body: BinaryIO, owner: str) -> None:
        """Overwrite the location in a file, and seek to its start. `owner`: the uploader.

        Raises `InvalidParam` for a picture whose metadata cannot be parsed, and with
        `refuses_unsupported` for a file that may contain a location which is not removed;
        `LimitExceeded`, OSError.
        """
        head = body.read(HEAD_BYTES)
        body.seek(0)
        if (
            self._refuses_unsupported
            and _UNSUPPORTED.match(head)
            and not _PICTURE_BRANDS.match(head)
        ):
            raise InvalidParam(
                "This server refuses files that may contain a location, and cannot remove it"
                " from files of this kind, such as videos: send a picture as JPEG, PNG, WebP, HEIC"
                " or AVIF"
            )
        if not _SUPPORTED.match(head):
            return
        async with self._slots.hold(owner):
            await self._remove(body)

    async def _remove(self, body: BinaryIO) -> None:
        path = body.path if isinstance(body, DiskSpool) else None
        upload = body.read() if path is None else b""
        try:
            line, data = await self._processes.run(
                _Job("" if path is None else str(path), len(upload)), upload
            )
        except WorkerStarved:
            self.log.warn("could not remove the location of a picture: the machine is too busy")
            raise LimitExceeded(
                "The server is too busy to remove the location of this picture: upload it again"
                " later",
                retry_after_ms=30_000,
            ) from None
        except WorkerDied:
            found = _Found(False, ())
        else:
            found = msgspec.json.decode(line, type=_Found)
        if not found.understood:
            self.log.info("refused a picture: its metadata, which may have a location, is invalid")
            raise InvalidParam(
                "The metadata of this picture, which may contain a location, is invalid; save it"
                " again and upload the result"
            )
        await run_in(self._executor, lambda: _apply_patches(body, found, data))

    def close(self) -> None:
        """End the processes, busy ones included."""
        self._processes.close()


def _apply_patches(body: BinaryIO, found: _Found, data: bytes) -> None:
    at = 0
    for start, size in found.patches:
        body.seek(start)
        body.write(data[at : at + size])
        at += size
    body.seek(0)
