"""What a writer on PostgreSQL takes for granted, that nobody else has written since it did, and
what becomes of it where somebody has."""

from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg2 import DatabaseError
from psycopg2.extensions import cursor

from storage.devices.devices import DeviceRow, DeviceStore
from storage.encryption.device_keys import DeviceKeyStore, NewKeys
from storage.engine.database import (
    Database,
    DatabaseUnavailable,
    PostgresConfig,
    WriteTransaction,
    make_engine,
)
from storage.engine.interface import OthersWrote
from storage.engine.postgres import STEADY, PostgresConnection, PostgresEngine
from storage.engine.streams import Change, Topic
from tests.conftest import run_coroutine
from tests.storage.test_writer import Stepped, put, stepped

__all__ = ["stepped"]

END_OTHERS: Final = (
    "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)
REFUSE: Final = """CREATE FUNCTION refuse_once() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN
    IF nextval('tries') = 1 THEN RAISE EXCEPTION 'once' USING ERRCODE = 'WHICH'; END IF;
    RETURN TRUE; END $$"""
INSERT: Final = "INSERT INTO jobs (name, progress) VALUES (?, ?)"
MOVE: Final = "UPDATE jobs SET progress = ? WHERE name = ? AND progress = ?"


class CountingCursor(cursor):
    """Counts the messages that go to the server, and keeps the last."""

    messages = 0
    last = b""

    def execute(self, query: Any, vars: Any = None) -> None:
        CountingCursor.messages += 1
        CountingCursor.last = query if isinstance(query, bytes) else query.encode()
        super().execute(query, vars)


@pytest.fixture
def nodes(
    postgresql: PostgresConfig, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Stepped, Stepped]]:
    """Two processes on one database; of the first what it sends is counted."""
    connect = PostgresEngine.open

    def open_counting(engine: PostgresEngine, settings: Any) -> Any:
        opened = connect(engine, settings)
        opened.cursor_factory = CountingCursor
        return opened

    monkeypatch.setattr(PostgresEngine, "open", open_counting)
    CountingCursor.messages = 0
    pair = Stepped(postgresql), Stepped(postgresql)
    yield pair
    for each in pair:
        run_coroutine(each.database.close(), None)


def write(node: Stepped, name: str, fn: Callable[[WriteTransaction], Any]) -> object:
    node.queue(name, fn)
    node.step()
    return node.results[name]


def settle(node: Stepped, times: int = STEADY + 2) -> None:
    """It writes, and nobody else does."""
    for number in range(times):
        write(node, f"settle{number}", lambda txn: txn.next_position())


def put_later(name: str) -> Callable[[WriteTransaction], int]:
    def fn(txn: WriteTransaction) -> int:
        txn.execute_later("INSERT INTO jobs (name, progress) VALUES (?, 'here')", (name,))
        position = txn.next_position()
        txn.announce(Change(position, Topic.PROFILE, user_id=name))
        return position

    return fn


def move(name: str, before: str, after: str) -> Callable[[WriteTransaction], int]:
    """A change of which nothing is asked."""

    def fn(txn: WriteTransaction) -> int:
        txn.execute_later(MOVE, (after, name, before))
        position = txn.next_position()
        txn.announce(Change(position, Topic.PROFILE, user_id=name))
        return position

    return fn


def number_and_put(name: str) -> Callable[[WriteTransaction], int]:
    """It rests on a counter besides."""

    def fn(txn: WriteTransaction) -> int:
        txn.allocate("room")
        return put_later(name)(txn)

    return fn


def test_a_write_that_asks_nothing_is_one_message(nodes: tuple[Stepped, Stepped]) -> None:
    node, _ = nodes
    settle(node)
    for number in range(4):
        CountingCursor.messages = 0
        write(node, f"job{number}", put_later(f"job{number}"))
    assert CountingCursor.messages == 1
    assert b"COMMIT" not in CountingCursor.last
    assert CountingCursor.last.count(b"EXECUTE") == 2, (
        "the lock with the position, on which alone it rests; the row"
    )
    for number in range(4):
        CountingCursor.messages = 0
        write(node, f"move{number}", move(f"job{number}", "here", "there"))
    assert CountingCursor.messages == 1
    for number in range(3):
        CountingCursor.messages = 0
        write(node, f"numbered{number}", number_and_put(f"numbered{number}"))
    assert CountingCursor.messages == 1
    assert CountingCursor.last.count(b"EXECUTE") == 2, (
        "the lock with the position and the other counter; the row"
    )
    for number in range(2):
        CountingCursor.messages = 0
        write(
            node,
            f"both{number}",
            lambda txn, n=number: (  # type: ignore[misc]
                txn.allocate("device"),
                number_and_put(f"both{n}")(txn),
            ),
        )
    assert CountingCursor.messages == 1
    assert CountingCursor.last.count(b"EXECUTE") == 5, (
        "the lock; the check of all counters, and the new position; the row; two other counters"
    )
    for number, count in enumerate((1, 3, 30)):
        CountingCursor.messages = 0
        rows = [(f"many{number}.{each}", "here") for each in range(count)]
        write(node, f"many{number}", lambda txn, rows=rows: txn.execute_many(INSERT, rows))  # type: ignore[misc]
        assert CountingCursor.messages == 1 + (number == 0), (
            "nor are many rows, once the statement is prepared"
        )
    for number in range(2):
        CountingCursor.messages = 0
        write(node, f"another{number}", put(f"another{number}"))
    assert CountingCursor.messages == 2
    assert len(node.names()) == 11 + 34


def test_a_claim_of_keys_is_one_message_and_one_row(nodes: tuple[Stepped, Stepped]) -> None:
    node, _ = nodes
    store, devices = DeviceKeyStore(node.database), DeviceStore(node.database)
    settle(node)

    def upload(txn: WriteTransaction) -> None:
        for name in ("A", "B"):
            devices.add_device(txn, DeviceRow("@a:b", name, None, 0))
            keys = {("curve", f"{name}{number}"): b"{}" for number in range(4)}
            store.put_keys(txn, "@a:b", name, NewKeys(None, keys, {}), 0)

    write(node, "upload", upload)
    wishes = [("@a:b", name, "curve") for name in ("A", "B")]
    for number in range(4):
        CountingCursor.messages = 0
        claimed = write(node, f"claim{number}", lambda txn: store.claim_keys(txn, wishes, 0))
        assert claimed == [b'"%b%d":{}' % (name.encode(), number) for _, name, _ in wishes]
        if (
            number > 1
        ):  # the first finds the log empty, and with the second its statement is prepared
            assert CountingCursor.messages == 1
            assert CountingCursor.last.count(b"EXECUTE") == 2, "the lock with the position; the row"


def test_who_writes_in_turn_with_another_takes_nothing_for_granted(
    nodes: tuple[Stepped, Stepped],
) -> None:
    here, there = nodes
    for number in range(2 * STEADY):
        for node in nodes:
            tries: list[int] = []

            def fn(txn: WriteTransaction, tries: list[int] = tries) -> int:
                tries.append(1)
                return txn.next_position()

            write(node, f"{number}", fn)
            assert len(tries) == 1
    assert (here.results["0"], there.results["0"], there.results[f"{2 * STEADY - 1}"]) == (
        1,
        2,
        4 * STEADY,
    )


@pytest.mark.parametrize("what", ["ask", "later", "last", "nothing"])
def test_what_another_wrote_is_found_out_and_all_is_run_again(
    nodes: tuple[Stepped, Stepped], what: str
) -> None:
    here, there = nodes
    settle(here)
    write(here, "job", put_later("job"))
    head = write(there, "elsewhere", put("elsewhere"))
    assert isinstance(head, int)
    heard: list[object] = []
    here.database.streams.watch(lambda after, upto: heard.append((after, upto)))
    here.database.streams.subscribe(lambda told: heard.append([change.position for change in told]))
    writes = {"ask": put("new"), "later": put_later("new"), "last": move("job", "here", "there")}
    if what == "nothing":
        run_coroutine(catch_up(here), None)
        assert heard == [(head - 1, head)]
        return
    assert write(here, "new", writes[what]) == head + 1
    assert heard == [(head - 1, head), [head + 1]], "each once, and in order"
    assert here.names() == sorted(["elsewhere", "job", *(["new"] if what != "last" else [])])
    assert write(here, "next", put("next")) == head + 2


async def catch_up(node: Stepped) -> None:
    waiting = node.database.catch_up()
    try:
        waiting.send(None)
    except StopIteration:  # pragma: no cover
        raise AssertionError("it did not wait") from None
    node.step()
    waiting.close()


def test_a_batch_of_many_is_run_again_too(nodes: tuple[Stepped, Stepped]) -> None:
    here, there = nodes
    settle(here)
    write(there, "elsewhere", put("elsewhere"))
    first = here.database.streams.current() + 2
    here.queue("a", put("a"))
    here.queue("fails", put("fails", fail=True))
    here.queue("moves", move("elsewhere", "", "there"))
    here.queue("later", put_later("later"))
    here.step()
    assert here.results["a"] == first
    assert here.results["fails"] is ValueError
    assert here.results["moves"] == first + 2
    assert here.results["later"] == first + 3
    assert here.names() == ["a", "elsewhere", "later"]


def test_other_counters_than_the_position_are_seen_to_have_moved(
    nodes: tuple[Stepped, Stepped],
) -> None:
    here, there = nodes
    settle(here)
    assert write(here, "mine", lambda txn: txn.allocate("room")) == 1
    assert write(there, "others", lambda txn: txn.allocate("room", 5)) == 2
    assert write(here, "mine again", lambda txn: txn.allocate("room")) == 7


def test_a_write_that_fails_before_it_asks_anything_sends_nothing(
    nodes: tuple[Stepped, Stepped],
) -> None:
    node, _ = nodes
    settle(node)
    CountingCursor.messages = 0

    def fail(_txn: WriteTransaction) -> None:
        raise ValueError

    assert write(node, "fails", fail) is ValueError
    assert CountingCursor.messages == 0
    assert write(node, "next", put("next")) == node.database.streams.current()


def test_a_division_by_zero_of_ones_own_is_an_error_of_the_write(
    nodes: tuple[Stepped, Stepped],
) -> None:
    node, _ = nodes
    settle(node)
    error = make_error(node)
    assert write(node, "divides", lambda txn: txn.query("SELECT 1 / 0")) is error
    assert write(node, "next", put("next")) == node.database.streams.current()
    assert node.names() == ["next"]


def make_error(node: Stepped) -> type[Exception]:
    """What the driver raises for it."""
    write(node, "fails", lambda txn: (txn.query("SELECT 1"), txn.query("SELECT 1 / 0")))
    error = node.results["fails"]
    assert isinstance(error, type)
    assert issubclass(error, Exception)
    assert error is not OthersWrote
    return error


def test_a_new_connection_begins_a_new_stretch(nodes: tuple[Stepped, Stepped]) -> None:
    """Who knows whether it leads to the same server: the position alone would not show that."""
    here, there = nodes
    look: Callable[[WriteTransaction], int | None] = lambda txn: txn.stretch  # noqa: E731
    settle(here)
    stretch = write(here, "alone", look)
    assert stretch is not None
    assert write(here, "still alone", look) == stretch
    write(there, "end", lambda txn: txn.query(END_OTHERS))
    assert write(here, "new", look) != stretch
    settle(here)
    assert write(here, "alone again", look) not in (None, stretch)


def test_a_lock_that_does_not_come_is_an_outage(postgresql: PostgresConfig) -> None:
    """Another node holds it for too long."""
    patient = PostgresConfig(postgresql.connect, write_lock_timeout=0.2)
    node = Stepped(patient)
    settle(node)
    holder = make_engine(postgresql).connect_writer()
    holder.begin_write()
    for name, fn in (
        ("ask", put("ask")),
        ("later", put_later("later")),
        ("last", move("x", "", "y")),
    ):
        assert write(node, name, fn) is DatabaseUnavailable
    node.queue("one", put("one"))
    node.queue("two", put("two"))
    node.step()
    assert {node.results["one"], node.results["two"]} == {DatabaseUnavailable}
    holder.rollback()
    holder.close()
    assert isinstance(write(node, "next", put("next")), int)
    assert node.names() == ["next"]
    run_coroutine(node.database.close(), None)


def test_a_connection_that_is_lost_with_the_commit_is_not_tried_again(
    nodes: tuple[Stepped, Stepped],
) -> None:
    """Nobody knows whether it was committed."""
    node, _ = nodes
    settle(node)
    tries: list[int] = []

    def lose(txn: WriteTransaction) -> None:
        tries.append(1)
        txn.execute_later("INSERT INTO jobs (name, progress) VALUES ('lost', '')")
        txn.execute_later(
            "UPDATE jobs SET progress = '' WHERE name = 'lost' AND pg_terminate_backend(pg_backend_pid())"
        )

    assert write(node, "lose", lose) is DatabaseUnavailable
    assert len(tries) == 1
    assert node.names() == []
    assert isinstance(write(node, "next", put("next")), int)


@pytest.mark.parametrize("what", ["ask", "later", "last", "nothing"])
def test_a_write_after_the_server_was_away_is_done(
    nodes: tuple[Stepped, Stepped], postgresql: PostgresConfig, what: str
) -> None:
    """The server ended the session while nothing was asked of it, as when it is started anew:
    nothing can have been done."""
    node, _ = nodes
    settle(node)
    write(node, "job", put_later("job"))
    make_engine(postgresql).connect_writer().query_one(END_OTHERS, ())
    writes: dict[str, Callable[[WriteTransaction], Any]] = {
        "ask": put("new"),
        "later": put_later("new"),
        "last": move("job", "here", "there"),
        "nothing": lambda txn: txn.next_position(),
    }
    head = node.database.streams.current()
    assert write(node, "new", writes[what]) == head + 1
    assert node.names() == sorted({"job", *(["new"] if what in ("ask", "later") else [])})


@pytest.mark.parametrize("code", ["40001", "40P01", "0A000", "26000"])
def test_a_change_that_may_succeed_is_tried_again(
    nodes: tuple[Stepped, Stepped], code: str
) -> None:
    """The server has said that it did nothing: another program changed a table under it, or was in
    the way."""
    node, _ = nodes
    write(node, "job", put_later("job"))
    write(node, "sequence", lambda txn: txn.execute("CREATE SEQUENCE tries"))
    write(node, "refusing", lambda txn: txn.execute(REFUSE.replace("WHICH", code)))
    settle(node)
    tries: list[int] = []

    def fn(txn: WriteTransaction) -> None:
        tries.append(1)
        txn.execute_later("INSERT INTO jobs (name, progress) VALUES ('once', '')")
        txn.execute_later("UPDATE jobs SET progress = 'there' WHERE name = 'job' AND refuse_once()")

    assert write(node, "refused", fn) is None
    assert len(tries) == 2
    assert node.names() == ["job", "once"]


@pytest.mark.parametrize("kind", ["ask", "last"])
def test_a_message_that_could_not_be_sent_is_an_outage(
    nodes: tuple[Stepped, Stepped], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The driver then takes the connection for whole, and has a bare error without a code."""
    node, _ = nodes
    write(node, "job", put_later("job"))
    write(node, "prepared", move("nobody", "", ""))
    settle(node)
    execute = CountingCursor.execute
    tries: list[int] = []

    def fail(self: CountingCursor, query: Any, vars: Any = None) -> None:
        message = query if isinstance(query, bytes) else query.encode()
        if (b"EXECUTE take_lock" in message or b"EXECUTE lock_and_move" in message) and not tries:
            tries.append(1)
            raise DatabaseError("server closed the connection unexpectedly")
        execute(self, query, vars)

    monkeypatch.setattr(CountingCursor, "execute", fail)
    outcome = write(node, kind, put("new") if kind == "ask" else move("job", "here", "there"))
    assert tries
    if kind == "ask":
        assert isinstance(outcome, int), "it is tried again"
    else:
        assert outcome is DatabaseUnavailable, "it may have been the commit"
    assert isinstance(write(node, "next", put("next")), int)


def test_a_counter_of_nothing_is_seen_to_have_come(nodes: tuple[Stepped, Stepped]) -> None:
    here, there = nodes
    settle(here)
    assert write(there, "none", lambda txn: txn.allocate("room", 0)) == 1
    assert write(here, "some", lambda txn: txn.allocate("room", 2)) == 1
    assert write(there, "more", lambda txn: txn.allocate("room")) == 3


@pytest.mark.parametrize("steady", [False, True])
def test_a_change_of_which_nothing_is_asked_is_undone_with_what_it_breaks(
    stepped: Stepped, *, steady: bool
) -> None:
    """Alone or among others, on both databases."""
    if steady:
        settle(stepped)
    for name in ("a", "b"):
        write(stepped, name, put(name))

    def fn(txn: WriteTransaction) -> None:
        txn.execute_later("INSERT INTO jobs (name, progress) VALUES ('undone', '')")
        txn.execute_later("UPDATE jobs SET name = 'a' WHERE name = 'b'")

    outcome = write(stepped, "alone", fn)
    assert issubclass(outcome, stepped.database.engine.errors)  # type: ignore[arg-type]
    stepped.queue("first", put("first"))
    stepped.queue("among others", fn)
    stepped.queue("moves", move("b", "", "there"))
    stepped.step()
    outcome = stepped.results["among others"]
    assert issubclass(outcome, stepped.database.engine.errors)  # type: ignore[arg-type]
    assert isinstance(stepped.results["moves"], int)
    assert stepped.names() == ["a", "b", "first"]


def test_changes_tell_what_they_changed(stepped: Stepped) -> None:
    for name in ("a", "c"):
        write(stepped, name, put_later(name))
    rows = [("a", "here"), ("b", "here"), ("c", "there")]
    changing = f"{MOVE} RETURNING name"
    fn: Callable[[WriteTransaction], Any] = lambda txn: txn.change_each(changing, ("home",), rows)  # noqa: E731
    assert write(stepped, "each", fn) == [("a",)]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.sampled_from(["ask", "later", "last", "fails", "counter"])),
        max_size=60,
    )
)
def test_whoever_writes_in_whatever_order_each_position_is_taken_once(
    nodes: tuple[Stepped, Stepped], steps: list[tuple[int, str]]
) -> None:
    taken: list[int] = []
    rooms: list[int] = []
    for node in nodes:
        write(node, "clear", lambda txn: (txn.execute("DELETE FROM jobs"), txn.next_position()))
        node.results.clear()
    settle(nodes[0])
    for number, (at, what) in enumerate(steps):
        node, name = nodes[at], f"n{number}"
        if what == "counter":
            room = write(node, name, lambda txn: txn.allocate("room"))
            assert isinstance(room, int)
            rooms.append(room)
            continue
        if what == "last":
            write(node, "job", put(name))
            taken.append(int(str(node.results["job"])))
            position = write(node, name, move(name, "", "there"))
        elif what == "fails":
            assert write(node, name, put(name, fail=True)) is ValueError
            continue
        else:
            position = write(node, name, put(name) if what == "ask" else put_later(name))
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
def test_bytes_arrive_as_they_are(database: Database, value: bytes) -> None:
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
def test_bytes_that_mean_something_in_a_statement_arrive_as_they_are(
    postgresql: PostgresConfig, value: bytes, conforming: str
) -> None:
    """Whatever the operator has set for the database."""
    setter = make_engine(postgresql).connect_writer()
    setter.execute_script(
        f"ALTER DATABASE {postgresql.connect['dbname']} SET standard_conforming_strings = {conforming}"
    )
    setter.close()
    connection = make_engine(postgresql).connect_reader()
    assert isinstance(connection, PostgresConnection)
    for _ in range(4):  # prepared from the third time on
        assert connection.query_one("SELECT ? || ?", (value, b"end")) == (value + b"end",)
    connection.close()
