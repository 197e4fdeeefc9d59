"""The same work for many things, some of them at once."""

from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from twisted.internet.defer import Deferred, FirstError, gatherResults

A = TypeVar("A")
T = TypeVar("T")


async def map_at_once(work: Callable[[A], Awaitable[T]], items: Iterable[A], at_once: int) -> list[T]:
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
            [Deferred.fromCoroutine(go_on()) for _ in range(min(at_once, len(waiting)))], consumeErrors=True
        )
    except FirstError as error:
        error.subFailure.raiseException()
    return [results[at] for at in range(len(results))]
