"""The database of several nodes is away for a while: the log says when that begins and when it ends."""

from collections.abc import Iterator
from typing import cast

import pytest
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import provider

from homeserver.node_notes import NodeNotes
from homeserver.nodes import OtherNodes
from storage.database import Database
from storage.engine import DatabaseUnavailable
from storage.streams import Streams


class Away:
    """The one question that is asked; answered when `is_there`."""

    is_there = True
    questions = 0
    streams = Streams()

    async def poll(self) -> None:
        self.questions += 1
        if not self.is_there:
            raise DatabaseUnavailable("connection refused\n")


class Nothing:
    """A node that remembers nothing."""

    def trust_until(self, seconds: float) -> None: ...

    async def settle(self) -> None: ...


@pytest.fixture
def lines() -> Iterator[list[str]]:
    found: list[str] = []

    @provider(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event.get("log_namespace") == "homeserver.nodes.OtherNodes":
            found.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    yield found
    globalLogPublisher.removeObserver(observe)


def test_the_log_says_once_that_the_database_is_away_and_once_that_it_is_back(lines: list[str]) -> None:
    clock, database = Clock(), Away()
    nodes = OtherNodes(clock, cast(Database, database), Nothing(), NodeNotes(clock), clock.seconds)
    nodes.start()
    clock.pump([1.0] * 3)
    assert lines == []
    database.is_there = False
    clock.pump([1.0] * 5)
    assert lines == ["the database cannot be reached: connection refused"]
    database.is_there = True
    clock.pump([1.0] * 5)
    assert lines[1:] == ["the database can be reached again"]
    assert database.questions == 13
    nodes.stop()
