"""Worker processes for untrusted input: each job has a limit of CPU time, and a busy machine does
not count against a file."""

import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import msgspec
import pytest

from homeserver.services.subprocesses.worker_processes import (
    ELAPSED_TIME_FACTOR,
    WorkerDied,
    WorkerProcesses,
    WorkerStarved,
)
from storage.engine.executors import InlineExecutor

SECONDS = 0.4
SCRIPT = """
import json, sys, time
for line in sys.stdin.buffer:
    job = json.loads(line)
    time.sleep(job["waits"])
    ends = time.process_time() + job["works"]
    while time.process_time() < ends:
        pass
    sys.stdout.buffer.write(b'{"size":2}\\nok')
    sys.stdout.buffer.flush()
"""


class Job(msgspec.Struct):
    """Seconds of elapsed time and of CPU time."""

    waits: float = 0.0
    works: float = 0.0


@pytest.fixture
def processes(tmp_path: Path, clock: Callable[[], float]) -> WorkerProcesses:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    return WorkerProcesses(executor=InlineExecutor(), script=script, seconds=SECONDS, clock=clock)


@pytest.fixture
def clock() -> Callable[[], float]:
    """A clock that stands still: other load of this machine must not affect these tests."""
    return lambda: 0.0


async def test_a_job_that_waits_for_the_cpu_is_completed(processes: WorkerProcesses) -> None:
    """As on a busy machine: much time passes, but the job does not use it."""
    for _ in range(2):
        assert (await processes.run(Job(waits=2 * SECONDS)))[1] == b"ok"
    assert (await processes.run(Job(works=SECONDS / 4)))[1] == b"ok"
    assert (await processes.run(Job(works=SECONDS / 4)))[1] == b"ok", "each job has the same limit"
    processes.close()


async def test_a_job_that_uses_too_much_cpu_time_is_killed(processes: WorkerProcesses) -> None:
    began = time.monotonic()
    with pytest.raises(WorkerDied) as raised:
        await processes.run(Job(works=100.0))
    assert not isinstance(raised.value, WorkerStarved)
    assert time.monotonic() - began >= SECONDS
    assert (await processes.run(Job()))[1] == b"ok", "other jobs continue"
    processes.close()


@pytest.mark.parametrize("clock", [partial(next, count(0, ELAPSED_TIME_FACTOR * SECONDS))])
async def test_a_job_without_progress_for_long_is_not_blamed_on_its_input(
    processes: WorkerProcesses,
) -> None:
    with pytest.raises(WorkerStarved):
        await processes.run(Job(waits=100.0))
    processes.close()
