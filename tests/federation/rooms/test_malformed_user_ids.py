"""Members with invalid user IDs, whom other servers let into a room, break nothing.

spec: appendices#user-identifiers, client-server-api#post_matrixclientv3keysquery
"""

import pytest

from federation.peers.wire import WireRequest, WireResponse
from tests.helpers.federated_rooms import NORTH, SOUTH, shared
from tests.helpers.keys import V3, identity_keys, one_time_keys, query, upload
from tests.helpers.network import Network
from tests.helpers.room_actions import set_state

ODD = ("@a:b:c", "@a:other_org", "nonsense", "@a:", "@a:other.org:")
HISTORICAL = ("@Ä b:other.example", "@:other.example")


@pytest.mark.parametrize("odd", ODD)
async def test_a_room_with_a_malformed_user_id_can_be_encrypted(network: Network, odd: str) -> None:
    room = await shared(network, power_level_content_override={"invite": 0})
    alice, bob = room.alice, room.bob
    for user, seed in ((alice, 1), (bob, 2)):
        upload(user, device_keys=identity_keys(user, seed)[1], one_time_keys=one_time_keys("k"))
    invite = await room.south.build_next(
        room.room_id, bob.user_id, "m.room.member", {"membership": "invite"}, odd
    )
    await room.south.push(NORTH, [invite.pdu])
    network.settle()
    chunk = alice.get(f"{V3}/rooms/{room.room_id}/members").json["chunk"]
    members = [event["state_key"] for event in chunk]
    assert odd in members

    found = alice.post(f"{V3}/keys/query", {"device_keys": {member: [] for member in members}})
    assert found.status == 200, found.body
    assert found.json["device_keys"].keys() == {alice.user_id, bob.user_id}
    assert found.json["failures"] == {}
    requested = {
        member: {(bob if member == bob.user_id else alice).device_id: "signed_curve25519"}
        for member in members
    }
    claimed = alice.post(f"{V3}/keys/claim", {"one_time_keys": requested})
    assert claimed.status == 200, claimed.body
    assert claimed.json["one_time_keys"].keys() == {alice.user_id, bob.user_id}

    for membership in ("leave", "ban"):
        set_state(alice, room.room_id, "m.room.member", {"membership": membership}, odd)


@pytest.mark.parametrize("membership", ["invite", "join", "knock", "leave", "ban", "other"])
async def test_no_local_user_invites_a_malformed_user_id(network: Network, membership: str) -> None:
    room = await shared(network)
    for odd in ODD:
        path = f"{V3}/rooms/{room.room_id}/state/m.room.member/{odd}"
        answer = room.alice.put(path, {"membership": membership})
        assert (answer.status, answer.json["errcode"]) == (400, "M_INVALID_PARAM"), odd


async def test_users_with_historical_ids_can_be_banned_and_queried(network: Network) -> None:
    room = await shared(network)
    for user_id in HISTORICAL:
        set_state(room.alice, room.room_id, "m.room.member", {"membership": "ban"}, user_id)
    answer = room.alice.post(
        f"{V3}/keys/query", {"device_keys": {user_id: [] for user_id in HISTORICAL}}
    )
    assert answer.status == 200
    assert answer.json["failures"].keys() == {"other.example"}, (
        "who knows whether there is such a server"
    )
    assert query(room.alice, room.bob)["failures"] == {}


async def test_a_user_unknown_to_their_server_is_no_failure_and_not_queried_again(
    network: Network,
) -> None:
    room = await shared(network)
    network.start_sending()
    carol = room.south.server.register("carol")
    assert carol.post(f"{V3}/join/{room.room_id}?via={NORTH}", {}).status == 200
    upload(room.bob, device_keys=identity_keys(room.bob)[1])
    network.settle()
    asked: list[str] = []

    def forge(request: WireRequest, answer: WireResponse) -> WireResponse:
        if "/user/devices/%40carol" not in request.uri:
            return answer
        asked.append(request.uri)
        return WireResponse(
            404, answer.headers, b'{"errcode":"M_NOT_FOUND","error":"no such user"}'
        )

    network.forge(SOUTH, forge)
    for _ in range(2):
        found = query(room.alice, room.bob, carol)
        assert found["failures"] == {}
        assert found["device_keys"][room.bob.user_id]
        assert not found["device_keys"].get(carol.user_id)
    assert len(asked) == 1

    network.forge(SOUTH, lambda _, answer: answer)
    upload(carol, device_keys=identity_keys(carol, 3)[1])
    network.settle()
    assert query(room.alice, carol)["device_keys"][carol.user_id].keys() == {carol.device_id}, (
        "there after all"
    )
