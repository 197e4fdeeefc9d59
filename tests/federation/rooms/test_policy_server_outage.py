"""While the policy server of a room is down, an action in all rooms of a user is done in the
other rooms, and there later."""

from collections.abc import Mapping
from typing import Any

from tests.helpers.federated_rooms import NORTH, Shared, shared
from tests.helpers.logins import password_auth
from tests.helpers.network import Network
from tests.helpers.policy_server import PolicyServer, named
from tests.helpers.room_actions import V3, create, get_state, invite, join, ok, set_state
from tests.helpers.server import User


def away(network: Network, room: Shared) -> PolicyServer:
    """The room gets a policy server, which goes away just now."""
    judge = PolicyServer("11")
    network.interceptors.append(judge.answer)
    set_state(room.alice, room.room_id, "m.room.policy", named())
    judge.is_away = True
    return judge


def elsewhere(room: Shared, number: int) -> tuple[User, str]:
    """A room besides that Alice comes into, and who is in it."""
    carol = room.north.server.register(f"carol{number}")
    room_id = create(carol)
    invite(carol, room_id, room.alice)
    join(room.alice, room_id)
    return carol, room_id


def member(user: User, room_id: str, who: User) -> Mapping[str, Any]:
    found: Mapping[str, Any] = get_state(user, room_id, "m.room.member", who.user_id)
    return found


def let_pass(network: Network, minutes: int) -> None:
    for _ in range(minutes):
        network.clock.advance(60)


async def test_deactivation_works_while_a_policy_server_is_down(network: Network) -> None:
    room = await shared(network)
    others = [elsewhere(room, number) for number in range(2)]
    judge = away(network, room)
    others.append(elsewhere(room, 2))
    proof = password_auth(room.alice.user_id)

    ok(room.alice.post(f"{V3}/account/deactivate", {"auth": proof}))

    assert {member(user, room_id, room.alice)["membership"] for user, room_id in others} == {
        "leave"
    }
    whole = network.servers[NORTH].app.rooms
    rows = network.servers[NORTH].run(whole.memberships.of_user(room.alice.user_id)).values()
    assert sorted(row.membership for row in rows) == ["join", "leave", "leave", "leave"]
    network.servers[NORTH].app.jobs.start()
    let_pass(network, 15)
    judge.is_away = False
    let_pass(network, 15)
    rows = network.servers[NORTH].run(whole.memberships.of_user(room.alice.user_id)).values()
    assert [(row.membership, row.forgotten) for row in rows] == [("leave", True)] * 4


async def test_a_new_display_name_works_while_a_policy_server_is_down(network: Network) -> None:
    room = await shared(network)
    others = [elsewhere(room, number) for number in range(2)]
    judge = away(network, room)
    others.append(elsewhere(room, 2))
    network.servers[NORTH].app.jobs.start()

    ok(room.alice.put(f"{V3}/profile/{room.alice.user_id}/displayname", {"displayname": "Alicia"}))

    let_pass(network, 2)
    assert {member(user, room_id, room.alice)["displayname"] for user, room_id in others} == {
        "Alicia"
    }
    assert member(room.alice, room.room_id, room.alice)["displayname"] == "alice"
    judge.is_away = False
    let_pass(network, 3)
    assert member(room.alice, room.room_id, room.alice)["displayname"] == "Alicia"


async def test_removing_guests_works_while_a_policy_server_is_down(network: Network) -> None:
    room = await shared(network, config={NORTH: "allow_guest_access: true\n"})
    set_state(room.alice, room.room_id, "m.room.join_rules", {"join_rule": "public"})
    set_state(room.alice, room.room_id, "m.room.guest_access", {"guest_access": "can_join"})
    server = room.north.server
    guest = User(server, ok(server.client.request("POST", f"{V3}/register?kind=guest", json={})))
    join(guest, room.room_id)
    judge = away(network, room)
    judge.is_away = False
    judge.left = 1

    set_state(room.alice, room.room_id, "m.room.guest_access", {"guest_access": "forbidden"})

    assert get_state(room.alice, room.room_id, "m.room.guest_access") == {
        "guest_access": "forbidden"
    }
