"""Runs the scenarios one after another against a server of its own; see `scripts/bench --help`."""

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from time import perf_counter

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.error import ConnectError
from twisted.internet.main import installReactor
from twisted.internet.task import react

from bench_parts import report
from bench_parts.bench import Bench
from bench_parts.connection import RequestFailed
from bench_parts.measurement import Figures, Meter
from bench_parts.profile import Profiler
from bench_parts.report import Report
from bench_parts.scenarios import SCENARIOS
from bench_parts.server import Server, running_postgres
from bench_parts.world import QUICK, Sizes, World

SCENARIO_LIMIT = 300
"""The time limit in seconds for a scenario with its preparation; it grows with the number of
messages to search."""
OPEN_FILES = 8192


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="See scripts/bench --help.")
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument(
        "--only", type=lambda text: text.split(","), default=list(SCENARIOS), metavar="A,B"
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("OLD", "NEW"))
    parser.add_argument("--profile", type=lambda text: text.split(","), default=[], metavar="A,B")
    parser.add_argument("--search-messages", type=int, metavar="N")
    parser.add_argument("--limit", type=float, metavar="SECONDS")
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args(arguments)
    unknown = [name for name in (*options.only, *options.profile) if name not in SCENARIOS]
    if unknown:
        parser.error(f"there is no scenario {', '.join(unknown)}; see --list")
    if options.list:
        widest = max(map(len, SCENARIOS))
        for name, scenario in SCENARIOS.items():
            sys.stdout.write(f"{name:{widest}}  {summary(scenario)}\n")
        return
    if options.compare:
        old, new = (report.read(path) for path in options.compare)
        sys.stdout.write(report.compare(old, new) + "\n")
        return
    reactor = EPollReactor()
    installReactor(reactor)
    _, hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE,
        (min(OPEN_FILES, hard_limit) if hard_limit > 0 else OPEN_FILES, hard_limit),
    )
    react(lambda _: Deferred.fromCoroutine(run(reactor, options)), (), reactor)


async def run(reactor: EPollReactor, options: argparse.Namespace) -> None:
    """Measure, and print the report. Exits with 1 if a scenario failed."""
    sizes = QUICK if options.quick else Sizes()
    if options.search_messages is not None:
        sizes = replace(sizes, searched=options.search_messages)
    limit = options.limit or (180 if options.quick else 900)
    began = perf_counter()
    results = Report(_about(options), {}, {})
    with ExitStack() as ending:
        folder = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="mahalla-bench-")))
        postgres_pid, postgres_args = None, None
        if options.database == "postgres":
            postgres_pid, postgres_args = ending.enter_context(running_postgres())
        server = Server(reactor, folder, postgres_args)
        ending.callback(server.stop)
        await server.start(cheap_passwords=True)
        meter = Meter(reactor, server, postgres_pid, Profiler(options.profile))
        bench = Bench(reactor, server, meter, World(reactor, server, sizes))
        for name, scenario in SCENARIOS.items():
            if name not in options.only:
                continue
            if perf_counter() - began > limit:
                results.failures[name] = "not started: the time limit was reached"
                continue
            _log(f"{name}: {summary(scenario)}")
            started = perf_counter()
            figures = Figures()
            try:
                await Deferred.fromCoroutine(scenario(bench, figures)).addTimeout(
                    SCENARIO_LIMIT + sizes.searched / 100, reactor
                )
            except (RequestFailed, OSError, ConnectError, TimeoutError) as error:
                results.failures[name] = str(error) or type(error).__name__
                _log(f"    failed: {error}")
                continue
            results.figures[name] = figures
            _log(
                f"    {figures.cpu_ms:.3f} ms of CPU, p50 {figures.p50_ms:.2f} ms; "
                f"{perf_counter() - started:.1f} s in total"
            )
    sys.stdout.write(report.show(results) + "\n")
    if options.json is not None:
        report.write(results, options.json)
    if results.failures:
        raise SystemExit(1)


def summary(scenario: Callable[..., object]) -> str:
    """Return the description of a scenario on one line."""
    return " ".join((scenario.__doc__ or "").split())


def _about(options: argparse.Namespace) -> dict[str, str]:
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return {
        "database": options.database,
        "sizes": "quick" if options.quick else "full",
        "commit": described.stdout.strip() or "unknown",
        "Python": platform.python_version(),
        "msgspec": msgspec.__version__,
        "cores": str(os.cpu_count()),
        "load before": f"{os.getloadavg()[0]:.1f}",
    }


def _log(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
