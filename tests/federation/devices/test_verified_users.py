"""Users whom local users verified stay verified, if their server temporarily returns other keys.

spec: client-server-api#cross-signing, server-server-api#get_matrixfederationv1userdevicesuserid
"""

import json
from typing import Any

import pytest

from federation.peers.wire import WireRequest, WireResponse
from tests.helpers.federated_rooms import NORTH, SOUTH, Shared, shared
from tests.helpers.keys import V3, PersonalKey, cross_signing_key, identity_keys, query, upload
from tests.helpers.logins import password_auth
from tests.helpers.network import Network
from tests.helpers.server import TestServer, User


def set_up(user: User, seed: int) -> tuple[PersonalKey, dict[str, Any]]:
    """Upload cross-signing keys; return the user-signing key and the public master key."""
    master, content = cross_signing_key(user, "master", seed)
    _, self_signing = cross_signing_key(user, "self_signing", seed + 1, master)
    user_signing, content_of_it = cross_signing_key(user, "user_signing", seed + 2, master)
    keys = {
        "master_key": content,
        "self_signing_key": self_signing,
        "user_signing_key": content_of_it,
    }
    assert user.post(f"{V3}/keys/device_signing/upload", keys).status == 200
    return user_signing, content


def verify(user: User, by: PersonalKey, other: User, master: dict[str, Any]) -> None:
    (public,) = master["keys"].values()
    answer = user.post(
        f"{V3}/keys/signatures/upload", {other.user_id: {public: by.sign(master, user)}}
    )
    assert answer.json == {"failures": {}}


def has_verified(user: User, other: User) -> bool:
    return user.user_id in query(user, other).get("master_keys", {}).get(other.user_id, {}).get(
        "signatures", {}
    )


async def verified(network: Network) -> Shared:
    """Alice has verified Bob, who is on another server."""
    room = await shared(network)
    network.start_sending()
    for user, seed in ((room.alice, 1), (room.bob, 2)):
        upload(user, device_keys=identity_keys(user, seed)[1])
    _, master = set_up(room.bob, 10)
    user_signing, _ = set_up(room.alice, 20)
    network.settle()
    query(room.alice, room.bob)
    verify(room.alice, user_signing, room.bob, master)
    assert has_verified(room.alice, room.bob)
    return room


async def missed(room: Shared, stream_id: int) -> None:
    """North learns that it missed an update, and fetches the complete list."""
    update = {
        "user_id": room.bob.user_id,
        "device_id": "GONE",
        "stream_id": stream_id,
        "prev_id": [stream_id - 1],
        "deleted": True,
    }
    await room.south.push(NORTH, [], [{"edu_type": "m.device_list_update", "content": update}])
    room.network.settle()


@pytest.mark.parametrize("other_key", [False, True], ids=["omitted", "replaced"])
async def test_a_key_that_is_temporarily_missing_is_verified_when_it_is_back(
    network: Network, other_key: bool
) -> None:
    room = await verified(network)

    def forge(request: WireRequest, answer: WireResponse) -> WireResponse:
        if "/user/devices/" not in request.uri:
            return answer
        body = json.loads(answer.body)
        del body["master_key"], body["self_signing_key"]
        if other_key:
            body["master_key"] = cross_signing_key(room.bob, "master", 99)[1]
        return WireResponse(200, answer.headers, json.dumps(body).encode())

    network.forge(SOUTH, forge)
    await missed(room, 10**6)
    assert not has_verified(room.alice, room.bob), "another key is not verified"

    network.forge(SOUTH, lambda _, answer: answer)
    await missed(room, 2 * 10**6)
    assert has_verified(room.alice, room.bob)
    room.alice.server = network.rebuild(NORTH)
    network.settle()
    assert has_verified(room.alice, room.bob), "cache and database agree"


async def test_a_user_who_left_and_came_back_is_verified(network: Network) -> None:
    room = await verified(network)
    room.bob.post(f"{V3}/rooms/{room.room_id}/leave")
    network.settle()
    query(room.alice, room.bob)
    assert room.bob.post(f"{V3}/join/{room.room_id}?via={NORTH}", {}).status == 200
    network.settle()
    assert has_verified(room.alice, room.bob)


def test_signatures_by_a_replaced_key_are_removed(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    upload(alice, device_keys=identity_keys(alice)[1])
    master, content = cross_signing_key(alice, "master", 1)
    for seed in (2, 5):
        self_signing, signing_content = cross_signing_key(alice, "self_signing", seed, master)
        user_signing, user_content = cross_signing_key(alice, "user_signing", seed + 1, master)
        body = {
            "master_key": content,
            "self_signing_key": signing_content,
            "user_signing_key": user_content,
        }
        first = alice.post(f"{V3}/keys/device_signing/upload", body)
        if first.status == 401:
            auth = {**password_auth(alice.user_id), "session": first.json["session"]}
            first = alice.post(f"{V3}/keys/device_signing/upload", {**body, "auth": auth})
        assert first.status == 200, first.body
        if seed == 2:
            _, bobs = set_up(bob, 30)
            device = self_signing.sign(identity_keys(alice)[1], alice)
            signed = {alice.user_id: {alice.device_id: device}}
            assert alice.post(f"{V3}/keys/signatures/upload", signed).json == {"failures": {}}
            verify(alice, user_signing, bob, bobs)
            assert has_verified(alice, bob)
            since = alice.get(f"{V3}/sync").json["next_batch"]
            old = self_signing.key_id
    asked = alice.start(
        "POST", f"{V3}/keys/query", {"device_keys": {alice.user_id: [], bob.user_id: []}}
    )
    server.clock.advance(0)  # other requests are served between cached and other users
    found = asked.answer.json
    assert (
        old not in found["device_keys"][alice.user_id][alice.device_id]["signatures"][alice.user_id]
    )
    assert not has_verified(alice, bob)
    changes = alice.get(
        f"{V3}/keys/changes?from={since}&to={alice.get(f'{V3}/sync').json['next_batch']}"
    ).json
    assert changes["changed"] == sorted([alice.user_id, bob.user_id])
