"""Measures CPU of the server and its database, latency and memory during a scenario.

Law: a measurement ends when the server and PostgreSQL use almost no CPU any more, or after a time
limit. So work after the response counts too.
"""

import gc
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import perf_counter

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from bench_parts import processes
from bench_parts.profile import Profiler
from bench_parts.server import Server

QUIET_SHARE = 0.03
"""The share of a core below which a process counts as quiet."""
QUIET_WITHIN = 6.0
STEP = 0.1


@dataclass(slots=True)
class Figures:
    """The result of a scenario. Times are in milliseconds, memory in MB."""

    operations: int = 0
    seconds: float = 0.0
    cpu_ms: float = 0.0
    """CPU of server and database for one operation."""
    database_cpu_ms: float = 0.0
    """PostgreSQL's part of it."""
    per_second: float = 0.0
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    p99_ms: float = 0.0
    peak_mb: float = 0.0
    generator_share: float = 0.0
    """The share of a core used by the load generator. Near 1, rate and latency are those of the
    generator."""
    notes: dict[str, float] = field(default_factory=dict)
    """Further figures; the key names the unit."""
    profile: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Run:
    """The counts of a measurement, filled by the scenario."""

    operations: int = 0
    latencies: list[float] = field(default_factory=list)
    """In seconds."""
    notes: dict[str, float] = field(default_factory=dict)

    def add(self, seconds: float) -> None:
        """Record one operation."""
        self.operations += 1
        self.latencies.append(seconds)


class Meter:
    """Reads the CPU clocks and memory of one server and its database."""

    def __init__(
        self, clock: IReactorTime, server: Server, postgres_pid: int | None, profiler: Profiler
    ) -> None:
        self._clock = clock
        self._server = server
        self._postgres_pid = postgres_pid
        self._profiler = profiler

    def cpu(self) -> tuple[float, float]:
        """Return the seconds used so far by the server and by PostgreSQL."""
        database = 0.0 if self._postgres_pid is None else processes.cpu_seconds(self._postgres_pid)
        return processes.cpu_seconds(self._server.pid), database

    def server_pids(self) -> Sequence[int]:
        return list(processes.tree(self._server.pid))

    async def until_quiet(self) -> None:
        """Wait until server and database are quiet, for a limited time."""
        last = sum(self.cpu())
        quiet_steps = 0
        ends = perf_counter() + QUIET_WITHIN
        while quiet_steps < 2 and perf_counter() < ends:
            await deferLater(self._clock, STEP)
            now = sum(self.cpu())
            quiet_steps = quiet_steps + 1 if now - last < QUIET_SHARE * STEP else 0
            last = now

    @asynccontextmanager
    async def measure(self, name: str, figures: Figures) -> AsyncIterator[Run]:
        """Measure the body; `figures` is filled at its end."""
        await self.until_quiet()
        gc.collect()
        pids = self.server_pids()
        processes.reset_peak(pids)
        run = Run()
        with self._profiler.sample(name, self._server.pid) as profile:
            server_before, database_before = self.cpu()
            own_before = time.process_time()
            started = perf_counter()
            yield run
            seconds = perf_counter() - started
            own = time.process_time() - own_before
            await self.until_quiet()
            server, database = self.cpu()
        count = max(run.operations, 1)
        figures.operations = run.operations
        figures.seconds = seconds
        figures.database_cpu_ms = (database - database_before) * 1000 / count
        figures.cpu_ms = (server - server_before) * 1000 / count + figures.database_cpu_ms
        figures.per_second = run.operations / seconds
        figures.p50_ms, figures.p95_ms, figures.p99_ms = (
            percentile(run.latencies, share) for share in (0.5, 0.95, 0.99)
        )
        figures.peak_mb = processes.peak_memory_kb(self.server_pids()) / 1024
        figures.generator_share = own / seconds
        figures.notes = run.notes
        figures.profile = profile


def percentile(seconds: Sequence[float], share: float) -> float:
    """Return a percentile in milliseconds, or 0 without values."""
    if not seconds:
        return 0.0
    ordered = sorted(seconds)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] * 1000
