"""Twisted's event loop, less what it does around each event for its own log.

With each event Twisted makes a context that names the connection, for what is logged meanwhile.
Nothing here asks for that name, and to make it is a twentieth of a small request or more. Between
two events Twisted looks for all else that may be due; here it is asked only where something is.
What comes of an event, and what becomes of one that fails, is Twisted's.

Besides it tells when there is a lull: when what came together was read, and, if that was not much,
what came while it was read. Who has something to begin that many requests share waits for that, as
the writer of the database does with a batch; and may wait for what comes next, if that is soon.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

from twisted.internet.base import ReactorBase
from twisted.logger import Logger

from storage.engine.executors import InLull, call_at_once

MANY: Final = 4
"""Events that came together, after which nobody waits for more."""
SOON: Final = 0.001
"""Seconds; it is the least that epoll_wait(2) can wait for."""
LONGEST_WAIT: Final = 2_147_483
"""Seconds: so many milliseconds are what epoll_wait(2) takes."""

try:
    from twisted.internet.epollreactor import EPollReactor
except ImportError:  # not Linux
    _KINDS: "tuple[type[EPollReactor], ...]" = ()
else:
    _KINDS = (EPollReactor,)


def poll_without_names(reactor: ReactorBase) -> InLull:
    """Let this reactor make no such context any more; what calls functions in the next lull.
    Another reactor than that of Linux stays as it is, and has none: they are called at once."""
    if not isinstance(reactor, _KINDS):
        return call_at_once
    lulls = _Lulls()
    reactor.doIteration = partial(_poll, reactor, lulls, Logger())  # type: ignore[method-assign]
    return lulls.add


class _Lulls:
    """What is to be done in the next lull."""

    __slots__ = ("are_patient", "functions")

    def __init__(self) -> None:
        self.functions: list[Callable[[], None]] = []
        self.are_patient = False

    def add(self, function: Callable[[], None], *, patient: bool = False) -> None:
        self.are_patient = patient and (self.are_patient or not self.functions)
        self.functions.append(function)


def _poll(reactor: "EPollReactor", lulls: _Lulls, log: Logger, timeout: float | None) -> None:
    """As `EPollReactor.doPoll`; while the loop runs, again and again until it has something else to
    do than to wait for what comes.

    There is a lull after one more look at the latest, whatever that finds: so what waits for it is
    never kept from its turn.
    """
    readable = reactor._POLL_IN
    for_lull = lulls.functions
    wait = -1 if timeout is None else timeout
    while True:
        waiting = len(for_lull)
        if waiting:
            wait = SOON if lulls.are_patient and timeout != 0 else 0
        try:
            events = reactor._poller.poll(wait, len(reactor._selectables))
        except InterruptedError:
            return
        for descriptor, event in events:
            selectable = reactor._selectables.get(descriptor)
            if selectable is not None:  # else what was done for another has removed it
                try:
                    if event == readable:  # as nearly always
                        try:
                            why = selectable.doRead()
                        except BaseException as error:
                            log.failure("A connection could not be read")
                            why = error
                        if why:
                            reactor._disconnectSelectable(selectable, why, True)
                    else:
                        reactor._doReadOrWrite(selectable, descriptor, event)
                except Exception:  # it failed in hearing that its connection is lost: others have their turn all the same
                    log.failure("A connection could not be told that it is lost")
        if len(events) >= MANY:
            waiting = len(for_lull)
        if waiting:
            due = for_lull[:waiting]
            del for_lull[:waiting]
            for function in due:
                try:
                    function()
                except Exception:
                    log.failure("What was to be done in a lull failed")
        if (
            reactor.threadCallQueue
            or reactor._newTimedCalls
            or reactor._justStopped
            or not reactor._started
        ):
            return
        calls = reactor._pendingTimedCalls
        wait = min(calls[0].time - reactor.seconds(), LONGEST_WAIT) if calls else -1
        if calls and wait <= 0:
            return
