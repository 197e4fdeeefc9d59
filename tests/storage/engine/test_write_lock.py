"""A PostgreSQL writer that waits for the write lock of another node."""

from threading import Thread
from time import sleep

from storage.engine.database import PostgresConfig, make_engine
from storage.engine.interface import Connection
from tests.conftest import run_coroutine
from tests.helpers.stepped_database import (
    INSERT_JOB,
    SteppedDatabase,
    insert_job,
    select_job_names,
    write_now,
)


def test_a_writer_sees_commits_made_while_it_waited_for_the_lock(
    nodes: tuple[SteppedDatabase, SteppedDatabase], postgresql: PostgresConfig
) -> None:
    here, _ = nodes
    write_now(here, "mine", lambda txn: txn.allocate("room"))
    head = write_now(here, "job", insert_job("job"))
    assert isinstance(head, int)
    engine = make_engine(postgresql)
    watch, holder = engine.connect_reader(), engine.connect_writer()
    holder.begin_write()
    writer = Thread(
        target=write_now,
        args=(
            here,
            "new",
            lambda txn: (insert_job("new")(txn), txn.allocate("room"), select_job_names(txn)),
        ),
    )
    writer.start()
    wait_until_blocked(watch, writer)
    holder.execute(INSERT_JOB, ("elsewhere", ""))
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
    engine, here = make_engine(config), SteppedDatabase(config)
    watch, silent = engine.connect_reader(), engine.connect_writer()
    silent.begin_write()
    writer = Thread(target=write_now, args=(here, "new", insert_job("new")))
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
