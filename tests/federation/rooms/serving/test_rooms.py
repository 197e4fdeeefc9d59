"""Rooms served to other servers: all events that concern them while they are in the room, and no
rejected ones."""

from pathlib import Path
from typing import Any

import pytest

from federation.peers.client import RefusedByRemote, make_path
from federation.protocol.errors import RemoteError
from federation.protocol.ids import EventID, RoomID, ServerName
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
)
from tests.helpers.network import Network
from tests.helpers.room_actions import say, set_state

API = "/_matrix/federation/v1/"


async def ask(side: Side, to: str, template: str, *values: str, **query: Any) -> Any:
    pairs = [
        (name, str(each))
        for name, value in query.items()
        for each in (value if isinstance(value, list) else [value])
    ]
    return await side.edge.requests.get(ServerName(to), make_path(API + template, *values), pairs)


async def missing(side: Side, to: str, room_id: str, **body: Any) -> Any:
    path = make_path(API + "get_missing_events/{}", room_id)
    return (await side.edge.requests.post(ServerName(to), path, body))["events"]


async def refusal(
    side: Side, to: str, template: str, *values: str, **query: Any
) -> tuple[int, str]:
    with pytest.raises(RefusedByRemote) as refused:
        await ask(side, to, template, *values, **query)
    return refused.value.status, refused.value.errcode


@pytest.mark.parametrize("version", ["1", "6", "12"])
async def test_an_event_and_the_state_before_it_are_served(network: Network, version: str) -> None:
    room = await shared(network, version)
    before = await room.north.state(room.room_id)
    topic = set_state(room.alice, room.room_id, "m.room.topic", {"topic": "tea"})
    newer = set_state(room.alice, room.room_id, "m.room.topic", {"topic": "coffee"})

    answer = await ask(room.south, NORTH, "event/{}", topic)
    assert answer["pdus"] == [await room.pdu(topic)]
    assert answer["origin"] == NORTH

    ids = await ask(room.south, NORTH, "state_ids/{}", room.room_id, event_id=topic)
    assert set(ids["pdu_ids"]) == set(before.values())
    ids = await ask(room.south, NORTH, "state_ids/{}", room.room_id, event_id=newer)
    assert set(ids["pdu_ids"]) == {*before.values(), topic}
    auth = {
        name for event_id in ids["pdu_ids"] for name in (await _event(room, event_id)).auth_events
    }
    assert auth <= set(ids["auth_chain_ids"])

    state = await ask(room.south, NORTH, "state/{}", room.room_id, event_id=newer)
    assert len(state["pdus"]) == len(ids["pdu_ids"])
    assert len(state["auth_chain"]) == len(ids["auth_chain_ids"])
    assert (await room.pdu(topic)) in state["pdus"]


async def _event(room: Shared, event_id: str) -> Any:
    stored = await room.north.find(room.room_id, EventID(event_id))
    assert stored is not None
    return stored.event


async def test_the_auth_chain_of_an_event_is_served(network: Network) -> None:
    room = await shared(network)
    said = say(room.alice, room.room_id, "hello")

    chain = (await ask(room.south, NORTH, "event_auth/{}/{}", room.room_id, said))["auth_chain"]

    types = sorted(pdu["type"] for pdu in chain)
    assert types == ["m.room.create", "m.room.member", "m.room.power_levels"]


async def test_events_before_other_events_are_served(network: Network) -> None:
    room = await shared(network)
    said = [say(room.alice, room.room_id, f"{number}") for number in range(10)]

    answer = await ask(room.south, NORTH, "backfill/{}", room.room_id, v=[said[5]], limit=4)
    assert [pdu["content"]["body"] for pdu in answer["pdus"]] == ["5", "4", "3", "2"]

    whole = await ask(
        room.south, NORTH, "backfill/{}", room.room_id, v=[said[5], said[5]], limit=10**6
    )
    assert whole["pdus"][-1]["type"] == "m.room.create"

    assert await refusal(room.south, NORTH, "backfill/{}", room.room_id, v=said * 11, limit=1) == (
        400,
        "M_INVALID_PARAM",
    )
    assert await refusal(room.south, NORTH, "backfill/{}", room.room_id, v=said, limit="x") == (
        400,
        "M_INVALID_PARAM",
    )
    unknown = await ask(room.south, NORTH, "backfill/{}", room.room_id, v=["$unknown"], limit=10)
    assert unknown["pdus"] == []


async def test_events_between_other_events_are_served(network: Network) -> None:
    room = await shared(network)
    said = [say(room.alice, room.room_id, f"{number}") for number in range(10)]

    between = await missing(
        room.south,
        NORTH,
        room.room_id,
        earliest_events=[said[2]],
        latest_events=[said[6]],
        limit=10,
    )
    assert [pdu["content"]["body"] for pdu in between] == ["3", "4", "5"]
    few = await missing(
        room.south, NORTH, room.room_id, earliest_events=[], latest_events=[said[6]], limit=2
    )
    assert [pdu["content"]["body"] for pdu in few] == ["4", "5"]
    depth = (await room.pdu(said[4]))["depth"]
    deep = await missing(
        room.south,
        NORTH,
        room.room_id,
        earliest_events=[],
        latest_events=[said[6]],
        limit=99,
        min_depth=depth,
    )
    assert [pdu["content"]["body"] for pdu in deep] == ["4", "5"]
    assert (
        await missing(room.south, NORTH, room.room_id, earliest_events=said, latest_events=["$x"])
        == []
    )


async def test_the_event_closest_to_a_time_is_served(network: Network) -> None:
    room = await shared(network)
    network.clock.advance(100)
    first = say(room.alice, room.room_id, "first")
    network.clock.advance(100)
    second = say(room.alice, room.room_id, "second")
    now = int(network.clock.seconds() * 1000)

    answer = await ask(
        room.south, NORTH, "timestamp_to_event/{}", room.room_id, ts=now - 50_000, dir="b"
    )
    assert answer == {"event_id": first, "origin_server_ts": now - 100_000}
    answer = await ask(
        room.south, NORTH, "timestamp_to_event/{}", room.room_id, ts=now - 50_000, dir="f"
    )
    assert answer == {"event_id": second, "origin_server_ts": now}
    for query in ({"ts": now + 1, "dir": "f"}, {"ts": 0, "dir": "b"}):
        status = await refusal(room.south, NORTH, "timestamp_to_event/{}", room.room_id, **query)
        assert status == (404, "M_NOT_FOUND")


ALL = [
    ("event/{event}", {}),
    ("state/{room}", {"event_id": "{event}"}),
    ("state_ids/{room}", {"event_id": "{event}"}),
    ("event_auth/{room}/{event}", {}),
    ("backfill/{room}", {"v": "{event}", "limit": "10"}),
    ("timestamp_to_event/{room}", {"ts": "0", "dir": "f"}),
]


async def everything(
    side: Side, to: str, room_id: RoomID, event_id: EventID
) -> list[tuple[int, str]]:
    """Return the response of each endpoint that refuses."""
    refusals = []
    for template, query in ALL:
        path = API + template.replace("{room}", make_path("{}", room_id)).replace(
            "{event}", make_path("{}", event_id)
        )
        pairs = [(name, value.replace("{event}", event_id)) for name, value in query.items()]
        try:
            await side.edge.requests.get(ServerName(to), path, pairs)
        except RefusedByRemote as error:
            refusals.append((error.status, error.errcode))
    try:
        await missing(side, to, room_id, earliest_events=[], latest_events=[event_id])
    except RefusedByRemote as error:
        refusals.append((error.status, error.errcode))
    return refusals


async def test_only_servers_in_the_room_get_anything(network: Network) -> None:
    room = await shared(network)
    said = say(room.alice, room.room_id, "hello")
    east = Side(network.add(EAST))
    assert await everything(room.south, NORTH, room.room_id, said) == []

    assert await everything(east, NORTH, room.room_id, said) == [(403, "M_FORBIDDEN")] * 7
    assert (
        await everything(east, NORTH, RoomID("!unknown:north.example"), EventID("$unknown"))
        == [(404, "M_NOT_FOUND")] * 7
    )


async def test_a_server_that_left_gets_nothing(network: Network) -> None:
    room = await shared(network)
    left = await room.south.build_next(
        room.room_id, room.bob.user_id, "m.room.member", {"membership": "leave"}, room.bob.user_id
    )
    await room.south.push(NORTH, [left.pdu])
    said = say(room.alice, room.room_id, "hello")

    assert await everything(room.south, NORTH, room.room_id, said) == [(403, "M_FORBIDDEN")] * 7


async def test_a_server_that_the_acl_denies_gets_nothing(network: Network) -> None:
    room = await shared(network)
    said = say(room.alice, room.room_id, "hello")
    set_state(
        room.alice, room.room_id, "m.room.server_acl", {"allow": ["*"], "deny": [SOUTH.upper()]}
    )

    assert await everything(room.south, NORTH, room.room_id, said) == [(403, "M_FORBIDDEN")] * 7


async def test_we_do_not_serve_a_room_that_we_left(network: Network) -> None:
    room = await shared(network)
    said = say(room.alice, room.room_id, "hello")
    assert room.alice.post(f"/_matrix/client/v3/rooms/{room.room_id}/leave").status == 200

    assert await everything(room.south, NORTH, room.room_id, said) == [(404, "M_NOT_FOUND")] * 7


async def test_an_unsigned_request_is_refused(network: Network) -> None:
    room = await shared(network)
    said = say(room.alice, room.room_id, "hello")

    assert room.north.server.get(API + f"event/{said}").status == 401
    with pytest.raises(RemoteError):
        await room.south.edge.requests.get(ServerName(NORTH), API + f"event/{said}", signed=False)


async def test_rejected_events_are_not_served(network: Network) -> None:
    room = await shared(network)
    bad = await room.south.build_next(
        room.room_id,
        room.bob.user_id,
        "m.room.power_levels",
        {"users": {room.bob.user_id: 100}},
        "",
    )
    after = await room.south.build_next(
        room.room_id, room.bob.user_id, "m.room.message", {"body": "x"}, prev=[bad]
    )
    await room.south.push(NORTH, [bad.pdu, after.pdu])

    assert await refusal(room.south, NORTH, "event/{}", bad.event_id) == (404, "M_NOT_FOUND")
    assert await refusal(room.south, NORTH, "state/{}", room.room_id, event_id=bad.event_id) == (
        404,
        "M_NOT_FOUND",
    )
    walked = await missing(
        room.south,
        NORTH,
        room.room_id,
        earliest_events=[],
        latest_events=[after.event_id],
        limit=99,
    )
    assert bad.pdu not in walked
    assert walked[0]["type"] == "m.room.create"
    state = await ask(room.south, NORTH, "state_ids/{}", room.room_id, event_id=after.event_id)
    assert bad.event_id not in state["pdu_ids"]


async def test_soft_failed_events_are_served_on_request(network: Network) -> None:
    room = await shared(network)
    old = await room.north.last(room.room_id)
    late = await room.south.build_next(
        room.room_id, room.bob.user_id, "m.room.message", {"body": "late"}, prev=old
    )
    path = f"/_matrix/client/v3/rooms/{room.room_id}/ban"
    east = Side(network.add(EAST))
    carol = east.server.register("carol")
    await adopt(room.north, east, carol.user_id, room.room_id)
    assert room.alice.post(path, {"user_id": room.bob.user_id}).status == 200
    ban = (await room.north.last(room.room_id))[0]
    await room.south.push(NORTH, [late.pdu])
    stored = await room.north.find(room.room_id, late.event_id)
    assert stored is not None
    assert not stored.in_timeline
    assert not stored.rejected

    assert (await ask(east, NORTH, "event/{}", late.event_id))["pdus"] == [late.pdu]
    walked = await ask(east, NORTH, "backfill/{}", room.room_id, v=[ban.event_id], limit=99)
    assert late.pdu not in walked["pdus"]


@pytest.mark.parametrize(
    ("visibility", "is_seen"),
    [("world_readable", True), ("shared", True), ("invited", False), ("joined", False)],
)
async def test_the_history_visibility_holds_for_servers(
    network: Network, visibility: str, is_seen: bool
) -> None:
    north, south = Side(network.add(NORTH)), Side(network.add(SOUTH))
    alice, bob = north.server.register("alice"), south.server.register("bob")
    setting = {
        "type": "m.room.history_visibility",
        "state_key": "",
        "content": {"history_visibility": visibility},
    }
    room_id = create_room(alice, initial_state=[setting])
    early = say(alice, room_id, "early")
    await adopt(north, south, bob.user_id, room_id)
    late = say(alice, room_id, "late")

    page = (await ask(south, NORTH, "backfill/{}", room_id, v=[late], limit=99))["pdus"]

    messages = [pdu["content"] for pdu in page if pdu["type"] == "m.room.message"]
    assert messages[0]["body"] == "late"
    assert messages[1] == ({"msgtype": "m.text", "body": "early"} if is_seen else {})
    alone = (await ask(south, NORTH, "event/{}", early))["pdus"][0]
    assert alone["content"] == messages[1]
    assert alone["hashes"] == (await north.pdu(room_id, early))["hashes"]


async def test_the_number_of_queries_does_not_grow_with_the_page(
    tmp_path: Path, sqlite_template: Path
) -> None:
    counter = QueryCounter()
    room = await shared(
        Network(tmp_path, lambda: open_inline(copy_sqlite(sqlite_template, tmp_path), counter))
    )
    said = [say(room.alice, room.room_id, f"{number}") for number in range(90)]
    counted: list[int] = []
    for number in (5, 80):
        room.north.rooms.events.evict(said)
        counter.clear()
        page = await ask(room.south, NORTH, "backfill/{}", room.room_id, v=[said[-1]], limit=number)
        assert len(page["pdus"]) == number
        counted.append(sum(counter.queries.values()))
    assert counted[1] <= counted[0] + 2
    for side in (room.north, room.south):
        await side.server.app.database.close()
