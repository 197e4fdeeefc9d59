"""Group commit: batches, isolation of their writes, failure and recovery, on both databases."""

from collections.abc import Callable
from contextvars import ContextVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, succeed

from storage.engine.database import (
    DatabaseUnavailable,
    PostgresConfig,
    SQLiteConfig,
    WriteTransaction,
)
from storage.engine.streams import Change, Stage, Topic
from tests.conftest import run_coroutine
from tests.helpers.stepped_database import SteppedDatabase, insert_job

asked_by: ContextVar[str] = ContextVar("asked_by", default="none")


def twice(txn: WriteTransaction) -> None:
    """Violate a constraint."""
    for _ in range(2):
        txn.execute("INSERT INTO jobs (name, progress) VALUES ('twice', '')")


def put_later(name: str) -> Callable[[WriteTransaction], None]:
    """Return a write whose only statement is deferred. A second one of the same name violates a
    constraint at its end."""

    def fn(txn: WriteTransaction) -> None:
        txn.execute_later(
            "INSERT INTO jobs (name, progress) VALUES (?, ?)", (name, "10 % of it; done")
        )
        for _ in range(2):
            txn.announce(Change(txn.next_position(), Topic.PROFILE, user_id=name))

    return fn


def put_unless_there(name: str, user_id: str) -> Callable[[WriteTransaction], None]:
    """Return a write that announces changes only if it adds the row."""

    def fn(txn: WriteTransaction) -> None:
        if txn.execute(
            "INSERT INTO jobs (name, progress) VALUES (?, '') ON CONFLICT DO NOTHING", (name,)
        ):
            for _ in range(2):
                txn.announce(Change(txn.next_position(), Topic.PROFILE, user_id=user_id))

    return fn


def put_many(name: str, further: int) -> Callable[[WriteTransaction], None]:
    """As `put_later`, with further rows that are deleted again."""

    def fn(txn: WriteTransaction) -> None:
        names = [(f"{name}, {number}",) for number in range(further)]
        txn.execute_many("INSERT INTO jobs (name, progress) VALUES (?, '')", [*names, (name,)])
        txn.execute_many("DELETE FROM jobs WHERE name = ?", names)
        for _ in range(2):
            txn.announce(Change(txn.next_position(), Topic.PROFILE, user_id=name))

    return fn


def raise_later(txn: WriteTransaction) -> None:
    txn.execute_later("INSERT INTO jobs (name, progress) VALUES ('undone', '')")
    raise ValueError


def test_queued_writes_share_one_commit(stepped: SteppedDatabase) -> None:
    for name in "abcdefgh":
        stepped.queue(name, insert_job(name))
    assert stepped.results == {}
    assert stepped.names() == []
    stepped.step()
    assert stepped.observer.batches == [8]
    assert stepped.results == {name: position for position, name in enumerate("abcdefgh", 1)}
    assert stepped.names() == list("abcdefgh")


def test_closing_the_database_commits_queued_writes(stepped: SteppedDatabase) -> None:
    for name in "ab":
        stepped.queue(name, insert_job(name))
    run_coroutine(stepped.database.close(), None)
    assert stepped.results == {"a": 1, "b": 2}


def test_closing_refuses_new_writes_and_commits_earlier_ones(
    stepped: SteppedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stepped.writer, "close", lambda: succeed(None))  # as if a thread were busy
    closing: list[Deferred[None]] = []

    def close(txn: WriteTransaction) -> int:
        stepped.queue("meanwhile", insert_job("meanwhile"))
        closing.append(Deferred.fromCoroutine(stepped.database.close()))
        stepped.queue("too late", insert_job("too late"))
        return txn.next_position()

    stepped.queue("close", close)
    stepped.step()
    assert closing[0].called
    assert stepped.results == {"close": 1, "meanwhile": 2, "too late": DatabaseUnavailable}


def test_a_batch_is_bounded(stepped: SteppedDatabase) -> None:
    for number in range(300):
        stepped.queue(f"{number:03}", insert_job(f"{number:03}"))
    stepped.step()
    assert sum(stepped.observer.batches) == 300
    assert max(stepped.observer.batches) <= 256
    assert len(stepped.names()) == 300


OUTCOMES = [
    "good",
    "good later",
    "good many",
    "raises",
    "raises later",
    "breaks",
    "breaks later",
    "breaks many",
    "good unless there",
    "is there",
    "idle",
]


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(outcomes=st.lists(st.sampled_from(OUTCOMES), min_size=1, max_size=9))
def test_a_failing_write_does_not_affect_others(
    stepped: SteppedDatabase, outcomes: list[str]
) -> None:
    stepped.queue("clear", lambda txn: txn.execute("DELETE FROM jobs"))
    stepped.queue("first", insert_job("the first"))
    stepped.step()
    received: list[Change] = []
    end = stepped.database.streams.subscribe(received.extend, stage=Stage.NOTIFY)
    expected: dict[str, object] = {}
    for number, outcome in enumerate(outcomes):
        name = f"{number}{outcome}"
        match outcome:
            case "good":
                stepped.queue(name, insert_job(name, positions=2))
            case "raises":
                stepped.queue(name, insert_job(name, fail=True))
                expected[name] = ValueError
            case "good later":
                stepped.queue(name, put_later(name))
            case "raises later":
                stepped.queue(name, raise_later)
                expected[name] = ValueError
            case "good many":
                stepped.queue(name, put_many(name, number))
            case "breaks many":
                stepped.queue(name, put_many("the first", number))
            case "breaks":
                stepped.queue(name, twice)
            case "good unless there":
                stepped.queue(name, put_unless_there(name, name))
            case "is there":
                stepped.queue(name, put_unless_there("the first", name))
                expected[name] = None
            case "breaks later":
                stepped.queue(name, put_later("the first"))
            case _:
                stepped.queue(name, lambda _: None)
                expected[name] = None
    stepped.step()
    end()
    good = [
        f"{number}{outcome}"
        for number, outcome in enumerate(outcomes)
        if outcome.startswith("good")
    ]
    assert stepped.names() == [*good, "the first"]
    assert [change.user_id for change in received] == [name for name in good for _ in range(2)]
    positions = [change.position for change in received]
    assert positions == sorted(set(positions))
    assert stepped.database.streams.current() >= max(positions, default=0)
    for name, result in expected.items():
        assert stepped.results[name] == result
    for number, outcome in enumerate(outcomes):
        if outcome.startswith("breaks"):
            refused = stepped.database.engine.errors
            assert issubclass(stepped.results[f"{number}{outcome}"], refused)  # type: ignore[arg-type]


def test_an_error_of_a_deferred_statement_fails_its_own_write(stepped: SteppedDatabase) -> None:
    """The connection stays in use."""
    received: list[Change] = []
    stepped.database.streams.subscribe(received.extend, stage=Stage.NOTIFY)
    session = (
        "SELECT pg_backend_pid()" if stepped.database.engine.name == "postgres" else "SELECT 1"
    )
    stepped.queue("first", insert_job("first"))
    stepped.queue("session", lambda txn: txn.query(session))
    stepped.step()
    head = stepped.database.streams.current()
    stepped.queue("breaks", put_later("first"))
    stepped.step()
    assert issubclass(stepped.results["breaks"], stepped.database.engine.errors)  # type: ignore[arg-type]
    assert stepped.database.streams.current() == head
    stepped.queue("next", insert_job("next"))
    stepped.queue("session later", lambda txn: txn.query(session))
    stepped.step()
    assert stepped.results["next"] == head + 1
    assert [change.user_id for change in received] == ["first", "next"]
    assert stepped.names() == ["first", "next"]
    assert stepped.results["session"] == stepped.results["session later"]


def test_a_conflict_in_a_deferred_statement_is_retried(postgresql: PostgresConfig) -> None:
    stepped = SteppedDatabase(postgresql)
    tries: list[int] = []

    def conflict(txn: WriteTransaction) -> int:
        tries.append(1)
        position = insert_job("conflict")(txn)
        if len(tries) == 1:
            txn.execute_later(
                "DO $$ BEGIN RAISE EXCEPTION 'conflict' USING ERRCODE = '40001'; END $$"
            )
        return position

    stepped.queue("conflict", conflict)
    stepped.step()
    assert stepped.results == {"conflict": 1}
    assert stepped.names() == ["conflict"]
    assert len(tries) == 2
    run_coroutine(stepped.database.close(), None)


def test_an_outage_in_a_deferred_statement_is_reported_as_unavailable(
    postgresql: PostgresConfig,
) -> None:
    stepped = SteppedDatabase(postgresql)
    full = "DO $$ BEGIN RAISE EXCEPTION 'full' USING ERRCODE = '53100'; END $$"
    stepped.queue("full", lambda txn: txn.execute_later(full))
    stepped.step()
    assert stepped.results == {"full": DatabaseUnavailable}
    stepped.queue("next", insert_job("next"))
    stepped.step()
    assert stepped.names() == ["next"]
    run_coroutine(stepped.database.close(), None)


def test_callers_are_acknowledged_after_streams_and_callbacks(stepped: SteppedDatabase) -> None:
    order: list[str] = []
    stepped.database.streams.subscribe(
        lambda published: order.append(f"stream {len(published)}"), stage=Stage.NOTIFY
    )

    def write(name: str) -> Callable[[WriteTransaction], None]:
        def fn(txn: WriteTransaction) -> None:
            insert_job(name)(txn)
            txn.after_commit(lambda: order.append(f"callback {name} sees {stepped.names()}"))

        return fn

    async def call(name: str) -> None:
        await stepped.database.write("call", write(name))
        order.append(f"caller {name}")

    for name in "ab":
        Deferred.fromCoroutine(call(name))
    stepped.step()
    assert order == [
        "stream 2",
        "callback a sees ['a', 'b']",
        "callback b sees ['a', 'b']",
        "caller a",
        "caller b",
    ]


def test_a_write_from_a_subscriber_is_committed(stepped: SteppedDatabase) -> None:
    stepped.database.streams.subscribe(
        lambda published: (
            stepped.queue("second", insert_job("second"))
            if published[0].user_id == "first"
            else None
        ),
        stage=Stage.NOTIFY,
    )
    stepped.queue("first", insert_job("first"))
    stepped.step()
    assert stepped.names() == ["first", "second"]
    assert stepped.results == {"first": 1, "second": 2}


def test_each_write_runs_in_the_context_of_its_caller(stepped: SteppedDatabase) -> None:
    for name in "ab":
        asked_by.set(name)
        stepped.queue(name, lambda _: asked_by.get())
    asked_by.set("c")
    stepped.step()
    assert stepped.results == {"a": "a", "b": "b"}


def test_counters_are_independent_and_continue_after_a_restart(
    database_config: SQLiteConfig | PostgresConfig,
) -> None:
    taken: list[object] = []
    for _ in range(2):
        stepped = SteppedDatabase(database_config)
        taken.append(stepped.database.streams.current())
        stepped.queue(
            "a", lambda txn: (txn.allocate("room"), txn.next_position(3), txn.allocate("room", 2))
        )
        stepped.queue("b", lambda txn: (txn.allocate("room"), txn.next_position()))
        stepped.step()
        taken += [stepped.results["a"], stepped.results["b"]]
        run_coroutine(stepped.database.close(), None)
    assert taken == [0, (1, 1, 2), (4, 4), 4, (5, 5, 6), (8, 8)]


def test_a_swallowed_sql_error_fails_the_write_on_postgresql(
    stepped: SteppedDatabase,
) -> None:
    def swallow(txn: WriteTransaction) -> None:
        txn.execute("INSERT INTO jobs (name, progress) VALUES ('swallowed', '')")
        try:
            txn.execute("INSERT INTO jobs (name, progress) VALUES ('swallowed', '')")
        except stepped.database.engine.errors:
            return

    stepped.queue("before", insert_job("before"))
    stepped.queue("swallow", swallow)
    stepped.queue("after", insert_job("after"))
    stepped.step()
    if stepped.database.engine.name == "postgres":
        assert issubclass(stepped.results["swallow"], stepped.database.engine.errors)  # type: ignore[arg-type]
        assert stepped.names() == ["after", "before"]
    else:
        assert stepped.names() == ["after", "before", "swallowed"]


def test_a_write_is_retried_after_a_lost_connection(postgresql: PostgresConfig) -> None:
    stepped = SteppedDatabase(postgresql)
    tries: list[int] = []

    def lose(txn: WriteTransaction) -> int:
        tries.append(1)
        position = insert_job("lost")(txn)
        if len(tries) == 1:
            txn.query("SELECT pg_terminate_backend(pg_backend_pid())")
        return position

    stepped.queue("first", insert_job("first"))
    stepped.queue("lose", lose)
    stepped.queue("last", insert_job("last"))
    stepped.step()
    assert stepped.results == {"first": 1, "lose": 2, "last": 3}
    assert stepped.names() == ["first", "last", "lost"]
    run_coroutine(stepped.database.close(), None)


def test_a_write_that_fails_takes_no_numbers(stepped: SteppedDatabase) -> None:
    def fail(txn: WriteTransaction) -> None:
        txn.allocate("room", 5)
        insert_job("fails", fail=True, positions=3)(txn)

    stepped.queue("before", insert_job("before"))
    stepped.queue("fails", fail)
    stepped.queue("after", lambda txn: (insert_job("after")(txn), txn.allocate("room")))
    stepped.step()
    assert stepped.results == {"before": 1, "fails": ValueError, "after": (2, 1)}
    stepped.queue("fails alone", fail)
    stepped.step()
    assert stepped.database.streams.current() == 2
    stepped.queue("next", insert_job("next"))
    stepped.step()
    assert stepped.results["next"] == 3


def test_the_writer_recovers_after_losing_every_connection(
    postgresql: PostgresConfig,
) -> None:
    stepped = SteppedDatabase(postgresql)
    stepped.queue("first", insert_job("first"))
    stepped.queue("lose", lambda txn: txn.query("SELECT pg_terminate_backend(pg_backend_pid())"))
    stepped.step()
    assert stepped.results == {"first": DatabaseUnavailable, "lose": DatabaseUnavailable}
    assert stepped.names() == []
    stepped.queue("next", insert_job("next"))
    stepped.step()
    assert stepped.names() == ["next"]
    run_coroutine(stepped.database.close(), None)


def test_the_writer_recovers_after_a_full_disk(sqlite: SQLiteConfig) -> None:
    stepped = SteppedDatabase(sqlite)

    def fill(txn: WriteTransaction) -> None:
        (pages,) = txn.query("PRAGMA page_count")[0]
        txn.query(f"PRAGMA max_page_count = {pages + 5}")
        for number in range(100):
            txn.execute(
                "INSERT INTO jobs (name, progress) VALUES (?, ?)", (f"big{number}", "x" * 5000)
            )

    stepped.queue("first", insert_job("first"))
    stepped.queue("fill", fill)
    stepped.step()
    assert stepped.results["fill"] is not None
    assert not [name for name in stepped.names() if name.startswith("big")]
    assert ("first" in stepped.names()) == (stepped.results["first"] == 1)
    stepped.queue("next", insert_job("next"))
    stepped.step()
    assert "next" in stepped.names()
    run_coroutine(stepped.database.close(), None)


def test_changes_of_another_process_are_published(
    database_config: SQLiteConfig | PostgresConfig,
) -> None:
    here, there = SteppedDatabase(database_config), SteppedDatabase(database_config)
    received: list[object] = []
    here.database.streams.watch(
        lambda after, upto: received.append((after, upto)), stage=Stage.NOTIFY
    )
    here.database.streams.subscribe(
        lambda published: received.append([change.position for change in published]),
        stage=Stage.NOTIFY,
    )
    there.queue("a", insert_job("a", positions=3))
    there.step()
    here.queue("b", insert_job("b"))
    here.step()
    there.queue("c", insert_job("c"))
    there.step()
    Deferred.fromCoroutine(here.database.catch_up())
    here.step()
    assert received == [(0, 3), [4], (4, 5)]
    assert here.database.streams.current() == 5
    for stepped in (here, there):
        run_coroutine(stepped.database.close(), None)
