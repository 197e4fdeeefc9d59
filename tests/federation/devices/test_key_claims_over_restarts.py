"""Claims of one-time keys from a server that does not answer. It may be restarting, and without a
key the device cannot read the message. So the claim is retried while the client waits; a server
that has been away for longer is not retried."""

from federation.protocol.ids import ServerName
from federation.sender.destination import NO_ANSWER_BACKOFF_MS
from tests.helpers.encrypted_rooms import ALGORITHM, begin_claim, encrypted_room
from tests.helpers.federated_rooms import NORTH, SOUTH, Shared
from tests.helpers.keys import V3
from tests.helpers.network import Network, count_requests
from tests.helpers.room_actions import say


async def away(network: Network, seconds: int) -> Shared:
    """The south is unreachable for that long."""
    room = await encrypted_room(network)
    network.cut(NORTH, SOUTH)
    say(room.alice, room.room_id, "is anybody there?")
    network.settle()
    for _ in range(seconds):
        network.clock.advance(1)
    return room


async def test_a_server_that_does_not_answer_is_a_failure(network: Network) -> None:
    room = await encrypted_room(network)
    network.cut(NORTH, SOUTH)
    claiming = begin_claim(room)
    network.clock.advance(8)
    assert not claiming.done, "it may be restarting"
    network.clock.advance(2)
    assert claiming.answer.json["failures"].keys() == {SOUTH}


async def test_a_key_is_claimed_from_a_server_that_is_restarting(network: Network) -> None:
    room = await away(network, 3)  # the queue to that server is retried in two seconds
    claiming = begin_claim(room)
    network.clock.advance(1.5)
    assert not claiming.done
    network.mend(NORTH, SOUTH)
    network.clock.advance(1)
    assert claiming.answer.json["failures"] == {}
    assert claiming.answer.json["one_time_keys"][room.bob.user_id][room.bob.device_id]


async def test_claims_from_a_server_that_is_away_for_longer_fail_at_once(network: Network) -> None:
    room = await away(network, 32)
    assert begin_claim(room).answer.json["failures"].keys() == {SOUTH}


async def test_claims_fail_at_once_though_the_server_was_not_tried_for_a_while(
    network: Network,
) -> None:
    """The pauses between retries grow: in a long one it is contacted, but once."""
    room = await away(network, 90)
    sender = room.north.server.app.federation_sender.sender
    for _ in range(NO_ANSWER_BACKOFF_MS // 1000):
        network.clock.advance(1)
    assert not sender.is_failing(ServerName(SOUTH))
    assert begin_claim(room).answer.json["failures"].keys() == {SOUTH}
    assert count_requests(network, SOUTH, "/user/keys/claim") == 1


async def test_claims_fail_at_once_on_a_node_without_the_sender(network: Network) -> None:
    """That node knows it from the sending one."""
    room = await away(network, 10)
    network.stop_sending()
    network.rebuild(NORTH)
    room.alice.server = network.servers[NORTH]
    claiming = begin_claim(room)
    network.clock.advance(8)
    assert not claiming.done, "it may be restarting"
    network.clock.advance(4)
    assert claiming.answer.json["failures"].keys() == {SOUTH}
    assert begin_claim(room).answer.json["failures"].keys() == {SOUTH}


async def test_claims_fail_at_once_for_users_without_a_shared_room(network: Network) -> None:
    """Otherwise a client that names many servers would have each contacted again and again."""
    room = await encrypted_room(network)
    network.cut(NORTH, SOUTH)
    wanted = {
        f"@nobody:{server}": {"X": ALGORITHM} for server in (SOUTH, ServerName("nowhere.example"))
    }
    answer = room.alice.post(f"{V3}/keys/claim", {"one_time_keys": wanted})
    assert answer.json["failures"].keys() == {SOUTH, "nowhere.example"}
    assert count_requests(network, SOUTH, "/user/keys/claim") == 1
