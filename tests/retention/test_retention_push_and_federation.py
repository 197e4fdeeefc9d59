"""Expired messages are not sent to push gateways, and only without content to servers that were
away. Proposal: MSC1763"""

from pathlib import Path

from federation.http_client.errors import OutboundError
from federation.peers.client import make_path
from federation.protocol.ids import ServerName
from storage.engine.database import Database
from tests.helpers.clocks import pass_time
from tests.helpers.federated_rooms import NORTH, create_room, shared
from tests.helpers.network import Network
from tests.helpers.push_gateway import PushGateway, set_pusher
from tests.helpers.recording_wire import RecordingWire, pretend_member
from tests.helpers.room_actions import say, set_state
from tests.helpers.server import TestServer

HOUR = 3600
RULES = "retention: {enabled: true}\n"


def test_an_expired_push_is_not_sent(tmp_path: Path, sqlite_database: Database) -> None:
    gateway = PushGateway()
    server = TestServer(tmp_path, sqlite_database, RULES, web=gateway)
    server.app.pushers.start()
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create_room(bob)
    assert alice.post(f"/_matrix/client/v3/join/{room_id}").status == 200
    assert set_pusher(alice).status == 200
    set_state(bob, room_id, "m.room.retention", {"max_lifetime": HOUR * 1000})
    gateway.failure = OutboundError("it is down")
    say(bob, room_id, "secret")
    pass_time(server, 2 * HOUR, 60)
    newer = say(bob, room_id, "new")
    gateway.failure = None
    pass_time(server, HOUR // 2, 60)
    assert gateway.events == [newer]
    assert "secret" not in repr(gateway.taken)


async def test_a_server_that_was_away_gets_expired_events_without_content(
    tmp_path: Path, sqlite_database: Database
) -> None:
    peer, wire = "peer.example", RecordingWire()
    server = TestServer(tmp_path, sqlite_database, RULES, wire=wire)
    server.app.federation_sender.sender.start()
    alice = server.register("alice")
    room_id = create_room(alice)
    set_state(alice, room_id, "m.room.retention", {"max_lifetime": HOUR * 1000})
    await pretend_member(server, room_id, f"@bob:{peer}")
    wire.down = {peer}
    say(alice, room_id, "secret")
    pass_time(server, 2 * HOUR, 60)
    before = len(wire.transactions(peer))
    say(alice, room_id, "new")
    wire.down = set()
    pass_time(server, 3 * HOUR, 60)
    received = [pdu for _, body in wire.transactions(peer)[before:] for pdu in body["pdus"]]
    texts = [pdu["content"].get("body") for pdu in received if pdu["type"] == "m.room.message"]
    assert texts == [None, "new"]
    assert "secret" not in repr(received)


async def test_another_server_finds_the_next_visible_event(network: Network) -> None:
    room = await shared(network, "12", {NORTH: RULES})
    set_state(room.alice, room.room_id, "m.room.retention", {"max_lifetime": HOUR * 1000})
    network.clock.advance(10)
    start = int(network.clock.seconds() * 1000)
    for number in range(25):
        say(room.alice, room.room_id, f"old {number}")
    network.clock.advance(2 * HOUR)
    newer = say(room.alice, room.room_id, "new")
    path = make_path("/_matrix/federation/v1/timestamp_to_event/{}", room.room_id)
    query = [("ts", str(start)), ("dir", "f")]
    found = await room.south.edge.requests.get(ServerName(NORTH), path, query)
    assert found["event_id"] == newer
