"""A process that has the server's modules imported, and becomes any of its programs whenever it is
told to.

    python -m tests.helpers.ready_process   # its standard input is a Unix socket;
    tests/helpers/programs.py talks to it

Importing takes a second of the processor's time, and some tests start the server twenty times. For
each order it forks; the child has its own standard input, output and error and nothing else that is
open, and goes on as `python -m MODULE ARGUMENTS…` does. The reactor is not imported before that:
what it opens cannot be shared.
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
"""Modules that import everything else, except for the reactor."""
MAX_ORDER: Final = 200_000
DESCRIPTORS: Final = 4


class Order(msgspec.Struct, frozen=True):
    """The program to become. Four descriptors come with it: input, output, errors, and a pipe for
    reports. A report is a line with the process id, and at the end one with the exit code, as in
    `subprocess`."""

    module: str
    arguments: list[str]
    folder: str
    environment: dict[str, str]


def serve(control: socket.socket) -> Order | None:
    """Do what is ordered, until nobody is there to order anything; None then. In each child: its
    order."""
    running: dict[int, tuple[int, int]] = {}
    events = select.poll()
    events.register(control, select.POLLIN)
    while True:
        for descriptor, _ in events.poll():
            if descriptor in running:
                events.unregister(descriptor)
                pid, report = running.pop(descriptor)
                _say(report, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
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
            _say(report, pid)
            watched = os.pidfd_open(pid)
            running[watched] = pid, report
            events.register(watched, select.POLLIN)


def _say(report: int, number: int) -> None:
    with suppress(BrokenPipeError):  # the process that started it is gone
        os.write(report, b"%d\n" % number)


def become(order: Order) -> None:
    """Run the program."""
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
