"""Two nodes on one PostgreSQL database. One sends a declined invite to another server late;
meanwhile the user joins the room through the other node."""

from tests.helpers.federated_rooms import NORTH, SOUTH, two_users
from tests.helpers.node_network import NodeNetwork
from tests.helpers.room_actions import V3, create, get_state, invite, membership, ok
from tests.helpers.server import move_user


async def test_a_late_decline_does_not_undo_a_join_through_another_node(
    node_network: NodeNetwork,
) -> None:
    network = node_network.network
    alice, bob = two_users(network)
    other = node_network.start_other_node()
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
