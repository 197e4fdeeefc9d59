"""Manages the process: signals, pid file, log file, terminal, garbage collector, run of the
reactor."""

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

from homeserver.config.server import LogOptions
from homeserver.observe.logs import JsonObserver, LogFile, TextObserver

T = TypeVar("T")

COLLECTOR_THRESHOLDS = (10_000, 20, 100)
"""The thresholds of `gc`: a collection of the youngest generation runs every 10,000 net
allocations, and so on."""


def tune_garbage_collector() -> None:
    """Turn the garbage collector on, for objects created from now on, and let it run less often.

    Modules, services and caches hold hundreds of thousands of objects that stay and form no
    garbage cycles; each full collection would walk all of them. Requests leave few cycles.
    """
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)
    gc.enable()


def on_hangup(reactor: ReactorBase, call: Callable[[], None]) -> None:
    """Call `call` on the reactor's thread for each SIGHUP."""
    signal.signal(signal.SIGHUP, lambda _number, _frame: reactor.callFromThread(call))


def stop_on_signals(reactor: ReactorBase) -> None:
    """Stop the reactor on SIGTERM and Ctrl-C, once.

    A stop has a time limit, so we ignore further signals. Twisted would stop the reactor again and
    log a bug.
    """
    is_stopping = False

    def set_stopping() -> None:
        nonlocal is_stopping
        is_stopping = True

    def stop(_number: int, _frame: FrameType | None) -> None:
        if not is_stopping:
            set_stopping()
            reactor.callFromThread(reactor.stop)

    def install() -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop)

    reactor.callWhenRunning(install)  # replaces Twisted's handlers
    reactor.addSystemEventTrigger("before", "shutdown", set_stopping)


def run_until_done(reactor: ReactorBase, work: Callable[[], Awaitable[T]]) -> T:
    """Run the reactor until `work` is done. Returns or raises what `work` does."""
    outcome: list[T | Failure] = []

    async def work_and_stop() -> None:
        try:
            outcome.append(await work())
        except Exception:
            outcome.append(Failure())
        reactor.stop()

    reactor.callWhenRunning(lambda: Deferred.fromCoroutine(work_and_stop()))
    reactor.run()
    (result,) = outcome
    if isinstance(result, Failure):
        result.raiseException()
    return result


class PidFile:
    """Keep the pid of the process in a file while it runs."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def __enter__(self) -> None:
        if self._path is not None:
            self._path.write_text(f"{os.getpid()}\n")

    def __exit__(self, *_: object) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def begin_logging(log: LogOptions) -> LogFile:
    """Send Twisted's log to the file, or standard error, that the configuration names."""
    file = LogFile(standard_error() if log.file is None else open_log(log.file))
    observer = JsonObserver if log.format == "json" else TextObserver
    globalLogBeginner.beginLoggingTo(
        [observer(write=file.write, minimum=LogLevel.levelWithName(log.level))],
        redirectStandardIO=False,
    )
    return file


def open_log(path: Path) -> TextIO:
    """Open the log file for appending. Raises `click.ClickException`.

    A new file is readable for its owner and group only: the log says who did what when.
    """
    try:
        return open(
            path,
            "a",
            encoding="utf-8",
            opener=lambda name, flags: os.open(name, flags, 0o640),
        )
    except OSError as error:
        raise click.ClickException(f"the log file (log.file) cannot be written: {error}") from error


def standard_error() -> TextIO:
    """Return standard error, with a buffer of several lines unless it is a terminal."""
    if sys.stderr.isatty():
        return sys.stderr
    return open(
        sys.stderr.fileno(), "w", encoding="utf-8", errors="backslashreplace", closefd=False
    )


def ask_for_password() -> str:
    """Ask twice at the terminal. Raises `click.ClickException` if there is none.

    The reactor's handler for Ctrl-C would wait for the answer, so we install Python's meanwhile.
    """
    if not has_terminal():
        raise click.ClickException(
            "there is no terminal: give the password with --password-file (`-`: standard input)"
        )
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        password: str = click.prompt("Password", hide_input=True, confirmation_prompt=True)
    finally:
        signal.signal(signal.SIGINT, before)
    return password


def has_terminal() -> bool:
    """Whether the process has a terminal for questions."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return sys.stdin.isatty()
    return True
