"""Events that refer to what a server missed: the gap is filled, within bounds, or waits; nothing
acknowledged is lost."""

from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry
from twisted.logger import capturedLogs

from federation.peers.wire import WireResponse
from federation.protocol.events import Event
from federation.protocol.ids import EventID, ServerName
from federation.receiver.transactions import TransactionReceiver
from federation.rooms.receive.inbox import MAX_AGE_MS, POLL_SECONDS, RETRIES, Inbox
from federation.rooms.receive.missing_events import MAX_ROUNDS
from homeserver.observe.federation import FederationMetrics
from storage.engine.interface import DatabaseUnavailable
from storage.federation.inbox import InboxLimits, InboxStore
from tests.helpers.federated_rooms import EAST, NORTH, SOUTH, Shared, Side, adopt, shared, texts
from tests.helpers.network import Network, count_requests, forge_responses
from tests.helpers.room_actions import say, set_state


async def waiting(side: Side) -> int:
    return await InboxStore(database=side.server.app.database).count()


async def missed(room: Shared, *names: str) -> list[EventID]:
    """Messages that the south does not hear of."""
    room.network.cut(NORTH, SOUTH)
    said = [say(room.alice, room.room_id, name) for name in names]
    room.network.mend(NORTH, SOUTH)
    return said


@pytest.mark.parametrize("version", ["2", "6", "10", "11", "12"])
async def test_a_gap_is_filled(network: Network, version: str) -> None:
    room = await shared(network, version)
    said = await missed(room, *map(str, range(30)))

    assert await room.north.push(SOUTH, [await room.pdu(said[-1])]) == {"pdus": {said[-1]: {}}}

    assert texts(room.bob, room.room_id) == [str(number) for number in range(29, -1, -1)]
    assert await room.south.extremities(room.room_id) == {said[-1]}
    assert await room.south.state(room.room_id) == await room.north.state(room.room_id)
    assert count_requests(network, NORTH, "get_missing_events") == 1
    assert count_requests(network, NORTH, "state") == 0
    assert await waiting(room.south) == 0


async def test_a_gap_with_a_state_change_is_filled(network: Network) -> None:
    room = await shared(network)
    network.cut(NORTH, SOUTH)
    set_state(room.alice, room.room_id, "m.room.topic", {"topic": "tea"})
    levels = {"users": {room.alice.user_id: 100, room.bob.user_id: 100}}
    set_state(room.alice, room.room_id, "m.room.power_levels", levels)
    said = say(room.alice, room.room_id, "now")
    network.mend(NORTH, SOUTH)

    await room.north.push(SOUTH, [await room.pdu(said)])

    assert await room.south.state(room.room_id) == await room.north.state(room.room_id)


async def test_both_sides_of_a_partition_converge(network: Network) -> None:
    room = await shared(network)
    levels = {"users": {room.alice.user_id: 100, room.bob.user_id: 50}}
    set_state(room.alice, room.room_id, "m.room.power_levels", levels)
    await room.north.push(SOUTH, [event.pdu for event in await room.north.last(room.room_id)])
    network.cut(NORTH, SOUTH)
    for number in range(5):
        say(room.alice, room.room_id, f"north {number}")
        say(room.bob, room.room_id, f"south {number}")
    set_state(room.alice, room.room_id, "m.room.topic", {"topic": "north"})
    set_state(room.bob, room.room_id, "m.room.name", {"name": "south"})
    network.mend(NORTH, SOUTH)
    northern, southern = await room.north.last(room.room_id), await room.south.last(room.room_id)

    await room.north.push(SOUTH, [event.pdu for event in northern])
    await room.south.push(NORTH, [event.pdu for event in southern])

    assert await room.south.state(room.room_id) == await room.north.state(room.room_id)
    assert await room.south.extremities(room.room_id) == await room.north.extremities(room.room_id)
    assert sorted(texts(room.alice, room.room_id)) == sorted(texts(room.bob, room.room_id))


async def made_up(room: Shared, count: int) -> list[Event]:
    """Messages of Bob's that each follow the one before, and the first of them what nobody has; the
    south takes none in."""
    events: list[Event] = []
    first: list[Event | EventID] = [EventID("$" + "x" * 43)]
    for _ in range(count):
        event = await room.south.build_next(
            room.room_id,
            room.bob.user_id,
            "m.room.message",
            {"body": "lie"},
            prev=events[-1:] or first,
        )
        events.append(event)
    return events


async def test_an_endless_past_costs_bounded_requests(network: Network) -> None:
    room = await shared(network)
    events = await made_up(room, 1500)
    places = {event.event_id: at for at, event in enumerate(events)}

    def answer(body: Any) -> Any:
        at = min(places[name] for name in body["latest_events"])
        return {"events": [event.pdu for event in events[max(0, at - 100) : at]]}

    asked = forge_responses(network, SOUTH, "get_missing_events", answer)

    assert await room.south.push(NORTH, [events[-1].pdu]) == {"pdus": {events[-1].event_id: {}}}

    assert len(asked) <= MAX_ROUNDS
    assert len([entry for entry in network.log if entry[1] == SOUTH]) <= 2 * MAX_ROUNDS
    assert await waiting(room.north) == 1
    said = say(room.alice, room.room_id, "undisturbed")
    assert await room.north.extremities(room.room_id) == {said}
    assert "lie" not in texts(room.alice, room.room_id)


async def test_events_that_were_not_requested_are_ignored(network: Network) -> None:
    room = await shared(network)
    network.cut(NORTH, SOUTH)
    first, second = say(room.bob, room.room_id, "first"), say(room.bob, room.room_id, "second")
    network.mend(NORTH, SOUTH)
    beside = await room.south.build_next(
        room.room_id, room.bob.user_id, "m.room.message", {"body": "beside"}
    )
    pdus = [await room.south.pdu(room.room_id, first), beside.pdu, {"garbage": 1}, 7, None]
    forge_responses(network, SOUTH, "get_missing_events", lambda _: {"events": pdus})

    await room.south.push(NORTH, [await room.south.pdu(room.room_id, second)])

    assert texts(room.alice, room.room_id) == ["second", "first"]
    assert await room.north.find(room.room_id, beside.event_id) is None


@pytest.mark.parametrize(
    "answer", [{}, {"events": 7}, {"events": []}, [], {"events": [{}] * 10_000}]
)
async def test_a_useless_response_leads_to_a_state_request(network: Network, answer: Any) -> None:
    room = await shared(network)
    said = await missed(room, "one", "two", "three")
    forge_responses(network, NORTH, "get_missing_events", lambda _: answer)

    await room.north.push(SOUTH, [await room.pdu(said[-1])])

    if isinstance(answer, dict) and isinstance(answer.get("events"), list):
        assert texts(room.bob, room.room_id)[0] == "three"
        assert await room.south.extremities(room.room_id) >= {said[-1]}
    else:
        assert await waiting(room.south) == 1


async def test_a_long_gap_is_bridged_by_the_state_at_its_edge(network: Network) -> None:
    room = await shared(network)
    network.cut(NORTH, SOUTH)
    for number in range(1100):
        say(room.alice, room.room_id, f"{number}")
    set_state(room.alice, room.room_id, "m.room.topic", {"topic": "long ago"})
    for number in range(1000):
        say(room.alice, room.room_id, f"later {number}")
    network.mend(NORTH, SOUTH)

    await room.north.push(SOUTH, [event.pdu for event in await room.north.last(room.room_id)])

    assert await waiting(room.south) == 0
    assert count_requests(network, NORTH, "get_missing_events") == MAX_ROUNDS
    assert count_requests(network, NORTH, "state_ids") == 1
    assert count_requests(network, NORTH, "/event/") == 1
    assert await room.south.state(room.room_id) == await room.north.state(room.room_id)


async def test_an_unreachable_server_is_retried_later(network: Network) -> None:
    room = await shared(network)
    said = await missed(room, "one", "two")
    pdu = await room.pdu(said[-1])
    network.interceptors.append(lambda to, _: WireResponse(503, {}, b"") if to == NORTH else None)

    assert await room.north.push(SOUTH, [pdu]) == {"pdus": {said[-1]: {}}}
    assert await waiting(room.south) == 1
    assert texts(room.bob, room.room_id) == []
    before = len(network.log)
    network.clock.advance(RETRIES.first_ms / 1000 - 1)
    assert len(network.log) == before
    network.interceptors.clear()
    network.clock.advance(1)

    assert texts(room.bob, room.room_id) == ["two", "one"]
    assert await waiting(room.south) == 0


async def test_pauses_grow_until_the_event_expires(network: Network) -> None:
    room = await shared(network)
    events = await made_up(room, 1)
    network.cut(NORTH, SOUTH)
    network.mend(NORTH, SOUTH)
    await room.south.push(NORTH, [events[0].pdu])
    asked = count_requests(network, SOUTH, "get_missing_events")
    day = 24 * 3600

    for _ in range(24):
        network.clock.advance(day / 24)
    assert asked < count_requests(network, SOUTH, "get_missing_events") < 60
    assert await waiting(room.north) == 1
    for _ in range(24 * (MAX_AGE_MS // 1000 // day)):
        network.clock.advance(day / 24)
    assert await waiting(room.north) == 0
    given_up = len(network.log)
    network.clock.advance(day)
    assert len(network.log) == given_up


async def test_acknowledged_events_survive_a_crash(network: Network) -> None:
    room = await shared(network)
    said = await missed(room, "one", "two")
    pdu = await room.pdu(said[-1])
    network.interceptors.append(lambda to, _: WireResponse(503, {}, b"") if to == NORTH else None)
    assert await room.north.push(SOUTH, [pdu]) == {"pdus": {said[-1]: {}}}
    network.interceptors.clear()

    room.south.server.app.federation_receiver.inbox.stop()
    restarted = Side(network.rebuild(SOUTH))
    restarted.server.app.federation_receiver.inbox.start()

    assert await restarted.extremities(room.room_id) == {said[-1]}
    assert await waiting(restarted) == 0
    restarted.server.app.federation_receiver.inbox.stop()


@pytest.mark.parametrize("asked", ["get_rooms", "get_of_room"])
async def test_events_wait_while_the_database_is_unavailable(
    network: Network, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """And nothing is written to the log as if it were a fault of ours."""
    room = await shared(network)
    said = await missed(room, "one", "two")
    network.interceptors.append(lambda to, _: WireResponse(503, {}, b"") if to == NORTH else None)
    await room.north.push(SOUTH, [await room.pdu(said[-1])])
    network.interceptors.clear()
    room.south.server.app.federation_receiver.inbox.stop()
    restarted = Side(network.rebuild(SOUTH))

    async def be_away(*_: object) -> None:
        raise DatabaseUnavailable("it restarts")

    with capturedLogs() as logged, monkeypatch.context() as away:
        away.setattr(InboxStore, asked, be_away)
        restarted.server.app.federation_receiver.inbox.start()
    assert [
        entry.get("error") and str(entry["error"])
        for entry in logged
        if "inbox" in entry["log_namespace"]
    ] == ["it restarts"]
    assert not [entry for entry in logged if "log_failure" in entry]
    assert await waiting(restarted) == 1
    network.clock.advance(POLL_SECONDS)
    assert await restarted.extremities(room.room_id) == {said[-1]}
    restarted.server.app.federation_receiver.inbox.stop()


async def test_another_server_in_the_room_helps_out(network: Network) -> None:
    room = await shared(network)
    east = Side(network.add(EAST))
    carol = east.server.register("carol")
    join = await adopt(room.north, east, carol.user_id, room.room_id)
    await room.north.push(SOUTH, [join.pdu])
    said = await missed(room, "one", "two", "three")
    pdus = [await room.pdu(name) for name in said]
    await room.north.push(EAST, pdus)
    network.interceptors.append(
        lambda to, request: (
            WireResponse(500, {}, b"") if to == NORTH and "missing" in request.uri else None
        )
    )

    await room.north.push(SOUTH, pdus[-1:])

    assert texts(room.bob, room.room_id) == ["three", "two", "one"]
    assert count_requests(network, EAST, "get_missing_events") == 1


async def test_a_server_that_answers_429_is_not_asked_before_retry_after(network: Network) -> None:
    """Neither for new events of the room, nor for events further back."""
    room = await shared(network)
    said = await missed(room, "one", "two", "three", "four")
    before = count_requests(network, NORTH, "")
    network.interceptors.append(
        lambda to, _: WireResponse(429, {"retry-after": "300"}, b"{}") if to == NORTH else None
    )
    for name in (said[1], said[3]):
        await room.north.push(SOUTH, [await room.pdu(name)])
        for _ in range(10):
            network.clock.advance(14)
    assert (
        room.bob.get(f"/_matrix/client/v3/rooms/{room.room_id}/messages?dir=b&limit=100").status
        == 200
    )
    assert count_requests(network, NORTH, "") - before == 1
    network.interceptors.clear()
    for _ in range(50):
        network.clock.advance(14)

    assert texts(room.bob, room.room_id) == ["four", "three", "two", "one"]


async def test_another_server_is_asked_while_one_rate_limits_us(network: Network) -> None:
    room = await shared(network)
    east = Side(network.add(EAST))
    carol = east.server.register("carol")
    join = await adopt(room.north, east, carol.user_id, room.room_id)
    await room.north.push(SOUTH, [join.pdu])
    said = await missed(room, "one", "two", "three", "four")
    pdus = [await room.pdu(name) for name in said]
    await room.north.push(EAST, pdus)
    network.interceptors.append(
        lambda to, _: WireResponse(429, {"retry-after": "300"}, b"{}") if to == NORTH else None
    )

    for pdu in (pdus[1], pdus[3]):
        await room.north.push(SOUTH, [pdu])

    assert texts(room.bob, room.room_id) == ["four", "three", "two", "one"]
    assert count_requests(network, NORTH, "get_missing_events") == 1


async def test_a_new_event_ends_the_pause_of_its_room(network: Network) -> None:
    room = await shared(network)
    said = await missed(room, "one", "two", "three")
    network.interceptors.append(lambda to, _: WireResponse(503, {}, b"") if to == NORTH else None)
    await room.north.push(SOUTH, [await room.pdu(said[1])])
    network.interceptors.clear()
    network.clock.advance(3)

    await room.north.push(SOUTH, [await room.pdu(said[2])])

    assert texts(room.bob, room.room_id) == ["three", "two", "one"]


async def test_a_server_that_invents_events_delays_only_its_own(network: Network) -> None:
    room = await shared(network)
    app, metrics = room.north.server.app, FederationMetrics(CollectorRegistry())
    store = InboxStore(database=app.database, limits=InboxLimits(per_server=3))
    participants = app.federation_receiver.participants
    inbox = Inbox(
        store=store,
        rooms=app.rooms.store,
        engine=app.room_engine.engine,
        missing=app.federation_receiver.missing,
        participants=participants,
        clock=network.clock,
        observer=metrics,
    )
    parts = app.federation
    transactions = TransactionReceiver(
        engine=app.room_engine.engine,
        memberships=app.rooms.memberships,
        receiver=parts.receiver,
        inbox=inbox,
        participants=participants,
        edus=app.federation_sender.edus,
        outside=app.federation_receiver.out_of_room_updates,
        policy=app.peers.policy,
        observer=metrics,
        clock=network.clock,
    )

    async def push(*events: Event) -> dict[str, dict[str, str]]:
        body = await transactions.receive(
            ServerName(SOUTH), events[0].event_id, [event.pdu for event in events], []
        )
        results: dict[str, dict[str, str]] = msgspec.json.decode(body)["pdus"]
        return results

    events = [(await made_up(room, 1))[0] for _ in range(4)]

    assert all(result == {} for result in (await push(*events[:2])).values())
    assert all("error" in result for result in (await push(*events[2:])).values())
    assert await waiting(room.north) == 2
    said = say(room.bob, room.room_id, "honest")
    stored = await room.south.find(room.room_id, said)
    assert stored is not None
    assert await push(stored.event) == {said: {}}
    assert texts(room.alice, room.room_id)[0] == "honest"


async def test_missing_auth_events_are_fetched(network: Network) -> None:
    room = await shared(network)
    network.cut(NORTH, SOUTH)
    levels = {"users": {room.alice.user_id: 100, room.bob.user_id: 7}}
    changed = set_state(room.alice, room.room_id, "m.room.power_levels", levels)
    said = say(room.alice, room.room_id, "by the new levels")
    network.mend(NORTH, SOUTH)
    forge_responses(network, NORTH, "get_missing_events", lambda _: {"events": []})

    await room.north.push(SOUTH, [await room.pdu(said)])

    assert texts(room.bob, room.room_id)[0] == "by the new levels"
    assert count_requests(network, NORTH, "event_auth") == 1
    assert changed in (await room.south.state(room.room_id)).values()


async def test_an_invented_state_does_not_replace_ours(network: Network) -> None:
    """A server that cites unknown events may invent the state before them; our own state counts,
    too."""
    room = await shared(network)
    network.clock.advance(1)  # of two rules of the same moment the ids would decide
    set_state(room.alice, room.room_id, "m.room.join_rules", {"join_rule": "invite"})
    before = await room.north.state(room.room_id)
    gap: list[Event | EventID] = [*await room.north.last(room.room_id), EventID("$" + "x" * 43)]
    event = await room.south.build_next(
        room.room_id, room.bob.user_id, "m.room.message", {"body": "x"}, prev=gap
    )
    forge_responses(network, SOUTH, "get_missing_events", lambda _: {"events": []})
    old = [
        name
        for key, name in (await room.south.state(room.room_id)).items()
        if key.type != "m.room.topic"
    ]
    forge_responses(network, SOUTH, "state_ids", lambda _: {"pdu_ids": old, "auth_chain_ids": []})

    await room.south.push(NORTH, [event.pdu])

    assert await room.north.find(room.room_id, event.event_id) is not None
    assert await room.north.state(room.room_id) == before
