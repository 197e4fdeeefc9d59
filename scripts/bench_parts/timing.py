"""Measures the CPU of a function in this process: the best of several rounds."""

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
    """Print the CPU of one call; each round makes `times` calls."""
    work()  # warm up
    found = []
    for _ in range(rounds):
        started = time.process_time()
        for _ in range(times):
            work()
        found.append((time.process_time() - started) / times)
    unit_name, per_second = unit
    sys.stdout.write(f"{name:<60} {min(found) * per_second:>10.2f} {unit_name}\n")
