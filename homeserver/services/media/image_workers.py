"""Keeps a few processes that make thumbnails, and ends those that take too long.

A process is started when there is the first work for it, and ended with the server, or after so many jobs.
"""

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec

from federation.protocol.errors import LimitExceeded
from homeserver.services.media import image_worker
from storage.executors import Executor, run_in

SECONDS_A_JOB: Final = 20.0
JOBS_A_PROCESS: Final = 500
MOST_WAITING: Final = 100
MAX_RESULT_BYTES: Final = 64 << 20


class ImageJob(msgspec.Struct, frozen=True):
    """What to make, of which file. Sizes in pixels."""

    path: str
    width: int
    height: int
    method: Literal["crop", "scale"]
    animated: bool
    max_pixels: int


class _Head(msgspec.Struct, frozen=True):
    kind: Literal["made", "original", "too large", "no image"]
    size: int
    type: str = ""


@dataclass(frozen=True, slots=True)
class ImageResult:
    """What came of a job: bytes for `made`; a type for `made` and `original`."""

    kind: Literal["made", "original", "too large", "no image"]
    type: str = ""
    data: bytes = b""


class _Died(Exception):
    """A process ended, or was ended, in the middle of a job."""


class _Worker:
    def __init__(self, clock: Callable[[], float]) -> None:
        self.jobs = 0
        self._clock = clock
        script = Path(image_worker.__file__)
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )

    def run(self, job: ImageJob) -> ImageResult:
        """Raises `_Died`."""
        self.jobs += 1
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        deadline = self._clock() + SECONDS_A_JOB
        try:
            process.stdin.write(msgspec.json.encode(job) + b"\n")
        except OSError:
            raise _Died from None
        received = bytearray()
        while (end := received.find(b"\n")) < 0:
            received += self._read(process.stdout.fileno(), deadline)
        head = msgspec.json.decode(received[:end], type=_Head)
        if head.size > MAX_RESULT_BYTES:
            raise _Died
        del received[: end + 1]
        while len(received) < head.size:
            received += self._read(process.stdout.fileno(), deadline)
        return ImageResult(head.kind, head.type, bytes(received))

    def _read(self, handle: int, deadline: float) -> bytes:
        left = deadline - self._clock()
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        if left <= 0 or not poll.poll(left * 1000):
            raise _Died
        piece = os.read(handle, 1 << 20)
        if not piece:
            raise _Died
        return piece

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


class ImageWorkers:
    """Makes thumbnails: as many at once as the executor has threads."""

    def __init__(self, executor: Executor, clock: Callable[[], float] = time.monotonic) -> None:
        self._executor = executor
        self._clock = clock
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._waiting = 0
        self._closed = False

    async def run(self, job: ImageJob) -> ImageResult:
        """Do a job. A file that ends its process, or takes too long, is no image. Raises `LimitExceeded`."""
        if self._waiting >= MOST_WAITING:
            raise LimitExceeded("Too many thumbnails are being made at this moment", retry_after_ms=2000)
        self._waiting += 1
        try:
            return await run_in(self._executor, lambda: self._run(job))
        finally:
            self._waiting -= 1

    def _run(self, job: ImageJob) -> ImageResult:
        try:
            worker = self._idle.pop()
        except IndexError:
            worker = _Worker(self._clock)
        self._busy.add(worker)
        try:
            result = worker.run(job)
        except _Died:
            worker.end()
            return ImageResult("no image")
        except BaseException:
            worker.end()
            raise
        finally:
            self._busy.discard(worker)
        if self._closed or worker.jobs >= JOBS_A_PROCESS:
            worker.end()
        else:
            self._idle.append(worker)
        return result

    def close(self) -> None:
        """End the processes, those that are at work too."""
        self._closed = True
        for worker in tuple(self._busy):
            worker.kill()
        while self._idle:
            self._idle.pop().end()
