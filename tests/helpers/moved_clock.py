"""Runs a Twisted program whose clock can be advanced: SIGUSR2 adds STEP seconds.

    python -P tests/helpers/moved_clock.py homeserver run -c homeserver.yaml
    python -P tests/helpers/moved_clock.py synapse.app.homeserver -c homeserver.yaml

Timers that became due fire at once, so tests of long outages are fast. Both servers' interpreters
run this file, so it imports only Twisted. `-P` keeps modules next to it from shadowing the standard
library.
"""

import os
import runpy
import signal
import sys
import time
from typing import Final

from twisted.internet.base import ReactorBase

STEP: Final = 10.0


def run(arguments: list[str]) -> None:
    """Run a module as a program, with its arguments."""
    passed = 0.0

    def move(_signal: int, _frame: object) -> None:
        nonlocal passed
        passed += STEP

    ReactorBase.seconds = staticmethod(lambda: time.time() + passed)
    signal.signal(signal.SIGUSR2, move)
    sys.argv = arguments
    runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    sys.path.insert(0, os.getcwd())  # as `python -m` does
    run(sys.argv[1:])
