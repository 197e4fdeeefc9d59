"""The database of several nodes is unavailable for a while: the log has one line at the start and
one at the end."""

from collections.abc import Iterator, Sequence
from typing import cast

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, LogEvent, formatEvent, globalLogPublisher
from zope.interface import provider

from homeserver.cluster.node_messages import NodeMessages
from homeserver.cluster.peer_nodes import GREETING, PeerNodes
from storage.engine.database import Database
from storage.engine.interface import DatabaseUnavailable
from storage.engine.postgres_notify import EphemeralMessage
from storage.engine.streams import Streams


class Away:
    """A database that answers polls only while `is_there`."""

    is_there = True
    questions = 0
    streams = Streams()

    async def poll(self) -> None:
        self.questions += 1
        if not self.is_there:
            raise DatabaseUnavailable("connection refused\n")


class Nothing:
    """A node without caches."""

    def trust_until(self, seconds: float) -> None: ...

    async def wait_for_invalidation(self) -> None: ...


@pytest.fixture
def lines() -> Iterator[list[str]]:
    found: list[str] = []

    @provider(ILogObserver)
    def observe(event: LogEvent) -> None:
        if event.get("log_namespace") == "homeserver.cluster.peer_nodes.PeerNodes":
            found.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    yield found
    globalLogPublisher.removeObserver(observe)


def test_the_log_says_once_that_the_database_is_away_and_once_that_it_is_back(
    lines: list[str],
) -> None:
    clock, database = Clock(), Away()
    nodes = PeerNodes(
        clock=clock,
        database=cast(Database, database),
        cache=Nothing(),
        messages=NodeMessages(clock),
        monotonic=clock.seconds,
    )
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


class Readers:
    """A reactor that records its readers."""

    def __init__(self) -> None:
        self.added: list[IReadDescriptor] = []

    def addReader(self, reader: IReadDescriptor) -> None:
        self.added.append(reader)

    def removeReader(self, reader: IReadDescriptor) -> None:
        self.added.remove(reader)


class Calls:
    """The connection that receives notes of other nodes."""

    node = 1

    def __init__(self) -> None:
        self.came: list[object] = []

    def receive(self) -> list[object]:
        came, self.came = self.came, []
        return came

    def close(self) -> None: ...


class Shared(Away):
    """A database that other nodes can share."""

    def __init__(self) -> None:
        self.calls = Calls()
        self.nodes = {1}
        self.received: list[str] = []
        self.fails = 0
        self.counting: Deferred[None] | None = None

    def set_node_barrier(self, _wait: object) -> None: ...

    async def open_node_channel(self) -> Calls:
        return self.calls

    async def get_nodes(self) -> set[int]:
        nodes = set(self.nodes)
        if self.counting is not None:
            await self.counting
        return nodes

    async def send_ephemeral(self, _node: int, bodies: list[str]) -> None:
        if self.fails:
            self.fails -= 1
            raise DatabaseUnavailable("away")
        self.received += bodies


def test_a_lone_node_sends_no_notes_until_it_receives_one() -> None:
    clock, database, readers = Clock(), Shared(), Readers()
    notes = NodeMessages(clock)
    nodes = PeerNodes(
        clock=clock,
        database=cast(Database, database),
        cache=Nothing(),
        messages=notes,
        monotonic=clock.seconds,
    )
    nodes.start(cast(IReactorFDSet, readers))
    clock.pump([0.0, 1.0])
    assert database.received == [GREETING]
    notes.queue("tea", None, 1)
    clock.pump([0.0, 1.0])
    assert database.received == [GREETING]

    database.nodes.add(2)
    database.calls.came.append(EphemeralMessage(2, GREETING))
    readers.added[0].doRead()
    notes.queue("tea", None, 2)
    clock.pump([0.0, 1.0])
    assert database.received == [GREETING, '[["tea",2]]']
    clock.pump([1.0] * 40)
    was_connected = notes.is_connected

    database.nodes.remove(2)
    clock.pump([1.0] * 16)
    assert (was_connected, notes.is_connected) == (True, False)
    nodes.stop()


def test_a_node_that_starts_during_the_count_of_nodes_receives_notes() -> None:
    clock, database, readers = Clock(), Shared(), Readers()
    notes = NodeMessages(clock)
    nodes = PeerNodes(
        clock=clock,
        database=cast(Database, database),
        cache=Nothing(),
        messages=notes,
        monotonic=clock.seconds,
    )
    database.counting = Deferred()
    nodes.start(cast(IReactorFDSet, readers))
    database.calls.came.append(EphemeralMessage(2, GREETING))
    readers.added[0].doRead()
    database.counting.callback(None)  # the count from before the second node
    assert notes.is_connected
    nodes.stop()


def test_a_starting_node_greets_until_the_greeting_is_sent() -> None:
    """Otherwise a node that believes to be alone would continue to."""
    clock, database, readers = Clock(), Shared(), Readers()
    database.fails = 2
    nodes = PeerNodes(
        clock=clock,
        database=cast(Database, database),
        cache=Nothing(),
        messages=NodeMessages(clock),
        monotonic=clock.seconds,
    )
    nodes.start(cast(IReactorFDSet, readers))
    clock.pump([1.0] * 5)
    assert database.received == [GREETING]
    nodes.stop()


def test_pending_notes_are_dropped_when_the_last_other_node_leaves() -> None:
    clock, received = Clock(), list[str]()

    async def send(bodies: Sequence[str]) -> None:
        received.extend(bodies)

    notes = NodeMessages(clock)
    notes.connect(send)
    for number in range(3):
        notes.queue("tea", number, number)
    notes.connect(None)
    notes.connect(send)
    notes.queue("tea", 9, 9)
    clock.pump([0.1] * 3)
    assert received == ['[["tea",9]]']


def test_an_invalid_note_does_not_affect_other_notes() -> None:
    notes, notes_received = NodeMessages(Clock()), list[int]()
    notes.subscribe("tea", int, lambda _node, note: notes_received.append(note))
    notes.subscribe("milk", int, lambda _node, note: notes_received.append(note))
    notes.receive(2, '[["tea",{"of":"tomorrow"}],["sugar",1],["milk",2],["tea",3]]')
    for body in ("", "[", "[[]]", '{"tea":1}', '["tea",1]', "\ud800"):
        notes.receive(2, body)
    assert notes_received == [2, 3]
