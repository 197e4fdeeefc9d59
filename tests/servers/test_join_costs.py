"""What it costs to let somebody into a large room, and to enter one."""

from pathlib import Path

import pytest
from twisted.internet.defer import Deferred

from federation.protocol.ids import RoomID, UserID
from federation.rooms.drafts import Draft
from storage.database import Database
from tests.helpers.databases import QueryCounter, copy_sqlite, open_inline
from tests.helpers.handshakes import NORTH, SOUTH, join_via
from tests.helpers.network import Network
from tests.helpers.talk import create, get_state, ok

MEMBERS = 2000


@pytest.mark.parametrize("in_part", [True, False])
async def test_a_large_room_costs_no_query_for_each_of_its_members(
    tmp_path: Path, sqlite_template: Path, in_part: bool
) -> None:
    north, south = QueryCounter(), QueryCounter()
    counters = iter((north, south))
    databases: list[Database] = []

    def open_next() -> Database:
        databases.append(open_inline(copy_sqlite(sqlite_template, tmp_path), next(counters)))
        return databases[-1]

    network = Network(tmp_path, open_next)
    alice = network.add(NORTH).register("alice")
    bob = network.add(SOUTH, f"federation: {{partial_state_joins: {str(in_part).lower()}}}\n").register("bob")
    room_id = create(alice, preset="public_chat", name="tea")
    users = [UserID(f"@user{number}:{NORTH}") for number in range(MEMBERS)]
    joins = [Draft("m.room.member", user, {"membership": "join"}, user) for user in users]
    for start in range(0, MEMBERS, 50):
        await alice.server.app.rooms.engine.send(RoomID(room_id), joins[start : start + 50])
    north.clear()
    south.clear()

    ok(join_via(bob, room_id, NORTH))
    assert not in_part or (north.queries.total() < 100 and south.queries.total() < 150)
    network.start_completing()
    network.settle()

    assert get_state(bob, room_id, "m.room.member", users[-1]) == {"membership": "join"}
    assert north.queries.total() < (150 if in_part else 100), north.queries
    assert south.queries.total() < MEMBERS / 4, south.queries
    for database in databases:
        await Deferred.fromCoroutine(database.close())
