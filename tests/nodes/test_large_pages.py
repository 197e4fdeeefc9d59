"""The memory of a process in large pages: which part of it is meant, and that nothing is lost when
Linux moves it."""

import subprocess
import sys

from homeserver.large_pages import find_heaps

MOVE = """
from pathlib import Path
from homeserver.large_pages import use_large_pages

kept = [str(number) * 50 for number in range(100_000)]
moved = use_large_pages()
assert kept == [str(number) * 50 for number in range(100_000)]
large = [line.split() for line in Path("/proc/self/smaps").read_text().splitlines() if line.startswith("AnonHugePages:")]
print(moved, sum(int(kilobytes) << 10 for _, kilobytes, _ in large))
"""


def test_only_writable_memory_that_belongs_to_no_file_is_moved() -> None:
    mappings = [
        "00400000-00c00000 r-xp 00000000 fe:00 1234                     /usr/bin/python3.11",
        "00c00000-01600000 rw-p 00000000 fe:00 1234                     /usr/lib/libpython 3.11.so",
        "55f000100000-55f000900000 rw-p 00000000 00:00 0                [heap]",
        "7f0000000000-7f0000400000 ---p 00000000 00:00 0",
        "7f0000400000-7f0000800000 rw-p 00000000 00:00 0",
        "7f0000900000-7f0000bff000 rw-p 00000000 00:00 0",
        "7f0001000000-7f0001800000 rw-s 00000000 00:01 77               /dev/zero (deleted)",
        "7ffe00000000-7ffe00800000 rw-p 00000000 00:00 0                [stack]",
    ]
    assert list(find_heaps(mappings)) == [
        (0x55F000200000, 0x55F000800000),
        (0x7F0000400000, 0x7F0000800000),
    ]


def test_a_process_keeps_what_it_has_and_tells_what_was_moved() -> None:
    """Where the system does not move anything, both numbers are 0."""
    run = subprocess.run([sys.executable, "-c", MOVE], check=True, capture_output=True, text=True)
    moved, large = map(int, run.stdout.split())
    assert 0 <= moved <= large
