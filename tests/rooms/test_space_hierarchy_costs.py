"""The number of queries for a page of a space hierarchy: the same for ten rooms as for five
hundred."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred

from storage.engine.sqlite import SQLiteConfig
from tests.helpers.databases import QueryCounter, open_inline
from tests.helpers.room_actions import create
from tests.helpers.server import TestServer
from tests.helpers.spaces import add_child, create_space, hierarchy


@pytest.fixture
def server(tmp_path: Path, sqlite: SQLiteConfig, counter: QueryCounter) -> Iterator[TestServer]:
    database = open_inline(sqlite, counter)
    yield TestServer(tmp_path, database)
    Deferred.fromCoroutine(database.close())


@pytest.mark.parametrize(("streets", "houses"), [(2, 4), (20, 24)])
def test_a_page_costs_three_queries_a_level(
    server: TestServer, counter: QueryCounter, streets: int, houses: int
) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    town = create_space(alice)
    for _ in range(streets):
        street = create_space(alice)
        add_child(alice, town, street)
        for _ in range(houses):
            add_child(alice, street, create(alice, preset="public_chat"))
    hierarchy(bob, town)
    counter.clear()
    page = hierarchy(bob, town, limit=50)
    assert dict(counter.reads) == {
        "get_summaries_by_id": 3,
        "get_space_children": 2,
        "get_rooms_with_local_members": 3,
    }
    assert sum(counter.queries.values()) == 8
    while "next_batch" in page:
        counter.clear()
        page = hierarchy(bob, town, limit=50, from_=page["next_batch"])
        assert sum(counter.queries.values()) == 8
