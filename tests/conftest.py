"""Runs tests: coroutines inline, each test with a database of its own.

- `async def test_…` runs as a coroutine that must finish at once: databases run inline, and time
  moves only by `clock.advance`. A test that waits for ever fails.
- With `@pytest.mark.reactor` the real reactor runs until the test is done, for at most the seconds
  of the mark (`reactor(120)`; 60 by default).
- `tests/helpers/worker_scheduling.py` distributes the tests over several workers.
- Hypothesis examples have no deadline: `scripts/bench` measures time.
- `database` runs a test on SQLite and on PostgreSQL; `sqlite_database` and `postgres_database` on
  one of them.
"""

import gc
import inspect
import os
from collections.abc import Coroutine, Iterator
from functools import wraps
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import settings
from twisted.internet import reactor as installed_reactor
from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred
from twisted.logger import globalLogBeginner
from twisted.python.failure import Failure
from xdist.remote import Producer

from storage.engine.database import Database, PostgresConfig, SQLiteConfig, open_database
from tests.helpers import postgres
from tests.helpers.databases import (
    PostgresTemplates,
    QueryCounter,
    copy_sqlite,
    make_sqlite_template,
    open_inline,
)
from tests.helpers.federated_rooms import NUMBERS
from tests.helpers.network import Network
from tests.helpers.object_store import Bucket, RunningObjectStore, running_object_store
from tests.helpers.server import TestServer, User, make_admin
from tests.helpers.sync_comparison import Compared, both_ways
from tests.helpers.templates import compile_templates_once
from tests.helpers.worker_scheduling import WorkerScheduling, long_tests_first

settings.register_profile("untimed", settings.default, deadline=None)
settings.load_profile("untimed")

REACTOR_SECONDS = 60.0
COLLECTOR_THRESHOLDS = (20_000, 20, 10)
"""Thresholds of `gc`: garbage is collected once for several tests, not several times for each
test."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "reactor(seconds): an async test that needs the real reactor, at most so long"
    )
    # Until it has an observer, Twisted buffers log events, which keep their servers in memory.
    globalLogBeginner.beginLoggingTo([], discardBuffer=True, redirectStandardIO=False)
    compile_templates_once()
    if not hasattr(config, "workerinput"):
        postgres.prepare(in_memory=True)
        if folder := postgres.memory():
            os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", folder)  # where pytest puts `tmp_path`
    else:
        gc.disable()  # objects made before the first test stay


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    long_tests_first(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> WorkerScheduling:
    return WorkerScheduling(config, log)


def pytest_collection_finish() -> None:
    """Exclude all objects that exist before the first test from garbage collection."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTOR_THRESHOLDS)
    gc.enable()


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        postgres.end()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    test = pyfuncitem.obj
    mark = pyfuncitem.get_closest_marker("reactor")
    seconds = None if mark is None else (mark.args[0] if mark.args else REACTOR_SECONDS)
    by_hypothesis = getattr(test, "hypothesis", None)
    if by_hypothesis is not None and inspect.iscoroutinefunction(by_hypothesis.inner_test):
        inner = by_hypothesis.inner_test

        @wraps(inner)
        def example(*args: Any, **kwargs: Any) -> None:
            run_coroutine(inner(*args, **kwargs), seconds)

        by_hypothesis.inner_test = example
        return None
    if not inspect.iscoroutinefunction(test):
        return None
    arguments = {name: pyfuncitem.funcargs[name] for name in inspect.signature(test).parameters}
    run_coroutine(test(**arguments), seconds)
    return True


def run_coroutine(coroutine: Coroutine[Any, Any, None], seconds: float | None) -> None:
    """Run a test to its end: inline, or within this many seconds of the real reactor."""
    deferred = Deferred.fromCoroutine(coroutine)
    outcome: list[Failure | None] = []
    deferred.addBoth(outcome.append)
    if not outcome and seconds is not None:
        _turn_reactor(deferred, seconds)
    if not outcome:
        deferred.cancel()
        if seconds is None:
            pytest.fail(
                "the test waits for something that never happens: time moves only by"
                " clock.advance()"
            )
        pytest.fail(f"the test was not done after {seconds} seconds")
    if outcome[0] is not None:
        outcome[0].raiseException()


def _turn_reactor(deferred: Deferred[None], seconds: float) -> None:
    reactor = cast(ReactorBase, installed_reactor)
    deferred.addBoth(lambda _: reactor.crash())
    timeout = reactor.callLater(seconds, reactor.crash)
    reactor.run(installSignalHandlers=False)
    if timeout.active():
        timeout.cancel()


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sqlite_template(tmp_path_factory.mktemp("sqlite-template"))


@pytest.fixture(scope="session")
def postgres_templates() -> Iterator[PostgresTemplates]:
    templates = PostgresTemplates()
    yield templates
    templates.close()


@pytest.fixture(scope="module")
def compared() -> Iterator[Compared]:
    """Compare responses of the fast path of `/sync` and sliding sync with the complete path."""
    with both_ways() as answers:
        yield answers


@pytest.fixture
def sqlite(sqlite_template: Path, tmp_path: Path) -> SQLiteConfig:
    """An empty SQLite database with the newest schema."""
    return copy_sqlite(sqlite_template, tmp_path)


@pytest.fixture
def postgresql(postgres_templates: PostgresTemplates) -> Iterator[PostgresConfig]:
    """An empty PostgreSQL database with the newest schema."""
    config = postgres_templates.create()
    yield config
    postgres_templates.drop(config)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_config(request: pytest.FixtureRequest) -> SQLiteConfig | PostgresConfig:
    """An empty database with the newest schema: first SQLite, then PostgreSQL."""
    config: SQLiteConfig | PostgresConfig = request.getfixturevalue(request.param)
    return config


@pytest.fixture
def database(database_config: SQLiteConfig | PostgresConfig) -> Iterator[Database]:
    """An open database that does everything inline; the test runs on SQLite and on PostgreSQL."""
    yield from _opened(database_config)


@pytest.fixture
def sqlite_database(sqlite: SQLiteConfig) -> Iterator[Database]:
    """As `database`, on SQLite only: for tests that do not depend on the database."""
    yield from _opened(sqlite)


@pytest.fixture
def postgres_database(postgresql: PostgresConfig) -> Iterator[Database]:
    """As `database`, on PostgreSQL only."""
    yield from _opened(postgresql)


@pytest.fixture
def threaded_database(database_config: SQLiteConfig | PostgresConfig) -> Iterator[Database]:
    """An open database with its threads, for tests that turn the reactor."""
    database = open_database(database_config, cast(ReactorBase, installed_reactor))
    yield database
    run_coroutine(database.close(), REACTOR_SECONDS)


@pytest.fixture
def server(tmp_path: Path, sqlite_database: Database) -> TestServer:
    """The complete server in memory, on SQLite."""
    return TestServer(tmp_path, sqlite_database)


@pytest.fixture
def alice(server: TestServer) -> User:
    """The user alice of `server`."""
    return server.register("alice")


@pytest.fixture
def bob(server: TestServer) -> User:
    """The user bob of `server`."""
    return server.register("bob")


@pytest.fixture
def root(server: TestServer) -> User:
    """The administrator root of `server`."""
    return make_admin(server)


@pytest.fixture
def network(tmp_path: Path, sqlite_template: Path) -> Iterator[Network]:
    """A network without servers; each added server has its own SQLite database."""
    NUMBERS.reset()
    databases: list[Database] = []

    def open_another() -> Database:
        databases.append(open_inline(copy_sqlite(sqlite_template, tmp_path)))
        return databases[-1]

    yield Network(tmp_path, open_another)
    for database in databases:
        run_coroutine(database.close(), None)


@pytest.fixture
def counter() -> QueryCounter:
    """Counts the queries of a database that is opened with it."""
    return QueryCounter()


@pytest.fixture(scope="session")
def running_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningObjectStore]:
    """A running object store by a third party."""
    with running_object_store(tmp_path_factory.mktemp("moto")) as store:
        yield store


@pytest.fixture
def bucket(running_store: RunningObjectStore) -> Bucket:
    """An empty bucket of the object store."""
    return running_store.bucket()


def _opened(config: SQLiteConfig | PostgresConfig) -> Iterator[Database]:
    database = open_inline(config)
    yield database
    run_coroutine(database.close(), None)
