"""Transactions from other servers: each event is received once, in any order and however often it
comes, and no acknowledged event is lost."""

import tracemalloc
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred

from federation.peers import response_splitter
from federation.peers.client import RefusedByRemote
from federation.peers.response_splitter import PARSED_BYTES_PER_TURN, parse_event_piece, parse_piece
from federation.protocol.errors import LimitExceeded
from federation.protocol.events import Event, parse_event
from federation.protocol.ids import ServerName, UserID
from federation.protocol.room_versions import RoomVersion
from federation.receiver import transactions as receiver
from federation.receiver.transactions import MAX_COMMAS_AT_ONCE, MAX_WAITING
from tests.helpers.databases import QueryCounter, copy_sqlite, open_inline
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


@pytest.mark.parametrize("version", ["1", "6", "10", "11", "12"])
async def test_an_event_arrives_by_one_request(network: Network, version: str) -> None:
    room = await shared(network, version)
    network.cut(NORTH, SOUTH)
    said = say(room.alice, room.room_id, "hello")
    network.mend(NORTH, SOUTH)

    answer = await room.north.push(SOUTH, [await room.pdu(said)])

    assert answer == {"pdus": {said: {}}}
    assert texts(room.bob, room.room_id)[0] == "hello"
    assert await room.south.extremities(room.room_id) == {said}
    assert count_requests(network, word="missing") == count_requests(network, word="state") == 0


async def test_a_repeated_transaction_changes_nothing(network: Network) -> None:
    room = await shared(network)
    network.cut(NORTH, SOUTH)
    pdu = await room.pdu(say(room.alice, room.room_id, "hello"))
    network.mend(NORTH, SOUTH)

    first = await room.north.push(SOUTH, [pdu], txn_id="one")
    assert await room.north.push(SOUTH, [pdu], txn_id="one") == first
    assert await room.north.push(SOUTH, [pdu], txn_id="two") == first
    assert texts(room.bob, room.room_id).count("hello") == 1


async def test_another_transaction_with_the_same_id_is_ignored(network: Network) -> None:
    room = await shared(network)
    network.cut(NORTH, SOUTH)
    first, second = [
        await room.pdu(say(room.alice, room.room_id, text)) for text in ("first", "second")
    ]
    network.mend(NORTH, SOUTH)
    answer = await room.north.push(SOUTH, [first], txn_id="one")

    assert await room.north.push(SOUTH, [second], txn_id="one") == answer
    assert texts(room.bob, room.room_id) == ["first"]
    await room.north.push(SOUTH, [second], txn_id="two")
    assert texts(room.bob, room.room_id) == ["second", "first"]


async def test_the_same_transaction_id_of_two_servers_is_two_transactions(network: Network) -> None:
    room = await shared(network)
    east = Side(network.add(EAST))
    carol = east.server.register("carol")
    join = await adopt(room.north, east, carol.user_id, room.room_id)
    await room.north.push(SOUTH, [join.pdu])
    network.cut(NORTH, SOUTH)
    network.cut(NORTH, EAST)
    network.cut(SOUTH, EAST)
    ours, hers = say(room.alice, room.room_id, "ours"), say(carol, room.room_id, "hers")
    for one, other in ((NORTH, SOUTH), (NORTH, EAST), (SOUTH, EAST)):
        network.mend(one, other)

    assert await room.north.push(SOUTH, [await room.pdu(ours)], txn_id="one") == {
        "pdus": {ours: {}}
    }
    assert await east.push(SOUTH, [await east.pdu(room.room_id, hers)], txn_id="one") == {
        "pdus": {hers: {}}
    }
    assert set(texts(room.bob, room.room_id)) >= {"ours", "hers"}


async def test_events_received_in_reverse_order_are_stored_in_order(network: Network) -> None:
    room = await shared(network)
    network.cut(NORTH, SOUTH)
    pdus = [await room.pdu(say(room.alice, room.room_id, f"{number}")) for number in range(20)]
    network.mend(NORTH, SOUTH)

    await room.north.push(SOUTH, pdus[::-1])

    assert texts(room.bob, room.room_id) == [f"{number}" for number in range(19, -1, -1)]
    assert count_requests(network, word="missing") == 0


async def test_too_many_parts_are_refused(network: Network) -> None:
    room = await shared(network)

    with pytest.raises(RefusedByRemote) as refused:
        await room.north.push(SOUTH, [{}] * 51)
    assert (refused.value.status, refused.value.errcode) == (413, "M_TOO_LARGE")
    with pytest.raises(RefusedByRemote):
        await room.north.push(SOUTH, [], [{}] * 101)
    assert await room.north.push(SOUTH, [{}] * 50, [{}] * 100) == {"pdus": {}}


@pytest.mark.parametrize("body", [[], {"pdus": {}}, {"pdus": [], "edus": 1}, None])
async def test_a_body_that_is_not_a_transaction_is_an_error(network: Network, body: Any) -> None:
    room = await shared(network)

    with pytest.raises(RefusedByRemote) as refused:
        await room.north.edge.requests.put(ServerName(SOUTH), "/_matrix/federation/v1/send/x", body)
    assert refused.value.status == 400


async def test_an_invalid_event_does_not_affect_others(network: Network) -> None:
    room = await shared(network)
    network.cut(NORTH, SOUTH)
    said = say(room.alice, room.room_id, "hello")
    good = await room.pdu(said)
    forged = (
        await room.north.build_next(
            room.room_id, room.bob.user_id, "m.room.message", {"body": "forged"}
        )
    ).pdu
    network.mend(NORTH, SOUTH)
    nested: Any = []
    for _ in range(500):
        nested = [nested]
    malformed: list[Any] = [
        None,
        7,
        [],
        {"room_id": 5},
        {"room_id": room.room_id},
        {**good, "depth": "deep"},
        {**good, "content": {"nested": nested}},
        {**good, "content": {"long": "x" * 70_000}},
        {**good, "sender": "nobody"},
        {**good, "prev_events": [f"${number}" for number in range(1000)]},
        {**good, "room_id": "!elsewhere:north.example"},
    ]

    answer = await room.north.push(SOUTH, [*malformed, forged, good])

    assert answer["pdus"].pop(said) == {}
    assert all("error" in result for result in answer["pdus"].values())
    assert texts(room.bob, room.room_id)[0] == "hello"
    assert "forged" not in texts(room.bob, room.room_id)


async def test_content_that_was_changed_in_transit_is_removed(network: Network) -> None:
    room = await shared(network)
    network.cut(NORTH, SOUTH)
    said = say(room.alice, room.room_id, "hello")
    pdu = await room.pdu(said)
    network.mend(NORTH, SOUTH)

    assert await room.north.push(SOUTH, [{**pdu, "content": {"body": "changed"}}]) == {
        "pdus": {said: {}}
    }

    stored = await room.south.find(room.room_id, said)
    assert stored is not None
    assert stored.event.content == {}


async def test_an_event_without_its_senders_signature_is_refused(network: Network) -> None:
    room = await shared(network)
    network.cut(NORTH, SOUTH)
    said = say(room.alice, room.room_id, "hello")
    pdu = await room.pdu(said)
    network.mend(NORTH, SOUTH)

    answer = await room.north.push(SOUTH, [{**pdu, "signatures": {}}])

    assert "signature" in answer["pdus"][said]["error"]
    assert await room.south.find(room.room_id, said) is None
    assert await room.north.push(SOUTH, [pdu]) == {"pdus": {said: {}}}


async def test_an_unauthorized_event_is_rejected_and_shown_to_nobody(network: Network) -> None:
    room = await shared(network)
    levels = {"users": {room.bob.user_id: 100}}
    bad = await room.south.build_next(
        room.room_id, room.bob.user_id, "m.room.power_levels", levels, ""
    )

    answer = await room.south.push(NORTH, [bad.pdu])

    assert "error" in answer["pdus"][bad.event_id]
    stored = await room.north.find(room.room_id, bad.event_id)
    assert stored is not None
    assert stored.rejected
    assert bad.event_id not in (await room.north.state(room.room_id)).values()


async def test_a_server_that_the_acl_denies_gets_an_error(network: Network) -> None:
    room = await shared(network)
    network.cut(NORTH, SOUTH)
    said = say(room.bob, room.room_id, "hello")
    set_state(room.alice, room.room_id, "m.room.server_acl", {"allow": ["*"], "deny": ["SOUTH.*"]})
    network.mend(NORTH, SOUTH)

    answer = await room.south.push(NORTH, [await room.south.pdu(room.room_id, said)])

    assert "ACL" in answer["pdus"][said]["error"]
    assert await room.north.find(room.room_id, said) is None


async def test_events_of_unknown_rooms_are_skipped(network: Network) -> None:
    room = await shared(network)
    elsewhere = create_room(room.alice)
    pdu = await room.north.pdu(elsewhere, say(room.alice, elsewhere, "hello"))

    assert await room.north.push(SOUTH, [pdu]) == {"pdus": {}}


async def test_events_of_a_room_that_all_local_users_left_are_refused(network: Network) -> None:
    room = await shared(network)
    assert room.bob.post(f"/_matrix/client/v3/rooms/{room.room_id}/leave").status == 200
    said = say(room.alice, room.room_id, "are you still there?")

    answer = await room.north.push(SOUTH, [await room.pdu(said)])

    assert "error" in answer["pdus"][said]
    assert await room.south.find(room.room_id, said) is None


async def test_a_closed_federation_refuses_events_of_other_servers(network: Network) -> None:
    config = {SOUTH: f"federation_domain_whitelist: [{NORTH}]\n"}
    room = await shared(network, config=config)
    east = Side(network.add(EAST))
    carol = east.server.register("carol")
    join = await adopt(room.north, east, carol.user_id, room.room_id)
    network.cut(NORTH, SOUTH)
    hers = say(carol, room.room_id, "let me in")
    await east.push(NORTH, [await east.pdu(room.room_id, hers)])
    network.mend(NORTH, SOUTH)

    answer = await room.north.push(SOUTH, [join.pdu, await room.pdu(hers)])

    assert all("policy" in result["error"] for result in answer["pdus"].values())
    assert "let me in" not in texts(room.bob, room.room_id)
    with pytest.raises(RefusedByRemote):
        await east.push(SOUTH, [join.pdu])


async def test_a_slow_key_fetch_does_not_delay_other_servers(network: Network) -> None:
    room = await shared(network)
    east = Side(network.add(EAST))
    event = await east.build(
        (await room.north.room(room.room_id)).version,
        room.room_id,
        await room.north.last(room.room_id),
        {},
        UserID(f"@eve:{EAST}"),
        "m.room.message",
        {"body": "whose key?"},
    )
    network.cut(NORTH, SOUTH)
    said = say(room.bob, room.room_id, "in time")
    theirs = await room.south.pdu(room.room_id, said)
    network.hold()
    transactions = room.north.server.app.federation_receiver.transactions
    slow = Deferred.fromCoroutine(transactions.receive(ServerName(EAST), "slow", [event.pdu], []))
    assert not slow.called

    say(room.alice, room.room_id, "at once")
    answer = await transactions.receive(ServerName(SOUTH), "fast", [theirs], [])

    assert msgspec.json.decode(answer) == {"pdus": {said: {}}}
    assert texts(room.alice, room.room_id)[:2] == ["in time", "at once"] or texts(
        room.alice, room.room_id
    )[:2] == [
        "at once",
        "in time",
    ]
    assert not slow.called
    network.deliver()
    assert slow.called


async def test_an_event_with_an_unavailable_key_waits_for_it(network: Network) -> None:
    room = await shared(network)
    east = Side(network.add(EAST))
    eve = east.server.register("eve")
    await adopt(room.south, east, eve.user_id, room.room_id)
    network.cut(NORTH, EAST)
    said = say(eve, room.room_id, "salom")
    join = (await east.last(room.room_id))[0].prev_events[0]
    theirs = [await east.pdu(room.room_id, event_id) for event_id in (join, said)]

    answer = await room.south.push(NORTH, theirs)

    assert answer == {"pdus": {join: {}, said: {}}}
    assert texts(room.alice, room.room_id) == []
    network.clock.pump([60.0] * 5)
    assert texts(room.alice, room.room_id) == []
    network.mend(NORTH, EAST)
    network.clock.pump([600.0] * 5)
    network.settle()
    assert texts(room.alice, room.room_id) == ["salom"]


async def test_a_server_with_too_many_concurrent_transactions_is_rate_limited(
    network: Network,
) -> None:
    room = await shared(network)
    east = Side(network.add(EAST))
    version = (await room.north.room(room.room_id)).version
    last = await room.north.last(room.room_id)
    eve = UserID(f"@eve:{EAST}")
    event = await east.build(
        version, room.room_id, last, {}, eve, "m.room.message", {"body": "whose key?"}
    )
    network.hold()
    transactions = room.north.server.app.federation_receiver.transactions
    sent = [
        Deferred.fromCoroutine(transactions.receive(ServerName(EAST), f"{number}", [event.pdu], []))
        for number in range(MAX_WAITING)
    ]

    with pytest.raises(LimitExceeded):
        await transactions.receive(ServerName(EAST), "one more", [], [])
    assert msgspec.json.decode(
        await transactions.receive(ServerName(SOUTH), "another's", [], [])
    ) == {"pdus": {}}
    network.deliver()
    assert all(each.called for each in sent)
    await transactions.receive(ServerName(EAST), "one more", [], [])


async def test_waiting_transactions_are_not_parsed(network: Network) -> None:
    """Read, empty objects take twenty times their bytes."""
    room = await shared(network)
    east = Side(network.add(EAST))
    version = (await room.north.room(room.room_id)).version
    last = await room.north.last(room.room_id)
    eve = UserID(f"@eve:{EAST}")
    event = await east.build(
        version, room.room_id, last, {}, eve, "m.room.message", {"body": "whose key?"}
    )
    network.hold()
    transactions = room.north.server.app.federation_receiver.transactions
    first = Deferred.fromCoroutine(transactions.receive(ServerName(EAST), "first", [event.pdu], []))
    dense = (
        b'{"edus":[{"content":{"a":['
        + b"{}," * 500_000
        + b'{}]}}],"pdus":[{"a":['
        + b"{}," * 500_000
        + b"{}]}]}"
    )
    tracemalloc.start()
    waiting = [
        Deferred.fromCoroutine(transactions.receive_body(ServerName(EAST), f"{number}", dense))
        for number in range(3)
    ]
    for _ in range(10):
        network.clock.advance(0)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert held < len(dense)
    assert not any(each.called for each in (first, *waiting))
    network.deliver()
    network.settle()
    assert all(each.called for each in (first, *waiting))


async def test_a_long_edu_is_accepted_unless_it_has_too_many_values(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = await shared(network)
    taken: list[int] = []

    async def receive(_origin: ServerName, content: Mapping[str, Any]) -> None:
        taken.append(len(content["a"]))

    edus_here = room.south.server.app.federation_sender.edus
    monkeypatch.setattr(edus_here, "handlers", {**edus_here.handlers, "org.example.long": receive})
    values: list[Any] = ["x" * 2_000_000, [{}] * 1_000_000, [{}] * 100_000]
    edus = [{"edu_type": "org.example.long", "content": {"a": value}} for value in values]

    sent = Deferred.fromCoroutine(room.north.push(SOUTH, [], edus))
    network.settle()

    assert await sent == {"pdus": {}}
    assert taken == [2_000_000, 100_000]


@pytest.mark.parametrize("values", [0, MAX_COMMAS_AT_ONCE])
async def test_escaped_field_names_are_read_and_unread_transactions_not_acknowledged(
    network: Network, values: int
) -> None:
    room = await shared(network)
    network.cut(NORTH, SOUTH)
    pdu = await room.pdu(say(room.alice, room.room_id, "hello"))
    network.mend(NORTH, SOUTH)
    further = msgspec.json.encode([0] * (values + 1))
    body = b'{"further":%b,"\\u0070dus":[%b],"pd\\u0075s":[%b]}' % (
        further,
        b"",
        msgspec.json.encode(pdu),
    )

    sent = Deferred.fromCoroutine(
        room.north.edge.requests.put(
            ServerName(SOUTH), "/_matrix/federation/v1/send/x", msgspec.Raw(body), seconds=60
        )
    )
    network.settle()

    if values:
        with pytest.raises(RefusedByRemote):
            await sent
    else:
        await sent
    assert texts(room.bob, room.room_id) == ([] if values else ["hello"])


@pytest.mark.parametrize("rooms", [1, 20])
async def test_the_reactor_runs_while_a_long_transaction_is_parsed(
    network: Network, monkeypatch: pytest.MonkeyPatch, rooms: int
) -> None:
    """Events and EDUs of nothing but empty objects would hold up everybody for seconds."""
    room = await shared(network)
    room_ids = [room.room_id]
    while len(room_ids) < rooms:
        room_ids.append(create_room(room.bob, "10"))
    work: list[int] = []

    async def pause(_clock: object) -> None:
        work.append(0)

    def read(piece: msgspec.Raw) -> Mapping[str, Any]:
        work.append(len(memoryview(piece)))
        return parse_event_piece(piece)

    def read_any(piece: msgspec.Raw) -> Mapping[str, Any]:
        work.append(len(memoryview(piece)))
        return parse_piece(piece)

    def parse(version: RoomVersion, pdu: Mapping[str, Any]) -> Event:
        work.append(len(msgspec.json.encode(pdu)))
        return parse_event(version, pdu)

    monkeypatch.setattr(response_splitter, "pause", pause)
    monkeypatch.setattr(receiver, "parse_event_piece", read)
    monkeypatch.setattr(receiver, "parse_piece", read_any)
    monkeypatch.setattr(receiver, "parse_event", parse)
    dense: list[Any] = [{}] * 20_000
    pdus = [{"room_id": room_ids[number % rooms], "content": {"a": dense}} for number in range(40)]
    body = msgspec.json.encode(
        {"pdus": pdus, "edus": [{"edu_type": "x", "content": {"a": dense}}] * 40}
    )
    transactions = room.south.server.app.federation_receiver.transactions

    assert await transactions.receive_body(ServerName(NORTH), "x", body) == msgspec.Raw(
        b'{"pdus":{}}'
    )

    assert len([size for size in work if size]) == 120
    turns = [
        sum(turn) for is_pause, turn in groupby(work, key=lambda size: not size) if not is_pause
    ]
    assert max(turns) < 2 * PARSED_BYTES_PER_TURN


async def test_an_event_with_too_many_values_is_not_parsed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(response_splitter, "parse_piece", None)
    assert parse_event_piece(msgspec.Raw(msgspec.json.encode({"a": [0] * 70_000}))) == {}


async def test_an_ordinary_transaction_is_parsed_at_once(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That would take ten times as long."""
    room = await shared(network)
    network.cut(NORTH, SOUTH)
    pdus = [await room.pdu(say(room.alice, room.room_id, "one, two, " * 1000)) for _ in range(30)]
    network.mend(NORTH, SOUTH)
    monkeypatch.setattr(receiver, "split_lists", None)

    sent = Deferred.fromCoroutine(room.north.push(SOUTH, pdus))
    network.settle()

    assert len((await sent)["pdus"]) == 30
    assert len(texts(room.bob, room.room_id)) == 30


async def test_an_ordinary_event_costs_one_write(tmp_path: Path, sqlite_template: Path) -> None:
    counter = QueryCounter()
    network = Network(
        tmp_path, lambda: open_inline(copy_sqlite(sqlite_template, tmp_path), counter)
    )
    room = await shared(network)
    network.cut(NORTH, SOUTH)
    pdus = [await room.pdu(say(room.alice, room.room_id, f"{number}")) for number in range(3)]
    network.mend(NORTH, SOUTH)
    await room.north.push(SOUTH, pdus[:1])
    counter.clear()

    await room.north.push(SOUTH, pdus[1:2])

    assert set(counter.writes) == {"append_event"}
    assert counter.batches == [1]
    for side in (room.north, room.south):
        await side.server.app.database.close()
