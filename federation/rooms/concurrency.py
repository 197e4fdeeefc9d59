"""Runs the same function for many items concurrently, and waits for work with a time limit."""

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

A = TypeVar("A")
T = TypeVar("T")


async def map_concurrently(
    work: Callable[[A], Awaitable[T]], items: Iterable[A], limit: int
) -> list[T]:
    """Return the results of the work for the items, in order; `limit` items run at a time.

    The first failure is raised, and no further item is started.
    """
    pending = deque(enumerate(items))
    if len(pending) == 1:
        return [await work(pending[0][1])]
    results: dict[int, T] = {}

    async def run_next() -> None:
        while pending:
            at, item = pending.popleft()
            try:
                results[at] = await work(item)
            except BaseException:
                pending.clear()
                raise

    try:
        await gatherResults(
            [Deferred.fromCoroutine(run_next()) for _ in range(min(limit, len(pending)))],
            consumeErrors=True,
        )
    except FirstError as error:
        error.subFailure.raiseException()
    return [results[at] for at in range(len(results))]


async def wait_with_timeout(
    work: Coroutine[Any, Any, None],
    seconds: float,
    clock: IReactorTime,
    log_failure: Callable[[Failure], None],
) -> None:
    """Return when the work is done, or after the time limit. In the latter case the work continues,
    and a failure is passed to `log_failure`."""
    done: Deferred[None] = Deferred()

    def run_next(_: None) -> None:
        if not done.called:
            done.callback(None)

    Deferred.fromCoroutine(work).addErrback(log_failure).addCallback(run_next)
    await done.addTimeout(seconds, clock, lambda _failure, _seconds: None)
