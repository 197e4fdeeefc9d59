"""What a piece of work costs this process: the best of some rounds."""

import sys
import time
from collections.abc import Callable

MILLISECOND, MICROSECOND = ("ms", 1e3), ("µs", 1e6)


def best(
    name: str,
    times: int,
    work: Callable[[], object],
    *,
    rounds: int = 5,
    unit: tuple[str, float] = MICROSECOND,
) -> None:
    """Say what one costs in CPU; each round does it so many times."""
    work()  # what is made once is made
    found = []
    for _ in range(rounds):
        started = time.process_time()
        for _ in range(times):
            work()
        found.append((time.process_time() - started) / times)
    called, in_a_second = unit
    sys.stdout.write(f"{name:<60} {min(found) * in_a_second:>10.2f} {called}\n")
