"""Samples the server with py-spy during a scenario, and reports the functions with the most
time."""

import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

SHOWN = 30
OWN_PACKAGES = ("(homeserver/", "(federation/", "(storage/")
RATE = 500
MISSING = "--profile needs py-spy: pip install py-spy"


class Profiler:
    """Profiles the named scenarios; others run undisturbed."""

    def __init__(self, scenarios: Sequence[str]) -> None:
        self._scenarios = scenarios
        installed = Path(sys.executable).with_name("py-spy")
        self._command = str(installed) if installed.exists() else shutil.which("py-spy")
        if scenarios and self._command is None:
            sys.exit(MISSING)

    @contextmanager
    def sample(self, name: str, pid: int) -> Iterator[list[str]]:
        """Sample during the body. The list holds the lines of the report afterwards."""
        lines: list[str] = []
        if name not in self._scenarios or self._command is None:
            yield lines
            return
        with tempfile.NamedTemporaryFile() as output:
            command = [
                self._command,
                "record",
                "--gil",
                "--nonblocking",
                "--function",
                "--format",
                "raw",
                "--rate",
                str(RATE),
            ]
            with subprocess.Popen(
                [*command, "--duration", "600", "--output", output.name, "--pid", str(pid)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            ) as sampler:
                try:
                    yield lines
                finally:
                    sampler.send_signal(signal.SIGINT)
            lines.extend(summarise(Path(output.name).read_text()))


def summarise(stacks: str) -> list[str]:
    """Return the most expensive functions, by their own time and (ours only) with their callees.
    `stacks` is py-spy's raw format."""
    own: Counter[str] = Counter()
    inclusive: Counter[str] = Counter()
    total = 0
    for line in stacks.splitlines():
        stack, _, samples = line.rpartition(" ")
        frames = stack.split(";")
        total += int(samples)
        own[frames[-1]] += int(samples)
        inclusive.update(
            {
                frame: int(samples)
                for frame in frames
                if any(package in frame for package in OWN_PACKAGES)
            }
        )
    lines = [f"{total} samples at {RATE} a second"]
    for title, counts in (("itself", own), ("with what it calls", inclusive)):
        lines.append(f"{title}:")
        lines.extend(
            f"  {100 * count / total:5.1f} %  {frame}" for frame, count in counts.most_common(SHOWN)
        )
    return lines
