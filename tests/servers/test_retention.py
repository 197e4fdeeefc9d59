"""Servers with retention among others without. Proposal: MSC1763"""

from typing import Any

import pytest

from federation.peers.client import make_path
from federation.protocol.ids import EventID, ServerName
from federation.protocol.redaction import redact
from federation.protocol.room_versions import ROOM_VERSIONS
from storage.events.events import EventFlag
from tests.helpers import room_actions
from tests.helpers.federated import EAST, NORTH, SOUTH, Shared, Side, adopt, shared, texts
from tests.helpers.network import Network
from tests.helpers.room_actions import get_state, ok, say, set_state

API = "/_matrix/federation/v1/"
DAY = 86_400
RULES = "retention: {enabled: true}\n"


async def ask(side: Side, to: str, template: str, *values: str, **query: str) -> list[Any]:
    pairs = list(query.items())
    return list(
        (await side.edge.requests.get(ServerName(to), make_path(API + template, *values), pairs))[
            "pdus"
        ]
    )


async def keeping(
    network: Network, version: str = "11", rules: str = RULES
) -> tuple[Shared, list[EventID]]:
    """A room whose messages expire after a day, with three older ones and a redaction. The north
    has a retention policy."""
    room = await shared(network, version, {NORTH: rules})
    set_state(room.alice, room.room_id, "m.room.retention", {"max_lifetime": DAY * 1000})
    said = [say(room.alice, room.room_id, f"secret {number}") for number in range(3)]
    path = f"/_matrix/client/v3/rooms/{room.room_id}/redact/{said[0]}/taken-back"
    said.append(EventID(room.alice.put(path, {"reason": "secret"}).json["event_id"]))
    network.clock.advance(DAY + 1)
    return room, said


async def purge(side: Side) -> int:
    return sum([await expiry.do_step(1000) for expiry in side.server.app.retention.expiries])


@pytest.mark.parametrize("version", ["1", "6", "10", "12"])
async def test_other_servers_get_and_accept_the_remaining_events(
    network: Network, version: str
) -> None:
    room, said = await keeping(network, version)
    for is_purged in (False, True):
        if is_purged:
            assert await purge(room.north) == 4
        (pdu,) = await ask(room.south, NORTH, "event/{}", said[1])
        assert (pdu["content"], pdu["type"], set(pdu["signatures"])) == (
            {},
            "m.room.message",
            {NORTH},
        )
        pdus = await ask(room.south, NORTH, "backfill/{}", room.room_id, v=said[3], limit="4")
        assert [(pdu["type"], "secret" in repr(pdu)) for pdu in pdus] == [
            ("m.room.redaction", False),
            *[("m.room.message", False)] * 3,
        ]
    east = Side(network.add(EAST))
    carol = east.server.register("carol")
    await adopt(room.north, east, carol.user_id, room.room_id)
    network.cut(EAST, SOUTH)
    assert texts(carol, room.room_id) == [""] * 3
    for event_id in said:
        assert await east.find(room.room_id, event_id) is not None


@pytest.mark.parametrize("version", ["1", "10", "12"])
async def test_purged_events_are_not_fetched_again(network: Network, version: str) -> None:
    room, said = await keeping(network, version)
    whole = [await room.pdu(event_id) for event_id in said]
    assert await purge(room.north) == 4
    await room.south.push(NORTH, whole)
    network.clock.advance(1)
    for event_id in said:
        stored = await room.north.find(room.room_id, event_id)
        assert stored is not None
        assert stored.flags & EventFlag.PURGED
        assert "secret" not in repr(stored.event.pdu)
    assert await purge(room.north) == 0
    assert texts(room.alice, room.room_id) == []


@pytest.mark.parametrize("version", ["1", "11"])
async def test_the_room_continues_on_purged_events(network: Network, version: str) -> None:
    room, _ = await keeping(network, version)
    assert await purge(room.north) == 4
    answer = await room.south.build_next(
        room.room_id, room.bob.user_id, "m.room.message", {"body": "still here"}
    )
    await room.south.push(NORTH, [answer.pdu])
    assert texts(room.alice, room.room_id) == ["still here"]
    said = say(room.alice, room.room_id, "and I")
    await room.north.push(SOUTH, [answer.pdu, await room.pdu(said)])
    assert {"and I", "still here"} <= set(texts(room.bob, room.room_id))
    assert (
        await room.north.extremities(room.room_id)
        == await room.south.extremities(room.room_id)
        == {said}
    )
    assert await room.north.state(room.room_id) == await room.south.state(room.room_id)


async def test_expired_events_fetched_from_the_past_are_hidden(network: Network) -> None:
    room, said = await keeping(network, rules="")
    say(room.alice, room.room_id, "new")
    east = Side(network.add(EAST, RULES))
    carol = east.server.register("carol")
    await adopt(room.north, east, carol.user_id, room.room_id)
    for purged in (4, 0):
        assert texts(carol, room.room_id) == ["new"]
        assert await purge(east) == purged
    for event_id in said:
        assert await east.pdu(room.room_id, event_id) == redact(
            ROOM_VERSIONS["11"], await room.pdu(event_id)
        )


async def test_expired_events_that_arrive_late_do_not_notify(network: Network) -> None:
    room, _ = await keeping(network)
    since = room.alice.get("/_matrix/client/v3/sync").json["next_batch"]
    old = int((network.clock.seconds() - DAY - 60) * 1000)
    late = await room.south.build_next(
        room.room_id,
        room.bob.user_id,
        "m.room.message",
        {"body": "secret alice", "msgtype": "m.text"},
        ts=old,
    )
    await room.south.push(NORTH, [late.pdu])
    assert await room.north.find(room.room_id, late.event_id) is not None
    answer = room.alice.get(f"/_matrix/client/v3/sync?since={since}").json
    assert "secret" not in repr(answer)
    assert room.alice.get("/_matrix/client/v3/notifications").json["notifications"] == []
    assert await purge(room.north) == 5


async def test_a_redaction_by_a_remote_moderator_stays(network: Network) -> None:
    """An administrator purges messages of others: the redacted message stays, and so does the
    redaction that explains the missing content."""
    room = await shared(network, "11", {NORTH: RULES})
    network.start_sending()
    north = room.north.server
    mine = say(room.alice, room.room_id, "mine")
    levels = get_state(room.alice, room.room_id, "m.room.power_levels")
    users = {**levels["users"], room.alice.user_id: 100, room.bob.user_id: 50}
    set_state(room.alice, room.room_id, "m.room.power_levels", {**levels, "users": users})
    network.settle()
    ok(room_actions.redact(room.bob, room.room_id, mine, reason="rude"))
    for text in ("gone", "newest"):
        say(room.bob, room.room_id, text)
    network.settle()
    root = north.register("root")
    await north.app.user_data.accounts.do_set_flags(root.user_id, is_admin=True)
    begun = root.post(f"/_synapse/admin/v1/purge_history/{room.room_id}", {"purge_up_to_ts": 2**50})
    assert begun.status == 200
    while await north.app.retention.purges.do_step(10):
        pass
    assert texts(room.alice, room.room_id) == ["newest", ""]
    event = ok(room.alice.get(f"/_matrix/client/v3/rooms/{room.room_id}/event/{mine}"))
    assert event["unsigned"]["redacted_because"]["content"]["reason"] == "rude"


@pytest.mark.parametrize("is_cached", [True, False])
async def test_events_with_a_future_timestamp_expire_too(network: Network, is_cached: bool) -> None:
    room, _ = await keeping(network)
    assert await purge(room.north) == 4
    future = int((network.clock.seconds() + DAY / 2) * 1000)
    event = await room.south.build_next(
        room.room_id, room.bob.user_id, "m.room.message", {"body": "for longer"}, ts=future
    )
    await room.south.push(NORTH, [event.pdu])
    if not is_cached:
        room.north.server.app.rooms.events.evict([event.event_id])
    # while it is visible it is not purged, and the other way round
    for seconds, shown in ((0, ["for longer"]), (DAY, ["for longer"]), (1, [])):
        network.clock.advance(seconds)
        assert texts(room.alice, room.room_id) == shown
        (pdu,) = await ask(room.south, NORTH, "event/{}", event.event_id)
        assert (pdu["content"] == {}) is (not shown)
        assert await purge(room.north) == 1 - len(shown)
