"""Metrics and slow logs of the database, and responses while it is unavailable."""

from pathlib import Path
from typing import cast

from prometheus_client import CollectorRegistry
from twisted.logger import ILogObserver, LogEvent, Logger

from homeserver.observe.database import DatabaseMetrics
from homeserver.observe.metrics_page import write_metrics_page
from storage.engine.database import Database, SQLiteConfig, Transaction, WriteTransaction
from tests.helpers.databases import open_inline
from tests.helpers.server import TestServer

ROOT = Path(__file__).parents[2]


def query_twice(txn: Transaction) -> None:
    txn.query("SELECT name FROM jobs")
    txn.query("SELECT name FROM jobs")


def write_once(txn: WriteTransaction) -> None:
    txn.execute("INSERT INTO jobs (name, progress) VALUES (?, ?)", ("a", "1"))


async def test_transactions_are_counted(sqlite: SQLiteConfig) -> None:
    registry = CollectorRegistry()
    database = open_inline(sqlite, DatabaseMetrics(registry=registry, slow_seconds=10.0))
    await database.read("query_twice", query_twice)
    await database.read("query_twice", query_twice)
    await database.write("write_once", write_once)
    labels = {"kind": "read", "name": "query_twice"}
    assert registry.get_sample_value("mahalla_database_transactions_total", labels) == 2
    assert registry.get_sample_value("mahalla_database_queries_total", labels) == 4
    assert (registry.get_sample_value("mahalla_database_seconds_total", labels) or 0) > 0
    labels = {"kind": "write", "name": "write_once"}
    assert registry.get_sample_value("mahalla_database_transactions_total", labels) == 1
    assert registry.get_sample_value("mahalla_database_batch_writes_count") == 1
    await database.close()


def test_slow_transactions_are_logged() -> None:
    events: list[LogEvent] = []
    observer = cast(ILogObserver, events.append)
    metrics = DatabaseMetrics(
        registry=CollectorRegistry(), slow_seconds=0.2, log=Logger(observer=observer)
    )
    metrics.read_done("quick", 5.0, 0.1, 1)
    metrics.read_done("slow_read", 0.5, 0.25, 3)
    metrics.batch_done(4, 0, 0.5, 0.4)
    assert [(event.get("name"), event["milliseconds"]) for event in events] == [
        ("slow_read", 250.0),
        (None, 400.0),
    ]


def test_the_metrics_page_is_current() -> None:
    written = (ROOT / "docs" / "operators" / "metrics.md").read_text(encoding="utf-8")
    assert written == write_metrics_page(), (
        "run `python -m homeserver metrics > docs/operators/metrics.md`"
    )


async def test_an_unavailable_database_is_a_503(
    server: TestServer, sqlite_database: Database
) -> None:
    alice = server.register("alice")
    await sqlite_database.close()
    for answer in (
        alice.post("/_matrix/client/v3/createRoom"),
        server.get("/_matrix/client/v3/profile/@a:example.org"),
    ):
        assert (answer.status, answer.errcode) == (503, "M_UNKNOWN")
        assert answer.headers["retry-after"] == "1"
