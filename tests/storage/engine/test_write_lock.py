"""A PostgreSQL writer that waits for the write lock of another node."""

from threading import Thread
from time import sleep

from storage.engine.database import PostgresConfig, make_engine
from storage.engine.interface import Connection
from tests.conftest import run_coroutine
from tests.storage.engine.test_postgres_writer import INSERT, nodes, write
from tests.storage.engine.test_writer import Stepped, names, put

__all__ = ["nodes"]


def test_a_writer_sees_commits_made_while_it_waited_for_the_lock(
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
    wait_until_blocked(watch, writer)
    holder.execute(INSERT, ("elsewhere", ""))
    holder.commit({"position": head + 1, "room": 7})
    writer.join()
    assert here.results["new"] == (head + 2, 8, ["elsewhere", "job", "new"])
    assert here.database.streams.current() == head + 2
    watch.close()
    holder.close()


def wait_until_blocked(watch: Connection, writer: Thread) -> None:
    """Wait until a session of this database waits for the lock. The server lists locks of all
    databases, including those of other tests."""
    waiting = (
        "SELECT count(*) FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database"
        " WHERE d.datname = current_database() AND l.locktype = 'advisory' AND NOT l.granted"
    )
    while watch.query_one(waiting, ()) != (1,):
        assert writer.is_alive(), "the writer must wait"


def test_a_waiting_writer_outlasts_a_silent_lock_holder(
    postgresql: PostgresConfig,
) -> None:
    """Even if the holder was still active when the wait began."""
    config = PostgresConfig(postgresql.connect, write_lock_timeout=3.0)
    engine, here = make_engine(config), Stepped(config)
    watch, silent = engine.connect_reader(), engine.connect_writer()
    silent.begin_write()
    writer = Thread(target=write, args=(here, "new", put("new")))
    writer.start()
    wait_until_blocked(watch, writer)
    sleep(0.5)
    silent.query_one("SELECT 1", ())
    writer.join()
    assert here.results["new"] == here.database.streams.current()
    assert here.names() == ["new"]
    run_coroutine(here.database.close(), None)
    watch.close()
    silent.close()


def test_writes_use_read_committed_whatever_the_role_default(
    postgresql: PostgresConfig,
) -> None:
    """Otherwise commits made during the wait for the lock would be invisible."""
    strict = {**postgresql.connect, "options": "-c default_transaction_isolation=serializable"}
    for engine in (make_engine(PostgresConfig(strict)), make_engine(postgresql)):
        writer = engine.connect_writer()
        assert writer.query_one("SHOW transaction_isolation", ()) == ("read committed",)
        writer.close()
