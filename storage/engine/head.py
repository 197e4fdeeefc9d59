"""The head of the one sequence as the database has it, whoever wrote it: for who has to know with
each request whether others have written.

Where the database has a line for that (`storage/engine/head_line.py`), it is asked on the reactor's
thread; else, and while the line is lost, as everything is asked.

Laws:
- What is answered was asked after the question came. Those that come while one is on its way wait
  for its answer, and are then asked together.
- That the line is lost, is silent or cannot be had, is nobody's error: they are asked the other
  way.
- A lost line is tried anew when somebody asks, once a second at most.

For the reactor thread.
"""

import time
from collections.abc import Awaitable, Callable
from typing import Final, cast

from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorFDSet, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from storage.engine.interface import DatabaseUnavailable, HeadLine, HeadLineLost
from storage.engine.observer import Observer

PATIENCE: Final = 2.0
"""Seconds without an answer after which a line is taken for lost; it may be seen as many later."""
PAUSE: Final = 1.0
"""Seconds from one try to have a line to the next."""


@implementer(IReadDescriptor)
class Head:
    """Asks for the head of the sequence."""

    _log = Logger()

    def __init__(
        self,
        reactor: ReactorBase,
        connect: Callable[[], Awaitable[HeadLine | None]],
        read: Callable[[], Awaitable[int]],
        observer: Observer,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`read` asks as everything is asked. Both raise DatabaseUnavailable; `connect` gives None
        where the database has no line."""
        self._reactor = reactor
        self._readers = cast(IReactorFDSet, reactor)
        self._connect = connect
        self._read = read
        self._observer = observer
        self._clock = clock
        self._line: HeadLine | None = None
        self._asking: list[Deferred[int]] = []
        """Who is answered by the question that is on its way; empty: there is none."""
        self._waiting: list[Deferred[int]] = []
        self._asked = 0
        """Questions, so far."""
        self._began = 0.0
        self._look: IDelayedCall | None = None
        self._is_connecting = False
        self._tried_at: float | None = None
        self._closed = False

    async def get(self) -> int:
        """The position of the latest change that is committed. Raises DatabaseUnavailable."""
        if self._line is None:
            self._try_to_connect()
            return await self._read()
        answered: Deferred[int] = Deferred()
        if self._asking:
            self._waiting.append(answered)
        else:
            self._asking.append(answered)
            self._ask(self._line)
        return await answered

    def close(self) -> None:
        """Ask no more; who waits gets DatabaseUnavailable."""
        self._closed = True
        for each in self._drop_line():
            each.errback(DatabaseUnavailable("the database is closed"))

    def _ask(self, line: HeadLine) -> None:
        self._asked += 1
        self._began = self._clock()
        if self._look is None:
            self._look = self._reactor.callLater(PATIENCE, self._look_at, self._asked)
        try:
            line.ask()
        except HeadLineLost as error:
            self._lose(error)

    def _look_at(self, asked: int) -> None:
        """Whether that question is still without an answer. One look for the questions of some
        seconds, not one for each."""
        self._look = None
        if not self._asking:
            return
        if self._asked == asked:
            self._lose(HeadLineLost("it does not answer"))
        else:
            self._look = self._reactor.callLater(PATIENCE, self._look_at, self._asked)

    def _lose(self, error: HeadLineLost) -> None:
        left = self._drop_line()
        self._log.warn(
            "The connection that asks how far all is written was lost: {error}", error=error
        )
        if left:
            Deferred.fromCoroutine(self._answer_otherwise(left))

    def _drop_line(self) -> list[Deferred[int]]:
        """Let go of the line, if there is one; who waits for it."""
        left = self._asking + self._waiting
        self._asking, self._waiting = [], []
        if self._look is not None:
            self._look.cancel()
            self._look = None
        if self._line is not None:
            self._readers.removeReader(self)  # it asks for the descriptor
            self._line.close()
            self._line = None
        return left

    async def _answer_otherwise(self, left: list[Deferred[int]]) -> None:
        try:
            head = await self._read()
        except Exception as error:
            for each in left:
                each.errback(Failure(error))
        else:
            for each in left:
                each.callback(head)

    def _try_to_connect(self) -> None:
        now = self._clock()
        if (
            self._is_connecting
            or self._closed
            or (self._tried_at is not None and now < self._tried_at + PAUSE)
        ):
            return
        self._is_connecting, self._tried_at = True, now
        Deferred.fromCoroutine(self._have_line())

    async def _have_line(self) -> None:
        try:
            line = await self._connect()
        except DatabaseUnavailable:
            return  # who asks meanwhile is told
        finally:
            self._is_connecting = False
        if line is None:
            return
        if self._closed:
            line.close()
            return
        self._line = line
        self._readers.addReader(self)

    # -------------------------------------------------------------------------------------- what
    # the reactor calls

    def fileno(self) -> int:
        return -1 if self._line is None else self._line.fileno()

    def doRead(self) -> None:
        if self._line is None:
            return
        try:
            head = self._line.take()
        except HeadLineLost as error:
            self._lose(error)
            return
        if head is None or not self._asking:
            return
        answered, took = self._asking, self._clock() - self._began
        self._asking, self._waiting = self._waiting, []
        if self._asking:
            self._ask(self._line)
        self._observer.read_done("get_head", 0.0, took, 1)
        for each in answered:
            each.callback(head)

    def connectionLost(self, reason: Failure) -> None:
        if self._line is not None:
            self._lose(HeadLineLost(reason.getErrorMessage()))

    def logPrefix(self) -> str:
        return "head"
