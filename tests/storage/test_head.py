"""The head of the sequence, asked on the reactor's thread: what is answered is no older than the
question, and a line that is lost, silent or cannot be had is nobody's error."""

from collections.abc import Iterator
from errno import EMFILE
from typing import Any, cast

import pytest
from twisted.internet import reactor as installed_reactor
from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.task import deferLater
from twisted.python.failure import Failure

from storage.engine.database import (
    Database,
    DatabaseUnavailable,
    PostgresConfig,
    make_engine,
    open_database,
)
from storage.engine.head import PATIENCE, PAUSE, Head
from storage.engine.interface import HeadLineLost
from tests.conftest import REACTOR_SECONDS, run_coroutine
from tests.helpers.databases import open_inline
from tests.storage.test_executors import Turns

END_LINES = (
    "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity"
    " WHERE datname = current_database() AND query LIKE '%head%' AND pid <> pg_backend_pid()"
)


class Line:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.asked = 0
        self.answers: list[int | None] = []
        self.is_open = True
        self.is_lost = False

    def fileno(self) -> int:
        return 999

    def ask(self) -> None:
        self._check()
        self.asked += 1

    def take(self) -> int | None:
        self._check()
        return self.answers.pop(0)

    def close(self) -> None:
        self.is_open = False

    def _check(self) -> None:
        assert self.is_open
        if self.is_lost:
            raise HeadLineLost("the cable is cut")


class Asked:
    """Who asks over lines of the test's; `otherwise` is what they hear without one."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.lines: list[Line] = []
        self.otherwise: int | Exception = 1000
        self.waits_for_line: Deferred[None] | None = None
        self.reads = 0
        self.observed: list[tuple[str, int]] = []
        self.head = Head(
            cast(ReactorBase, self.turns),
            self._connect,
            self._read,
            cast(Any, self),
            clock=self.turns.seconds,
        )

    @property
    def line(self) -> Line:
        return self.lines[-1]

    def read_done(self, name: str, _waited: float, _took: float, queries: int) -> None:
        self.observed.append((name, queries))

    def get(self) -> list[Any]:
        """What comes of a question, once it has come."""
        heard: list[Any] = []
        Deferred.fromCoroutine(self.head.get()).addBoth(heard.append)
        return heard

    def answer(self, head: int | None) -> None:
        self.line.answers.append(head)
        self.hear()

    def hear(self) -> None:
        (reader,) = self.turns.readers
        reader.doRead()

    async def _connect(self) -> Line:
        if self.waits_for_line is not None:
            await self.waits_for_line
        self.lines.append(Line())
        return self.line

    async def _read(self) -> int:
        self.reads += 1
        if isinstance(self.otherwise, Exception):
            raise self.otherwise
        return self.otherwise


@pytest.fixture
def asked() -> Asked:
    """With a line: the first question asks for one."""
    asked = Asked()
    assert asked.get() == [1000]
    assert len(asked.lines) == 1
    return asked


def test_who_comes_while_a_question_is_on_its_way_is_answered_by_the_next(asked: Asked) -> None:
    first = asked.get()
    second, third = asked.get(), asked.get()
    assert asked.line.asked == 1
    asked.answer(5)
    assert (first, second, third) == ([5], [], [])
    assert asked.line.asked == 2
    fourth = asked.get()
    asked.answer(7)
    assert (second, third, fourth) == ([7], [7], [])
    asked.answer(8)
    assert fourth == [8]
    assert asked.line.asked == 3
    assert asked.reads == 1
    assert asked.observed == [("get_head", 1)] * 3


def test_who_asks_as_they_are_answered_waits_for_a_question_of_their_own(asked: Asked) -> None:
    """The next one was asked before they asked."""
    later: list[Any] = []
    asked_again = Deferred.fromCoroutine(asked.head.get())
    asked_again.addCallback(lambda _: later.append(asked.get()))
    second = asked.get()
    asked.answer(5)
    asked.answer(6)
    assert (second, later) == ([6], [[]])
    asked.answer(7)
    assert later == [[7]]


def test_what_the_server_says_unasked_answers_nobody(asked: Asked) -> None:
    asked.answer(None)
    asked.answer(3)
    heard = asked.get()
    asked.answer(None)
    assert heard == []
    asked.answer(4)
    assert heard == [4]


@pytest.mark.parametrize("noticed", ["by who asks", "by who waits", "by the reactor"])
def test_who_waits_for_a_line_that_is_lost_is_answered_otherwise(
    asked: Asked, noticed: str
) -> None:
    waiting = [] if noticed == "by who asks" else [asked.get(), asked.get()]
    line = asked.line
    line.is_lost = True
    if noticed == "by who asks":
        waiting = [asked.get()]
    elif noticed == "by who waits":
        asked.hear()
    else:
        (reader,) = asked.turns.readers
        reader.connectionLost(Failure(ConnectionError()))
    assert waiting == [[1000]] * len(waiting)
    assert asked.reads == 2
    assert not line.is_open
    assert not asked.turns.readers


def test_where_nothing_can_be_asked_they_are_told(asked: Asked) -> None:
    waiting = [asked.get(), asked.get()]
    asked.otherwise = DatabaseUnavailable("away")
    asked.line.is_lost = True
    asked.hear()
    for (failure,) in waiting:
        assert isinstance(failure.value, DatabaseUnavailable)


def test_a_silent_line_is_given_up(asked: Asked) -> None:
    first = asked.get()
    asked.turns.advance(PATIENCE - 1)
    asked.answer(5)
    waiting = asked.get(), asked.get()
    asked.turns.advance(1)
    assert (first, waiting) == ([5], ([], []))
    asked.turns.advance(PATIENCE)
    assert waiting == ([1000], [1000])
    assert not asked.line.is_open
    assert not asked.turns.getDelayedCalls()


def test_who_answers_is_looked_at_once_in_a_while(asked: Asked) -> None:
    for position in range(20):
        heard = asked.get()
        asked.turns.advance(PATIENCE / 4)
        asked.answer(position)
        assert heard == [position]
        assert len(asked.turns.getDelayedCalls()) <= 1
    asked.turns.advance(PATIENCE)
    assert not asked.turns.getDelayedCalls()
    assert asked.line.is_open


def test_a_lost_line_is_tried_anew_once_a_second_at_most(asked: Asked) -> None:
    asked.line.is_lost = True
    assert [asked.get() for _ in range(3)] == [[1000]] * 3
    assert len(asked.lines) == 1
    asked.turns.advance(PAUSE)
    asked.waits_for_line = Deferred()
    assert [asked.get() for _ in range(3)] == [[1000]] * 3
    asked.waits_for_line.callback(None)
    assert len(asked.lines) == 2
    heard = asked.get()
    asked.answer(9)
    assert heard == [9]


def test_a_line_that_cannot_be_had_is_tried_anew() -> None:
    asked = Asked()
    asked.waits_for_line = Deferred()
    asked.get()
    asked.waits_for_line.errback(DatabaseUnavailable("away"))
    asked.waits_for_line = None
    asked.get()
    assert asked.lines == []
    asked.turns.advance(PAUSE)
    asked.get()
    assert len(asked.lines) == 1


def test_at_the_end_who_waits_is_told_and_the_line_is_let_go(asked: Asked) -> None:
    waiting = [asked.get(), asked.get()]
    asked.head.close()
    for (failure,) in waiting:
        assert isinstance(failure.value, DatabaseUnavailable)
    assert not asked.line.is_open
    assert not asked.turns.readers
    assert not asked.turns.getDelayedCalls()


def test_a_line_that_comes_after_the_end_is_let_go() -> None:
    asked = Asked()
    asked.waits_for_line = Deferred()
    asked.get()
    asked.head.close()
    asked.waits_for_line.callback(None)
    assert not asked.line.is_open
    assert not asked.turns.readers


def test_who_gives_up_waiting_keeps_nobody_from_an_answer(asked: Asked) -> None:
    gone = Deferred.fromCoroutine(asked.head.get())
    gone.addErrback(lambda _: None)
    heard = asked.get()
    gone.cancel()
    asked.answer(5)
    asked.answer(6)
    assert heard == [6]


# ------------------------------------------------------------------------------------------------
# on PostgreSQL


@pytest.fixture
def here(postgresql: PostgresConfig) -> Iterator[Database]:
    """A node with its threads, and with a line."""
    database = open_database(postgresql, cast(ReactorBase, installed_reactor))
    yield database
    run_coroutine(database.close(), REACTOR_SECONDS)


async def have_line(database: Database) -> None:
    head = cast(Any, database)._head
    while head._line is None:
        await database.get_head()
        await deferLater(cast(Any, installed_reactor), 0.01)


async def write(database: Database) -> int:
    return await database.write("test", lambda txn: txn.next_position())


@pytest.mark.reactor
async def test_what_another_node_has_written_is_in_the_answer(
    here: Database, postgresql: PostgresConfig
) -> None:
    assert await here.get_head() == 0
    await have_line(here)
    there = open_inline(postgresql)
    assert await here.get_head() == 0
    for _ in range(20):
        written = await write(there)
        heads = await gatherResults([Deferred.fromCoroutine(here.get_head()) for _ in range(5)])
        assert heads == [written] * 5
    await there.close()


@pytest.mark.reactor
async def test_of_many_who_ask_at_all_times_none_hears_of_less_than_was_written(
    here: Database, postgresql: PostgresConfig
) -> None:
    await have_line(here)
    there = open_inline(postgresql)
    written = [0]

    async def ask() -> None:
        for _ in range(50):
            before = written[0]
            assert await here.get_head() >= before

    askers = gatherResults([Deferred.fromCoroutine(ask()) for _ in range(7)])
    while not askers.called:
        written[0] = await write(there)
        await deferLater(cast(Any, installed_reactor), 0)
    await askers
    assert written[0] > 5
    await there.close()


@pytest.mark.reactor
@pytest.mark.parametrize("when", ["idle", "asked"])
async def test_a_session_that_the_server_ends_is_nobodys_error(
    here: Database, postgresql: PostgresConfig, when: str
) -> None:
    await have_line(here)
    there = open_inline(postgresql)
    written = await write(there)
    other = make_engine(postgresql).connect_writer()
    asked = [Deferred.fromCoroutine(here.get_head()) for _ in range(3)] if when == "asked" else []
    assert other.query_one(END_LINES, ()) == (1,)
    if when == "idle":
        await deferLater(cast(Any, installed_reactor), 0.05)
        assert cast(Any, here)._head._line is None
    assert await gatherResults([*asked, Deferred.fromCoroutine(here.get_head())]) == [written] * (
        1 + len(asked)
    )
    await have_line(here)
    assert await here.get_head() == written
    other.close()
    await there.close()


@pytest.mark.reactor
async def test_where_no_descriptor_is_left_there_is_no_line(
    here: Database, postgresql: PostgresConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_descriptor: int) -> int:
        raise OSError(EMFILE, "Too many open files")

    monkeypatch.setattr("storage.engine.head_line.os.dup", refuse)
    with pytest.raises(DatabaseUnavailable):
        await cast(Any, here)._connect_head()
    other = make_engine(postgresql).connect_writer()
    assert other.query_one(END_LINES, ()) == (0,), "nor a session of one"
    other.close()


@pytest.mark.reactor
async def test_who_waits_as_the_database_is_closed_is_told(postgresql: PostgresConfig) -> None:
    database = open_database(postgresql, cast(ReactorBase, installed_reactor))
    await have_line(database)
    asked = Deferred.fromCoroutine(database.get_head())
    closed = Deferred.fromCoroutine(database.close())
    with pytest.raises(DatabaseUnavailable):
        await asked
    await closed
    with pytest.raises(DatabaseUnavailable):
        await database.get_head()
