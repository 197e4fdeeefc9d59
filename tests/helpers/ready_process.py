"""A process with the server's modules imported, which forks into any program of the server on
demand.

    python -m tests.helpers.ready_process   # its standard input is a Unix socket;
    tests/helpers/programs.py talks to it

Imports take a second of CPU time, and some tests start the server twenty times. For each order the
process forks. The child has its own stdin, stdout and stderr and no other open descriptors, and
continues as `python -m MODULE ARGUMENTS…`. The reactor is not imported before the fork, since its
descriptors cannot be shared.
"""

import gc
import os
import runpy
import select
import socket
import sys
import threading
from contextlib import suppress
from typing import Final

import msgspec

import homeserver.app
import homeserver.commands.process
import homeserver.commands.setup
import storage.maintenance.copy

IMPORTED: Final = (
    homeserver.app,
    homeserver.commands.setup,
    homeserver.commands.process,
    storage.maintenance.copy,
)
"""Modules that import all others, except the reactor."""
MAX_ORDER: Final = 200_000
DESCRIPTORS: Final = 4


class Order(msgspec.Struct, frozen=True):
    """A program to run. Four descriptors come with it: stdin, stdout, stderr and a report pipe. The
    report is a line with the process ID, and a line with the exit code as in `subprocess`."""

    module: str
    arguments: list[str]
    folder: str
    environment: dict[str, str]


def serve(control: socket.socket) -> Order | None:
    """Serve orders until the control socket closes; then return None. In each child, return its
    order."""
    running: dict[int, tuple[int, int]] = {}
    events = select.poll()
    events.register(control, select.POLLIN)
    while True:
        for descriptor, _ in events.poll():
            if descriptor in running:
                events.unregister(descriptor)
                pid, report = running.pop(descriptor)
                _report(report, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                os.close(report)
                os.close(descriptor)
                continue
            message, given, _, _ = socket.recv_fds(control, MAX_ORDER, DESCRIPTORS)
            if not message:
                return None
            pid = os.fork()
            if not pid:
                control.detach()
                for standard, mine in enumerate(given[:3]):
                    os.dup2(mine, standard)
                os.closerange(3, os.sysconf("SC_OPEN_MAX"))
                return msgspec.json.decode(message, type=Order)
            *standards, report = given
            for each in standards:
                os.close(each)
            _report(report, pid)
            watched = os.pidfd_open(pid)
            running[watched] = pid, report
            events.register(watched, select.POLLIN)


def _report(report: int, number: int) -> None:
    with suppress(BrokenPipeError):  # the parent is gone
        os.write(report, b"%d\n" % number)


def become(order: Order) -> None:
    """Run the program of the order in this process."""
    os.chdir(order.folder)
    os.environ.clear()
    os.environ.update(order.environment)
    sys.argv = [order.module, *order.arguments]
    runpy.run_module(order.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    assert "twisted.internet.reactor" not in sys.modules
    assert threading.active_count() == 1
    gc.collect()
    gc.freeze()
    received = serve(socket.socket(fileno=0))
    if received is not None:
        become(received)
