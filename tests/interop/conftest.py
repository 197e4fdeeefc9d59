"""One pair of servers, ours and Synapse, for all tests of a worker. Each test has its own users and
rooms.

`MAHALLA_INTEROP_DATABASE=postgresql pytest tests/interop` runs ours on PostgreSQL.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import pytest

from storage.engine.database import PostgresConfig
from tests.helpers.databases import PostgresTemplates
from tests.helpers.interop import Person
from tests.helpers.interop_servers import InteropProcess, InteropServers, python_of_synapse

NOT_INSTALLED = (
    "NOTHING WAS TRIED WITH SYNAPSE: it is not installed here. scripts/synapse"
    " installs"
    " it into .cache/synapse"
)
_numbers = count(1)


@dataclass(frozen=True, slots=True)
class Pair:
    """Both servers."""

    ours: InteropProcess
    theirs: InteropProcess

    def people(self) -> tuple[Person, Person]:
        """Register a new user on each server; return ours, theirs."""
        number = next(_numbers)
        return self.ours.register(f"alice{number}"), self.theirs.register(f"bob{number}")

    def both_ways(self, we_are_host: bool) -> tuple[Person, Person]:
        """Register a new user on each server; return the host of the room and the guest."""
        alice, bob = self.people()
        return (alice, bob) if we_are_host else (bob, alice)


@pytest.fixture(scope="session")
def our_database(request: pytest.FixtureRequest) -> Iterator[PostgresConfig | None]:
    """The PostgreSQL database of our server, or None for SQLite."""
    kind = os.environ.get("MAHALLA_INTEROP_DATABASE", "sqlite")
    assert kind in ("sqlite", "postgresql"), (
        f"MAHALLA_INTEROP_DATABASE is {kind!r}: neither sqlite nor postgresql"
    )
    if kind == "sqlite":
        yield None
        return
    templates: PostgresTemplates = request.getfixturevalue("postgres_templates")
    database = templates.create()
    yield database
    templates.drop(database)


@pytest.fixture(scope="session")
def pair(
    tmp_path_factory: pytest.TempPathFactory, our_database: PostgresConfig | None
) -> Iterator[Pair]:
    python = python_of_synapse()
    if python is None:
        pytest.skip(NOT_INSTALLED)
    if "PYTEST_XDIST_WORKER" in os.environ:
        # tests/helpers/worker_scheduling.py gives all these tests to one worker
        (tmp_path_factory.getbasetemp().parent / "pair").touch(exist_ok=False)
    servers = InteropServers(tmp_path_factory.mktemp("server"), python)
    try:
        yield Pair(
            servers.start_ours(our_database, retention={"enabled": True}), servers.start_synapse()
        )
    finally:
        servers.end()
