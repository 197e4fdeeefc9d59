"""A writer on PostgreSQL that waits for the lock which another node holds."""

from threading import Thread
from time import sleep

from storage.engine.database import PostgresConfig, make_engine
from storage.engine.interface import Connection
from tests.conftest import run_coroutine
from tests.storage.test_postgres_writer import INSERT, nodes, write
from tests.storage.test_writer import Stepped, names, put

__all__ = ["nodes"]


def test_what_is_committed_while_the_lock_is_waited_for_is_seen(
    nodes: tuple[Stepped, Stepped], postgresql: PostgresConfig
) -> None:
    here, _ = nodes
    write(here, "mine", lambda txn: txn.allocate("room"))
    head = write(here, "job", put("job"))
    assert isinstance(head, int)
    engine = make_engine(postgresql)
    watch, holder = engine.connect_reader(), engine.connect_writer()
    holder.begin_write()
    writer = Thread(
        target=write,
        args=(here, "new", lambda txn: (put("new")(txn), txn.allocate("room"), names(txn))),
    )
    writer.start()
    wait_until_it_waits(watch, writer)
    holder.execute(INSERT, ("elsewhere", ""))
    holder.commit({"position": head + 1, "room": 7})
    writer.join()
    assert here.results["new"] == (head + 2, 8, ["elsewhere", "job", "new"])
    assert here.database.streams.current() == head + 2
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


def test_whatever_the_role_prefers_each_statement_of_a_write_sees_what_was_committed_before(
    postgresql: PostgresConfig,
) -> None:
    """Else what was committed while the lock was waited for would not be seen."""
    strict = {**postgresql.connect, "options": "-c default_transaction_isolation=serializable"}
    for engine in (make_engine(PostgresConfig(strict)), make_engine(postgresql)):
        writer = engine.connect_writer()
        assert writer.query_one("SHOW transaction_isolation", ()) == ("read committed",)
        writer.close()
