"""Few clients whose writes come to share batches, since one waits a moment for who was answered a
moment ago."""

from collections.abc import Callable, Iterator

import pytest
from twisted.internet.defer import Deferred

from storage.engine import writer
from storage.engine.database import PostgresConfig, SQLiteConfig, WriteTransaction
from storage.engine.writer import FEW
from tests.conftest import run_coroutine
from tests.helpers.databases import QueryCounter, SteppedExecutor, open_inline


class Turns:
    """Clients that write again as soon as they are answered."""

    def __init__(self, config: SQLiteConfig | PostgresConfig) -> None:
        self.observer = QueryCounter()
        self.executor = SteppedExecutor()
        self.time = 0.0
        self.lulls: list[Callable[[], None]] = []
        self.are_patient: list[bool] = []
        self.hastened = 0
        """How often what waited patiently was to wait no longer."""
        self.database = open_inline(
            config, self.observer, self.executor, clock=lambda: self.time, in_lull=self._add_lull
        )
        self.answered = 0

    def _add_lull(self, function: Callable[[], None], *, patient: bool = False) -> None:
        if function in self.lulls:
            assert not patient
            self.hastened += 1
            return
        self.lulls.append(function)
        self.are_patient.append(patient)

    def write(self, meanwhile: int = 0, again: int = 0) -> None:
        """During which so many others write; and so many times again, each as soon as the one
        before is answered."""

        def fn(txn: WriteTransaction) -> None:
            txn.next_position()
            for _ in range(meanwhile):
                self.write()

        Deferred.fromCoroutine(self.database.write("write", fn)).addCallback(self._count, again)

    def _count(self, _: None, again: int) -> None:
        self.answered += 1
        if again:
            self.write(again=again - 1)

    def end_lull(self) -> None:
        self.lulls.pop()()
        self.executor.run()


def wait_in_vain(turns: Turns, writes: int) -> list[int]:
    """After which of so many writes, while each of which another one came, somebody else was waited
    for; nobody comes."""
    waits: list[int] = []
    for number in range(writes):
        turns.write(meanwhile=1)
        turns.end_lull()
        if turns.lulls:
            waits.append(number)
            turns.end_lull()
    return waits


@pytest.fixture
def turns(database_config: SQLiteConfig | PostgresConfig) -> Iterator[Turns]:
    clients = Turns(database_config)
    yield clients
    run_coroutine(clients.database.close(), None)


def test_whose_writes_take_turns_come_to_share_their_batches(turns: Turns) -> None:
    turns.write(meanwhile=1)
    turns.end_lull()
    assert (turns.observer.batches, turns.answered, turns.are_patient) == ([1], 1, [False, True])
    turns.write()
    turns.end_lull()
    assert (turns.observer.batches, turns.answered) == ([1, 2], 3)
    turns.write()  # the first of the two is back
    turns.write()
    turns.end_lull()
    assert (turns.observer.batches, turns.are_patient) == ([1, 2, 2], [False, True, True])
    turns.time += 1
    turns.write()
    turns.end_lull()
    assert turns.are_patient[-1] is False, "whoever they were, they do something else"
    assert turns.answered == 6


def test_nobody_waits_any_longer_once_as_many_are_there_as_were(turns: Turns) -> None:
    turns.write(meanwhile=2)
    turns.end_lull()
    assert (turns.are_patient, turns.hastened) == ([False, True], 0)
    turns.write()
    assert turns.hastened == 1, "who was answered is there again, beside the two who came"
    turns.write()
    turns.end_lull()
    for _ in range(3):
        turns.write()
    assert (turns.observer.batches, turns.are_patient, turns.hastened) == (
        [1, 4],
        [False, True, True],
        1,
    )
    turns.write()
    assert turns.hastened == 2, "all four are"
    turns.end_lull()
    assert (turns.observer.batches, turns.answered) == ([1, 4, 4], 9)


def test_who_is_alone_waits_for_nobody_however_soon_it_comes_again(turns: Turns) -> None:
    """Also where it is answered before the writer has looked whether anybody waits."""
    turns.write(again=9)
    while turns.lulls:
        turns.end_lull()
    assert (turns.observer.batches, turns.answered) == ([1] * 10, 10)
    assert turns.are_patient == [False]


def test_who_waited_in_vain_for_others_does_so_more_and_more_seldom(turns: Turns) -> None:
    waits = wait_in_vain(turns, 150)
    assert turns.answered == 300
    assert waits == [0, 5, 22, 87], "but for them, 4, 16 and 64 batches did not"


def test_where_somebody_came_others_are_waited_for_sooner_again(turns: Turns) -> None:
    waits: list[int] = []
    for number in range(60):
        turns.time += 1
        turns.write(meanwhile=1)
        turns.end_lull()
        if turns.lulls:
            waits.append(number)
            if number == 22:
                turns.write()
            turns.end_lull()
    assert waits == [0, 5, 22, 23, 56], (
        "after 16 batches that did not 8 would be next; four times as many, as nobody came"
    )


def test_however_often_it_was_in_vain_others_are_waited_for_again(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "MOST_REST", 8)
    assert wait_in_vain(turns, 35) == [0, 5, 14, 23, 32]


def test_nobody_waits_for_very_many(turns: Turns) -> None:
    turns.write(meanwhile=FEW)
    turns.end_lull()
    assert (turns.observer.batches, turns.are_patient) == ([1, FEW], [False])
    for _ in range(FEW + 1):
        turns.write()
    turns.end_lull()
    turns.write()
    assert turns.are_patient == [False, True, False], "for as many as a few; not for more"
    turns.end_lull()


def test_what_came_while_a_batch_ran_is_written_where_the_database_is_closed_meanwhile(
    turns: Turns, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended: Deferred[None] = Deferred()
    monkeypatch.setattr(turns.executor, "close", lambda: ended)
    closing: list[Deferred[None]] = []

    def close(txn: WriteTransaction) -> None:
        txn.next_position()
        turns.write()
        closing.append(Deferred.fromCoroutine(turns.database.close()))

    Deferred.fromCoroutine(turns.database.write("close", close))
    turns.end_lull()
    assert turns.lulls == [], "nobody is waited for any more"
    assert (turns.observer.batches, turns.answered) == ([1, 1], 1)
    ended.callback(None)
    assert closing[0].called


def test_what_waits_for_others_is_written_where_the_database_is_closed(turns: Turns) -> None:
    turns.write(meanwhile=1)
    turns.end_lull()
    assert len(turns.lulls) == 1
    run_coroutine(turns.database.close(), None)
    assert turns.answered == 2
    turns.lulls.pop()()
    assert turns.observer.batches == [1, 1]
