"""Two nodes on one PostgreSQL database: when one completes the partial state of a room, the other
shows the changed status of its events too, though it cached the old one."""

from tests.helpers.large_rooms import is_whole, lazily, messages, soft_fail_in_partial_state
from tests.helpers.node_network import NodeNetwork
from tests.helpers.remote_membership import WEST
from tests.helpers.room_actions import ok, room_path
from tests.helpers.server import move_user


async def test_an_event_accepted_by_the_resync_is_sent_on_the_other_node(
    node_network: NodeNetwork,
) -> None:
    network = node_network.network
    _, bob, _, room_id, said = await soft_fail_in_partial_state(network)
    other = node_network.start_other_node()
    there = move_user(other, bob)
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
