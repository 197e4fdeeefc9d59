"""The cost of pushes: nothing without a pusher, no write per push, and a fixed number of queries
however many pushes there are."""

from pathlib import Path
from typing import Any

import pytest

from storage.engine.database import SQLiteConfig
from tests.conftest import run_coroutine
from tests.helpers.clocks import settle
from tests.helpers.databases import QueryCounter, open_inline
from tests.helpers.push_gateway import PushGateway, set_pusher
from tests.helpers.server import TestServer, User
from tests.helpers.sync_requests import Rooms

rooms = Rooms()


class Counting:
    """A server with pushers that counts its queries."""

    def __init__(self, folder: Path, config: SQLiteConfig) -> None:
        self.counter = QueryCounter()
        self.gateway = PushGateway()
        self.database = open_inline(config, self.counter)
        self.server = TestServer(folder, self.database, web=self.gateway)
        self.server.app.pushers.start()
        settle(self.server)

    def crowd(self, number: int) -> tuple[list[User], str]:
        people = [self.server.register(f"user{at}") for at in range(number)]
        return people, rooms.create(people[0], *people[1:])

    def cost(self, user: User, room: str) -> dict[str, int]:
        """Return the queries that one message causes until it is pushed, by name."""
        for _ in range(2):
            rooms.say(user, room)
            settle(self.server)
        self.counter.clear()
        rooms.say(user, room)
        settle(self.server)
        return dict(self.counter.queries)


@pytest.fixture
def counting(tmp_path: Path, sqlite: SQLiteConfig) -> Any:
    made = Counting(tmp_path, sqlite)
    yield made
    run_coroutine(made.database.close(), None)


def test_users_without_a_pusher_cost_nothing(counting: Counting) -> None:
    people, room = counting.crowd(6)
    before = counting.cost(people[0], room)
    elsewhere = counting.server.register("elsewhere")
    set_pusher(elsewhere)
    settle(counting.server)
    assert counting.cost(people[0], room) == before


def test_a_push_writes_nothing_and_its_queries_do_not_grow_with_the_members(
    counting: Counting,
) -> None:
    people, room = counting.crowd(12)
    none = counting.cost(people[0], room)
    for number, user in enumerate(people[1:]):
        set_pusher(user, f"key{number}")
        settle(counting.server)
    counting.gateway.taken.clear()
    all_of_them = counting.cost(people[0], room)
    assert len(counting.gateway.taken) == 3 * 11
    further = {
        name: number - none.get(name, 0)
        for name, number in all_of_them.items()
        if number > none.get(name, 0)
    }
    assert sum(further.values()) <= 5, further
    assert not [name for name in further if name.startswith(("set_", "add_", "remove_"))]


def test_users_who_muted_the_room_cost_nothing(counting: Counting) -> None:
    people, room = counting.crowd(12)
    before = counting.cost(people[0], room)
    for number, user in enumerate(people[1:]):
        set_pusher(user, f"key{number}")
        assert (
            user.put(f"/_matrix/client/v3/pushrules/global/room/{room}", {"actions": []}).status
            == 200
        )
    settle(counting.server)
    after = counting.cost(people[0], room)
    assert counting.gateway.taken == []
    further = {
        name: number - before.get(name, 0)
        for name, number in after.items()
        if number > before.get(name, 0)
    }
    assert further == {}
