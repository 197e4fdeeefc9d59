"""The one sequence as its readers hear of it."""

from collections.abc import Iterator, Sequence

import pytest
from twisted.logger import ILogObserver, globalLogPublisher
from zope.interface import implementer

from storage.engine.streams import Change, Streams, Topic


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """The levels of what was logged during a test."""
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


def test_subscribers_hear_of_a_commit_in_order_and_can_read_up_to_its_head() -> None:
    streams = Streams(4)
    heard: list[tuple[list[int], int]] = []
    streams.subscribe(
        lambda told: heard.append(([change.position for change in told], streams.current()))
    )
    streams.publish(changes(7, 5, 6), 8)
    streams.publish([], 9)
    assert heard == [([5, 6, 7], 8)]
    assert streams.current() == 9


def test_who_names_topics_hears_of_commits_with_one_of_them_and_then_of_all_in_these() -> None:
    streams = Streams()
    heard: list[list[Topic]] = []
    streams.subscribe(
        lambda told: heard.append([change.topic for change in told]), Topic.DEVICE, Topic.SIGNATURE
    )
    streams.publish([Change(1, Topic.RECEIPT), Change(2, Topic.TO_DEVICE)], 2)
    streams.publish([Change(3, Topic.DEVICE), Change(4, Topic.RECEIPT)], 4)
    streams.publish([Change(5, Topic.SIGNATURE)], 5)
    assert heard == [[Topic.DEVICE, Topic.RECEIPT], [Topic.SIGNATURE]]


def test_one_subscriber_that_raises_stops_no_other(logged: list[str]) -> None:
    streams = Streams()
    heard: list[int] = []

    def broken(_: Sequence[Change]) -> None:
        raise RuntimeError("broken")

    streams.subscribe(broken)
    streams.subscribe(lambda told: heard.extend(change.position for change in told))
    streams.publish(changes(1), 1)
    assert heard == [1]
    assert logged == ["critical"]


def test_who_unsubscribes_hears_no_more_and_nobody_else_is_touched() -> None:
    streams = Streams()
    first: list[int] = []
    second: list[int] = []
    end = streams.subscribe(lambda told: first.append(len(told)))
    streams.subscribe(lambda told: second.append(len(told)))
    streams.publish(changes(1), 1)
    end()
    streams.publish(changes(2, 3), 3)
    assert (first, second) == ([1], [1, 2])


def test_watchers_hear_of_what_others_wrote_once() -> None:
    streams = Streams(10)
    heard: list[tuple[int, int]] = []
    streams.watch(lambda after, upto: heard.append((after, upto)))
    streams.advance_to(10)
    streams.advance_to(12)
    streams.advance_to(11)
    streams.publish(changes(13), 13)
    streams.advance_to(15)
    assert heard == [(10, 12), (13, 15)]
