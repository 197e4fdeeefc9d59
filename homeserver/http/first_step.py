"""Runs a coroutine to its end where it need not wait: a Deferred is made only for one that does.

Most requests are answered from memory. What Twisted makes to await a coroutine (a Deferred, its ways to be cancelled, its
callbacks) is then a tenth of the work for a small one.
"""

from collections.abc import Coroutine, Generator
from contextvars import copy_context
from types import coroutine
from typing import Any

from twisted.internet.defer import Deferred, fail


def begin(work: Coroutine[Deferred[Any], Any, None]) -> Deferred[None] | None:
    """Run a coroutine in a context of its own, up to where it waits. None: it has ended.

    A Deferred of what is left of it, else; of its failure, if it has failed at once.
    """
    context = copy_context()
    try:
        awaited = context.run(work.send, None)
    except StopIteration:
        return None
    except Exception:
        return fail()
    return context.run(Deferred.fromCoroutine, _rest(work, awaited))


@coroutine
def _rest(work: Coroutine[Deferred[Any], Any, None], awaited: Deferred[Any]) -> Generator[Deferred[Any], Any, None]:
    """What is left of a coroutine that has begun, and waits."""
    try:
        while True:
            try:
                result = yield awaited
            except Exception as error:
                awaited = work.throw(error)
            else:
                awaited = work.send(result)
    except StopIteration:
        return
