"""Backfill reaches the beginning of a room, as long as any server answers."""

import msgspec
import pytest

from federation.peers.wire import WireRequest, WireResponse
from federation.protocol.ids import EventID, RoomID
from federation.rooms.history.backfill import BACKOFF_MS, MAX_WAIT
from storage.events.timelines import TimelineStore
from tests.helpers.federated_rooms import (
    EAST,
    NORTH,
    SOUTH,
    Side,
    adopt,
    create_room,
    shared,
    texts,
)
from tests.helpers.network import Network, count_requests
from tests.helpers.room_actions import say, set_state


async def open_ends(side: Side, room_id: RoomID) -> set[str]:
    snapshot = await side.room(room_id)
    return set(
        await TimelineStore(side.server.app.database).get_backward_extremities(
            snapshot.room.room_nid
        )
    )


@pytest.mark.parametrize("version", ["1", "6", "10", "11", "12"])
async def test_a_new_member_reads_the_room_to_its_beginning(network: Network, version: str) -> None:
    north, south = Side(network.add(NORTH)), Side(network.add(SOUTH))
    alice, bob = north.server.register("alice"), south.server.register("bob")
    room_id = create_room(alice, version)
    for number in range(150):
        say(alice, room_id, f"{number}")
        if number % 50 == 0:
            set_state(alice, room_id, "m.room.topic", {"topic": f"{number}"})
    await adopt(north, south, bob.user_id, room_id)

    assert texts(bob, room_id, limit=30) == [f"{number}" for number in range(149, -1, -1)]

    assert count_requests(network, NORTH, "/backfill/") == 2
    assert await open_ends(south, room_id) == set()
    assert await south.state(room_id) == await north.state(room_id)
    first = bob.get(f"/_matrix/client/v3/rooms/{room_id}/messages?dir=f&limit=1").json["chunk"][0]
    assert first["type"] == "m.room.create"
    before = len(network.log)
    assert len(texts(bob, room_id)) == 150
    assert len(network.log) == before


async def test_backfilled_events_are_not_in_sync(network: Network) -> None:
    north, south = Side(network.add(NORTH)), Side(network.add(SOUTH))
    alice, bob = north.server.register("alice"), south.server.register("bob")
    room_id = create_room(alice)
    say(alice, room_id, "long ago")
    await adopt(north, south, bob.user_id, room_id)
    since = bob.get("/_matrix/client/v3/sync").json["next_batch"]

    assert texts(bob, room_id) == ["long ago"]

    assert "rooms" not in bob.get(f"/_matrix/client/v3/sync?since={since}").json
    assert await south.extremities(room_id) == await north.extremities(room_id)


async def test_without_servers_the_page_ends_with_a_token_to_continue(network: Network) -> None:
    north, south = Side(network.add(NORTH)), Side(network.add(SOUTH))
    alice, bob = north.server.register("alice"), south.server.register("bob")
    room_id = create_room(alice)
    say(alice, room_id, "long ago")
    await adopt(north, south, bob.user_id, room_id)
    say(bob, room_id, "here")
    network.cut(NORTH, SOUTH)
    path = f"/_matrix/client/v3/rooms/{room_id}/messages?dir=b&limit=50"

    page = bob.get(path).json
    assert [event["type"] for event in page["chunk"]] == ["m.room.message", "m.room.member"]
    nothing = bob.get(f"{path}&from={page['end']}").json
    assert (nothing["chunk"], "end" in nothing) == ([], False)
    asked = len(network.log)
    bob.get(path)
    assert len(network.log) == asked

    network.mend(NORTH, SOUTH)
    network.clock.advance(BACKOFF_MS / 1000)
    more = bob.get(f"{path}&from={page['end']}").json
    assert "long ago" in [event["content"].get("body") for event in more["chunk"]]


async def test_a_silent_server_delays_the_reader_little(network: Network) -> None:
    north, south = Side(network.add(NORTH)), Side(network.add(SOUTH))
    alice, bob = north.server.register("alice"), south.server.register("bob")
    room_id = create_room(alice)
    say(alice, room_id, "long ago")
    await adopt(north, south, bob.user_id, room_id)
    network.hold()
    path = f"/_matrix/client/v3/rooms/{room_id}/messages?dir=b"

    one, two = bob.start("GET", path), bob.start("GET", path)
    assert not one.done
    network.clock.advance(MAX_WAIT)

    assert (one.answer.status, two.answer.status) == (200, 200)
    assert count_requests(network, NORTH, "/backfill/") == 1


async def test_another_server_is_asked_if_the_first_cannot_help(network: Network) -> None:
    room = await shared(network)
    east = Side(network.add(EAST))
    carol = east.server.register("carol")
    said = say(room.alice, room.room_id, "before Carol")
    await room.north.push(SOUTH, [await room.pdu(said)])
    join = await adopt(room.north, east, carol.user_id, room.room_id)
    await room.north.push(SOUTH, [join.pdu])
    network.cut(NORTH, EAST)

    assert texts(carol, room.room_id) == ["before Carol"]
    assert count_requests(network, SOUTH, "/backfill/") >= 1


async def test_a_gap_between_known_events_is_filled_on_the_way(network: Network) -> None:
    room = await shared(network)
    network.cut(NORTH, SOUTH)
    said = [say(room.alice, room.room_id, f"{number}") for number in range(20)]
    network.mend(NORTH, SOUTH)
    network.interceptors.append(
        lambda to, request: (
            WireResponse(200, {}, b'{"events": []}')
            if to == NORTH and "missing" in request.uri
            else None
        )
    )
    await room.north.push(SOUTH, [await room.pdu(said[-1])])
    assert (await room.south.find(room.room_id, said[0])) is None

    assert texts(room.bob, room.room_id, limit=5) == [f"{number}" for number in range(19, -1, -1)]


async def test_backfill_respects_the_history_visibility(network: Network) -> None:
    north, south = Side(network.add(NORTH)), Side(network.add(SOUTH))
    alice, bob = north.server.register("alice"), south.server.register("bob")
    hidden = {
        "type": "m.room.history_visibility",
        "state_key": "",
        "content": {"history_visibility": "joined"},
    }
    room_id = create_room(alice, initial_state=[hidden])
    secret = say(alice, room_id, "not for you")
    await adopt(north, south, bob.user_id, room_id)

    assert texts(bob, room_id) == []

    stored = await south.find(room_id, secret)
    assert stored is None or stored.event.content == {}


async def test_an_invented_past_is_refused(network: Network) -> None:
    room = await shared(network)
    end = next(iter(await open_ends(room.south, room.room_id)))
    forged = await room.south.build_next(
        room.room_id, room.alice.user_id, "m.room.message", {"body": "forged"}, prev=[]
    )
    pdu = {**await room.north.pdu(room.room_id, EventID(end)), "content": {"body": "changed"}}
    body = {"origin": NORTH, "origin_server_ts": 1, "pdus": [forged.pdu, pdu, 7, {}]}

    def forge(to: str, request: WireRequest) -> WireResponse | None:
        return (
            WireResponse(200, {}, msgspec.json.encode(body))
            if to == NORTH and "backfill" in request.uri
            else None
        )

    network.interceptors.append(forge)

    assert "forged" not in texts(room.bob, room.room_id)
    assert "changed" not in texts(room.bob, room.room_id)


async def test_the_event_closest_to_a_time_is_found_remotely(network: Network) -> None:
    north, south = Side(network.add(NORTH)), Side(network.add(SOUTH))
    alice, bob = north.server.register("alice"), south.server.register("bob")
    room_id = create_room(alice)
    network.clock.advance(100)
    long_ago = say(alice, room_id, "long ago")
    then = int(network.clock.seconds() * 1000)
    network.clock.advance(1000)
    await adopt(north, south, bob.user_id, room_id)
    path = f"/_matrix/client/v1/rooms/{room_id}/timestamp_to_event"

    answer = bob.get(f"{path}?dir=f&ts={then - 1000}")

    assert answer.json == {"event_id": long_ago, "origin_server_ts": then}
    around = bob.get(f"/_matrix/client/v3/rooms/{room_id}/context/{long_ago}").json
    assert around["event"]["content"]["body"] == "long ago"
    network.cut(NORTH, SOUTH)
    assert bob.get(f"{path}?dir=b&ts={then}").json["event_id"] == long_ago
