"""Runs a program on Twisted whose time can be moved on: whenever it gets SIGUSR2, STEP seconds more
have passed for it.

    python -P tests/helpers/moved_clock.py homeserver run -c homeserver.yaml
    python -P tests/helpers/moved_clock.py synapse.app.homeserver -c homeserver.yaml

What was to be done meanwhile is done at once, so that outages of many minutes take none. It is run
by the interpreter of either server's environment, and so knows nothing but Twisted; with `-P`,
since beside it lie names of the standard library.
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
