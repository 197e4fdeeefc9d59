"""Two nodes on one PostgreSQL database. One sends a declined invite to another server late;
meanwhile the user joins the room through the other node."""

from pathlib import Path

from storage.engine.database import Database, PostgresConfig
from tests.conftest import run_coroutine
from tests.helpers.databases import copy_sqlite, open_inline
from tests.helpers.network import Network, NetworkWire
from tests.helpers.room_actions import V3, create, get_state, invite, membership, ok
from tests.helpers.server import TestServer, move_user

NORTH, SOUTH = "north.example", "south.example"


async def test_a_late_decline_does_not_undo_a_join_through_another_node(
    tmp_path: Path, sqlite_template: Path, postgresql: PostgresConfig
) -> None:
    databases: list[Database] = []

    def open_another() -> Database:
        # Bob's server is the second
        databases.append(
            open_inline(
                postgresql if len(databases) == 1 else copy_sqlite(sqlite_template, tmp_path)
            )
        )
        return databases[-1]

    network = Network(tmp_path, open_another)
    alice, bob = network.add(NORTH).register("alice"), network.add(SOUTH).register("bob")
    folder = tmp_path / "other"
    folder.mkdir()
    databases.append(open_inline(postgresql))
    other = TestServer(
        folder,
        databases[-1],
        "database: {name: psycopg2, args: {}}\n",
        seed=99,
        server_name=SOUTH,
        clock=network.clock,
        wire=NetworkWire(network, SOUTH),
        key=bob.server.app.federation.identity.key,
    )
    assert other.app.peer_nodes is not None
    other.app.peer_nodes.start()
    there = move_user(other, bob)
    room_id = create(alice, preset="public_chat")
    invite(alice, room_id, bob)
    network.cut(NORTH, SOUTH)
    ok(membership(bob, room_id, "leave"))
    network.mend(NORTH, SOUTH)
    network.clock.advance(600)

    network.hold()
    bob.server.run(bob.server.app.federated_rooms.leaving.do_send_pending(16))
    assert ["/make_leave/" in transfer.request.uri for transfer in network.held()] == [True]
    joining = there.start("POST", f"{V3}/join/{room_id}?via={NORTH}")
    while not joining.connection.answers():
        assert network.deliver(lambda transfers: len(transfers) - 1, most=1)
    network.deliver()
    for _ in range(20):
        network.clock.advance(60)
        bob.server.run(bob.server.app.federated_rooms.leaving.do_send_pending(16))

    assert get_state(alice, room_id, "m.room.member", bob.user_id)["membership"] == "join"
    other.app.peer_nodes.stop()
    for database in databases:
        run_coroutine(database.close(), None)
