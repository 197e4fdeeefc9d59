"""Shared work: done once for all concurrent callers, even if some of them are cancelled."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred

from federation.peers.shared_work import SharedWork


class Work:
    """Work that ends when the test says so."""

    def __init__(self) -> None:
        self.begun: list[Deferred[int]] = []

    async def run(self) -> int:
        self.begun.append(Deferred())
        return await self.begun[-1]


def ask(shared: SharedWork[str, int], work: Work, key: str = "a") -> Deferred[int]:
    return Deferred.fromCoroutine(shared.run(key, work.run))


async def test_callers_share_the_work_of_their_key() -> None:
    shared, work = SharedWork[str, int](), Work()
    first, second, other = ask(shared, work), ask(shared, work), ask(shared, work, "b")
    assert len(work.begun) == 2
    assert shared.is_running("a")
    work.begun[0].callback(7)
    assert (await first, await second) == (7, 7)
    assert not shared.is_running("a")
    assert not other.called
    third = ask(shared, work)
    assert len(work.begun) == 3, "nothing is remembered"
    assert not third.called


async def test_all_callers_get_the_error() -> None:
    shared, work = SharedWork[str, int](), Work()
    callers = [ask(shared, work) for _ in range(3)]
    work.begun[0].errback(ValueError("no"))
    for each in callers:
        with pytest.raises(ValueError, match="no"):
            await each


@given(
    gone=st.sets(st.integers(0, 4)),
    fails=st.booleans(),
)
def test_a_cancelled_caller_does_not_affect_the_others(gone: set[int], fails: bool) -> None:
    shared, work = SharedWork[str, int](), Work()
    results: dict[int, object] = {}
    callers = [ask(shared, work) for _ in range(5)]
    for number, each in enumerate(callers):
        each.addCallbacks(
            lambda result, number=number: results.update({number: result}),
            lambda failure, number=number: results.update({number: failure.type}),
        )
    for number in gone:
        callers[number].cancel()
    assert len(work.begun) == 1
    assert not work.begun[0].called
    assert shared.is_running("a")
    if fails:
        work.begun[0].errback(ValueError())
    else:
        work.begun[0].callback(7)
    outcome = ValueError if fails else 7
    assert results == {number: CancelledError if number in gone else outcome for number in range(5)}
