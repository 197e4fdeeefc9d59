"""Runs a coroutine to its end: at once where it need not wait, else whenever what it waits for is
there.

Most requests are answered from memory, and most of the others wait once, for the database. What
Twisted makes to await a coroutine (a Deferred, its ways to be cancelled, its callbacks) is a tenth
of the work for a small one, and nobody waits for a request but its client.
"""

from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

_log: Final = Logger()
_FAILED: Final = "what nobody waits for failed"


def begin(work: Coroutine[Deferred[Any], Any, None]) -> "Task | None":
    """Run a coroutine in a context of its own, up to where it waits. What is left of it then; None:
    it has ended.

    It should not raise: that is logged.
    """
    context = copy_context()
    try:
        awaited = context.run(work.send, None)
    except StopIteration:
        return None
    except Exception:
        _log.failure(_FAILED)
        return None
    return Task(work, context, awaited)


class Task:
    """What is left of a coroutine that has begun."""

    __slots__ = ("_awaited", "_context", "_work")

    def __init__(
        self, work: Coroutine[Deferred[Any], Any, None], context: Context, awaited: Deferred[Any]
    ) -> None:
        self._work = work
        self._context = context
        self._awaited: Deferred[Any] | None = awaited
        awaited.addCallbacks(self._go_on, self._fail)

    def cancel(self) -> None:
        """Cancel what it waits for; so it goes on with CancelledError. Nothing, if it has ended."""
        if self._awaited is not None:
            self._awaited.cancel()

    @property
    def has_ended(self) -> bool:
        """Whether nothing is left of it."""
        return self._awaited is None

    def _go_on(self, result: object) -> None:
        """Run it up to where it waits again. `result`: of what it has waited for."""
        self._run(self._work.send, result)

    def _fail(self, failure: Failure) -> None:
        self._run(failure.throwExceptionIntoGenerator, self._work)

    def _run(self, step: Callable[[Any], Deferred[Any]], with_what: object) -> None:
        self._awaited = None
        try:
            awaited = self._context.run(step, with_what)
        except StopIteration:
            return
        except Exception:
            _log.failure(_FAILED)
            return
        self._awaited = awaited
        awaited.addCallbacks(self._go_on, self._fail)
