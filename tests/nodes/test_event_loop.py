"""The event loop without names for Twisted's log: what comes is read, and what fails is Twisted's
matter as before."""

import socket
from collections.abc import Iterator
from functools import partial
from itertools import chain
from threading import Timer

import pytest
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.selectreactor import SelectReactor
from twisted.logger import capturedLogs
from twisted.python.failure import Failure
from zope.interface import implementer

from homeserver import event_loop
from homeserver.event_loop import MANY, SOON, poll_without_names

Pairs = list[tuple[socket.socket, socket.socket]]


@implementer(IReadDescriptor)
class Reader:
    """One end of a connection, to whose other end somebody writes."""

    def __init__(self, reactor: EPollReactor, pair: tuple[socket.socket, socket.socket]) -> None:
        self.reactor = reactor
        self.here, self.there = pair
        self.came: list[bytes] = []
        self.lost: list[Failure] = []
        self.fails = False
        self.fails_at_last = False
        self.removes: Reader | None = None
        reactor.addReader(self)

    def fileno(self) -> int:
        return self.here.fileno()

    def doRead(self) -> None:
        if self.fails:
            raise ValueError("cannot read")
        self.came.append(self.here.recv(1000))
        if self.removes is not None:
            self.reactor.removeReader(self.removes)

    def connectionLost(self, reason: Failure) -> None:
        self.lost.append(reason)
        if self.fails_at_last:
            raise LookupError("cannot be lost")

    def logPrefix(self) -> str:
        raise AssertionError("nobody asks for it")


@pytest.fixture
def reactor(pairs: Pairs) -> Iterator[EPollReactor]:
    assert pairs, "they are closed after the reactor has let go of them"
    reactor = EPollReactor()
    poll_without_names(reactor)
    yield reactor
    reactor.removeAll()
    reactor._poller.close()


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    pairs = [socket.socketpair() for _ in range(3)]
    yield pairs
    for end in chain.from_iterable(pairs):
        end.close()


def test_what_comes_is_read_and_who_fails_is_cut_off_alone(
    reactor: EPollReactor, pairs: Pairs
) -> None:
    first, failing, last = [Reader(reactor, pair) for pair in pairs]
    reactor.iterate(0)
    failing.fails = True
    for reader in (first, failing, last):
        reader.there.send(b"1")
    reactor.iterate(10)
    assert (first.came, failing.came, last.came) == ([b"1"], [], [b"1"])
    assert [reason.type for reason in failing.lost] == [ValueError]
    last.there.send(b"2")
    reactor.iterate(10)
    assert last.came == [b"1", b"2"]
    assert not first.lost
    assert not last.lost


def test_who_cannot_even_be_lost_keeps_nobody(reactor: EPollReactor, pairs: Pairs) -> None:
    readers = [Reader(reactor, pair) for pair in pairs]
    for reader in readers:
        reader.fails = reader.fails_at_last = True
        reader.there.send(b"1")
    with capturedLogs() as logs:
        reactor.iterate(10)
    assert [[reason.type for reason in reader.lost] for reader in readers] == [[ValueError]] * 3
    failures = [log["log_failure"].type for log in logs if "log_failure" in log]
    assert failures.count(LookupError) == 3, "operators hear of each"


def test_who_was_removed_in_between_is_not_asked(reactor: EPollReactor, pairs: Pairs) -> None:
    one, other = [Reader(reactor, pair) for pair in pairs[:2]]
    one.removes, other.removes = other, one
    one.there.send(b"1")
    other.there.send(b"1")
    reactor.iterate(10)
    assert sorted(one.came + other.came) == [b"1"]


def test_while_the_loop_runs_all_that_is_due_has_its_turn(
    reactor: EPollReactor, pairs: Pairs
) -> None:
    """What comes, what was asked for a time or by another thread, what is asked for sooner than it
    was; and the end."""
    done: list[object] = []
    reader = Reader(reactor, pairs[0])

    def note(what: object) -> None:
        done.append(what)

    late = reactor.callLater(60, note, "late")
    reactor.callLater(0.02, reader.there.send, b"1")
    reactor.callLater(0.03, reactor.callInThread, reactor.callFromThread, note, "from a thread")
    reactor.callLater(0.04, late.reset, 0.02)

    def read() -> None:
        reader.came.append(reader.here.recv(1000))
        if len(reader.came) == 1:  # what is asked for while something is read
            reactor.callLater(0.05, reader.there.send, b"2")
        else:
            reactor.callLater(0, note, "at once")
            reactor.callLater(0.01, reactor.stop)

    reader.doRead = read  # type: ignore[method-assign]
    reactor.callLater(10, reactor.stop).reset(10)
    began = reactor.seconds()
    reactor.run(installSignalHandlers=False)
    assert reactor.seconds() - began < 5
    assert reader.came == [b"1", b"2"]
    assert sorted(map(str, done)) == ["at once", "from a thread", "late"]


def test_a_loop_without_anything_to_do_later_ends(reactor: EPollReactor, pairs: Pairs) -> None:
    reader = Reader(reactor, pairs[0])
    reader.doRead = reactor.stop  # type: ignore[method-assign]
    reactor.callWhenRunning(reader.there.send, b"1")
    reactor.run(installSignalHandlers=False)
    assert not reactor.running


def test_other_reactors_stay_as_they_are() -> None:
    reactor = SelectReactor()
    before = reactor.doIteration
    poll_without_names(reactor)
    assert reactor.doIteration == before


def test_a_lull_is_when_what_came_was_read_and_what_came_meanwhile(pairs: Pairs) -> None:
    reactor = EPollReactor()
    in_lull = poll_without_names(reactor)
    done: list[str] = []
    first, second, third = [Reader(reactor, pair) for pair in pairs]

    def fail() -> None:
        done.append("fails")
        raise ValueError

    def read_first() -> None:
        done.append(first.here.recv(1000).decode())
        in_lull(fail)
        in_lull(lambda: done.append("lull"))
        second.there.send(b"second")

    def read_second() -> None:
        done.append(second.here.recv(1000).decode())
        third.there.send(b"third")
        in_lull(lambda: done.append("next lull"))

    def read_third() -> None:
        done.append(third.here.recv(1000).decode())
        reactor.callLater(0.01, reactor.stop)

    first.doRead, second.doRead, third.doRead = read_first, read_second, read_third  # type: ignore[method-assign]
    reactor.callWhenRunning(first.there.send, b"first")
    with capturedLogs() as logs:
        reactor.run(installSignalHandlers=False)
    assert done == ["first", "second", "fails", "lull", "third", "next lull"]
    assert [log["log_failure"].type for log in logs if "log_failure" in log] == [ValueError]
    reactor.removeAll()
    reactor._poller.close()


def test_after_many_that_came_together_nobody_waits_for_more() -> None:
    reactor = EPollReactor()
    in_lull = poll_without_names(reactor)
    done: list[str] = []
    several = [socket.socketpair() for _ in range(MANY + 1)]
    readers = [Reader(reactor, pair) for pair in several]

    def read(reader: Reader) -> None:
        done.append(reader.here.recv(1000).decode())
        if len(done) == 1:
            in_lull(lambda: done.append("lull"))
        readers[-1].there.send(b"late")

    for reader in readers:
        reader.doRead = partial(read, reader)  # type: ignore[method-assign]
    for reader in readers[:-1]:
        reader.there.send(b"early")
    reactor.iterate(10)
    assert done == ["early"] * MANY + ["lull"]
    reactor.removeAll()
    reactor._poller.close()
    for end in chain.from_iterable(several):
        end.close()


@pytest.mark.parametrize("comes", [True, False])
def test_who_is_patient_waits_for_what_comes_next_but_not_for_long(
    pairs: Pairs, monkeypatch: pytest.MonkeyPatch, *, comes: bool
) -> None:
    monkeypatch.setattr(event_loop, "SOON", 5 if comes else 0.001)
    reactor = EPollReactor()
    in_lull = poll_without_names(reactor)
    done: list[str] = []
    first, second, _ = [Reader(reactor, pair) for pair in pairs]
    sender = Timer(0.05, second.there.send, [b"second"])

    def read_first() -> None:
        done.append(first.here.recv(1000).decode())
        in_lull(lambda: done.append("lull"), patient=True)
        in_lull(reactor.stop, patient=True)
        if comes:
            sender.start()

    def read_second() -> None:
        done.append(second.here.recv(1000).decode())

    first.doRead, second.doRead = read_first, read_second  # type: ignore[method-assign]
    reactor.callWhenRunning(first.there.send, b"first")
    reactor.run(installSignalHandlers=False)
    assert done == (["first", "second", "lull"] if comes else ["first", "lull"])
    reactor.removeAll()
    reactor._poller.close()


class Waits:
    """A poller that says at once that nothing has come, and how long it was to wait for that."""

    def __init__(self, reactor: EPollReactor) -> None:
        self.seconds: list[float] = []
        self._poller, reactor._poller = reactor._poller, self

    def poll(self, seconds: float, most: int) -> list[tuple[int, int]]:
        del most
        self.seconds.append(seconds)
        return []

    def close(self) -> None:
        self._poller.close()

    def __getattr__(self, name: str) -> object:
        return getattr(self._poller, name)


@pytest.mark.parametrize(
    ("are_patient", "longest", "waited"),
    [
        ([True], 10, SOON),
        ([True, True], 10, SOON),
        ([True], 0, 0),
        ([False], 10, 0),
        ([True, False], 10, 0),
        ([False, True], 10, 0),
        ([False, False, True], 10, 0),
        ([], 10, 10),
    ],
)
def test_nobody_waits_who_is_not_patient_and_nothing_that_is_due(
    are_patient: list[bool], longest: float, waited: float
) -> None:
    reactor = EPollReactor()
    in_lull, waits = poll_without_names(reactor), Waits(reactor)
    done: list[bool] = []
    for _ in range(2):  # what was done in the lull before is nobody's matter
        for patient in are_patient:
            in_lull(partial(done.append, patient), patient=patient)
        reactor.iterate(longest)
    assert waits.seconds == [waited] * 2
    assert done == are_patient * 2
    reactor.removeAll()
    waits.close()


def test_without_anything_to_read_there_is_a_lull_at_once(reactor: EPollReactor) -> None:
    in_lull = poll_without_names(reactor)
    reactor.callLater(0, in_lull, reactor.stop)
    reactor.callLater(10, reactor.stop)
    began = reactor.seconds()
    reactor.run(installSignalHandlers=False)
    assert reactor.seconds() - began < 5


def test_where_there_are_no_lulls_all_is_done_at_once() -> None:
    done: list[str] = []
    poll_without_names(SelectReactor())(lambda: done.append("done"))
    assert done == ["done"]
