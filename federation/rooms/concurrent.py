"""The same work for many things, some of them at once; work for which nobody waits for long."""

from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

A = TypeVar("A")
T = TypeVar("T")


async def map_at_once(
    work: Callable[[A], Awaitable[T]], items: Iterable[A], at_once: int
) -> list[T]:
    """What the work gives for each of the items, in their order; so many are under way at a time.

    The first failure is raised, and no more is begun after it.
    """
    waiting = deque(enumerate(items))
    if len(waiting) == 1:
        return [await work(waiting[0][1])]
    results: dict[int, T] = {}

    async def go_on() -> None:
        while waiting:
            at, item = waiting.popleft()
            try:
                results[at] = await work(item)
            except BaseException:
                waiting.clear()
                raise

    try:
        await gatherResults(
            [Deferred.fromCoroutine(go_on()) for _ in range(min(at_once, len(waiting)))],
            consumeErrors=True,
        )
    except FirstError as error:
        error.subFailure.raiseException()
    return [results[at] for at in range(len(results))]


async def wait_at_most(
    work: Coroutine[Any, Any, None],
    seconds: float,
    clock: IReactorTime,
    note_failure: Callable[[Failure], None],
) -> None:
    """Return once the work is done, or that time is up: then it goes on. Whatever it raises is only
    noted."""
    done: Deferred[None] = Deferred()

    def go_on(_: None) -> None:
        if not done.called:
            done.callback(None)

    Deferred.fromCoroutine(work).addErrback(note_failure).addCallback(go_on)
    await done.addTimeout(seconds, clock, lambda _failure, _seconds: None)
