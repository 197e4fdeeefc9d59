"""Two nodes on one PostgreSQL database: when one completes the partial state of a room, the other
shows the changed status of its events too, though it cached the old one."""

from pathlib import Path

from storage.engine.database import Database, PostgresConfig
from tests.conftest import run_coroutine
from tests.helpers.databases import copy_sqlite, open_inline
from tests.helpers.large_rooms import is_whole, lazily, messages, soft_fail_in_partial_state
from tests.helpers.network import Network, NetworkWire
from tests.helpers.remote_membership import SOUTH, WEST
from tests.helpers.room_actions import ok, room_path
from tests.helpers.server import TestServer, move_user

POSTGRES = "database: {name: psycopg2, args: {}}\n"


async def test_an_event_accepted_by_the_resync_is_sent_on_the_other_node(
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
    _, bob, _, room_id, said = await soft_fail_in_partial_state(network)
    folder = tmp_path / "other"
    folder.mkdir()
    databases.append(open_inline(postgresql))
    other = TestServer(
        folder,
        databases[-1],
        POSTGRES,
        seed=99,
        server_name=SOUTH,
        clock=network.clock,
        wire=NetworkWire(network, SOUTH),
    )
    there = move_user(other, bob)
    assert other.app.peer_nodes is not None
    other.app.peer_nodes.start()
    network.clock.advance(1)
    since = lazily(there)["next_batch"]
    assert there.get(room_path(room_id, "event", said.event_id)).status == 404
    page = ok(there.get(room_path(room_id, "messages", dir="b", limit=50)))["chunk"]
    bans = [event for event in page if event["content"].get("membership") == "ban"]
    (let_pass,) = (event["event_id"] for event in bans if event["sender"] == f"@wanda:{WEST}")
    assert there.get(room_path(room_id, "event", let_pass)).status == 200

    bob.server.app.federation_receiver.completions.start()
    network.settle()
    assert is_whole(bob, room_id)
    network.clock.advance(1)

    assert [event["event_id"] for event in messages(there, room_id)] == [said.event_id]
    update = lazily(there, since)["rooms"]["join"][room_id]
    assert [event["event_id"] for event in update["timeline"]["events"]] == [said.event_id]
    assert there.get(room_path(room_id, "event", let_pass)).status == 404
    other.app.peer_nodes.stop()
    for database in databases:
        run_coroutine(database.close(), None)
