"""Ports for servers that tests start.

They lie below those that the system gives to connections, and each process of the suite has some of
its own: a port that is free when it is chosen is free still when the server listens.
"""

import os
import socket
from collections.abc import Iterator
from itertools import count
from typing import Final

FIRST: Final = 12_000
OF_ONE_WORKER: Final = 1000
WORKERS: Final = 20

_NUMBERS: Final[Iterator[int]] = count(os.getpid() * 101)
"""Runs that were started one after the other, and so have numbers side by side, do not try the same
ports."""


def free_port() -> int:
    """One on which nobody listens, and which nobody here was given of late."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % WORKERS
    for _ in range(OF_ONE_WORKER):
        port = FIRST + worker * OF_ONE_WORKER + next(_NUMBERS) % OF_ONE_WORKER
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")
