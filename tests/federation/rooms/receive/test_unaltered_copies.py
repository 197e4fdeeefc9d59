"""Copies of an event with altered content: the unaltered copy wins, whichever arrives first.

spec: server-server-api#checks-performed-on-receipt-of-a-pdu
"""

from typing import Any

import msgspec
import pytest

from federation.peers.wire import WireRequest, WireResponse
from federation.protocol.event_signing import hash_and_sign_event
from federation.protocol.events import Event
from federation.protocol.ids import ServerName
from federation.protocol.room_versions import ROOM_VERSIONS
from federation.rooms.receipt_checks import Verdict
from tests.helpers.federated_rooms import EAST, NORTH, SOUTH, Side, adopt, shared, texts
from tests.helpers.network import Fate, Network, Transfer
from tests.helpers.room_actions import ok, say, set_state

LEVELS = {"events": {"m.room.name": 0, "m.room.server_acl": 0}}
LIE = {"msgtype": "m.text", "body": "a lie"}


def questions(network: Network, to: str) -> list[str]:
    """The events that a server was asked for."""
    return [uri for _, host, _, uri in network.log if host == to and "/federation/v1/event/" in uri]


async def test_the_senders_server_is_asked_for_the_unaltered_copy(network: Network) -> None:
    room = await shared(network)
    east = Side(network.add(EAST))
    said = say(room.alice, room.room_id, "the truth")
    pdu = await room.north.pdu(room.room_id, said)
    assert await east.push(SOUTH, [{**pdu, "content": LIE}]) == {"pdus": {said: {}}}
    assert texts(room.bob, room.room_id) == ["the truth"]
    assert len(questions(network, NORTH)) == 1


async def test_an_access_list_cannot_be_emptied_by_others(network: Network) -> None:
    room = await shared(network)
    east = Side(network.add(EAST))
    acl = {"allow": ["*"], "deny": ["evil.example"]}
    pdu = await room.north.pdu(
        room.room_id, set_state(room.alice, room.room_id, "m.room.server_acl", acl)
    )
    await east.push(SOUTH, [{**pdu, "content": {"allow": ["evil.example"]}}])
    later = await room.north.pdu(room.room_id, say(room.alice, room.room_id, "hello"))
    answer = await room.north.push(SOUTH, [pdu, later])
    assert [received for received in answer["pdus"].values() if received] == []
    assert texts(room.bob, room.room_id) == ["hello"]


async def test_many_altered_copies_in_a_gap_are_all_replaced(network: Network) -> None:
    room = await shared(network)
    east = Side(network.add(EAST))
    carol = east.server.register("carol")
    join = await adopt(room.north, east, carol.user_id, room.room_id)
    await room.north.push(SOUTH, [join.pdu])
    network.cut(NORTH, SOUTH)
    words = [f"word {number}" for number in range(60)]
    said = [await room.south.pdu(room.room_id, say(room.bob, room.room_id, word)) for word in words]
    await room.south.push(EAST, said[:50])
    await room.south.push(EAST, said[50:])
    network.mend(NORTH, SOUTH)

    def forged(destination: ServerName, request: WireRequest) -> WireResponse | None:
        if destination != EAST or "get_missing_events" not in request.uri:
            return None
        return WireResponse(
            200, {}, msgspec.json.encode({"events": [{**pdu, "content": LIE} for pdu in said]})
        )

    network.interceptors.append(forged)
    last = await east.build_next(
        room.room_id, carol.user_id, "m.room.message", {"body": "and then"}
    )
    assert await east.push(NORTH, [last.pdu]) == {"pdus": {last.event_id: {}}}
    network.settle()

    assert texts(room.alice, room.room_id) == ["and then", *reversed(words)]


async def test_an_altered_copy_without_an_original_is_not_stored(network: Network) -> None:
    room = await shared(network)
    east = Side(network.add(EAST))
    event = await room.by_bob("the truth")  # which the south itself does not know yet
    answer = await east.push(NORTH, [{**event.pdu, "content": LIE}])
    assert "does not match its hash" in answer["pdus"][event.event_id]["error"]
    assert await room.north.find(room.room_id, event.event_id) is None
    assert len(questions(network, SOUTH)) == 1
    await east.push(NORTH, [{**event.pdu, "content": {}}])
    assert len(questions(network, SOUTH)) == 1, "it has just been asked"
    assert await room.south.push(NORTH, [event.pdu]) == {"pdus": {event.event_id: {}}}
    assert texts(room.alice, room.room_id) == ["the truth"]


async def test_a_server_that_answers_429_is_asked_later(network: Network) -> None:
    room = await shared(network)
    east = Side(network.add(EAST))

    def be_busy(to: ServerName, request: WireRequest) -> WireResponse | None:
        is_asked = to == NORTH and "/federation/v1/event/" in request.uri
        return WireResponse(429, {"retry-after": "300"}, b"{}") if is_asked else None

    network.interceptors.append(be_busy)
    pdus = [
        await room.north.pdu(room.room_id, say(room.alice, room.room_id, word))
        for word in ("one", "two", "three")
    ]
    for pdu in pdus[:2]:
        await east.push(SOUTH, [{**pdu, "content": LIE}])
        network.clock.advance(120)
    assert len(questions(network, NORTH)) == 1
    network.interceptors.clear()
    network.clock.advance(120)
    await east.push(SOUTH, [{**pdus[2], "content": LIE}])
    assert texts(room.bob, room.room_id)[0] == "three"


async def test_the_senders_server_is_trusted_about_missing_content(network: Network) -> None:
    room = await shared(network)
    east = Side(network.add(EAST))
    event = await room.by_bob("the truth")
    bad = {**event.pdu, "content": LIE}
    assert await room.south.push(NORTH, [bad]) == {"pdus": {event.event_id: {}}}
    assert texts(room.alice, room.room_id) == [""]
    assert questions(network, SOUTH) == []

    said = say(room.alice, room.room_id, "taken back")
    pdu = await room.north.pdu(room.room_id, said)
    redacted = room.alice.put(f"/_matrix/client/v3/rooms/{room.room_id}/redact/{said}/1", {})
    assert redacted.status == 200
    assert await east.push(SOUTH, [{**pdu, "content": LIE}]) == {"pdus": {said: {}}}
    assert texts(room.bob, room.room_id)[0] == ""


async def test_no_server_is_asked_about_an_unsigned_event(network: Network) -> None:
    room = await shared(network)
    east = Side(network.add(EAST))
    event = await room.by_bob("the truth")
    await east.push(NORTH, [{**event.pdu, "content": LIE, "depth": event.depth + 1}])
    assert questions(network, SOUTH) == []


async def test_a_response_with_another_event_is_refused(network: Network) -> None:
    """In room versions whose ids are no hashes, the sender's server may answer with any event."""
    room = await shared(network, "1")
    east = Side(network.add(EAST))
    one = await room.by_bob("one")
    draft = {key: value for key, value in one.pdu.items() if key not in ("hashes", "signatures")}
    other = {**draft, "depth": one.depth + 1, "content": {"msgtype": "m.text", "body": "another"}}
    twin = hash_and_sign_event(
        one.version, other, room.south.name, room.south.federation.identity.key
    )
    (outcome,) = await room.south.federation.receiver.receive(room.room_id, [twin])
    assert outcome.verdict is Verdict.ACCEPT
    answer = await east.push(NORTH, [{**one.pdu, "content": LIE}])
    assert "error" in answer["pdus"][one.event_id]
    assert len(questions(network, SOUTH)) == 1


async def arrives_altered(
    network: Network, side: Side, event: Event, content: dict[str, Any]
) -> None:
    """An altered copy is all that can be had of an event: it is kept without content."""
    network.cut(NORTH, SOUTH)
    (outcome,) = await side.federation.receiver.receive(
        event.room_id, [{**event.pdu, "content": content}]
    )
    assert outcome.verdict is Verdict.REDACT
    network.mend(NORTH, SOUTH)


async def test_the_content_is_restored_from_the_unaltered_copy(network: Network) -> None:
    room = await shared(network)
    root = say(room.alice, room.room_id, "root")
    relation = {"rel_type": "m.thread", "event_id": root}
    content = {"msgtype": "m.text", "body": "the truth", "m.relates_to": relation}
    event = await room.south.build_next(room.room_id, room.bob.user_id, "m.room.message", content)
    await arrives_altered(network, room.north, event, LIE)
    assert texts(room.alice, room.room_id) == ["", "root"]

    assert await room.south.push(NORTH, [{**event.pdu, "content": LIE}, event.pdu]) == {
        "pdus": {event.event_id: {}}
    }
    assert texts(room.alice, room.room_id) == ["", "root"], "the first of two copies counts"
    assert await room.south.push(NORTH, [event.pdu]) == {"pdus": {event.event_id: {}}}
    assert texts(room.alice, room.room_id) == ["the truth", "root"]
    path = f"/_matrix/client/v3/rooms/{room.room_id}"
    assert ok(room.alice.get(f"{path}/event/{event.event_id}"))["content"] == content
    thread = ok(room.alice.get(f"/_matrix/client/v1/rooms/{room.room_id}/relations/{root}"))[
        "chunk"
    ]
    assert [each["event_id"] for each in thread] == [event.event_id]
    assert await room.south.push(NORTH, [{**event.pdu, "content": LIE}]) == {
        "pdus": {event.event_id: {}}
    }
    assert texts(room.alice, room.room_id) == ["the truth", "root"]


async def test_redacted_events_stay_redacted(network: Network) -> None:
    room = await shared(network)
    event = await room.by_bob("the truth")
    await arrives_altered(network, room.north, event, LIE)
    ok(room.alice.put(f"/_matrix/client/v3/rooms/{room.room_id}/redact/{event.event_id}/1", {}))
    await room.south.push(NORTH, [event.pdu])
    assert texts(room.alice, room.room_id) == [""]


@pytest.mark.parametrize("way", ["transaction", "state"])
async def test_restored_state_takes_effect(network: Network, way: str) -> None:
    room = await shared(network, visibility="public", power_level_content_override=LEVELS)
    acl = {"allow": ["*"], "deny": ["evil.example"]}
    me = {"membership": "join", "displayname": "Bob"}
    for type, state_key, content in (
        ("m.room.name", "", {"name": "tea"}),
        ("m.room.member", room.bob.user_id, me),
        ("m.room.server_acl", "", acl),
    ):
        event = await room.south.build_next(
            room.room_id, room.bob.user_id, type, content, state_key
        )
        (outcome,) = await room.south.federation.receiver.receive(room.room_id, [event.pdu])
        assert outcome.verdict is Verdict.ACCEPT
        altered = {"membership": "join"} if type == "m.room.member" else {}
        await arrives_altered(network, room.north, event, {**altered, "x": "y"})
        if type == "m.room.server_acl":
            assert not await room.north.room_engine.access.is_allowed(
                await room.north.room(room.room_id), room.south.name
            )
        if way == "state":
            await room.north.federation.receiver.receive_outliers(room.room_id, [event.pdu])
        else:
            await room.south.push(NORTH, [event.pdu])
    access, snapshot = room.north.room_engine.access, await room.north.room(room.room_id)
    assert await access.is_allowed(snapshot, room.south.name)
    assert not await access.is_allowed(snapshot, ServerName("evil.example"))
    path = f"/_matrix/client/v3/rooms/{room.room_id}"
    assert ok(room.alice.get(f"{path}/state/m.room.name"))["name"] == "tea"
    assert (
        ok(room.alice.get(f"{path}/joined_members"))["joined"][room.bob.user_id]["display_name"]
        == "Bob"
    )
    listed = ok(room.alice.get("/_matrix/client/v3/publicRooms"))["chunk"]
    assert [(each["name"], each["num_joined_members"]) for each in listed] == [("tea", 2)]


async def test_an_outlier_gets_its_content_when_it_is_placed(network: Network) -> None:
    room = await shared(network)
    event = await room.by_bob("the truth")
    (outcome,) = await room.north.federation.receiver.receive_outliers(
        room.room_id, [{**event.pdu, "content": LIE}]
    )
    assert outcome.verdict is Verdict.REDACT
    await room.south.push(NORTH, [event.pdu])
    assert texts(room.alice, room.room_id) == ["the truth"]


@pytest.mark.parametrize("version", ["1", "2"])
async def test_a_waiting_event_is_not_replaced_by_another_users_event_with_its_id(
    network: Network, version: str
) -> None:
    """In old rooms events have the names that their senders give them."""
    room = await shared(network, version)
    east = Side(network.add(EAST))
    carol = east.server.register("carol")
    join = await adopt(room.north, east, carol.user_id, room.room_id)
    await room.north.push(SOUTH, [join.pdu])
    network.cut(NORTH, SOUTH)
    say(room.bob, room.room_id, "first")
    said = say(room.bob, room.room_id, "and then")

    def cut_off(transfer: Transfer) -> Fate:
        return Fate.IS_LOST if transfer.origin == NORTH else Fate.ARRIVES

    network.mend(NORTH, SOUTH)
    network.choose_fate = cut_off
    pdu = await room.south.pdu(room.room_id, said)
    assert await room.south.push(NORTH, [pdu]) == {"pdus": {said: {}}}
    hers = dict((await east.build_next(room.room_id, carol.user_id, "m.room.message", LIE)).pdu)
    forged = hash_and_sign_event(
        ROOM_VERSIONS[version], {**hers, "event_id": said}, east.name, east.federation.identity.key
    )
    forged["signatures"] = {**forged["signatures"], SOUTH: {"ed25519:nobodys": "A" * 86}}
    assert await east.push(NORTH, [forged]) == {"pdus": {said: {}}}

    network.choose_fate = lambda _: Fate.ARRIVES
    network.clock.pump([600.0] * 5)
    network.settle()
    assert texts(room.alice, room.room_id)[:2] == ["and then", "first"]
