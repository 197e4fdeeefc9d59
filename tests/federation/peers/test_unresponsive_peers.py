"""Servers that accept requests and never answer: later requests do not wait for them for a
minute, or until they answer."""

from federation.remote.membership import INVITE_SECONDS
from homeserver.wiring.federation_peers import UNRESPONSIVE_MS
from tests.helpers.encrypted_rooms import ALGORITHM
from tests.helpers.federated_rooms import NORTH, SOUTH, two_users
from tests.helpers.http import Pending
from tests.helpers.keys import V3, identity_keys, upload
from tests.helpers.network import Fate, Network, count_requests
from tests.helpers.room_actions import create, join, membership, ok, refused, room_path
from tests.helpers.server import User

PATHS = {"invite": "/v2/invite/", "query": "/user/keys/query", "claim": "/user/keys/claim"}


def pair(network: Network) -> tuple[User, User, str]:
    """Somebody on each of two servers, of which neither tells the other what happens, and a room of
    the first."""
    alice, bob = two_users(network)
    return alice, bob, create(alice, preset="public_chat")


def fall_silent(network: Network) -> None:
    network.choose_fate = lambda transfer: (
        Fate.IS_NOT_ANSWERED if transfer.destination == SOUTH else Fate.ARRIVES
    )


def begin_query(alice: User, bob: User, timeout: int = 10_000) -> Pending:
    return alice.start(
        "POST", f"{V3}/keys/query", {"device_keys": {bob.user_id: []}, "timeout": timeout}
    )


def begin_claim(alice: User, bob: User) -> Pending:
    return alice.start(
        "POST", f"{V3}/keys/claim", {"one_time_keys": {bob.user_id: {"X": ALGORITHM}}}
    )


def begin_invite(alice: User, bob: User, room_id: str) -> Pending:
    return alice.start("POST", room_path(room_id, "invite"), {"user_id": bob.user_id})


def wait_in_vain(network: Network, alice: User, bob: User) -> None:
    """For keys, as long as clients do."""
    asking = begin_query(alice, bob)
    network.clock.advance(9)
    assert not asking.done
    network.clock.advance(1)
    assert asking.answer.json["failures"].keys() == {SOUTH}


async def test_an_invite_to_an_unresponsive_server_fails_at_once(network: Network) -> None:
    alice, bob, room_id = pair(network)
    fall_silent(network)
    inviting = begin_invite(alice, bob, room_id)
    network.clock.advance(INVITE_SECONDS)
    assert refused(inviting.answer) == (502, "M_UNKNOWN")

    retried = begin_invite(alice, bob, room_id)

    assert refused(retried.answer) == (502, "M_UNKNOWN")
    assert "could not be reached a moment ago" in retried.answer.json["error"]
    assert begin_query(alice, bob).answer.json["failures"].keys() == {SOUTH}
    assert begin_claim(alice, bob).answer.json["failures"].keys() == {SOUTH}, (
        "it is silent for longer than one starts"
    )
    assert [count_requests(network, SOUTH, path) for path in PATHS.values()] == [1, 0, 0]


async def test_a_key_query_to_an_unresponsive_server_fails_at_once(network: Network) -> None:
    alice, bob, room_id = pair(network)
    fall_silent(network)
    wait_in_vain(network, alice, bob)

    assert begin_query(alice, bob).answer.json["failures"].keys() == {SOUTH}
    assert refused(begin_invite(alice, bob, room_id).answer) == (502, "M_UNKNOWN")
    assert [count_requests(network, SOUTH, path) for path in PATHS.values()] == [0, 1, 0]


async def test_an_unresponsive_server_that_may_be_starting_is_asked_for_one_time_keys(
    network: Network,
) -> None:
    alice, bob, _ = pair(network)
    fall_silent(network)
    for _ in range(2):
        claiming = begin_claim(alice, bob)
        network.clock.advance(9)
        assert not claiming.done
        network.clock.advance(1)
        assert claiming.answer.json["failures"].keys() == {SOUTH}

    assert begin_claim(alice, bob).answer.json["failures"].keys() == {SOUTH}
    assert count_requests(network, SOUTH, PATHS["claim"]) == 2


async def test_an_invite_at_room_creation_is_still_sent(network: Network) -> None:
    """Nobody would invite them again."""
    alice, bob, _ = pair(network)
    fall_silent(network)
    wait_in_vain(network, alice, bob)
    network.choose_fate = lambda _: Fate.ARRIVES

    room_id = create(alice, invite=[bob.user_id])

    join(bob, room_id)
    assert begin_query(alice, bob).answer.json["failures"] == {}, "it has answered"


async def test_an_unresponsive_server_is_contacted_again_after_a_minute(network: Network) -> None:
    alice, bob, room_id = pair(network)
    fall_silent(network)
    wait_in_vain(network, alice, bob)
    network.choose_fate = lambda _: Fate.ARRIVES
    network.clock.advance(UNRESPONSIVE_MS / 1000 - 1)
    assert begin_query(alice, bob).answer.json["failures"].keys() == {SOUTH}
    network.clock.advance(1)
    assert begin_query(alice, bob).answer.json["failures"] == {}
    ok(membership(alice, room_id, "invite", bob))


async def test_a_request_of_the_server_shows_that_it_is_back(network: Network) -> None:
    alice, bob, room_id = pair(network)
    fall_silent(network)
    wait_in_vain(network, alice, bob)
    network.choose_fate = lambda _: Fate.ARRIVES

    ok(bob.post(f"{V3}/join/{room_id}?server_name={NORTH}"))

    assert begin_query(alice, bob).answer.json["failures"] == {}


async def test_any_answer_shows_that_the_server_is_back(network: Network) -> None:
    alice, bob, room_id = pair(network)
    fall_silent(network)
    wait_in_vain(network, alice, bob)
    network.choose_fate = lambda _: Fate.ARRIVES

    ok(alice.get(f"{V3}/profile/{bob.user_id}"))

    ok(membership(alice, room_id, "invite", bob))


async def test_a_request_with_a_short_time_limit_does_not_count_as_a_failure(
    network: Network,
) -> None:
    alice, bob, _ = pair(network)
    upload(bob, device_keys=identity_keys(bob, 1)[1])
    fall_silent(network)
    hasty = begin_query(alice, bob, timeout=1000)
    network.clock.advance(1)
    assert hasty.answer.json["failures"].keys() == {SOUTH}
    network.choose_fate = lambda _: Fate.ARRIVES
    assert begin_query(alice, bob).answer.json["device_keys"][bob.user_id].keys() == {bob.device_id}


async def test_a_server_that_fails_at_once_is_tried_for_each_client(network: Network) -> None:
    """It costs nobody time, and the server may be back in a moment."""
    alice, bob, room_id = pair(network)
    network.cut(NORTH, SOUTH)
    assert begin_query(alice, bob).answer.json["failures"].keys() == {SOUTH}
    assert refused(membership(alice, room_id, "invite", bob)) == (502, "M_UNKNOWN")
    network.mend(NORTH, SOUTH)
    assert begin_query(alice, bob).answer.json["failures"] == {}
    ok(membership(alice, room_id, "invite", bob))
