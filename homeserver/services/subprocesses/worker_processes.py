"""Keeps a few processes for what may crash, hang or eat memory, such as decoding what strangers
send; ends those that take too long.

What a job takes is counted on the processor: by the clock everything takes long on a busy machine,
and that says nothing of what it was. A job that has not got so far after some times as long by the
clock is ended too, and told apart.

A process is a script that imports nothing of the server. On its standard input each job is a line
of JSON, and so many further bytes as the job says; on its standard output each gets a line of JSON
with `size`, and so many bytes. It is started when there is the first work for it, and ended with
the server, or after so many jobs.
"""

import os
import select
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from federation.protocol.errors import LimitExceeded
from storage.engine.executors import Executor, run_in

JOBS_A_PROCESS: Final = 500
MOST_WAITING: Final = 100
MAX_RESULT_BYTES: Final = 64 << 20
"""Unless whoever starts them says less."""
MAX_HEAD_BYTES: Final = 1 << 20
PATIENCE: Final = 6
"""How many times as long a job may take by the clock."""
SHORTEST_LOOK_MS: Final = 10
_CLOCK_OF_PROCESS: Final = 2
"""Of Linux: in the number of a clock, that it is the processor's time of a whole process
(CPUCLOCK_SCHED)."""


class WorkerDied(Exception):
    """A process ended, or was ended, in the middle of a job."""


class WorkerWasBusy(WorkerDied):
    """It was ended though the job was not given the time on the processor that it may take: the
    machine has too much to do."""


def processor_seconds(pid: int) -> float:
    """What a process has taken on the processor, all its threads together; where that cannot be
    known, what passes by the clock."""
    if sys.platform == "linux":
        with suppress(OSError):  # a kernel that is none, such as that of a sandbox, may not know it
            return time.clock_gettime((~pid << 3) | _CLOCK_OF_PROCESS)
    return time.monotonic()


class _Size(msgspec.Struct, frozen=True):
    size: int


class _Worker:
    def __init__(
        self,
        script: Path,
        seconds: float,
        clock: Callable[[], float],
        spent: Callable[[int], float],
        most: int,
    ) -> None:
        self.jobs = 0
        self._most = most
        self._seconds = seconds
        self._clock = clock
        self._spent = spent
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )

    def run(self, job: bytes) -> tuple[bytes, bytes]:
        """Raises `WorkerDied`."""
        self.jobs += 1
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        deadline = self._clock() + PATIENCE * self._seconds
        allowed = self._spent(process.pid) + self._seconds
        try:
            rest = memoryview(job)
            while rest:
                rest = rest[process.stdin.write(rest) or 0 :]
        except OSError:
            raise WorkerDied from None
        received = bytearray()
        while (end := received.find(b"\n")) < 0:
            if len(received) > MAX_HEAD_BYTES:
                raise WorkerDied
            received += self._read(process.stdout.fileno(), deadline, allowed)
        head = bytes(received[:end])
        size = msgspec.json.decode(head, type=_Size).size
        if size > self._most:
            raise WorkerDied
        del received[: end + 1]
        while len(received) < size:
            received += self._read(process.stdout.fileno(), deadline, allowed)
        return head, bytes(received)

    def _read(self, handle: int, deadline: float, allowed: float) -> bytes:
        """What comes until a moment of the clock, and until so much was taken on the processor."""
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        while True:
            left = deadline - self._clock()
            unspent = allowed - self._spent(self._process.pid)
            if unspent <= 0:
                raise WorkerDied
            if left <= 0:
                raise WorkerWasBusy
            # no more can be spent of it than passes by the clock
            if poll.poll(max(min(left, unspent) * 1000, SHORTEST_LOOK_MS)):
                break
        piece = os.read(handle, 1 << 20)
        if not piece:
            raise WorkerDied
        return piece

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


class WorkerProcesses:
    """Does jobs: as many at once as the executor has threads."""

    def __init__(
        self,
        executor: Executor,
        script: Path,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        max_result_bytes: int = MAX_RESULT_BYTES,
        spent: Callable[[int], float] = processor_seconds,
    ) -> None:
        """`seconds`: what a job may take on the processor; `spent`: what a process, by its id, has
        taken of that."""
        self._max_result_bytes = max_result_bytes
        self._executor = executor
        self._script = script
        self._seconds = seconds
        self._clock = clock
        self._spent = spent
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._waiting = 0
        self._closed = False

    async def run(self, job: object, payload: bytes = b"") -> tuple[bytes, bytes]:
        """Do a job, which is JSON; the line and the bytes that come back. Raises `WorkerDied`,
        `LimitExceeded`."""
        if self._waiting >= MOST_WAITING:
            raise LimitExceeded(
                "Too much of this is being done at this moment", retry_after_ms=2000
            )
        whole = msgspec.json.encode(job) + b"\n" + payload
        self._waiting += 1
        try:
            return await run_in(self._executor, lambda: self._run(whole))
        finally:
            self._waiting -= 1

    def _run(self, job: bytes) -> tuple[bytes, bytes]:
        try:
            worker = self._idle.pop()
        except IndexError:
            worker = _Worker(
                self._script, self._seconds, self._clock, self._spent, self._max_result_bytes
            )
        self._busy.add(worker)
        try:
            result = worker.run(job)
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
