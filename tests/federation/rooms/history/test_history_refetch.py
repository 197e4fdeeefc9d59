"""A room that all local users had forgotten is joined again: its history is fetched from other
servers."""

from typing import Any
from urllib.parse import quote

import pytest

from federation.peers.wire import WireRequest, WireResponse
from federation.protocol.canonical_json import encode_canonical
from federation.protocol.ids import EventID, RoomID, ServerName
from tests.helpers import room_actions
from tests.helpers.federated_rooms import NORTH, SOUTH, Shared, Side, shared, texts
from tests.helpers.network import Network
from tests.helpers.room_actions import leave, membership, ok, say

DAY = 86_400
FORGETS = "forgotten_room_retention_period: 1d\nretention: {enabled: true}\n"


def pass_on(network: Network) -> None:
    network.settle()
    network.clock.advance(5)
    network.settle()


async def forget(network: Network, room: Shared) -> None:
    """Everybody of the north leaves, and does not come back for some days."""
    north = room.north.server
    leave(room.alice, room.room_id)
    ok(membership(room.alice, room.room_id, "forget"))
    network.settle()
    forgotten = north.app.retention.forgotten_rooms
    assert forgotten is not None
    for _ in range(20):
        network.clock.advance(DAY / 8)
        network.settle()
        await forgotten.do_step(100)
        while await north.app.retention.purges.do_step(100):
            pass


def come_back(network: Network, room: Shared) -> None:
    ok(room.alice.post(f"/_matrix/client/v3/join/{quote(room.room_id)}?via={SOUTH}", {}))
    pass_on(network)


@pytest.mark.parametrize("version", ["1", "10", "12"])
async def test_purged_messages_are_fetched_from_others(network: Network, version: str) -> None:
    room = await shared(network, version, {NORTH: FORGETS})
    network.start_sending()
    said = [say(room.alice, room.room_id, f"a{number}") for number in range(3)]
    pass_on(network)
    said += [say(room.bob, room.room_id, f"b{number}") for number in range(3)]
    pass_on(network)
    await forget(network, room)
    stored = await room.north.find(room.room_id, said[0])
    assert stored is not None
    assert stored.event.content == {}
    say(room.bob, room.room_id, "meanwhile")
    come_back(network, room)
    assert texts(room.alice, room.room_id) == ["meanwhile", "b2", "b1", "b0", "a2", "a1", "a0"]
    repeated = await room.north.find(room.room_id, said[0])
    assert repeated is not None
    assert repeated.event.pdu == {**stored.event.pdu, "content": repeated.event.content}


async def test_redacted_events_stay_without_content(network: Network) -> None:
    """Before everybody left, while they were away, and since they are back."""
    room = await shared(network, "11", {NORTH: FORGETS})
    network.start_sending()
    south = [say(room.bob, room.room_id, text) for text in ("before", "away", "back", "kept")]
    pass_on(network)
    ok(room_actions.redact(room.bob, room.room_id, south[0], reason="first"))
    pass_on(network)
    await forget(network, room)
    ok(room_actions.redact(room.bob, room.room_id, south[1], reason="second"))
    come_back(network, room)
    ok(room_actions.redact(room.bob, room.room_id, south[2], reason="third"))
    pass_on(network)
    assert texts(room.alice, room.room_id) == ["kept", "", "", ""]
    chunk = room_actions.messages(room.alice, room.room_id, limit=100)["chunk"]
    reasons = {
        event["event_id"]: event["unsigned"]["redacted_because"]["content"]["reason"]
        for event in chunk
        if event["event_id"] in south[:3]
    }
    assert reasons == dict(zip(south, ["first", "second", "third"], strict=False))


@pytest.mark.parametrize(
    "refusal", [WireResponse(200, {}, b'{"pdus":[]}'), WireResponse(404, {}, b"{}")]
)
async def test_a_past_that_no_server_has_does_not_block_restoring(
    network: Network, refusal: WireResponse
) -> None:
    room = await shared(network, "11", {NORTH: FORGETS})
    network.start_sending()
    say(room.bob, room.room_id, "before")
    pass_on(network)
    lost = await room.by_bob("lost")

    def forged(destination: ServerName, request: WireRequest) -> WireResponse | None:
        """It never comes, and nobody tells it."""
        if destination == NORTH and b'"lost"' in request.body:
            return WireResponse(200, {}, b'{"pdus":{}}')
        if destination == SOUTH and "get_missing_events" in request.uri:
            return WireResponse(200, {}, b'{"events":[]}')
        return (
            refusal if "/backfill/" in request.uri and quote(lost.event_id) in request.uri else None
        )

    network.interceptors.append(forged)
    await room.south.federation.receiver.receive(room.room_id, [lost.pdu])
    last = say(room.bob, room.room_id, "after")
    await room.south.push(NORTH, [await room.south.pdu(room.room_id, last)])
    pass_on(network)
    assert texts(room.alice, room.room_id) == ["after", "before"]
    await forget(network, room)

    come_back(network, room)

    assert texts(room.alice, room.room_id) == ["after", "before"]


async def rewrite(side: Side, room_id: RoomID, event_id: EventID, **changed: Any) -> None:
    """Replace the event in a server's database."""
    pdu = {**await side.pdu(room_id, event_id), **changed}
    sql = "UPDATE events SET pdu = ? WHERE event_id = ?"
    await side.server.app.database.write(
        "lie", lambda txn: txn.execute(sql, (encode_canonical(pdu), event_id))
    )
    side.rooms.events.evict([event_id])


@pytest.mark.parametrize("forged", [{}, {"msgtype": "m.text", "body": "forged"}])
async def test_a_replaced_event_is_not_restored(network: Network, forged: dict[str, Any]) -> None:
    """And what nobody has any more keeps nobody from what lies behind it."""
    room = await shared(network, "11", {NORTH: FORGETS})
    network.start_sending()
    said = [say(room.bob, room.room_id, str(number)) for number in range(120)]
    pass_on(network)
    await forget(network, room)
    for event_id in said[10:]:
        await rewrite(room.south, room.room_id, event_id, content=forged)
    come_back(network, room)
    assert texts(room.alice, room.room_id) == [str(number) for number in reversed(range(10))]
    stored = await room.north.find(room.room_id, said[10])
    assert stored is not None
    assert stored.event.content == {}


async def test_messages_that_an_administrator_purged_are_not_fetched(network: Network) -> None:
    room = await shared(network, "11", {NORTH: FORGETS})
    network.start_sending()
    say(room.bob, room.room_id, "said")
    pass_on(network)
    await forget(network, room)
    north = room.north.server
    root = north.register("root")
    await north.app.user_data.accounts.do_set_flags(root.user_id, is_admin=True)
    body = {"purge_up_to_ts": 2**50, "delete_local_events": True}
    ok(root.post(f"/_synapse/admin/v1/purge_history/{room.room_id}", body))
    while await north.app.retention.purges.do_step(100):
        pass
    come_back(network, room)
    assert texts(room.alice, room.room_id) == []
