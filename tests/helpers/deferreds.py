"""Results of Deferreds and coroutines that complete at once, as with an inline database."""

from collections.abc import Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

T = TypeVar("T")


def result_of(deferred: "Deferred[T]") -> T:
    """Return the result of a Deferred that has fired."""
    results: list[T] = []
    deferred.addCallback(results.append)
    return results[0]


def run_inline(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that completes at once; return its result or raise its error."""
    results: list[T | Failure] = []
    Deferred.fromCoroutine(work).addBoth(results.append)
    (result,) = results
    if isinstance(result, Failure):
        result.raiseException()
    return result
