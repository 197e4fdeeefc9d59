"""kill -9 during the resync of a room with partial state: it continues after each start, and ends
with the same room as on the other server."""

import time
from random import Random
from typing import Any
from urllib.parse import quote

from storage.engine.database import PostgresConfig, SQLiteConfig
from tests.helpers.federated_processes import FederatedProcesses, make_large_room
from tests.helpers.interop import until
from tests.helpers.ports import free_port
from tests.helpers.server_process import RunningServer

SEED = 20251125
MEMBERS = 1500
KILLS = 4
V3 = "/_matrix/client/v3"
WITHIN = 120.0


def good(server: RunningServer, method: str, path: str, token: str, body: Any = None) -> Any:
    reply = server.request(method, path, body, token=token, seconds=WITHIN)
    assert reply.status == 200, reply.body
    return reply.json


def test_the_resync_continues_after_each_kill(
    servers: FederatedProcesses, database_config: SQLiteConfig | PostgresConfig
) -> None:
    random = Random(SEED)
    north_port, south_port = free_port(), free_port()
    north_files = servers.add(north_port)
    room_id = quote(make_large_room(north_files, north_port, MEMBERS))
    north = north_files.start(listeners=2)
    files = servers.add(south_port, database=database_config)
    south = files.start(listeners=2)
    token, other = south.register("bob"), north.register("alice")
    good(south, "POST", f"{V3}/join/{room_id}?via=localhost:{north_port}", token, {})
    good(north, "POST", f"{V3}/join/{room_id}", other, {})
    said = []
    for number in range(KILLS):
        # a message acknowledged before the kill is still there, though the state is partial
        path = f"{V3}/rooms/{room_id}/send/m.room.message/t{number}"
        said.append(
            good(south, "PUT", path, token, {"msgtype": "m.text", "body": f"{number}"})["event_id"]
        )
        time.sleep(random.random() * south.seconds_to_start)
        south.kill()
        south = files.start(listeners=2)

    def members() -> int:
        return len(good(south, "GET", f"{V3}/rooms/{room_id}/joined_members", token)["joined"])

    until(
        lambda: members() == MEMBERS + 3, WITHIN
    )  # south receives the events that it missed a little later
    state = {
        entry["event_id"] for entry in good(south, "GET", f"{V3}/rooms/{room_id}/state", token)
    }
    assert state == {
        entry["event_id"] for entry in good(north, "GET", f"{V3}/rooms/{room_id}/state", other)
    }
    chunk = good(south, "GET", f"{V3}/rooms/{room_id}/messages?dir=b&limit=50", token)["chunk"]
    assert [entry["event_id"] for entry in chunk if entry["event_id"] in said] == said[::-1]
