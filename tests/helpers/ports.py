"""Allocates ports for servers that tests start.

The ports are below the system's ephemeral range, and each process of the suite has a range of its
own. So a port that is free when it is chosen is still free when the server listens.
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
"""Starts at a multiple of the process ID, so that consecutive runs try different ports."""


def free_port() -> int:
    """Return a port that is free and was not returned recently in this process."""
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
