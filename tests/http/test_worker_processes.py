"""Processes that do what strangers may have made dear: each job has so much time on the processor,
and a machine that is busy is no fault of a file."""

import time
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path

import msgspec
import pytest

from homeserver.services.subprocesses.worker_processes import (
    PATIENCE,
    WorkerDied,
    WorkerProcesses,
    WorkerWasBusy,
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
    """Seconds by the clock, and on the processor."""

    waits: float = 0.0
    works: float = 0.0


@pytest.fixture
def processes(tmp_path: Path, clock: Callable[[], float]) -> WorkerProcesses:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    return WorkerProcesses(InlineExecutor(), script, SECONDS, clock)


@pytest.fixture
def clock() -> Callable[[], float]:
    """One that stands still, as other work on this machine is nothing to these tests."""
    return lambda: 0.0


async def test_a_job_that_has_to_wait_is_done(processes: WorkerProcesses) -> None:
    """As on a machine where others work: much time goes by, and it is not the job that takes it."""
    for _ in range(2):
        assert (await processes.run(Job(waits=2 * SECONDS)))[1] == b"ok"
    assert (await processes.run(Job(works=SECONDS / 4)))[1] == b"ok"
    assert (await processes.run(Job(works=SECONDS / 4)))[1] == b"ok", "each has as much"
    processes.close()


async def test_a_job_that_takes_too_much_is_ended(processes: WorkerProcesses) -> None:
    began = time.monotonic()
    with pytest.raises(WorkerDied) as raised:
        await processes.run(Job(works=100.0))
    assert not isinstance(raised.value, WorkerWasBusy)
    assert time.monotonic() - began >= SECONDS
    assert (await processes.run(Job()))[1] == b"ok", "others go on"
    processes.close()


@pytest.mark.parametrize("clock", [partial(next, count(0, PATIENCE * SECONDS))])
async def test_a_job_that_is_not_done_in_a_long_time_says_nothing_of_what_it_was(
    processes: WorkerProcesses,
) -> None:
    with pytest.raises(WorkerWasBusy):
        await processes.run(Job(waits=100.0))
    processes.close()
