"""Messages sent while the policy blocks a server reach it once the policy allows it again, and cost
little until then."""

import pytest

from federation.peers.federation_policy import PolicyRules, make_rules
from federation.protocol.ids import ServerName
from federation.sender.policy_unblocked import MAX_CONCURRENT, MAX_NAMES, PAUSE
from storage.encryption.outgoing_to_device import OutgoingToDeviceStore
from storage.federation.destinations import DestinationStore
from storage.rooms.room_servers import count_servers
from tests.helpers.encrypted_rooms import numbers_in
from tests.helpers.federated_rooms import NORTH, SOUTH, shared, texts
from tests.helpers.federation_sender import restart_north, send_number_to, shared_room_with_keys
from tests.helpers.keys import V3, identity_keys, query, sync, upload
from tests.helpers.logins import password_auth
from tests.helpers.network import Network, count_requests
from tests.helpers.room_actions import say
from tests.helpers.server import TestServer, User, make_admin

OPEN = make_rules(None)
BLOCKED = make_rules(None, [SOUTH])
BLOCKED_ALL = make_rules(["west.example"])
OFF = make_rules(None, enabled=False)
LISTED = make_rules(None, has_member_list=True)
"""And no list is there."""


def change(network: Network, rules: PolicyRules) -> None:
    """North's policy from now on."""
    network.servers[NORTH].app.peers.policy.change(rules)
    network.settle()


def numbers(user: User) -> list[int]:
    """Return the numbered messages that reached the device."""
    return numbers_in(sync(user))


async def missed_rooms(server: TestServer) -> int:
    """The rows that are kept for south."""
    backlogs = await DestinationStore(server.app.database).get_backlogs()
    return len(backlogs[SOUTH].rooms)


@pytest.mark.parametrize("refusal", [BLOCKED, OFF, LISTED], ids=["blocked", "off", "no list"])
async def test_the_last_message_of_a_quiet_room_arrives(
    network: Network, refusal: PolicyRules
) -> None:
    room = await shared_room_with_keys(network)
    change(network, refusal)
    say(room.alice, room.room_id, "while refused")
    network.settle()
    assert "while refused" not in texts(room.bob, room.room_id)

    change(network, OPEN)
    assert texts(room.bob, room.room_id)[0] == "while refused"


async def test_a_blocked_server_costs_one_row_per_room_and_no_requests(network: Network) -> None:
    room = await shared_room_with_keys(network)
    change(network, BLOCKED)
    before = count_requests(network, SOUTH)
    for number in range(20):
        say(room.alice, room.room_id, f"m{number}")
        network.settle()
    network.clock.advance(7200)
    network.settle()

    assert count_requests(network, SOUTH) == before
    assert await missed_rooms(network.servers[NORTH]) == 1
    destination = network.servers[NORTH].app.federation_sender.deliveries.peek(ServerName(SOUTH))
    assert destination is not None
    assert (
        destination.retry,
        len(destination.queue),
        destination.get_lowest_unstored_position(),
    ) == (None, 0, None)

    change(network, OPEN)
    assert texts(room.bob, room.room_id)[:20] == [f"m{number}" for number in reversed(range(20))]
    assert SOUTH not in await DestinationStore(network.servers[NORTH].app.database).get_backlogs()


@pytest.mark.parametrize(
    ("refusal", "text"),
    [
        (BLOCKED, "blocked here"),
        (make_rules(["west.example"]), "not among those"),
        (OFF, "switched off"),
        (LISTED, "missing or out of date"),
    ],
    ids=["blocked", "others allowed", "off", "no list"],
)
async def test_administrators_see_that_a_server_is_blocked(
    network: Network, refusal: PolicyRules, text: str
) -> None:
    room = await shared_room_with_keys(network)
    path = f"/_synapse/admin/v1/federation/destinations/{SOUTH}"
    admin = make_admin(network.servers[NORTH])
    change(network, refusal)
    assert text in admin.get(path).json["refused"]
    say(room.alice, room.room_id, "while refused")
    network.settle()
    shown = admin.get(path).json
    assert (text in shown["refused"], shown["rooms_missed"]) == (True, 1)

    admin = restart_north(network, admin, "federation: {enabled: false}\n")
    assert "switched off" in admin.get(path).json["refused"]


@pytest.mark.parametrize("refusal", [OFF, LISTED], ids=["off", "no list"])
async def test_to_device_messages_wait_for_a_server_that_may_be_unblocked(
    network: Network, refusal: PolicyRules
) -> None:
    room = await shared_room_with_keys(network)
    change(network, refusal)
    send_number_to(room.alice, room.bob, 1)
    network.settle()
    assert numbers(room.bob) == []

    change(network, OPEN)
    assert numbers(room.bob) == [1]


async def test_no_to_device_message_waits_for_a_blocked_server(network: Network) -> None:
    room = await shared_room_with_keys(network)
    change(network, BLOCKED)
    send_number_to(room.alice, room.bob, 1)
    assert (
        await OutgoingToDeviceStore(database=network.servers[NORTH].app.database).count_messages()
        == {}
    )


@pytest.mark.parametrize("refusal", [BLOCKED, LISTED], ids=["blocked", "no list"])
async def test_a_device_created_while_blocked_is_announced(
    network: Network, refusal: PolicyRules
) -> None:
    room = await shared_room_with_keys(network)
    query(room.bob, room.alice)
    change(network, refusal)
    answer = room.alice.server.post(
        f"{V3}/login",
        password_auth(room.alice.user_id),
    )
    second = User(room.alice.server, answer.json)
    upload(second, device_keys=identity_keys(second, 3)[1])
    network.settle()

    change(network, OPEN)
    known = query(room.bob, room.alice)["device_keys"][room.alice.user_id]
    assert known.keys() == {room.alice.device_id, second.device_id}


async def test_waiting_messages_survive_restarts(network: Network) -> None:
    room = await shared_room_with_keys(network)
    off = "federation: {enabled: false}\n"
    alice = restart_north(network, room.alice, off)
    say(alice, room.room_id, "first")
    send_number_to(alice, room.bob, 1)
    network.settle()
    alice = restart_north(network, alice, off)
    say(alice, room.room_id, "second")
    network.settle()
    assert "first" not in texts(room.bob, room.room_id)

    restart_north(network, alice)
    assert texts(room.bob, room.room_id)[:2] == ["second", "first"]
    assert numbers(room.bob) == [1]


async def test_a_server_that_was_down_and_then_blocked_gets_all_messages(network: Network) -> None:
    room = await shared_room_with_keys(network)
    network.cut(NORTH, SOUTH)
    say(room.alice, room.room_id, "while away")
    network.settle()
    change(network, BLOCKED)
    network.mend(NORTH, SOUTH)
    network.clock.advance(3600)
    say(room.alice, room.room_id, "while refused")
    network.settle()
    assert "while away" not in texts(room.bob, room.room_id)

    change(network, OPEN)
    assert texts(room.bob, room.room_id)[:2] == ["while refused", "while away"]


async def test_messages_that_the_blocked_server_held_arrive_at_once(network: Network) -> None:
    room = await shared_room_with_keys(network)
    change(network, BLOCKED)
    say(room.bob, room.room_id, "from the south")
    for _ in range(5):  # it leaves us alone for longer and longer
        network.clock.advance(3600)
        network.settle()
    assert "from the south" not in texts(room.alice, room.room_id)

    network.clock.advance(100)
    change(network, OPEN)
    assert texts(room.alice, room.room_id)[0] == "from the south"

    before = count_requests(network, SOUTH)
    change(network, OPEN)
    assert count_requests(network, SOUTH) == before, "it is told once"


def name_oneself(network: Network, name: str) -> None:
    """Ask north something as anybody can, in the name of any server."""
    header = f'X-Matrix origin="{name}",destination="{NORTH}",key="ed25519:a",sig="AAAA"'
    path = "/_matrix/federation/v1/event/$x"
    answer = network.servers[NORTH].client.request("GET", path, headers={"Authorization": header})
    assert answer.errcode == "M_FORBIDDEN"


async def test_invented_server_names_evict_no_server_and_are_never_contacted(
    network: Network,
) -> None:
    room = await shared_room_with_keys(network)
    change(network, BLOCKED_ALL)
    say(room.bob, room.room_id, "from the south")
    for _ in range(5):
        network.clock.advance(3600)
        network.settle()
    for number in range(2 * MAX_NAMES):
        name_oneself(network, f"n{number}.example")
    network.clock.advance(100)

    before = len(network.log)
    change(network, OPEN)
    network.clock.advance(100)
    assert texts(room.alice, room.room_id)[0] == "from the south"
    assert {to for origin, to, _, _ in network.log[before:] if origin == NORTH} == {SOUTH}


async def test_unblocked_servers_are_contacted_a_few_at_a_time(network: Network) -> None:
    room = await shared(network)
    names = [f"n{number}.example" for number in range(3 * MAX_CONCURRENT)]
    room_nid = (await room.north.room(room.room_id)).room.room_nid
    await room.north.server.app.database.write(
        "come_in", count_servers, room_nid, dict.fromkeys(names, 1), dict.fromkeys(names, 1)
    )
    change(network, BLOCKED_ALL)
    for name in names:
        name_oneself(network, name)

    def received() -> int:
        return sum("greeting" in uri for _, _, _, uri in network.log)

    change(network, OPEN)
    for turn in range(1, 4):
        assert received() == turn * MAX_CONCURRENT
        network.clock.advance(PAUSE)
        network.settle()
    network.clock.advance(100)
    assert received() == len(names)
