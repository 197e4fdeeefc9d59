"""Users who are invited to an encrypted room get the keys of messages from before they join, from
any number of servers.

spec: client-server-api#end-to-end-encryption
"""

import pytest

from federation.protocol.ids import RoomID
from homeserver.services.encryption import key_queries, to_device
from tests.helpers.encrypted_rooms import ENCRYPTED, encrypted_room, receive_numbers
from tests.helpers.federated_rooms import NORTH
from tests.helpers.keys import V3, identity_keys, one_time_keys, query, upload
from tests.helpers.network import Network
from tests.helpers.room_actions import create, join, membership, ok, say, set_state
from tests.helpers.server import User

MOST = 2
LIMITS = f"""
rc_key_requests_to_new_servers: {{per_second: 0.001, burst_count: {MOST}}}
rc_to_device_to_new_servers: {{per_second: 0.001, burst_count: {MOST}}}
"""


@pytest.fixture(autouse=True)
def few_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the limit of unrelated servers."""
    for service in (key_queries, to_device):
        monkeypatch.setattr(service, "MAX_UNRELATED_SERVERS", MOST)


def people(network: Network, count: int) -> list[User]:
    """One user with keys on each of these servers."""
    found = []
    for number in range(count):
        user = network.add(f"s{number}.example").register(f"user{number}")
        upload(
            user, device_keys=identity_keys(user, number + 1)[1], one_time_keys=one_time_keys("A")
        )
        found.append(user)
    return found


def claim_all(alice: User, others: list[User]) -> set[str]:
    """Return the users of whom a key was claimed."""
    wanted = {user.user_id: {user.device_id: "signed_curve25519"} for user in others}
    answer = alice.post(f"{V3}/keys/claim", {"one_time_keys": wanted})
    assert answer.status == 200, answer.body
    return {
        user_id
        for user_id, devices in answer.json["one_time_keys"].items()
        if all(devices.values())
    }


async def test_all_users_invited_by_the_creator_of_a_room_can_read_it(network: Network) -> None:
    alice = network.add(NORTH, LIMITS).register("alice")
    others = people(network, 3 * MOST)
    network.start_sending()
    room_id = RoomID(create(alice, invite=[user.user_id for user in others]))
    set_state(alice, room_id, "m.room.encryption", ENCRYPTED)
    network.settle()

    known = query(alice, *others)
    assert known["failures"] == {}
    assert all(known["device_keys"][user.user_id].keys() == {user.device_id} for user in others)
    assert claim_all(alice, others) == {user.user_id for user in others}
    messages = {user.user_id: {user.device_id: {"n": 1}} for user in others}
    ok(alice.put(f"{V3}/sendToDevice/m.room.encrypted/1", {"messages": messages}))
    say(alice, room_id, "what these keys open")
    network.settle()

    assert [receive_numbers(user)[0] for user in others] == [[1]] * len(others)
    for user in others:
        join(user, room_id)
    assert query(alice, *others)["failures"] == {}, "and when they have joined"


@pytest.mark.parametrize("ending", ["declined", "taken back", "alice has left"])
async def test_users_whose_invite_is_withdrawn_count_as_unrelated_again(
    network: Network, ending: str
) -> None:
    alice = network.add(NORTH, LIMITS).register("alice")
    others = people(network, 2 * MOST)
    network.start_sending()
    room_id = create(alice, invite=[user.user_id for user in others])
    network.settle()
    for user in others:
        if ending == "declined":
            ok(membership(user, room_id, "leave"))
        elif ending == "taken back":
            ok(membership(alice, room_id, "kick", user))
    if ending == "alice has left":
        ok(membership(alice, room_id, "leave"))
    network.settle()
    assert len(query(alice, *others)["failures"]) == MOST


async def test_invites_by_other_users_do_not_count(network: Network) -> None:
    """They may name any servers, existing or not."""
    room = await encrypted_room(network)
    room.north.server = room.alice.server = network.rebuild(NORTH, LIMITS)
    levels = {"users": {room.alice.user_id: 100}, "invite": 0}
    set_state(room.alice, room.room_id, "m.room.power_levels", levels)
    others = people(network, 2 * MOST)
    network.settle()
    for user in others:
        ok(membership(room.bob, room.room_id, "invite", user))
    network.settle()
    members = room.alice.get(f"{V3}/rooms/{room.room_id}/members?membership=invite").json["chunk"]
    assert {event["state_key"] for event in members} == {user.user_id for user in others}
    assert len(query(room.alice, *others)["failures"]) == MOST
    messages = {user.user_id: {user.device_id: {"n": 1}} for user in others}
    assert (
        room.alice.put(f"{V3}/sendToDevice/m.room.encrypted/1", {"messages": messages}).status
        == 400
    )


async def test_made_up_servers_among_the_invited_stay_limited(network: Network) -> None:
    alice = network.add(NORTH, LIMITS).register("alice")
    others = people(network, 2 * MOST)
    create(alice, invite=[user.user_id for user in others])
    made_up = {f"@a:made-up-{number}.example": {"D": {"n": 1}} for number in range(MOST + 1)}
    invited = {user.user_id: {user.device_id: {"n": 1}} for user in others}
    asking = alice.put(f"{V3}/sendToDevice/m.x/1", {"messages": {**made_up, **invited}})
    assert (asking.status, asking.json["errcode"]) == (400, "M_INVALID_PARAM")
    made_up.popitem()
    ok(alice.put(f"{V3}/sendToDevice/m.x/2", {"messages": {**made_up, **invited}}))
