"""Reads the CPU time and memory of process trees from Linux's /proc."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import CLOCK_PROCESS_CPUTIME_ID, clock_gettime

TICKS = os.sysconf("SC_CLK_TCK")


def tree(pid: int) -> Iterator[int]:
    """Yield the process and all its descendants."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            pids = [int(child) for child in children.read_text().split()]
        except OSError:  # the thread has ended meanwhile
            continue
        for child in pids:
            yield from tree(child)


def cpu_seconds(pid: int) -> float:
    """Return the user and system time of the tree so far, with children that have ended."""
    return sum(_own_cpu_seconds(each) + _ended_children_seconds(each) for each in tree(pid))


def _own_cpu_seconds(pid: int) -> float:
    """Return the process's own clock: utime + stime in nanoseconds instead of hundredths of a
    second."""
    clock = (~pid << 3) | CLOCK_PROCESS_CPUTIME_ID  # how Linux numbers another process's clock
    try:
        return clock_gettime(clock)
    except OSError:  # it has ended; its parent counts it from now on
        return 0.0


def _ended_children_seconds(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[13]) + int(fields[14])) / TICKS


def memory_kb(pids: Sequence[int]) -> int:
    """Return the resident memory."""
    return sum(_status(pid, "VmRSS:") for pid in pids)


def peak_memory_kb(pids: Sequence[int]) -> int:
    """Return the peak of resident memory since `reset_peak`."""
    return sum(_status(pid, "VmHWM:") for pid in pids)


def reset_peak(pids: Sequence[int]) -> None:
    """Reset the peak of resident memory."""
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status(pid: int, name: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), 0)
