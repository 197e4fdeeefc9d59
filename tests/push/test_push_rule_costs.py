"""The cost of push rules for a message: no queries per member.

spec: client-server-api#server-behaviour-13
"""

from pathlib import Path
from typing import Any

import pytest

from storage.engine.database import SQLiteConfig
from storage.engine.transaction import Transaction
from tests.conftest import run_coroutine
from tests.helpers.databases import QueryCounter, open_inline
from tests.helpers.server import TestServer, User
from tests.helpers.sync_requests import Rooms, sync

rooms = Rooms()
V3 = "/_matrix/client/v3"


class Counting:
    """A server whose queries are counted."""

    def __init__(self, folder: Path, config: SQLiteConfig) -> None:
        self.counter = QueryCounter()
        self.database = open_inline(config, self.counter)
        self.server = TestServer(folder, self.database)

    def crowd(self, number: int) -> tuple[list[User], str]:
        people = [self.server.register(f"user{at}") for at in range(number)]
        return people, rooms.create(people[0], *people[1:])

    def rows(self) -> int:
        def count(txn: Transaction) -> int:
            ((found,),) = txn.query("SELECT count(*) FROM event_push_actions", ())
            return int(found)

        return self.server.run(self.database.read("count_rows", count))

    def cost(self, user: User, room: str, **more: Any) -> dict[str, int]:
        """Queries of one message, by name."""
        rooms.say(user, room, **more)
        self.counter.clear()
        rooms.say(user, room, **more)
        return dict(self.counter.queries)


@pytest.fixture
def counting(tmp_path: Path, sqlite: SQLiteConfig) -> Any:
    made = Counting(tmp_path, sqlite)
    yield made
    run_coroutine(made.database.close(), None)


def test_a_message_costs_no_query_and_no_row_per_member(
    counting: Counting,
) -> None:
    people, room = counting.crowd(12)
    alone = counting.cost(people[0], rooms.create(people[0], people[1]))
    assert counting.cost(people[0], room) == alone
    for user in people[1:5]:
        user.put(f"{V3}/pushrules/global/room/{room}", {"actions": []})
    about_room = {"kind": "event_match", "key": "room_id", "pattern": room}
    for user in people[5:9]:
        user.put(
            f"{V3}/pushrules/global/override/{room}", {"actions": [], "conditions": [about_room]}
        )
    for user in people[9:]:
        user.put(f"{V3}/pushrules/global/content/tea", {"actions": ["notify"], "pattern": "tea"})
    assert counting.cost(people[0], room) == alone
    assert counting.cost(people[0], room, more={"m.mentions": {"room": True}}) == alone
    assert counting.rows() == 0
    rooms.say(people[0], room, more={"m.mentions": {"user_ids": [user.user_id for user in people]}})
    assert counting.rows() == 11 - 4, "those who have muted the room are not called"


def test_unread_counts_of_active_readers_cost_no_query(counting: Counting) -> None:
    people, room = counting.crowd(3)
    since = sync(people[1])["next_batch"]
    rooms.say(people[0], room)
    since = sync(people[1], since)["next_batch"]
    rooms.say(people[0], room)
    counting.counter.clear()
    answer = sync(people[1], since)
    assert answer["rooms"]["join"][room]["unread_notifications"]["notification_count"] == 2
    counted = {name for name in counting.counter.queries if "push" in name or "receipt" in name}
    assert counted == set()
