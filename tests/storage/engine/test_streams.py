"""The one sequence and its subscribers."""

from collections.abc import Callable, Iterator, Sequence
from itertools import permutations

import pytest
from twisted.logger import ILogObserver, globalLogPublisher
from zope.interface import implementer

from storage.engine.streams import Change, Stage, Streams, Topic


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """The levels of messages that are logged during a test."""
    levels: list[str] = []

    @implementer(ILogObserver)
    class Observer:
        def __call__(self, event: dict[str, object]) -> None:
            levels.append(getattr(event["log_level"], "name", "?"))

    observer = Observer()
    globalLogPublisher.addObserver(observer)
    yield levels
    globalLogPublisher.removeObserver(observer)


def changes(*positions: int) -> list[Change]:
    return [Change(position, Topic.RECEIPT) for position in positions]


def test_subscribers_get_changes_in_order_when_the_head_is_readable() -> None:
    streams = Streams(4)
    received: list[tuple[list[int], int]] = []
    streams.subscribe(
        lambda published: received.append(
            ([change.position for change in published], streams.current())
        ),
        stage=Stage.NOTIFY,
    )
    streams.publish(changes(7, 5, 6), 8)
    streams.publish([], 9)
    assert received == [([5, 6, 7], 8)]
    assert streams.current() == 9


def test_a_subscriber_with_topics_gets_all_changes_of_matching_commits() -> None:
    streams = Streams()
    received: list[list[Topic]] = []
    streams.subscribe(
        lambda published: received.append([change.topic for change in published]),
        Topic.DEVICE,
        Topic.SIGNATURE,
        stage=Stage.NOTIFY,
    )
    streams.publish([Change(1, Topic.RECEIPT), Change(2, Topic.TO_DEVICE)], 2)
    streams.publish([Change(3, Topic.DEVICE), Change(4, Topic.RECEIPT)], 4)
    streams.publish([Change(5, Topic.SIGNATURE)], 5)
    assert received == [[Topic.DEVICE, Topic.RECEIPT], [Topic.SIGNATURE]]


def test_a_subscriber_that_raises_does_not_stop_others(logged: list[str]) -> None:
    streams = Streams()
    received: list[int] = []

    def broken(_: Sequence[Change]) -> None:
        raise RuntimeError("broken")

    streams.subscribe(broken, stage=Stage.NOTIFY)
    streams.subscribe(
        lambda published: received.extend(change.position for change in published),
        stage=Stage.NOTIFY,
    )
    streams.publish(changes(1), 1)
    assert received == [1]
    assert logged == ["critical"]


def test_unsubscribing_does_not_affect_other_subscribers() -> None:
    streams = Streams()
    first: list[int] = []
    second: list[int] = []
    end = streams.subscribe(lambda published: first.append(len(published)), stage=Stage.NOTIFY)
    streams.subscribe(lambda published: second.append(len(published)), stage=Stage.NOTIFY)
    streams.publish(changes(1), 1)
    end()
    streams.publish(changes(2, 3), 3)
    assert (first, second) == ([1], [1, 2])


def test_watchers_are_notified_of_other_nodes_writes_once() -> None:
    streams = Streams(10)
    received: list[tuple[int, int]] = []
    streams.watch(lambda after, upto: received.append((after, upto)), stage=Stage.NOTIFY)
    streams.advance_to(10)
    streams.advance_to(12)
    streams.advance_to(11)
    streams.publish(changes(13), 13)
    streams.advance_to(15)
    assert received == [(10, 12), (13, 15)]


@pytest.mark.parametrize("order", list(permutations(Stage)))
def test_stages_run_in_order_whatever_the_order_of_subscription(order: Sequence[Stage]) -> None:
    streams = Streams()
    called: list[tuple[str, Stage]] = []

    def listen(kind: str, stage: Stage) -> Callable[..., None]:
        return lambda *_: called.append((kind, stage))

    for stage in order:
        streams.subscribe(listen("commit", stage), stage=stage)
        streams.watch(listen("write", stage), stage=stage)
    streams.publish(changes(1), 1)
    streams.advance_to(2)
    assert called == [("commit", stage) for stage in Stage] + [("write", stage) for stage in Stage]
