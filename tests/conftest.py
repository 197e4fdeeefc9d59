"""Runs the tests: coroutines at once, with databases of their own.

- `async def test_…` is run by `Deferred.fromCoroutine` and has to finish at once: databases run
  inline, and time moves only by `clock.advance`. Where it waits for ever, the test fails and says
  so.
- With `@pytest.mark.reactor` the real reactor turns until the test is done, for at most as many
  seconds as the mark says (`reactor(120)`; 60 by default).
- Several workers share the work as `tests/helpers/sharing.py` says.
- No example of Hypothesis has a deadline: how long something takes is a matter of `scripts/bench`.
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
from tests.helpers.both_ways import Compared, both_ways
from tests.helpers.databases import (
    PostgresTemplates,
    copy_sqlite,
    make_sqlite_template,
    open_inline,
)
from tests.helpers.federated import NUMBERS
from tests.helpers.network import Network
from tests.helpers.server import TestServer
from tests.helpers.sharing import Sharing, begin_with_long
from tests.helpers.templates import compile_templates_once

settings.register_profile("untimed", settings.default, deadline=None)
settings.load_profile("untimed")

REACTOR_SECONDS = 60.0
COLLECTOR_THRESHOLDS = (20_000, 20, 10)
"""Of `gc`: what a test leaves behind is looked for once for several tests, not some times for
each."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "reactor(seconds): an async test that needs the real reactor, at most so long"
    )
    # Until somebody listens, Twisted keeps what is logged, and with it the servers that said it.
    globalLogBeginner.beginLoggingTo([], discardBuffer=True, redirectStandardIO=False)
    compile_templates_once()
    if not hasattr(config, "workerinput"):
        postgres.prepare(in_memory=True)
        if folder := postgres.memory():
            os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", folder)  # where pytest puts `tmp_path`
    else:
        gc.disable()  # what is made until the tests begin is there to stay


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    begin_with_long(items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Sharing:
    return Sharing(config, log)


def pytest_collection_finish() -> None:
    """Exclude the objects that exist before the first test from garbage collection: they stay, and
    each collection would look through them again."""
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
    """Run a test to its end: at once, or within so many seconds of the real reactor."""
    deferred = Deferred.fromCoroutine(coroutine)
    outcome: list[Failure | None] = []
    deferred.addBoth(outcome.append)
    if not outcome and seconds is not None:
        _turn_reactor(deferred, seconds)
    if not outcome:
        deferred.cancel()
        if seconds is None:
            pytest.fail(
                "the test waits for something that nobody will do: time moves only by clock.advance()"
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
    """Responses of both kinds of sync with a short way in them, each compared with the full way."""
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
    """An open database that does everything at once; the test runs on SQLite and on PostgreSQL."""
    yield from _opened(database_config)


@pytest.fixture
def sqlite_database(sqlite: SQLiteConfig) -> Iterator[Database]:
    """As `database`, on SQLite only: for tests of what does not depend on the database."""
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
    """The whole server in memory, on SQLite."""
    return TestServer(tmp_path, sqlite_database)


@pytest.fixture
def network(tmp_path: Path, sqlite_template: Path) -> Iterator[Network]:
    """A network without servers; each that is added has an SQLite database of its own."""
    NUMBERS.start_anew()
    databases: list[Database] = []

    def open_another() -> Database:
        databases.append(open_inline(copy_sqlite(sqlite_template, tmp_path)))
        return databases[-1]

    yield Network(tmp_path, open_another)
    for database in databases:
        run_coroutine(database.close(), None)


def _opened(config: SQLiteConfig | PostgresConfig) -> Iterator[Database]:
    database = open_inline(config)
    yield database
    run_coroutine(database.close(), None)
