"""The PostgreSQL writer: the number of messages, writes of other nodes, and lost servers."""

from collections.abc import Callable
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg2 import DatabaseError, OperationalError

from storage.engine import writer
from storage.engine.database import (
    Database,
    DatabaseUnavailable,
    PostgresConfig,
    WriteTransaction,
    make_engine,
)
from storage.engine.postgres import PostgresConnection
from storage.engine.streams import Change, Stage, Topic
from tests.conftest import run_coroutine
from tests.helpers.stepped_database import (
    INSERT_JOB,
    CountingCursor,
    SteppedDatabase,
    insert_job,
    insert_job_later,
    write_now,
)

END_OTHERS: Final = (
    "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)
REFUSE: Final = """CREATE FUNCTION refuse_once() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
    IF nextval('tries') = 1 THEN RAISE EXCEPTION 'once' USING ERRCODE = 'WHICH'; END IF;
    RETURN TRUE; END $$"""
MOVE: Final = "UPDATE jobs SET progress = ? WHERE name = ? AND progress = ?"


def move(name: str, before: str, after: str) -> Callable[[WriteTransaction], int]:
    """Return a write whose only statement is a deferred update."""

    def fn(txn: WriteTransaction) -> int:
        txn.execute_later(MOVE, (after, name, before))
        position = txn.next_position()
        txn.announce(Change(position, Topic.PROFILE, user_id=name))
        return position

    return fn


def test_deferred_statements_cost_no_message(
    nodes: tuple[SteppedDatabase, SteppedDatabase],
) -> None:
    """Messages: the begin, the end of each write with its statements, and the commit."""
    node, _ = nodes
    write_now(node, "prepared", insert_job_later("prepared"))
    for number, count in enumerate((1, 3, 30)):
        one = (f"prepared{number}", "")
        rows = [(f"many{number}.{each}", "here") for each in range(count)]

        def add_one(txn: WriteTransaction, row: tuple[str, str] = one) -> None:
            txn.execute(INSERT_JOB, row)

        def add_many(txn: WriteTransaction, rows: list[tuple[str, str]] = rows) -> None:
            txn.next_position()
            txn.execute_many(INSERT_JOB, rows)

        write_now(node, "prepared again", add_one)
        CountingCursor.messages = 0
        write_now(node, f"many{number}", add_many)
        assert CountingCursor.messages == 3
    CountingCursor.messages = 0
    for number in range(4):
        node.queue(f"later{number}", insert_job_later(f"later{number}"))
    node.step()
    assert CountingCursor.messages == 6


def test_alternating_nodes_take_each_position_once(
    nodes: tuple[SteppedDatabase, SteppedDatabase],
) -> None:
    taken = [
        write_now(nodes[number % 2], f"{number}", lambda txn: txn.next_position())
        for number in range(10)
    ]
    assert taken == list(range(1, 11))


@pytest.mark.parametrize("what", ["ask", "later", "last", "nothing"])
def test_changes_of_another_node_are_published_before_later_ones(
    nodes: tuple[SteppedDatabase, SteppedDatabase], what: str
) -> None:
    here, there = nodes
    write_now(here, "job", insert_job_later("job"))
    head = write_now(there, "elsewhere", insert_job("elsewhere"))
    assert isinstance(head, int)
    received: list[object] = []
    here.database.streams.watch(
        lambda after, upto: received.append((after, upto)), stage=Stage.NOTIFY
    )
    here.database.streams.subscribe(
        lambda reported: received.append([change.position for change in reported]),
        stage=Stage.NOTIFY,
    )
    writes = {
        "ask": insert_job("new"),
        "later": insert_job_later("new"),
        "last": move("job", "here", "there"),
    }
    if what == "nothing":
        run_coroutine(catch_up(here), None)
        assert received == [(head - 1, head)]
        return
    assert write_now(here, "new", writes[what]) == head + 1
    assert received == [(head - 1, head), [head + 1]], "each change once, in order"
    assert here.names() == sorted(["elsewhere", "job", *(["new"] if what != "last" else [])])
    assert write_now(here, "next", insert_job("next")) == head + 2


async def catch_up(node: SteppedDatabase) -> None:
    waiting = node.database.catch_up()
    try:
        waiting.send(None)
    except StopIteration:  # pragma: no cover
        raise AssertionError("it did not wait") from None
    node.step()
    waiting.close()


def test_a_batch_follows_a_write_of_another_node(
    nodes: tuple[SteppedDatabase, SteppedDatabase],
) -> None:
    here, there = nodes
    write_now(there, "elsewhere", insert_job("elsewhere"))
    first = here.database.streams.current() + 2
    here.queue("a", insert_job("a"))
    here.queue("fails", insert_job("fails", fail=True))
    here.queue("moves", move("elsewhere", "", "there"))
    here.queue("later", insert_job_later("later"))
    here.step()
    assert here.results["a"] == first
    assert here.results["fails"] is ValueError
    assert here.results["moves"] == first + 1
    assert here.results["later"] == first + 2
    assert here.names() == ["a", "elsewhere", "later"]


def test_numbers_of_all_counters_taken_by_another_node_are_seen(
    nodes: tuple[SteppedDatabase, SteppedDatabase],
) -> None:
    here, there = nodes
    assert write_now(here, "mine", lambda txn: txn.allocate("room")) == 1
    assert write_now(there, "others", lambda txn: txn.allocate("room", 5)) == 2
    assert write_now(here, "mine again", lambda txn: txn.allocate("room")) == 7


def test_a_write_that_fails_without_a_query_takes_no_position(
    nodes: tuple[SteppedDatabase, SteppedDatabase],
) -> None:
    node, _ = nodes
    head = write_now(node, "before", insert_job("before"))

    def fail(txn: WriteTransaction) -> None:
        txn.next_position()
        raise ValueError

    assert write_now(node, "fails", fail) is ValueError
    assert (
        write_now(node, "next", insert_job("next"))
        == node.database.streams.current()
        == int(str(head)) + 1
    )


@pytest.mark.parametrize("arrives", [True, False])
def test_a_commit_with_unknown_outcome_is_never_retried(
    nodes: tuple[SteppedDatabase, SteppedDatabase],
    monkeypatch: pytest.MonkeyPatch,
    *,
    arrives: bool,
) -> None:
    node, _ = nodes
    write_now(node, "before", insert_job("before"))
    tries: list[int] = []
    execute = CountingCursor.execute

    def lose(self: CountingCursor, query: Any, vars: Any = None) -> None:
        message = query if isinstance(query, bytes) else query.encode()
        if not message.endswith(b"COMMIT"):
            execute(self, query, vars)
            return
        monkeypatch.setattr(CountingCursor, "execute", execute)
        if arrives:
            execute(self, query, vars)
        self.connection.close()
        raise OperationalError("server closed the connection unexpectedly")

    def fn(txn: WriteTransaction) -> int:
        tries.append(1)
        return insert_job("lost")(txn)

    monkeypatch.setattr(CountingCursor, "execute", lose)
    node.queue("lost", fn)
    node.queue("among others", insert_job("among others"))
    node.step()
    assert node.results["lost"] is node.results["among others"] is DatabaseUnavailable
    assert len(tries) == 1
    done = ["among others", "lost"] if arrives else []
    assert node.names() == sorted(["before", *done])
    assert isinstance(write_now(node, "next", insert_job("next")), int)


def test_a_statement_that_fails_in_the_commit_message_is_retried(
    nodes: tuple[SteppedDatabase, SteppedDatabase], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The counters are written in the message of the COMMIT. The transaction is still open
    afterwards, so the COMMIT itself did not fail."""
    node, _ = nodes
    monkeypatch.setattr(writer, "RETRY_SECONDS", 0)
    write_now(node, "before", insert_job("before"))
    tries: list[int] = []
    execute = CountingCursor.execute

    def refuse(self: CountingCursor, query: Any, vars: Any = None) -> None:
        message = query if isinstance(query, bytes) else query.encode()
        if message.endswith(b"COMMIT"):
            monkeypatch.setattr(CountingCursor, "execute", execute)
            message = (
                b"DO $$ BEGIN RAISE EXCEPTION 'conflict' USING ERRCODE = '40001'; END $$; "
                + message
            )
        execute(self, message, vars)

    def fn(txn: WriteTransaction) -> int:
        tries.append(1)
        return insert_job("again")(txn)

    monkeypatch.setattr(CountingCursor, "execute", refuse)
    assert write_now(node, "again", fn) == 2
    assert len(tries) == 2
    assert node.names() == ["again", "before"]


@pytest.mark.parametrize("what", ["ask", "later", "last", "nothing"])
def test_a_write_after_a_server_restart_succeeds(
    nodes: tuple[SteppedDatabase, SteppedDatabase], postgresql: PostgresConfig, what: str
) -> None:
    """The server ended the idle session, as when it restarts, so nothing can have been
    committed."""
    node, _ = nodes
    write_now(node, "job", insert_job_later("job"))
    make_engine(postgresql).connect_writer().query_one(END_OTHERS, ())
    writes: dict[str, Callable[[WriteTransaction], Any]] = {
        "ask": insert_job("new"),
        "later": insert_job_later("new"),
        "last": move("job", "here", "there"),
        "nothing": lambda txn: txn.next_position(),
    }
    head = node.database.streams.current()
    assert write_now(node, "new", writes[what]) == head + 1
    assert node.names() == sorted({"job", *(["new"] if what in ("ask", "later") else [])})


@pytest.mark.parametrize("code", ["40001", "40P01", "0A000", "26000"])
def test_a_write_with_a_temporary_error_is_retried(
    nodes: tuple[SteppedDatabase, SteppedDatabase], code: str
) -> None:
    """The server reports that it did nothing: another program changed a table or caused a
    conflict."""
    node, _ = nodes
    write_now(node, "job", insert_job_later("job"))
    write_now(node, "sequence", lambda txn: txn.execute("CREATE SEQUENCE tries"))
    write_now(node, "refusing", lambda txn: txn.execute(REFUSE.replace("WHICH", code)))
    tries: list[int] = []

    def fn(txn: WriteTransaction) -> None:
        tries.append(1)
        txn.execute_later("INSERT INTO jobs (name, progress) VALUES ('once', '')")
        txn.execute_later("UPDATE jobs SET progress = 'there' WHERE name = 'job' AND refuse_once()")

    assert write_now(node, "refused", fn) is None
    assert len(tries) == 2
    assert node.names() == ["job", "once"]


@pytest.mark.parametrize("kind", ["begin", "commit"])
def test_a_message_that_cannot_be_sent_is_an_outage(
    nodes: tuple[SteppedDatabase, SteppedDatabase], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The driver then considers the connection intact, and raises a plain error without a code."""
    node, _ = nodes
    write_now(node, "job", insert_job_later("job"))
    write_now(node, "prepared", move("nobody", "", ""))
    execute = CountingCursor.execute
    tries: list[int] = []

    def fail(self: CountingCursor, query: Any, vars: Any = None) -> None:
        message = query if isinstance(query, bytes) else query.encode()
        if (
            b"pg_advisory_xact_lock" in message if kind == "begin" else message.endswith(b"COMMIT")
        ) and not tries:
            tries.append(1)
            raise DatabaseError("server closed the connection unexpectedly")
        execute(self, query, vars)

    monkeypatch.setattr(CountingCursor, "execute", fail)
    outcome = write_now(node, kind, insert_job("new"))
    assert tries
    if kind == "begin":
        assert isinstance(outcome, int), "the batch is retried"
    else:
        assert outcome is DatabaseUnavailable, "it may have been committed"
    assert isinstance(write_now(node, "next", insert_job("next")), int)


def test_a_counter_created_by_another_node_is_seen(
    nodes: tuple[SteppedDatabase, SteppedDatabase],
) -> None:
    here, there = nodes
    assert write_now(there, "none", lambda txn: txn.allocate("room", 0)) == 1
    assert write_now(here, "some", lambda txn: txn.allocate("room", 2)) == 1
    assert write_now(there, "more", lambda txn: txn.allocate("room")) == 3


def test_a_failed_deferred_statement_undoes_its_whole_write(stepped: SteppedDatabase) -> None:
    """Alone or among others, on both databases."""
    for name in ("a", "b"):
        write_now(stepped, name, insert_job(name))

    def fn(txn: WriteTransaction) -> None:
        txn.execute_later("INSERT INTO jobs (name, progress) VALUES ('undone', '')")
        txn.execute_later("UPDATE jobs SET name = 'a' WHERE name = 'b'")

    outcome = write_now(stepped, "alone", fn)
    assert issubclass(outcome, stepped.database.engine.errors)  # type: ignore[arg-type]
    stepped.queue("first", insert_job("first"))
    stepped.queue("among others", fn)
    stepped.queue("moves", move("b", "", "there"))
    stepped.step()
    outcome = stepped.results["among others"]
    assert issubclass(outcome, stepped.database.engine.errors)  # type: ignore[arg-type]
    assert isinstance(stepped.results["moves"], int)
    assert stepped.names() == ["a", "b", "first"]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.sampled_from(["ask", "later", "last", "fails", "counter"])),
        max_size=60,
    )
)
def test_any_interleaving_of_two_nodes_takes_each_position_once(
    nodes: tuple[SteppedDatabase, SteppedDatabase], steps: list[tuple[int, str]]
) -> None:
    taken: list[int] = []
    rooms: list[int] = []
    for node in nodes:
        write_now(node, "clear", lambda txn: (txn.execute("DELETE FROM jobs"), txn.next_position()))
        node.results.clear()
    for number, (at, what) in enumerate(steps):
        node, name = nodes[at], f"n{number}"
        if what == "counter":
            room = write_now(node, name, lambda txn: txn.allocate("room"))
            assert isinstance(room, int)
            rooms.append(room)
            continue
        if what == "last":
            write_now(node, "job", insert_job(name))
            taken.append(int(str(node.results["job"])))
            position = write_now(node, name, move(name, "", "there"))
        elif what == "fails":
            assert write_now(node, name, insert_job(name, fail=True)) is ValueError
            continue
        else:
            position = write_now(
                node, name, insert_job(name) if what == "ask" else insert_job_later(name)
            )
        assert isinstance(position, int)
        taken.append(position)
    assert taken == sorted(set(taken))
    assert rooms == sorted(set(rooms))
    wanted = [
        f"n{number}" for number, (_, what) in enumerate(steps) if what not in ("fails", "counter")
    ]
    assert nodes[0].names() == sorted(wanted)


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_bytes_are_passed_unchanged(database: Database, value: bytes) -> None:
    async def check() -> None:
        same = await database.read(
            "bytes", lambda txn: txn.query("SELECT ?, length(?)", (value, value))
        )
        assert same == [(value, len(value))]

    run_coroutine(check(), None)


@pytest.mark.parametrize("conforming", ["on", "off"])
@pytest.mark.parametrize(
    "value", [b"", b"'", b"\\x41", b"\\", b"%s", b"''; --", b'{"a":"it\'s %(b)s"}', b"\0", b"\xff"]
)
def test_bytes_with_sql_syntax_are_passed_unchanged(
    postgresql: PostgresConfig, value: bytes, conforming: str
) -> None:
    """With either setting of the database."""
    setter = make_engine(postgresql).connect_writer()
    setter.execute_script(
        f"ALTER DATABASE {postgresql.connect['dbname']}"
        f" SET standard_conforming_strings = {conforming}"
    )
    setter.close()
    connection = make_engine(postgresql).connect_reader()
    assert isinstance(connection, PostgresConnection)
    for _ in range(4):  # the later ones use the prepared statement
        assert connection.query_one("SELECT ? || ?", (value, b"end")) == (value + b"end",)
    connection.close()
