"""Whoever has an event can send it on with another content: whose copy comes first decides nothing.

spec: server-server-api#checks-performed-on-receipt-of-a-pdu
"""

from federation.protocol.event_signing import hash_and_sign_event
from federation.rooms.check import Verdict
from tests.helpers.federated import EAST, NORTH, SOUTH, Side, say, set_state, shared, texts
from tests.helpers.network import Network

LIE = {"msgtype": "m.text", "body": "a lie"}


def questions(network: Network, to: str) -> list[str]:
    """The events that a server was asked for."""
    return [uri for _, host, _, uri in network.log if host == to and "/federation/v1/event/" in uri]


async def test_the_senders_server_is_asked_what_was_said(network: Network) -> None:
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
    pdu = await room.north.pdu(room.room_id, set_state(room.alice, room.room_id, "m.room.server_acl", acl))
    await east.push(SOUTH, [{**pdu, "content": {"allow": ["evil.example"]}}])
    later = await room.north.pdu(room.room_id, say(room.alice, room.room_id, "hello"))
    answer = await room.north.push(SOUTH, [pdu, later])
    assert [told for told in answer["pdus"].values() if told] == []
    assert texts(room.bob, room.room_id) == ["hello"]


async def test_what_nobody_tells_does_not_stand_in_the_way(network: Network) -> None:
    room = await shared(network)
    east = Side(network.add(EAST))
    event = await room.by_bob("the truth")  # which the south itself does not know yet
    answer = await east.push(NORTH, [{**event.pdu, "content": LIE}])
    assert "not what its hash says" in answer["pdus"][event.event_id]["error"]
    assert await room.north.find(room.room_id, event.event_id) is None
    assert len(questions(network, SOUTH)) == 1
    await east.push(NORTH, [{**event.pdu, "content": {}}])
    assert len(questions(network, SOUTH)) == 1, "it has just been asked"
    assert await room.south.push(NORTH, [event.pdu]) == {"pdus": {event.event_id: {}}}
    assert texts(room.alice, room.room_id) == ["the truth"]


async def test_the_senders_server_is_believed_about_what_has_no_content(network: Network) -> None:
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


async def test_nobody_is_asked_about_what_its_sender_did_not_sign(network: Network) -> None:
    room = await shared(network)
    east = Side(network.add(EAST))
    event = await room.by_bob("the truth")
    await east.push(NORTH, [{**event.pdu, "content": LIE, "depth": event.depth + 1}])
    assert questions(network, SOUTH) == []


async def test_an_answer_that_is_another_event_is_not_taken(network: Network) -> None:
    """Where ids are no hashes, the sender's server may answer with anything."""
    room = await shared(network, "1")
    east = Side(network.add(EAST))
    one = await room.by_bob("one")
    draft = {key: value for key, value in one.pdu.items() if key not in ("hashes", "signatures")}
    other = {**draft, "depth": one.depth + 1, "content": {"msgtype": "m.text", "body": "another"}}
    twin = hash_and_sign_event(one.version, other, room.south.name, room.south.federation.identity.key)
    (outcome,) = await room.south.federation.receiver.receive(room.room_id, [twin])
    assert outcome.verdict is Verdict.ACCEPT
    answer = await east.push(NORTH, [{**one.pdu, "content": LIE}])
    assert "error" in answer["pdus"][one.event_id]
    assert len(questions(network, SOUTH)) == 1
