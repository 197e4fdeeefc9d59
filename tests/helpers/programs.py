"""Starts programs of this server as separate processes, quickly: each is forked from
tests/helpers/ready_process.py.

    program = start_program("homeserver", "run", "-c", "homeserver.yaml", output=file)
    program.kill(); program.wait()
    made = run_program("homeserver", "create-user", "anna", given="a password\n")

tests/commands/test_command_line.py tests a normal start.
"""

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import msgspec

from tests.helpers.ready_process import Order

ROOT = Path(__file__).parents[2]


class Program:
    """A started process, with the part of the interface of `subprocess.Popen` that tests need."""

    def __init__(self, pid: int, report: IO[bytes]) -> None:
        """`report`: the pipe from which the exit code is read."""
        self.pid = pid
        self.returncode: int | None = None
        self._report = report
        self._reports = select.poll()
        self._reports.register(report, select.POLLIN)

    def poll(self) -> int | None:
        """Return the exit code, or None while the process runs."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the process; return its exit code. Raises `subprocess.TimeoutExpired`."""
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired([str(self.pid)], timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has just ended; the report is not read yet
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _look(self, seconds: float | None) -> int | None:
        if self.returncode is None and self._reports.poll(
            None if seconds is None else seconds * 1000
        ):
            line = self._report.readline()
            assert line, "the process that reports exit codes has ended"
            self.returncode = int(line)
            self._report.close()
        return self.returncode


def start_program(
    module: str,
    *arguments: str,
    output: IO[bytes] | None = None,
    errors: IO[bytes] | None = None,
    input: IO[bytes] | None = None,
) -> Program:
    """Start `python -m MODULE ARGUMENTS…` in ROOT. Its stderr goes to `errors`, or to `output` like
    its stdout."""
    with (
        _descriptor(input) as standard_in,
        _descriptor(output) as standard_out,
        _descriptor(errors or output) as standard_error,
    ):
        reading, writing = os.pipe()
        report = os.fdopen(reading, "rb", buffering=0)
        try:
            order = Order(module, list(arguments), str(ROOT), dict(os.environ))
            given = [standard_in, standard_out, standard_error, writing]
            socket.send_fds(_ready()[0], [msgspec.json.encode(order)], given)
        finally:
            os.close(writing)
    line = report.readline()
    assert line, "the process that forks programs has ended"
    return Program(int(line), report)


def run_program(
    module: str, *arguments: str, given: str = "", timeout: float
) -> subprocess.CompletedProcess[str]:
    """Run `python -m MODULE ARGUMENTS…` in ROOT to its end. Raises `subprocess.TimeoutExpired` and
    kills it after `timeout` seconds."""
    with TemporaryFile() as input, TemporaryFile() as output, TemporaryFile() as errors:
        input.write(given.encode())
        input.seek(0)
        program = start_program(module, *arguments, input=input, output=output, errors=errors)
        try:
            code = program.wait(timeout)
        finally:
            program.kill()
        said = []
        for file in (output, errors):
            file.seek(0)
            said.append(file.read().decode())
    return subprocess.CompletedProcess([module, *arguments], code, *said)


@contextmanager
def piped_program(
    module: str, *arguments: str, input: IO[bytes] | None = None
) -> Iterator[tuple[Program, IO[str]]]:
    """Run `python -m MODULE ARGUMENTS…` in ROOT while the context is open, then kill it. Yields the
    process and its stdout. Its stderr is that of this process."""
    reading, writing = os.pipe()
    with os.fdopen(reading, encoding="utf-8") as output:
        with os.fdopen(writing, "wb") as into, os.fdopen(os.dup(2), "wb") as errors:
            program = start_program(module, *arguments, output=into, errors=errors, input=input)
        try:
            yield program, output
        finally:
            program.kill()
            program.wait()


@contextmanager
def _descriptor(file: IO[bytes] | None) -> Iterator[int]:
    """Yield the descriptor of a file, or of /dev/null."""
    if file is not None:
        yield file.fileno()
        return
    with open(os.devnull, "r+b", buffering=0) as nothing:
        yield nothing.fileno()


@cache
def _ready() -> tuple[socket.socket, "subprocess.Popen[bytes]"]:
    """Return the process that forks the programs, and its control socket. The first call starts it;
    it ends with this process."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.helpers.ready_process"], cwd=ROOT, stdin=theirs.fileno()
        )
    return ours, process
