"""What another node commits while a writer on PostgreSQL waits for the lock, having taken for
granted that nobody else writes."""

from collections.abc import Callable
from threading import Thread
from time import sleep
from typing import Any, cast

import pytest

from storage.engine.database import PostgresConfig, WriteTransaction, make_engine
from storage.engine.interface import Connection
from tests.conftest import run_coroutine
from tests.storage.test_steady_writer import move, nodes, put_later, settle, write
from tests.storage.test_writer import Stepped, put

__all__ = ["nodes"]


@pytest.mark.parametrize("moved", ["position", "room"])
@pytest.mark.parametrize("unwanted", ["seqscan", "indexscan"])
@pytest.mark.parametrize(
    "what",
    [
        "last",
        "last, resting on rooms",
        "later, resting on rooms",
        "later, moving rooms",
        "later, moving rooms and more",
        "later",
        "nothing",
    ],
)
def test_what_is_committed_while_the_lock_is_waited_for_is_found_out(
    nodes: tuple[Stepped, Stepped], postgresql: PostgresConfig, what: str, moved: str, unwanted: str
) -> None:
    """By whatever plan the server finds the counters."""
    here, _ = nodes
    write(
        here, "plan", lambda txn: txn.query(f"SELECT set_config('enable_{unwanted}', 'off', false)")
    )
    settle(here)
    write(here, "mine", lambda txn: txn.allocate("room"))
    write(here, "job", put_later("job"))
    head = here.database.streams.current()
    tries: list[int] = []

    def fn(txn: WriteTransaction) -> Any:
        tries.append(txn.counter("room") if "rooms" in what else 0)
        if "moving" in what:
            txn.allocate("room")
        if "more" in what:
            txn.allocate("device")
        if what == "nothing":
            return txn.next_position()
        return (put_later("new") if what.startswith("later") else move("job", "here", "there"))(txn)

    write(here, "prepared", move("nobody", "", ""))
    head += 1
    engine = make_engine(postgresql)
    watch, holder = engine.connect_reader(), engine.connect_writer()
    counters = holder.begin_write()
    writer = Thread(target=write, args=(here, "new", fn))
    writer.start()
    wait_until_it_waits(watch, writer)
    holder.commit({moved: counters[moved] + 1})
    writer.join()
    rests_on_it = moved == "position" or "rooms" in what
    assert len(tries) == 1 + rests_on_it
    assert tries[-1] == ("rooms" in what) * (1 + (moved == "room"))
    assert here.results["new"] == head + 1 + (moved == "position")
    assert here.database.streams.current() == here.results["new"]
    assert write(here, "mine again", lambda txn: txn.allocate("room")) == 2 + (moved == "room") + (
        "moving" in what
    )
    assert write(here, "next", put("next")) == here.database.streams.current()
    watch.close()
    holder.close()


def wait_until_it_waits(watch: Connection, writer: Thread) -> None:
    """Of locks the server tells those of all databases, also of other tests'."""
    waiting = (
        "SELECT count(*) FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database"
        " WHERE d.datname = current_database() AND l.locktype = 'advisory' AND NOT l.granted"
    )
    while watch.query_one(waiting, ()) != (1,):
        assert writer.is_alive(), "it has to wait"


def test_who_waits_for_one_that_goes_silent_amid_a_write_does_not_give_up_first(
    postgresql: PostgresConfig,
) -> None:
    """Also where that one did something when it was waited for already."""
    config = PostgresConfig(postgresql.connect, write_lock_timeout=3.0)
    engine, here = make_engine(config), Stepped(config)
    watch, silent = engine.connect_reader(), engine.connect_writer()
    silent.begin_write()
    writer = Thread(target=write, args=(here, "new", put("new")))
    writer.start()
    wait_until_it_waits(watch, writer)
    sleep(0.5)
    silent.query_one("SELECT 1", ())
    writer.join()
    assert here.results["new"] == here.database.streams.current()
    assert here.names() == ["new"]
    run_coroutine(here.database.close(), None)
    watch.close()
    silent.close()


@pytest.mark.parametrize("what", ["ask", "last", "later", "nothing"])
def test_what_another_wrote_is_found_out_without_a_warning_in_the_servers_log(
    nodes: tuple[Stepped, Stepped], what: str
) -> None:
    """A message that is a transaction of its own leaves none that could be rolled back."""
    here, there = nodes
    write(here, "job", put_later("job"))
    write(here, "prepared", move("nobody", "", ""))
    settle(here)
    write(there, "elsewhere", put("elsewhere"))
    writes: dict[str, Callable[[WriteTransaction], Any]] = {
        "ask": put("new"),
        "last": move("job", "here", "there"),
        "later": put_later("new"),
        "nothing": lambda txn: txn.next_position(),
    }
    assert write(here, "new", writes[what]) == here.database.streams.current()
    assert cast(Any, here.database)._writer._connection._connection.notices == []


def test_whatever_the_role_prefers_each_statement_of_a_write_sees_what_was_committed_before(
    postgresql: PostgresConfig,
) -> None:
    """Else what was committed while the lock was waited for would not be seen."""
    strict = {**postgresql.connect, "options": "-c default_transaction_isolation=serializable"}
    for engine in (make_engine(PostgresConfig(strict)), make_engine(postgresql)):
        writer = engine.connect_writer()
        assert writer.query_one("SHOW transaction_isolation", ()) == ("read committed",)
        writer.close()
