"""The cost of serving a join to a large room, of joining one, and of receiving its events."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred

from federation.protocol.ids import RoomID, UserID
from federation.rooms.event_drafts import Draft
from storage.engine.database import Database
from tests.helpers.databases import QueryCounter, copy_sqlite, open_inline
from tests.helpers.network import Network
from tests.helpers.remote_membership import NORTH, SOUTH, join_via
from tests.helpers.room_actions import create, get_state, ok, room_path, say

MEMBERS = 2000
FEW = 60


class Costs:
    """Two servers, and what they ask their databases."""

    def __init__(self, folder: Path, template: Path, config: str = "") -> None:
        self.north, self.south = QueryCounter(), QueryCounter()
        counters = iter((self.north, self.south))
        self.databases: list[Database] = []

        def open_next() -> Database:
            self.databases.append(open_inline(copy_sqlite(template, folder), next(counters)))
            return self.databases[-1]

        self.network = Network(folder, open_next)
        self.alice = self.network.add(NORTH).register("alice")
        self.bob = self.network.add(SOUTH, config).register("bob")

    async def make_room(self, users: Sequence[UserID]) -> str:
        """A room with these people and Alice; what that costs does not count."""
        room_id = create(self.alice, preset="public_chat", name="tea")
        joins = [Draft("m.room.member", user, {"membership": "join"}, user) for user in users]
        for start in range(0, len(users), 50):
            await self.alice.server.app.room_engine.engine.send(
                RoomID(room_id), joins[start : start + 50]
            )
        self.north.clear()
        self.south.clear()
        return room_id

    async def close(self) -> None:
        for database in self.databases:
            await Deferred.fromCoroutine(database.close())


def people(count: int) -> list[UserID]:
    return [UserID(f"@user{number}:{NORTH}") for number in range(count)]


@pytest.mark.parametrize("in_part", [True, False])
async def test_a_large_room_costs_no_query_for_each_of_its_members(
    tmp_path: Path, sqlite_template: Path, in_part: bool
) -> None:
    costs = Costs(
        tmp_path, sqlite_template, f"federation: {{partial_state_joins: {str(in_part).lower()}}}\n"
    )
    north, south, network = costs.north, costs.south, costs.network
    users = people(MEMBERS)
    room_id = await costs.make_room(users)

    joining = costs.bob.start("POST", f"/_matrix/client/v3/join/{room_id}?via={NORTH}", {})
    network.settle()  # a long answer is read piece by piece
    ok(joining.answer)
    assert not in_part or (north.queries.total() < 100 and south.queries.total() < 150)
    network.start_completing()
    network.settle()

    assert get_state(costs.bob, room_id, "m.room.member", users[-1]) == {"membership": "join"}
    assert north.queries.total() < (150 if in_part else 100), north.queries
    assert south.queries.total() < MEMBERS / 4, south.queries
    await costs.close()


async def test_a_complete_join_response_costs_no_query_for_each_member(
    tmp_path: Path, sqlite_template: Path
) -> None:
    costs = Costs(tmp_path, sqlite_template)
    room_id = await costs.make_room(people(FEW))
    network = costs.network
    network.log.clear()

    ok(join_via(costs.bob, room_id, NORTH))
    network.start_completing()
    network.settle()

    asked = [
        uri.split("/")[4] for _, to, _, uri in network.log if to == NORTH and "federation" in uri
    ]
    assert asked == ["make_join", "send_join"]
    assert costs.north.queries.total() < 2 * FEW, costs.north.queries
    assert costs.south.queries.total() < 2 * FEW, costs.south.queries
    await costs.close()


@pytest.mark.parametrize("members", [2, FEW])
async def test_a_message_costs_one_write_and_few_queries_however_many_are_in_the_room(
    tmp_path: Path, sqlite_template: Path, members: int
) -> None:
    costs = Costs(tmp_path, sqlite_template)
    room_id = RoomID(await costs.make_room(people(members)))
    ok(join_via(costs.bob, room_id, NORTH))
    costs.network.start_sending()
    for number in range(3):
        costs.south.clear()
        event_id = say(costs.alice, room_id, f"{number}")
        costs.network.settle()

    assert costs.south.writes == {"append_event": 1}
    assert costs.south.queries.total() <= 8, costs.south.queries
    assert ok(costs.bob.get(room_path(room_id, "event", event_id)))["content"]["body"] == "2"
    await costs.close()
