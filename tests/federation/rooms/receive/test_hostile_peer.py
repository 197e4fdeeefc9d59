"""A malicious server that is in a room: its invalid events and requests are refused, and the honest
servers are not affected.

See also `tests/federation/rooms/joins/test_hostile_rooms.py`,
`tests/federation/peers/test_keyring.py`, `tests/federation/peers/test_peer_queue.py` and
`tests/federation/http_client`.
"""

import tracemalloc
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from federation.peers.client import RefusedByRemote
from federation.peers.wire import WireRequest, WireResponse
from federation.protocol.errors import RemoteError
from federation.protocol.event_signing import hash_and_sign_event
from federation.protocol.events import Event, StateKey
from federation.protocol.ids import EventID, ServerName, UserID
from federation.receiver.transactions import MAX_EDUS
from federation.remote.events import MAX_STATE_BYTES
from federation.remote.keys import DeviceKeyClient
from federation.rooms.receive import inbox
from federation.rooms.receive.extremity_limit import MAX_PER_SERVER
from federation.rooms.receive.missing_events import MAX_ROUNDS, MAX_SECONDS
from homeserver.services.presence.remote_users import MAX_REMOTE
from tests.helpers.databases import QueryCounter, copy_sqlite, open_inline
from tests.helpers.federated_rooms import (
    EAST,
    NORTH,
    SOUTH,
    Shared,
    Side,
    adopt,
    create_room,
    shared,
    texts,
)
from tests.helpers.keys import identity_keys, query, sync, upload
from tests.helpers.network import Fate, Network, Transfer
from tests.helpers.recording_wire import SEND
from tests.helpers.room_actions import say, set_state
from tests.helpers.server import User

V3 = "/_matrix/client/v3"
FAR = 2**53 - 1
Lie = Callable[[Shared], Awaitable[Mapping[str, Any]]]


async def event(
    room: Shared, type: str, content: Mapping[str, Any], state_key: str | None = None, **more: Any
) -> Event:
    """An event by Bob that the south signs."""
    sender = more.pop("sender", room.bob.user_id)
    return await room.south.build_next(
        room.room_id, UserID(sender), type, content, state_key, **more
    )


async def forged_sender(room: Shared) -> Mapping[str, Any]:
    return (await event(room, "m.room.message", {"body": "lie"}, sender=room.alice.user_id)).pdu


async def borrowed_signature(room: Shared) -> Mapping[str, Any]:
    pdu = (await event(room, "m.room.message", {"body": "lie"}, sender=room.alice.user_id)).pdu
    honest = await room.north.pdu(room.room_id, (await room.north.last(room.room_id))[0].event_id)
    return {
        **pdu,
        "signatures": {
            **pdu["signatures"],
            NORTH: honest["signatures"].get(NORTH, {"ed25519:a": "A" * 86}),
        },
    }


async def own_power(room: Shared) -> Mapping[str, Any]:
    users = {room.alice.user_id: 0, room.bob.user_id: 100}
    return (await event(room, "m.room.power_levels", {"users": users}, "")).pdu


async def old_power(room: Shared) -> Mapping[str, Any]:
    """Bob was powerful once, and says what he would have been allowed to say then, next to what
    took that from him."""
    before = await room.north.last(room.room_id)
    levels = room.alice.get(f"{V3}/rooms/{room.room_id}/state/m.room.power_levels/").json
    set_state(
        room.alice,
        room.room_id,
        "m.room.power_levels",
        {**levels, "users": {**levels["users"], room.bob.user_id: 50}},
    )
    powerful = await room.south.room(room.room_id)
    state = {key: stored.event for key, stored in (await powerful.state.load_all()).items()}
    set_state(room.alice, room.room_id, "m.room.power_levels", levels)
    return (
        await room.south.build(
            powerful.version,
            room.room_id,
            before,
            state,
            UserID(room.bob.user_id),
            "m.room.topic",
            {"topic": "lie"},
            "",
        )
    ).pdu


async def kick(room: Shared) -> Mapping[str, Any]:
    return (await event(room, "m.room.member", {"membership": "leave"}, room.alice.user_id)).pdu


async def join_of_another(room: Shared) -> Mapping[str, Any]:
    return (await event(room, "m.room.member", {"membership": "join"}, f"@carol:{NORTH}")).pdu


async def second_create(room: Shared) -> Mapping[str, Any]:
    return (await event(room, "m.room.create", {"room_version": "11"}, "")).pdu


async def create_without_past(room: Shared) -> Mapping[str, Any]:
    return (await event(room, "m.room.create", {"room_version": "11"}, "", prev=[], auth=[])).pdu


async def auth_of_another_room(room: Shared) -> Mapping[str, Any]:
    other = Side(room.south.server)
    room_id = create_room(room.bob)
    auth = list((await other.state(room_id)).values())
    return (await event(room, "m.room.message", {"body": "lie"}, auth=auth)).pdu


async def auth_twice(room: Shared) -> Mapping[str, Any]:
    state = await room.south.state(room.room_id)
    names = [
        state[StateKey("m.room.create", "")],
        state[StateKey("m.room.member", room.bob.user_id)],
    ]
    return (await event(room, "m.room.topic", {"topic": "lie"}, "", auth=[*names, *names])).pdu


async def no_auth(room: Shared) -> Mapping[str, Any]:
    return (await event(room, "m.room.topic", {"topic": "lie"}, "", auth=[])).pdu


def signed_with(**fields: Any) -> Lie:
    """A message with fields that cannot be, hashed and signed all the same."""

    async def forge(room: Shared) -> Mapping[str, Any]:
        honest = await event(room, "m.room.message", {"body": "lie"})
        pdu = {
            name: value
            for name, value in honest.pdu.items()
            if name not in ("hashes", "signatures")
        } | fields
        try:
            return hash_and_sign_event(
                honest.version, pdu, ServerName(SOUTH), room.south.federation.identity.key
            )
        except Exception:  # what cannot even be signed is sent as it is
            return {**honest.pdu, **fields}

    return forge


def nested(depth: int) -> Any:
    value: Any = {}
    for _ in range(depth):
        value = {"a": value}
    return value


LIES: dict[str, Lie] = {
    "forged sender": forged_sender,
    "borrowed signature": borrowed_signature,
    "own power": own_power,
    "old power": old_power,
    "kick": kick,
    "join of another": join_of_another,
    "second create event": second_create,
    "create event without a past": create_without_past,
    "auth events of another room": auth_of_another_room,
    "auth events twice": auth_twice,
    "no auth events": no_auth,
    "depth": signed_with(depth=FAR + 1),
    "negative depth": signed_with(depth=-1),
    "a float": signed_with(content={"body": "lie", "n": 1.5}),
    "a large number": signed_with(content={"body": "lie", "n": 2**60}),
    "long type": signed_with(type="x" * 256),
    "long state key": signed_with(type="m.room.topic", state_key="x" * 256),
    "long sender": signed_with(sender=f"@{'b' * 250}:{SOUTH}"),
    "large": signed_with(content={"body": "lie", "much": "x" * 65_536}),
    "many prev events": signed_with(prev_events=["$" + f"{number:043d}" for number in range(21)]),
    "many auth events": signed_with(auth_events=["$" + f"{number:043d}" for number in range(11)]),
    "no past": signed_with(prev_events=[]),
    "nested": signed_with(content={"body": "lie", "x": nested(300)}, type="m.room.message"),
    "surrogate": signed_with(content={"body": "lie\0"}, sender=f"@b\0b:{SOUTH}"),
}


@pytest.mark.parametrize("forge", LIES.values(), ids=LIES.keys())
async def test_invalid_events_are_not_accepted(network: Network, forge: Lie) -> None:
    room = await shared(network)
    network.start_sending()
    say(room.alice, room.room_id, "hello")
    network.settle()
    pdu = await forge(room)
    before, levels = (
        await room.north.state(room.room_id),
        room.alice.get(f"{V3}/rooms/{room.room_id}/state").body,
    )

    try:
        answer = await room.south.push(NORTH, [pdu])
    except RefusedByRemote as refusal:
        answer = {"pdus": {}}
        assert refusal.status == 400, refusal  # noqa: PT017 - either answer is good
    network.clock.advance(3600)
    network.settle()

    assert await room.north.state(room.room_id) == before
    assert room.alice.get(f"{V3}/rooms/{room.room_id}/state").body == levels
    assert "lie" not in texts(room.alice, room.room_id)
    assert all(result == {} or "error" in result for result in answer["pdus"].values())
    say(room.bob, room.room_id, "the truth")
    network.settle()
    assert texts(room.alice, room.room_id)[0] == "the truth"


@pytest.mark.parametrize("depth", [1_000, 100_000])
async def test_a_deeply_nested_body_is_refused(network: Network, depth: int) -> None:
    room = await shared(network)
    body = b'{"pdus":[' + b'{"a":' * depth + b"1" + b"}" * depth + b"]}"
    answers = []

    async def exchange(request: WireRequest) -> None:
        answers.append(await network.exchange(SOUTH, ServerName(NORTH), request))

    await exchange(WireRequest("PUT", "/_matrix/federation/v1/send/deep", (), body, seconds=30))

    assert answers[0].status in (400, 401)
    assert room.alice.get(f"{V3}/sync").status == 200


async def test_a_body_that_is_too_long_is_refused_before_it_is_read(network: Network) -> None:
    room = await shared(network)
    edu = {
        "edu_type": "m.receipt",
        "content": {room.room_id: {"m.read": {}}, "x": "x" * 60_000_000},
    }

    with pytest.raises(RefusedByRemote) as refused:
        await room.south.push(NORTH, [], [edu])

    assert refused.value.status == 413


async def test_long_lists_in_one_edu_cost_little(tmp_path: Path, sqlite_template: Path) -> None:
    counter = QueryCounter()
    network = Network(
        tmp_path, lambda: open_inline(copy_sqlite(sqlite_template, tmp_path), counter)
    )
    room = await shared(network, config={NORTH: "presence: {enabled: true}\n"})
    said = say(room.alice, room.room_id, "hello")
    users = [f"@u{number}:{SOUTH}" for number in range(60_000)]
    receipts = {user: {"event_ids": [said], "data": {"ts": 1}} for user in users}
    rooms = {
        f"!r{number}:{NORTH}": {"m.read": {users[0]: {"event_ids": [said], "data": {}}}}
        for number in range(30_000)
    }
    people = [{"user_id": user, "presence": "online"} for user in users]
    edus = [
        {"edu_type": "m.receipt", "content": {room.room_id: {"m.read": receipts}}},
        {"edu_type": "m.receipt", "content": rooms},
        {"edu_type": "m.presence", "content": {"push": people}},
        *(
            {
                "edu_type": "m.typing",
                "content": {"room_id": name, "user_id": users[0], "typing": True},
            }
            for name in rooms
        ),
    ][:MAX_EDUS]
    counter.clear()

    await room.south.push(NORTH, [], edus)

    assert sum(counter.queries.values()) < 2 * MAX_EDUS
    assert room.alice.get(f"{V3}/sync").status == 200
    for side in (room.north, room.south):
        await side.server.app.database.close()


async def test_responses_of_tiny_values_take_little_memory(network: Network) -> None:
    room = await shared(network)
    event = b'{"a":[' + b"{}," * 50_000 + b"{}]}"
    body = b'{"events":[' + b",".join([event] * 10) + b"]}"
    network.interceptors.append(
        lambda _, request: WireResponse(200, {}, body) if "get_missing" in request.uri else None
    )
    remote = room.north.federation.remote_events
    tracemalloc.start()

    asking = Deferred.fromCoroutine(
        remote.get_missing_events(room.south.name, room.room_id, earliest=[], latest=[], limit=10)
    )
    network.settle()
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert await asking == [], "no event is so long"
    assert most < 5 * len(body)


@pytest.mark.parametrize(
    "body", [b'{"errcode":"M_X","retry_after_ms":1e999}', b'{"n":' + b"9" * 5000 + b"}", b"[NaN]"]
)
async def test_an_unreadable_error_has_its_status(network: Network, body: bytes) -> None:
    room = await shared(network)
    network.interceptors.append(
        lambda _, request: (
            WireResponse(429, {"retry-after": "60"}, body) if SEND in request.uri else None
        )
    )
    with pytest.raises(RefusedByRemote) as refused:
        await room.south.push(NORTH, [])
    assert (refused.value.status, refused.value.errcode, refused.value.retry_after_ms) == (
        429,
        "M_UNKNOWN",
        60_000,
    )


async def test_long_errors_are_not_read(network: Network) -> None:
    room = await shared(network)
    body = b'{"errcode":"M_FORBIDDEN","a":[' + b"{}," * 500_000 + b"{}]}"
    network.interceptors.append(
        lambda _, request: WireResponse(403, {}, body) if "/state/" in request.uri else None
    )
    remote, event_id = room.north.federation.remote_events, EventID("$x")
    tracemalloc.start()

    with pytest.raises(RefusedByRemote) as refused:
        await remote.get_state(
            room.south.name, room.room_id, event_id, seconds=10, max_bytes=MAX_STATE_BYTES
        )
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert (refused.value.status, refused.value.errcode) == (403, "M_UNKNOWN")
    assert most < len(body)


async def test_responses_with_too_many_values_are_refused(network: Network) -> None:
    room = await shared(network)
    device = b'{"user_id":"@bob:south.example","stream_id":1,"devices":[%b]}'
    body = device % (b"{}," * 1_000_000 + b"{}")
    network.interceptors.append(
        lambda _, request: WireResponse(200, {}, body) if "/user/devices/" in request.uri else None
    )
    keys = DeviceKeyClient(room.north.edge.requests)

    with pytest.raises(RemoteError, match="too many values"):
        await keys.get_list(room.bob.user_id, 10)
    body = device % (b'{"a":"' + b"x" * 3_000_000 + b'"}')
    assert (await keys.get_list(room.bob.user_id, 10)).stream_id == 1


async def test_presence_of_invented_users_does_not_evict_members(
    network: Network,
) -> None:
    room = await shared(network, config={NORTH: "presence: {enabled: true}\n"})
    east = Side(network.add(EAST))
    carol = east.server.register("carol")
    await room.north.push(SOUTH, [(await adopt(room.north, east, carol.user_id, room.room_id)).pdu])

    def there(user: User, status: str) -> dict[str, Any]:
        person = {
            "user_id": user.user_id,
            "presence": "online",
            "status_msg": status,
            "last_active_ago": 10**30,
        }
        return {"edu_type": "m.presence", "content": {"push": [person]}}

    await east.push(NORTH, [], [there(carol, "here")])
    names = [f"@u{number}:{SOUTH}" for number in range(MAX_REMOTE + 1000)]
    crowd = [
        {"push": [{"user_id": name, "presence": "online"} for name in names[start : start + 1000]]}
        for start in range(0, len(names), 1000)
    ]

    await room.south.push(
        NORTH, [], [{"edu_type": "m.presence", "content": content} for content in crowd]
    )
    await room.south.push(NORTH, [], [there(room.bob, "too")])

    for user, status in ((carol, "here"), (room.bob, "too")):
        answer = room.alice.get(f"{V3}/presence/{user.user_id}/status")
        assert (answer.json["presence"], answer.json["status_msg"]) == ("online", status)


async def test_edus_about_users_of_other_servers_are_ignored(network: Network) -> None:
    room = await shared(network)
    network.start_sending()
    alice, bob = room.alice, room.bob
    upload(alice, device_keys=identity_keys(alice)[1])
    said = say(alice, room.room_id, "hello")
    network.settle()
    since = sync(alice)["next_batch"]
    keys = query(alice, alice)["device_keys"]
    message = {
        "sender": alice.user_id,
        "type": "org.example.x",
        "message_id": "1",
        "messages": {alice.user_id: {"*": {}}},
    }
    device = {
        "user_id": alice.user_id,
        "device_id": alice.device_id,
        "stream_id": 99,
        "keys": identity_keys(bob, 9)[1],
    }
    receipt = {room.room_id: {"m.read": {alice.user_id: {"event_ids": [said], "data": {"ts": 1}}}}}
    edus = [
        ("m.typing", {"room_id": room.room_id, "user_id": alice.user_id, "typing": True}),
        ("m.receipt", receipt),
        (
            "m.presence",
            {"push": [{"user_id": alice.user_id, "presence": "unavailable", "status_msg": "lie"}]},
        ),
        ("m.direct_to_device", message),
        ("m.device_list_update", device),
        (
            "m.signing_key_update",
            {"user_id": alice.user_id, "master_key": {"user_id": alice.user_id}},
        ),
    ]

    await room.south.push(
        NORTH, [], [{"edu_type": type, "content": content} for type, content in edus]
    )
    network.settle()

    update = sync(alice, since)
    assert not update["to_device"]["events"]
    assert alice.user_id not in str(update.get("device_lists", {}))
    assert not any(
        alice.user_id in str(entry.get("ephemeral", {}))
        for entry in update.get("rooms", {}).get("join", {}).values()
    )
    assert "lie" not in str(update)
    assert query(alice, alice)["device_keys"] == keys


async def test_a_server_that_sends_many_gaps_and_answers_nothing_delays_no_other(
    network: Network,
) -> None:
    """The south refers to what it never gives, and says nothing when it is asked; the east talks on
    in the same room."""
    room = await shared(network)
    east = Side(network.add(EAST))
    carol = east.server.register("carol")
    join = await adopt(room.north, east, carol.user_id, room.room_id)
    await room.north.push(SOUTH, [join.pdu])
    network.start_sending()
    before = len(network.log)

    def choose_fate(transfer: Transfer) -> Fate:
        return Fate.IS_NOT_ANSWERED if transfer.destination == SOUTH else Fate.ARRIVES

    network.choose_fate = choose_fate
    for number in range(40):
        unknown: list[Event | EventID] = [EventID("$" + f"{number:043d}")]
        pdu = (await event(room, "m.room.message", {"body": "lie"}, prev=unknown)).pdu
        await room.south.push(NORTH, [pdu])
        said = say(carol, room.room_id, f"honest {number}")
        network.settle()
        assert texts(room.alice, room.room_id, limit=1)[0] == f"honest {number}"
        assert await room.north.find(room.room_id, said) is not None
        network.clock.advance(1)
    network.clock.advance(2 * MAX_SECONDS)
    network.settle()

    asked = [
        uri
        for origin, to, _, uri in network.log[before:]
        if (origin, to) == (NORTH, SOUTH) and "/send/" not in uri
    ]
    assert len(asked) <= 4 * MAX_ROUNDS
    assert "lie" not in texts(room.alice, room.room_id)


async def test_a_silent_server_does_not_block_gaps_of_others(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It refers to what it does not give, in as many rooms as are worked on at once."""
    monkeypatch.setattr(inbox, "ROOMS_AT_ONCE", 2)
    monkeypatch.setattr(inbox, "ROOMS_OF_ONE", 1)
    room = await shared(network)
    others = [create_room(room.alice) for _ in range(3)]
    east = Side(network.add(EAST))
    carol = east.server.register("carol")
    for room_id in others:
        await adopt(room.north, room.south, UserID(room.bob.user_id), room_id)
    await adopt(room.north, east, UserID(carol.user_id), others[2])
    network.choose_fate = lambda transfer: (
        Fate.IS_NOT_ANSWERED if transfer.destination == SOUTH else Fate.ARRIVES
    )
    for number, room_id in enumerate([room.room_id, *others[:2]]):
        sender, unknown = UserID(room.bob.user_id), [EventID("$" + f"{number:043d}")]
        forged = await room.south.build_next(
            room_id, sender, "m.room.message", {"body": "lie"}, prev=unknown
        )
        await room.south.push(NORTH, [forged.pdu])
    say(carol, others[2], "missed")
    last = say(carol, others[2], "honest")

    await east.push(NORTH, [await east.pdu(others[2], last)])
    network.settle()

    assert texts(room.alice, others[2]) == ["honest", "missed"]


async def test_the_number_of_extremities_is_bounded(network: Network) -> None:
    """Each end makes every further event dearer. What is too much waits, and has its place when
    some have met."""
    room = await shared(network)
    east = Side(network.add(EAST))
    carol = east.server.register("carol")
    join = await adopt(room.north, east, carol.user_id, room.room_id)
    await room.north.push(SOUTH, [join.pdu])
    prev = await room.north.last(room.room_id)
    names = [{"membership": "join", "displayname": f"{number}"} for number in range(40)]
    forks = [
        await event(room, "m.room.member", content, room.bob.user_id, prev=prev)
        for content in names
    ]

    await room.south.push(NORTH, [each.pdu for each in forks])

    assert len(await room.north.extremities(room.room_id)) == MAX_PER_SERVER
    network.cut(NORTH, EAST)
    said = say(carol, room.room_id, "beside all that")
    network.mend(NORTH, EAST)
    assert await east.push(NORTH, [await east.pdu(room.room_id, said)]) == {"pdus": {said: {}}}
    assert texts(room.alice, room.room_id)[0] == "beside all that"
    for _ in range(40):
        say(room.alice, room.room_id, "meeting")
        network.clock.advance(3600)
    assert len(await room.north.extremities(room.room_id)) == 1
    stored = [await room.north.find(room.room_id, each.event_id) for each in forks]
    assert all(each is not None and not each.is_outlier for each in stored)


async def test_a_response_that_is_not_json_counts_as_none(network: Network) -> None:
    room = await shared(network)
    network.cut(NORTH, SOUTH)
    say(room.bob, room.room_id, "missed")
    said = say(room.bob, room.room_id, "after it")
    network.mend(NORTH, SOUTH)
    page = WireResponse(200, {"content-type": "text/html"}, b"<html>It works!</html>")
    network.interceptors.append(
        lambda to, request: page if to == SOUTH and "/send/" not in request.uri else None
    )

    await room.south.push(NORTH, [await room.south.pdu(room.room_id, said)])
    network.interceptors.clear()
    network.clock.advance(60)

    assert texts(room.alice, room.room_id)[:2] == ["after it", "missed"]
