"""Measures the CPU of sending messages to other servers, by the number of servers in the room.

The server runs in this process on SQLite, with a network that answers every transaction at once.
Connections, TLS and HTTP are not included; building, signing and encoding are.

scripts/bench sending
"""

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import process_time

from twisted.internet.defer import Deferred

from federation.protocol.ids import RoomID
from federation.rooms.event_drafts import Draft
from storage.engine.database import SQLiteConfig, make_engine
from storage.engine.migrate import migrate
from tests.helpers.clocks import settle
from tests.helpers.databases import open_inline
from tests.helpers.recording_wire import RecordingWire, pretend_member
from tests.helpers.server import TestServer

SERVERS = (0, 1, 10, 100)
MESSAGES = 300


def main(_arguments: Sequence[str]) -> None:
    """Print a line for each number of servers."""
    for count in SERVERS:
        with tempfile.TemporaryDirectory() as directory:
            Deferred.fromCoroutine(measure(Path(directory), count)).addErrback(
                lambda failure: sys.exit(str(failure))
            )


async def measure(folder: Path, count: int) -> None:
    """Send messages one by one, each with all its follow-up work."""
    config = SQLiteConfig(str(folder / "bench.db"))
    migrate(make_engine(config))
    wire = RecordingWire()
    server = TestServer(folder, open_inline(config), wire=wire)
    server.app.federation_sender.sender.start()
    alice = server.register("alice")
    room_id = RoomID(
        alice.post("/_matrix/client/v3/createRoom", {"preset": "public_chat"}).json["room_id"]
    )
    for number in range(count):
        await pretend_member(server, room_id, f"@user:server{number}.example")
    settle(server)

    async def send(number: int) -> None:
        content = {"msgtype": "m.text", "body": f"message {number}"}
        await server.app.room_engine.engine.send(
            room_id, [Draft("m.room.message", alice.user_id, content)]
        )
        server.clock.advance(0)

    for number in range(20):
        await send(number)
    started = process_time()
    for number in range(MESSAGES):
        await send(number)
    took = (process_time() - started) / MESSAGES
    sent = sum(len(wire.transactions(f"server{number}.example")) for number in range(count))
    assert sent == count * (MESSAGES + 20), sent
    sys.stdout.write(f"{count:4} other servers: {took * 1e3:.2f} ms of CPU a message\n")
    await server.app.database.close()


if __name__ == "__main__":
    main(sys.argv[1:])
