"""Coroutines that are started with `start_coroutine`: they end at once, or resume when an awaited
Deferred fires."""

from collections.abc import Awaitable
from typing import cast

import pytest
from twisted.internet.defer import CancelledError, Deferred, succeed
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher

from homeserver.http.tasks import start_coroutine
from homeserver.observe.context import CURRENT_REQUEST, RequestInfo


class _Seen(list[object]):
    """The values that a coroutine recorded."""

    async def record(self, *awaited: Awaitable[object]) -> None:
        CURRENT_REQUEST.set(RequestInfo("r1", "test"))
        for each in awaited:
            try:
                self.append(await each)
            except ValueError as error:
                self.append(str(error))
        info = CURRENT_REQUEST.get()
        self.append(info and info.request_id)


def test_a_coroutine_that_never_waits_ends_at_once_in_its_own_context() -> None:
    seen = _Seen()
    assert start_coroutine(seen.record(succeed(1), succeed(2))) is None
    assert seen == [1, 2, "r1"]
    assert CURRENT_REQUEST.get() is None


def test_a_waiting_coroutine_resumes_with_results_and_failures_in_its_own_context() -> None:
    seen, first, second, third = _Seen(), Deferred[int](), Deferred[int](), Deferred[int]()
    task = start_coroutine(seen.record(first, second, third))
    assert task is not None
    second.callback(2)
    assert seen == []
    first.errback(ValueError("no"))
    assert seen == ["no", 2]
    third.callback(3)
    assert seen == ["no", 2, 3, "r1"]
    assert task.is_done
    assert CURRENT_REQUEST.get() is None


def test_a_chained_deferred_is_awaited() -> None:
    seen, outer, inner = _Seen(), Deferred[int](), Deferred[int]()
    outer.addCallback(lambda _: inner)
    outer.callback(0)
    task = start_coroutine(seen.record(outer))
    assert task is not None
    assert seen == []
    inner.callback(1)
    assert seen == [1, "r1"]
    assert task.is_done


def test_cancel_cancels_the_awaited_deferred() -> None:
    cancelled: list[Deferred[int]] = []
    seen: list[object] = []

    async def wait(awaited: Deferred[int]) -> None:
        try:
            await awaited
        except CancelledError as error:
            seen.append(type(error))

    task = start_coroutine(wait(Deferred[int](cancelled.append)))
    assert task is not None
    task.cancel()
    assert len(cancelled) == 1
    assert seen == [CancelledError]
    assert task.is_done
    task.cancel()


@pytest.mark.parametrize("waits", [False, True])
def test_a_failure_is_logged(waits: bool) -> None:
    async def fail(awaited: Deferred[int]) -> None:
        raise KeyError(await awaited)

    events: list[LogEvent] = []
    gate = Deferred[int]()
    if not waits:
        gate.callback(1)
    globalLogPublisher.addObserver(cast(ILogObserver, events.append))
    try:
        task = start_coroutine(fail(gate))
        assert (task is not None) is waits
        if waits:
            gate.callback(1)
    finally:
        globalLogPublisher.removeObserver(cast(ILogObserver, events.append))
    assert [str(event["log_failure"].value) for event in events] == ["1"]
