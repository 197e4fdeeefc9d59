"""Stored device lists of remote users stay current, or are marked as stale: over kills, other
nodes, and restored servers."""

from typing import Any

import msgspec
import pytest

from federation.peers.wire import WireResponse
from federation.protocol.ids import ServerName, UserID
from federation.remote.keys import MAX_LIST_BYTES, DeviceKeyClient
from federation.rooms.memberships import Memberships
from homeserver.services.encryption.remote_devices import RESYNC_INTERVAL, RemoteDevices
from storage.encryption.remote_devices import CachedDeviceList, RemoteDeviceStore
from storage.engine.streams import Streams
from storage.engine.transaction import Transaction
from storage.rooms.memberships import MembershipStore
from tests.helpers.encrypted_rooms import ENCRYPTED, encrypted_room
from tests.helpers.federated_rooms import NORTH, SOUTH, Shared, create_room
from tests.helpers.keys import V3, cross_signing_key, identity_keys, query, sync, upload
from tests.helpers.logins import another_device
from tests.helpers.network import Network, count_requests
from tests.helpers.room_actions import set_state
from tests.helpers.server import TestServer, User

LIST = "/user/devices/"


class Ghost:
    """A device that only its server knows."""

    def __init__(self, owner: User, device_id: str) -> None:
        self.user_id = owner.user_id
        self.device_id = device_id


def another_node(network: Network, name: str) -> RemoteDevices:
    """Of another process on the same database, which has seen no change since it was built."""
    app = network.servers[name].app
    rows = MembershipStore(app.database)
    memberships = Memberships(store=rows, streams=Streams(), capacity=100)
    remote = DeviceKeyClient(app.peers.requests)
    store, sender = RemoteDeviceStore(app.database), app.federation_sender.sender
    return RemoteDevices(
        clock=network.clock,
        store=store,
        remote=remote,
        memberships=memberships,
        membership_store=rows,
        sender=sender,
        is_local=app.federation.identity.is_local,
    )


async def tracked(server: TestServer, user: User) -> CachedDeviceList | None:
    return (await RemoteDeviceStore(server.app.database).get_lists([user.user_id])).get(
        user.user_id
    )


def leave_and_settle(network: Network, user: User, room_id: str) -> None:
    assert user.post(f"{V3}/rooms/{room_id}/leave").status == 200
    network.settle()


def add_device(network: Network, user: User, seed: int = 3) -> User:
    device = another_device(user)
    upload(device, device_keys=identity_keys(device, seed)[1])
    network.settle()
    return device


def known_devices(asking: User, user: User) -> set[str]:
    return set(query(asking, user)["device_keys"][user.user_id])


async def number_of(room: Shared) -> int:
    kept = await tracked(room.north.server, room.bob)
    assert kept is not None
    assert not kept.is_stale
    return kept.stream_id


async def push_device_list_update(
    room: Shared, ghost: Ghost, stream_id: int, prev_id: int, seed: int = 9
) -> None:
    """South sends North a device update."""
    content = {
        "user_id": ghost.user_id,
        "device_id": ghost.device_id,
        "stream_id": stream_id,
        "prev_id": [prev_id],
        "keys": identity_keys(ghost, seed)[1],
    }
    await room.south.push(NORTH, [], [{"edu_type": "m.device_list_update", "content": content}])


async def test_the_list_of_a_user_who_joins_is_stale_even_after_an_immediate_kill(
    network: Network,
) -> None:
    room = await encrypted_room(network)
    query(room.alice, room.bob)
    leave_and_settle(network, room.bob, room.room_id)
    second = add_device(network, room.bob)
    room.bob.start("POST", f"{V3}/join/{room.room_id}?via={NORTH}", {})
    kept = await tracked(room.north.server, room.bob)
    assert kept is not None
    assert kept.is_stale, "the write of the join marks it, not a later one"
    room.alice.server = network.rebuild(NORTH)
    network.settle()
    assert known_devices(room.alice, room.bob) == {room.bob.device_id, second.device_id}


async def test_the_list_of_a_user_who_joins_two_rooms_at_once_is_stale(network: Network) -> None:
    room = await encrypted_room(network)
    query(room.alice, room.bob)
    rooms = [create_room(room.alice) for _ in range(2)]
    for room_id in rooms:
        set_state(room.alice, room_id, "m.room.encryption", ENCRYPTED)
        assert (
            room.alice.post(f"{V3}/rooms/{room_id}/invite", {"user_id": room.bob.user_id}).status
            == 200
        )
    network.settle()
    leave_and_settle(network, room.bob, room.room_id)
    second = add_device(network, room.bob)
    joins = [room.bob.start("POST", f"{V3}/join/{room_id}?via={NORTH}", {}) for room_id in rooms]
    network.settle()
    assert [join.answer.status for join in joins] == [200, 200]
    assert known_devices(room.alice, room.bob) == {room.bob.device_id, second.device_id}


@pytest.mark.parametrize("who", ["alice", "bob"])
@pytest.mark.parametrize("restart", [False, True])
async def test_a_user_who_left_and_came_back_between_two_syncs_is_changed(
    network: Network, who: str, restart: bool
) -> None:
    """A client that was away has the old list, and would encrypt for it."""
    room = await encrypted_room(network)
    query(room.alice, room.bob)
    since, mover = sync(room.alice)["next_batch"], room.alice if who == "alice" else room.bob
    leave_and_settle(network, mover, room.room_id)
    query(room.north.server.register("carol"), room.bob)
    assert await tracked(room.north.server, room.bob) is None
    add_device(network, room.bob)
    # not every server sends device updates of users who join
    network.interceptors.append(
        lambda _, request: (
            WireResponse(200, {}, b'{"pdus":{}}') if "/v1/send/" in request.uri else None
        )
    )
    join = mover.start(
        "POST", f"{V3}/join/{room.room_id}?via={NORTH if who == 'bob' else SOUTH}", {}
    )
    network.settle()
    assert join.answer.status == 200
    if restart:
        room.alice.server = network.rebuild(NORTH)
    token = sync(room.alice)["next_batch"]
    assert sync(room.alice, since)["device_lists"] == {"changed": [room.bob.user_id], "left": []}
    changes = room.alice.get(f"{V3}/keys/changes?from={since}&to={token}").json
    assert changes["changed"] == [room.bob.user_id]


@pytest.mark.parametrize("how", ["told", "asked"])
async def test_a_user_with_too_many_keys_does_not_block_the_keys_of_others(
    network: Network, how: str
) -> None:
    """Clients query the keys of all members of a room at once."""
    room = await encrypted_room(network)
    _, keys = identity_keys(room.bob, 2)
    ghosts = [Ghost(room.bob, f"GHOST{number}") for number in range(40)]
    large = [{**identity_keys(ghost)[1], "padding": "x" * 60_000} for ghost in ghosts]
    if how == "asked":
        devices = [{"device_id": each["device_id"], "keys": each} for each in (keys, *large)]
        answer = msgspec.json.encode(
            {"user_id": room.bob.user_id, "stream_id": 7, "devices": devices}
        )
        network.interceptors.append(
            lambda _, request: WireResponse(200, {}, answer) if LIST in request.uri else None
        )
    assert known_devices(room.alice, room.bob) >= {room.bob.device_id}
    if how == "told":
        number = await number_of(room)
        for at, (ghost, its_keys) in enumerate(zip(ghosts, large, strict=True), number + 1):
            content = {
                "user_id": ghost.user_id,
                "device_id": ghost.device_id,
                "stream_id": at,
                "prev_id": [at - 1],
            }
            content["keys"] = its_keys
            await room.south.push(
                NORTH, [], [{"edu_type": "m.device_list_update", "content": content}]
            )
        assert await number_of(room) == number + len(ghosts)
    answered = room.alice.post(
        f"{V3}/keys/query", {"device_keys": {room.bob.user_id: [], room.alice.user_id: []}}
    )
    assert len(answered.body) < MAX_LIST_BYTES + 10_000
    assert room.bob.device_id in answered.json["device_keys"][room.bob.user_id]
    assert room.alice.device_id in answered.json["device_keys"][room.alice.user_id]


async def test_a_new_display_name_is_not_a_join(network: Network) -> None:
    room = await encrypted_room(network)
    query(room.alice, room.bob)
    since, before = sync(room.alice)["next_batch"], count_requests(network, SOUTH, LIST)
    assert (
        room.bob.put(
            f"{V3}/profile/{room.bob.user_id}/displayname", {"displayname": "Bobby"}
        ).status
        == 200
    )
    network.clock.advance(5)
    network.settle()
    assert sync(room.alice, since)["device_lists"]["changed"] == []
    query(room.alice, room.bob)
    assert count_requests(network, SOUTH, LIST) == before


async def test_a_user_in_a_further_shared_room_is_not_fetched_again(network: Network) -> None:
    room = await encrypted_room(network)
    query(room.alice, room.bob)
    further = create_room(room.alice)
    assert room.bob.post(f"{V3}/join/{further}?via={NORTH}", {}).status == 200
    network.settle()
    query(room.alice, room.bob)
    assert count_requests(network, SOUTH, LIST) == 1


async def test_an_update_on_another_node_makes_a_list_that_is_being_fetched_stale(
    network: Network,
) -> None:
    room = await encrypted_room(network)
    south = room.south.server.app.federation_sender.own_devices
    other = another_node(network, NORTH)
    network.interceptors.append(
        lambda _, request: (
            WireResponse(200, {}, b'{"pdus":{}}') if "/v1/send/" in request.uri else None
        )
    )
    network.hold()
    pending = room.alice.start("POST", f"{V3}/keys/query", {"device_keys": {room.bob.user_id: []}})
    answer = msgspec.json.encode(await south.get_list(UserID(room.bob.user_id)))
    second = another_device(room.bob)
    upload(second, device_keys=identity_keys(second, 3)[1])
    for edu in await south.get_updates(
        room.bob.user_id, msgspec.json.decode(answer)["stream_id"] + 1
    ):
        await other.receive_device_list_update(
            ServerName(SOUTH), msgspec.json.decode(edu)["content"]
        )
    is_late = [True]

    def answer_late(request: Any, real: WireResponse) -> WireResponse:
        return WireResponse(200, real.headers, answer) if LIST in request.uri and is_late else real

    network.forge(SOUTH, answer_late)
    network.deliver()
    is_late.clear()
    network.settle()
    assert pending.answer.status == 200
    assert known_devices(room.alice, room.bob) == {room.bob.device_id, second.device_id}


async def test_a_node_that_has_not_seen_a_join_deletes_no_list(network: Network) -> None:
    room = await encrypted_room(network)
    query(room.alice, room.bob)
    leave_and_settle(network, room.bob, room.room_id)
    other = another_node(network, NORTH)
    assert not await other.shares_room(room.bob.user_id)
    assert room.bob.post(f"{V3}/join/{room.room_id}?via={NORTH}", {}).status == 200
    network.settle()
    query(room.alice, room.bob)
    since, number = sync(room.alice)["next_batch"], await number_of(room)
    second = Ghost(room.bob, "SECOND")
    keys = identity_keys(second, 3)[1]
    change = {
        "user_id": room.bob.user_id,
        "device_id": "SECOND",
        "stream_id": number + 1,
        "prev_id": [number],
    }
    await other.receive_device_list_update(ServerName(SOUTH), {**change, "keys": keys})
    assert sync(room.alice, since)["device_lists"]["changed"] == [room.bob.user_id]
    assert known_devices(room.alice, room.bob) == {room.bob.device_id, "SECOND"}


async def test_lists_of_a_server_that_was_restored_from_a_backup_are_fetched_again(
    network: Network,
) -> None:
    """Its stream IDs are lower than before."""
    room = await encrypted_room(network)
    query(room.alice, room.bob)
    number, since = await number_of(room), sync(room.alice)["next_batch"]
    await push_device_list_update(room, Ghost(room.bob, "RESTORED"), number - 2, number - 3)
    network.settle()
    assert count_requests(network, SOUTH, LIST) == 2
    assert sync(room.alice, since)["device_lists"]["changed"] == [room.bob.user_id]


async def test_a_repeated_update_triggers_no_resync(network: Network) -> None:
    room = await encrypted_room(network)
    second = add_device(network, room.bob)
    query(room.alice, room.bob)
    number, since = await number_of(room), sync(room.alice)["next_batch"]
    for stream_id in (number, number - 1):
        await push_device_list_update(
            room, Ghost(room.bob, second.device_id), stream_id, number - 2, seed=3
        )
    network.settle()
    assert count_requests(network, SOUTH, LIST) == 1
    assert sync(room.alice, since)["device_lists"]["changed"] == []


async def test_old_updates_trigger_at_most_one_resync_a_minute(
    network: Network,
) -> None:
    room = await encrypted_room(network)
    query(room.alice, room.bob)
    number = await number_of(room)
    for seed in range(10, 20):
        await push_device_list_update(room, Ghost(room.bob, "OLD"), number, number - 1, seed)
        network.settle()
    assert count_requests(network, SOUTH, LIST) == 2
    kept = await tracked(room.north.server, room.bob)
    assert kept is not None
    assert kept.is_stale
    network.clock.advance(RESYNC_INTERVAL)
    await push_device_list_update(room, Ghost(room.bob, "OLD"), number, number - 1)
    network.settle()
    assert count_requests(network, SOUTH, LIST) == 3
    assert await number_of(room) == number


async def test_a_user_who_joins_later_can_be_verified(network: Network) -> None:
    """The absence of their keys is not cached."""
    room = await encrypted_room(network)
    dan = room.south.server.register("dan")
    theirs, their_key = cross_signing_key(dan, "master", 7)
    assert dan.post(f"{V3}/keys/device_signing/upload", {"master_key": their_key}).status == 200
    network.settle()  # this is not announced, as no room is shared
    master, master_key = cross_signing_key(room.alice, "master", 5)
    signing, signing_key = cross_signing_key(room.alice, "user_signing", 6, by=master)
    keys = {"master_key": master_key, "user_signing_key": signing_key}
    assert room.alice.post(f"{V3}/keys/device_signing/upload", keys).status == 200
    signed = {dan.user_id: {theirs.public: signing.sign(their_key, room.alice)}}

    def sign() -> dict[str, Any]:
        failures: dict[str, Any] = room.alice.post(f"{V3}/keys/signatures/upload", signed).json[
            "failures"
        ]
        return failures

    assert sign()[dan.user_id][theirs.public]["errcode"] == "M_NOT_FOUND"
    assert dan.post(f"{V3}/join/{room.room_id}?via={NORTH}", {}).status == 200
    network.settle()
    query(room.alice, dan)
    assert sign() == {}
    assert (
        signing.key_id
        in query(room.alice, dan)["master_keys"][dan.user_id]["signatures"][room.alice.user_id]
    )


async def test_lists_of_users_without_a_shared_room_are_deleted(network: Network) -> None:
    room = await encrypted_room(network)
    _, master_key = cross_signing_key(room.bob, "master", 9)
    assert (
        room.bob.post(f"{V3}/keys/device_signing/upload", {"master_key": master_key}).status == 200
    )
    network.settle()
    query(room.alice, room.bob)
    north = room.north.server.app
    (sweep,) = (job for job in north.federation_sender.jobs() if job.name == "sweep_device_lists")
    tables = (
        "remote_device_lists",
        "remote_devices",
        "device_list_positions",
        "cross_signing_keys",
    )

    async def kept(user: User) -> set[str]:
        def read(txn: Transaction) -> set[str]:
            sql = "SELECT 1 FROM {} WHERE user_id = ?"
            return {table for table in tables if txn.query(sql.format(table), (user.user_id,))}

        return await north.database.read("test", read)

    async def do_sweep() -> None:
        while await sweep.step(1):
            pass

    await do_sweep()
    assert await kept(room.bob) >= {"remote_device_lists", "remote_devices", "cross_signing_keys"}
    leave_and_settle(network, room.alice, room.room_id)
    await do_sweep()
    assert await kept(room.bob) == set()
    assert await kept(room.alice) == {"device_list_positions"}, "the local user's list stays"
