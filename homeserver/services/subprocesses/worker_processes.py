"""A pool of worker processes for jobs that may crash, hang or use too much memory, such as decoding
untrusted files. Kills processes that take too long.

The time limit of a job counts CPU time: elapsed time says little on a busy machine. A second,
higher limit counts elapsed time. If a job exceeds it, the process is killed too, and the error is
`WorkerStarved`.

A process is a script that imports nothing of the server. Each job on its standard input is a line
of JSON, followed by as many bytes as the job says. Each result on its standard output is a line of
JSON with `size`, followed by that many bytes. A process is started when a job finds no idle one. It
ends after JOBS_PER_PROCESS jobs, or when the server stops.
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

JOBS_PER_PROCESS: Final = 500
MAX_WAITING: Final = 100
MAX_RESULT_BYTES: Final = 64 << 20
"""The default limit of a result."""
MAX_HEAD_BYTES: Final = 1 << 20
ELAPSED_TIME_FACTOR: Final = 6
"""The limit of elapsed time, as a multiple of the limit of CPU time."""
MIN_POLL_MS: Final = 10
_CPUCLOCK_SCHED: Final = 2
"""Linux: the part of a clock ID that selects the CPU time of a process."""


class WorkerDied(Exception):
    """A process died or was killed during a job."""


class WorkerStarved(WorkerDied):
    """A process was killed before its job used up its CPU time: the machine is overloaded."""


def get_cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process with all its threads, or elapsed time if the platform does
    not tell it."""
    if sys.platform == "linux":
        with suppress(OSError):  # the kernel of a sandbox may not support it
            return time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
    return time.monotonic()


class _Size(msgspec.Struct, frozen=True):
    size: int


class _Worker:
    """One process."""

    def __init__(
        self,
        *,
        script: Path,
        seconds: float,
        clock: Callable[[], float],
        cpu_time_of: Callable[[int], float],
        max_result_bytes: int,
    ) -> None:
        self.jobs = 0
        self._max_result_bytes = max_result_bytes
        self._seconds = seconds
        self._clock = clock
        self._cpu_time_of = cpu_time_of
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
        )

    def run(self, job: bytes) -> tuple[bytes, bytes]:
        """Run a job; return the line and the bytes of its result. Raises `WorkerDied`."""
        self.jobs += 1
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        deadline = self._clock() + ELAPSED_TIME_FACTOR * self._seconds
        allowed = self._cpu_time_of(process.pid) + self._seconds
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
        if size > self._max_result_bytes:
            raise WorkerDied
        del received[: end + 1]
        while len(received) < size:
            received += self._read(process.stdout.fileno(), deadline, allowed)
        return head, bytes(received)

    def _read(self, handle: int, deadline: float, allowed: float) -> bytes:
        """Read output until the deadline in elapsed time, and the limit in CPU time. Raises
        `WorkerDied`."""
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        while True:
            left = deadline - self._clock()
            cpu_left = allowed - self._cpu_time_of(self._process.pid)
            if cpu_left <= 0:
                raise WorkerDied
            if left <= 0:
                raise WorkerStarved
            # CPU time does not grow faster than elapsed time
            if poll.poll(max(min(left, cpu_left) * 1000, MIN_POLL_MS)):
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
    """Runs jobs in processes: as many at once as the executor has threads."""

    def __init__(
        self,
        *,
        executor: Executor,
        script: Path,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        max_result_bytes: int = MAX_RESULT_BYTES,
        cpu_time_of: Callable[[int], float] = get_cpu_seconds,
    ) -> None:
        """`seconds`: the limit of a job in CPU time; `cpu_time_of`: returns the CPU time of a
        process by its ID."""
        self._max_result_bytes = max_result_bytes
        self._executor = executor
        self._script = script
        self._seconds = seconds
        self._clock = clock
        self._cpu_time_of = cpu_time_of
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._waiting = 0
        self._closed = False

    async def run(self, job: object, payload: bytes = b"") -> tuple[bytes, bytes]:
        """Run a job, which is encoded as JSON; return the line and the bytes of its result. Raises
        `WorkerDied`, `LimitExceeded`."""
        if self._waiting >= MAX_WAITING:
            raise LimitExceeded("The server is busy with such requests now", retry_after_ms=2000)
        request = msgspec.json.encode(job) + b"\n" + payload
        self._waiting += 1
        try:
            return await run_in(self._executor, lambda: self._run(request))
        finally:
            self._waiting -= 1

    def _run(self, job: bytes) -> tuple[bytes, bytes]:
        try:
            worker = self._idle.pop()
        except IndexError:
            worker = _Worker(
                script=self._script,
                seconds=self._seconds,
                clock=self._clock,
                cpu_time_of=self._cpu_time_of,
                max_result_bytes=self._max_result_bytes,
            )
        self._busy.add(worker)
        try:
            result = worker.run(job)
        except BaseException:
            worker.end()
            raise
        finally:
            self._busy.discard(worker)
        if self._closed or worker.jobs >= JOBS_PER_PROCESS:
            worker.end()
        else:
            self._idle.append(worker)
        return result

    def close(self) -> None:
        """Kill all processes, also those with a job."""
        self._closed = True
        for worker in tuple(self._busy):
            worker.kill()
        while self._idle:
            self._idle.pop().end()
