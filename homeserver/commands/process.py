"""The server as a process of its machine: signals, its id in a file, the log, memory, and one piece
of work at a time."""

import gc
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import FrameType
from typing import TextIO, TypeVar

import click
from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred
from twisted.logger import LogLevel, globalLogBeginner
from twisted.python.failure import Failure

from homeserver.config.server import Log
from homeserver.observe.logs import JsonObserver, LogFile, TextObserver

T = TypeVar("T")

COLLECTOR_THRESHOLDS = (10_000, 20, 100)
"""Of `gc`: a collection of the youngest generation runs every 10,000 net allocations, and so on."""


def tune_garbage_collector() -> None:
    """Turn the garbage collector on, for objects created from now on, and let it run less often.

    Modules, services and caches hold hundreds of thousands of objects that stay and form no
    garbage cycles; each full collection would walk all of them. Requests leave few cycles.
    """
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)
    gc.enable()


def on_hangup(reactor: ReactorBase, call: Callable[[], None]) -> None:
    """Call this, on the reactor's thread, whenever SIGHUP comes."""
    signal.signal(signal.SIGHUP, lambda _number, _frame: reactor.callFromThread(call))


def stop_on_signals(reactor: ReactorBase) -> None:
    """SIGTERM and Ctrl-C stop the server. A second one while it stops changes nothing: a stop has
    its bound, and Twisted, which would stop once more, would tell of a bug."""
    stops = False

    def note() -> None:
        nonlocal stops
        stops = True

    def stop(_number: int, _frame: FrameType | None) -> None:
        if not stops:
            note()
            reactor.callFromThread(reactor.stop)

    def hear() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)

    reactor.callWhenRunning(hear)  # after Twisted's own
    reactor.addSystemEventTrigger("before", "shutdown", note)


def run_until_done(reactor: ReactorBase, work: Callable[[], Awaitable[T]]) -> T:
    """Run the reactor for one piece of work. Raises what it raises."""
    outcome: list[T | Failure] = []

    async def whole() -> None:
        try:
            outcome.append(await work())
        except Exception:
            outcome.append(Failure())
        reactor.stop()

    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(whole()))
    reactor.run()
    (result,) = outcome
    if isinstance(result, Failure):
        result.raiseException()
    return result


class pid_file:  # noqa: N801 (a context manager reads as a verb)
    """Keeps the id of the process in a file while it runs."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def __enter__(self) -> None:
        if self._path is not None:
            self._path.write_text(f"{os.getpid()}\n")

    def __exit__(self, *_: object) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def begin_logging(log: Log) -> LogFile:
    """Write the log to where the configuration says, from now on."""
    file = LogFile(standard_error() if log.file is None else open_log(log.file))
    observer = JsonObserver if log.format == "json" else TextObserver
    globalLogBeginner.beginLoggingTo(
        [observer(file.write, LogLevel.levelWithName(log.level))], redirectStandardIO=False
    )
    return file


def open_log(path: Path) -> TextIO:
    """The file of the log, to write at its end; the end of the command where it cannot be. One that
    is made here is for its owner and group only: it says who does what when."""
    try:
        return open(
            path, "a", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, 0o640)
        )
    except OSError as error:
        raise click.ClickException(f"the log file (log.file) cannot be written: {error}") from error


def standard_error() -> TextIO:
    """As Python opens it, but that lines for a file or another program may be written together."""
    if sys.stderr.isatty():
        return sys.stderr
    return open(
        sys.stderr.fileno(), "w", encoding="utf-8", errors="backslashreplace", closefd=False
    )
