"""Events of an erased user on other servers: complete on those that were in the room, without
content on those that join later.

spec: client-server-api#post_matrixclientv3accountdeactivate (`erase`)
"""

from typing import Any

import pytest

from federation.peers.client import make_path
from federation.protocol.ids import RoomID, ServerName
from tests.helpers.federated_rooms import EAST, NORTH, Side, adopt, shared, texts
from tests.helpers.network import Network
from tests.helpers.room_actions import say, set_state

API = "/_matrix/federation/v1/"


async def ask(side: Side, template: str, *values: str, **query: Any) -> list[Any]:
    pairs = [(name, str(value)) for name, value in query.items()]
    answer = await side.edge.requests.get(
        ServerName(NORTH), make_path(API + template, *values), pairs
    )
    return list(answer["pdus"])


async def missing(side: Side, room_id: RoomID, latest: str) -> list[Any]:
    path = make_path(API + "get_missing_events/{}", room_id)
    body = {"earliest_events": [], "latest_events": [latest], "limit": 3}
    return list((await side.edge.requests.post(ServerName(NORTH), path, body))["events"])


@pytest.mark.parametrize("version", ["1", "11"])
async def test_servers_that_join_later_get_no_content(network: Network, version: str) -> None:
    room = await shared(network, version)
    erin = room.north.server.register("erin")
    erin.post(f"/_matrix/client/v3/join/{room.room_id}", {})
    said = [say(erin, room.room_id, f"secret {number}") for number in range(3)]
    last = say(room.alice, room.room_id, "open")
    await room.north.server.app.user_data.deactivation.do_deactivate(erin.user_id, erase=True)

    east = Side(network.add(EAST))
    carol = east.server.register("carol")
    await adopt(room.north, east, carol.user_id, room.room_id)

    (whole,) = await ask(room.south, "event/{}", said[0])
    assert whole["content"]["body"] == "secret 0"
    (pdu,) = await ask(east, "event/{}", said[0])
    assert (pdu["content"], pdu["type"], set(pdu["signatures"])) == ({}, "m.room.message", {NORTH})
    before = await ask(east, "backfill/{}", room.room_id, v=last, limit=4)
    assert [pdu["content"] for pdu in before] == [{"msgtype": "m.text", "body": "open"}, {}, {}, {}]
    assert [pdu["content"] for pdu in await missing(east, room.room_id, last)] == [{}] * 3
    assert [pdu["content"]["body"] for pdu in await missing(room.south, room.room_id, last)] == [
        "secret 0",
        "secret 1",
        "secret 2",
    ]
    # it takes them, and keeps them as they are
    shown = texts(carol, room.room_id)
    assert "open" in shown
    assert not [text for text in shown if "secret" in text]


async def test_state_of_an_erased_user_keeps_its_content(network: Network) -> None:
    room = await shared(network, "11")
    stays = room.north.server.register("stays")
    stays.post(f"/_matrix/client/v3/join/{room.room_id}", {})
    topic = set_state(room.alice, room.room_id, "m.room.topic", {"topic": "tea"})
    newer = say(room.alice, room.room_id, "open")
    await room.north.server.app.user_data.deactivation.do_deactivate(room.alice.user_id, erase=True)
    east = Side(network.add(EAST))
    carol = east.server.register("carol")
    await adopt(room.north, east, carol.user_id, room.room_id)
    state = await ask(east, "state/{}", room.room_id, event_id=newer)
    assert await room.pdu(topic) in state
