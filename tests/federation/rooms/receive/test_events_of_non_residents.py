"""Events of servers that are not in the room, and state requests to servers that do not answer."""

from collections import Counter
from collections.abc import Sequence

import msgspec

from federation.peers.wire import WireRequest, WireResponse
from federation.protocol.errors import AnswerTooLong
from federation.protocol.events import Event
from federation.protocol.ids import EventID, RoomID, ServerName, UserID
from federation.remote.events import MAX_SHORT_LIST_BYTES, MAX_SHORT_STATE_BYTES, STATE_SLOTS
from federation.rooms.receive.inbox import ROOMS_AT_ONCE
from storage.federation.inbox import InboxLimits, InboxStore
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
from tests.helpers.network import Fate, Network, Transfer
from tests.helpers.room_actions import say


def outsiders(network: Network, count: int) -> list[Side]:
    """Servers with no user in any room, which never tell a state."""
    sides = [Side(network.add(f"h{number}.evil.example")) for number in range(count)]
    be_silent(network, [side.name for side in sides])
    return sides


def be_silent(network: Network, names: Sequence[str]) -> None:
    """Let these servers know nothing between two events, and never answer what the state is."""

    def forge_response(destination: ServerName, request: WireRequest) -> WireResponse | None:
        if destination in names and "get_missing_events" in request.uri:
            return WireResponse(200, {}, b'{"events":[]}')
        return None

    def choose_fate(transfer: Transfer) -> Fate:
        is_lost = transfer.destination in names and "/state" in transfer.request.uri
        return Fate.IS_NOT_ANSWERED if is_lost else Fate.ARRIVES

    network.interceptors.append(forge_response)
    network.choose_fate = choose_fate


async def forge_event(
    side: Side, north: Side, room_id: RoomID, number: int, user_id: str = ""
) -> Event:
    """A message that follows what nobody has."""
    snapshot = await north.room(room_id)
    state = {key: stored.event for key, stored in (await snapshot.state.load_all()).items()}
    content = {"body": "lie"}
    prev = [EventID("$" + f"{side.name}{number}".replace(".", "_").rjust(43, "0"))]
    sender = UserID(user_id or f"@x:{side.name}")
    return await side.build(
        snapshot.version, room_id, prev, state, sender, "m.room.message", content
    )


async def seconds_until_shown(room: Shared, text: str, most: float = 4 * 3600) -> float:
    start = room.network.clock.seconds()
    while (
        text not in texts(room.alice, room.room_id) and room.network.clock.seconds() - start < most
    ):
        room.network.clock.advance(5)
        room.network.settle()
    return room.network.clock.seconds() - start


async def bring_with_a_gap(room: Shared, text: str) -> None:
    say(room.bob, room.room_id, "missed")
    last = say(room.bob, room.room_id, text)
    assert await room.south.push(NORTH, [await room.south.pdu(room.room_id, last)]) == {
        "pdus": {last: {}}
    }
    room.network.settle()


async def test_nothing_is_fetched_for_outsiders(network: Network) -> None:
    room = await shared(network)
    (hostile,) = outsiders(network, 1)
    own = await forge_event(hostile, room.north, room.room_id, 1)
    of_another = await forge_event(hostile, room.north, room.room_id, 2, "@y:nowhere.example")
    invite = await forged_invite(hostile, room)
    before = len(network.log)

    answer = await hostile.push(NORTH, [own.pdu, of_another.pdu, invite.pdu])
    network.clock.pump([60.0] * 60)
    network.settle()

    assert answer["pdus"][own.event_id] == {}, "it waits: its sender's join may be on its way"
    assert "error" in answer["pdus"][of_another.event_id]
    assert "error" in answer["pdus"][invite.event_id]
    fetched = [
        (to, uri)
        for origin, to, _, uri in network.log[before:]
        if origin == NORTH and "federation/v1" in uri
    ]
    assert fetched == []


async def forged_invite(hostile: Side, room: Shared) -> Event:
    """One that names somebody of the room as its sender, and need not be signed by their server."""
    snapshot = await room.north.room(room.room_id)
    state = {key: stored.event for key, stored in (await snapshot.state.load_all()).items()}
    signed = {"mxid": f"@x:{hostile.name}", "token": "t", "signatures": {}}
    content = {
        "membership": "invite",
        "third_party_invite": {"display_name": "x", "signed": signed},
    }
    prev = [EventID("$" + "y" * 43)]
    key = f"@x:{hostile.name}"
    return await hostile.build(
        snapshot.version,
        room.room_id,
        prev,
        state,
        room.alice.user_id,
        "m.room.member",
        content,
        key,
    )


async def test_messages_that_arrive_before_their_senders_join_are_not_lost(
    network: Network,
) -> None:
    room = await shared(network)
    east = Side(network.add(EAST))
    carol = east.server.register("carol")
    network.cut(SOUTH, NORTH)
    join = await adopt(room.south, east, carol.user_id, room.room_id)
    network.mend(SOUTH, NORTH)
    said = say(carol, room.room_id, "salom")
    before = len(network.log)

    assert await east.push(NORTH, [await east.pdu(room.room_id, said)]) == {"pdus": {said: {}}}
    network.clock.advance(3)
    assert texts(room.alice, room.room_id) == []
    assert [
        to
        for origin, to, _, uri in network.log[before:]
        if origin == NORTH and "federation/v1" in uri
    ] == []
    await room.south.push(NORTH, [join.pdu])
    network.clock.advance(3)

    assert texts(room.alice, room.room_id) == ["salom"]
    assert await InboxStore(database=room.north.server.app.database).count() == 0


async def test_invented_events_of_outsiders_do_not_delay_the_room(network: Network) -> None:
    room = await shared(network)
    for hostile in outsiders(network, 6):
        for number in range(5):
            await hostile.push(
                NORTH, [(await forge_event(hostile, room.north, room.room_id, number)).pdu]
            )
    network.settle()

    await bring_with_a_gap(room, "honest")

    assert await seconds_until_shown(room, "honest") <= 5


async def test_invented_events_of_members_delay_older_members_little(
    network: Network,
) -> None:
    room = await shared(network)
    hostile = outsiders(network, 10)
    network.choose_fate = lambda _: Fate.ARRIVES
    for side in hostile:
        await adopt(room.north, side, side.server.register("x").user_id, room.room_id)
    be_silent(network, [side.name for side in hostile])
    for side in hostile:
        for number in range(5):
            await side.push(
                NORTH, [(await forge_event(side, room.north, room.room_id, number)).pdu]
            )
    network.settle()
    network.clock.pump([5.0] * 9)  # the first of them has had its turn, and the others have theirs

    await bring_with_a_gap(room, "honest")

    assert await seconds_until_shown(room, "honest") <= 60


async def test_invented_events_in_many_rooms_delay_no_other_server(
    network: Network,
) -> None:
    room = await shared(network)
    others = [create_room(room.alice) for _ in range(20)]
    hostile = outsiders(network, 4)
    for number, room_id in enumerate(others):
        side = hostile[number // 5]
        await side.push(NORTH, [(await forge_event(side, room.north, room_id, number)).pdu])
    network.settle()

    await bring_with_a_gap(room, "honest")

    assert await seconds_until_shown(room, "honest") <= 5


async def test_a_server_that_does_not_answer_leaves_time_for_the_next(network: Network) -> None:
    room = await shared(network)
    east = Side(network.add(EAST))
    carol = east.server.register("carol")
    join = await adopt(room.north, east, carol.user_id, room.room_id)
    await room.north.push(SOUTH, [join.pdu])
    network.cut(SOUTH, NORTH)
    missed = say(room.bob, room.room_id, "missed")
    last = say(room.bob, room.room_id, "last")
    network.mend(SOUTH, NORTH)
    await room.south.push(
        EAST, [await room.south.pdu(room.room_id, name) for name in (missed, last)]
    )
    be_silent(network, [SOUTH])

    await room.south.push(NORTH, [await room.south.pdu(room.room_id, last)])
    network.settle()

    assert await seconds_until_shown(room, "last") <= 20
    asked = [
        to for origin, to, _, uri in network.log if origin == NORTH and "get_missing_events" in uri
    ]
    assert asked == [SOUTH, EAST], "and all within one try"


async def test_few_events_of_outsiders_are_stored(network: Network) -> None:
    room = await shared(network)
    (hostile,) = outsiders(network, 1)
    kept = 0
    for page in range(2):
        events = [
            await forge_event(hostile, room.north, room.room_id, 50 * page + number)
            for number in range(50)
        ]
        answer = await hostile.push(NORTH, [event.pdu for event in events])
        kept += sum(result == {} for result in answer["pdus"].values())

    assert kept == InboxLimits().per_outside_server
    assert await InboxStore(database=room.north.server.app.database).count() == kept


def without_the_gap(network: Network, name: str) -> None:
    """A server that has nothing between two events, so that it is asked for the state."""

    def forge_response(destination: ServerName, request: WireRequest) -> WireResponse | None:
        if destination == name and "get_missing_events" in request.uri:
            return WireResponse(200, {}, b'{"events":[]}')
        return None

    network.interceptors.append(forge_response)


async def insiders(
    network: Network, room: Shared, names: Sequence[str]
) -> list[tuple[Side, RoomID]]:
    """Servers that are each in a room of Alice's."""
    found = []
    for name in names:
        side, room_id = Side(network.add(name)), create_room(room.alice)
        await adopt(room.north, side, side.server.register("x").user_id, room_id)
        found.append((side, room_id))
    return found


async def test_servers_that_send_no_state_do_not_delay_others(network: Network) -> None:
    room = await shared(network)
    hostile = await insiders(network, room, [f"h.evil{number}.example" for number in range(4)])
    be_silent(network, [side.name for side, _ in hostile])
    without_the_gap(network, SOUTH)
    for number, (side, room_id) in enumerate(hostile):
        await side.push(NORTH, [(await forge_event(side, room.north, room_id, number)).pdu])
    network.settle()

    await bring_with_a_gap(room, "honest")

    assert await seconds_until_shown(room, "honest") <= 5


async def test_servers_of_one_domain_share_one_turn(network: Network) -> None:
    room = await shared(network)
    hostile = await insiders(
        network, room, [f"h{number}.evil.example" for number in range(ROOMS_AT_ONCE)]
    )
    be_silent(network, [side.name for side, _ in hostile])
    for number, (side, room_id) in enumerate(hostile):
        await side.push(NORTH, [(await forge_event(side, room.north, room_id, number)).pdu])
    network.settle()

    await bring_with_a_gap(room, "honest")

    assert await seconds_until_shown(room, "honest") <= 5


async def test_the_longest_states_are_read_one_at_a_time_and_those_in_between_three(
    network: Network,
) -> None:
    """And long lists of ids two."""
    room = await shared(network)
    hostile = await insiders(network, room, [f"h.evil{number}.example" for number in range(4)])
    open_: Counter[str] = Counter()
    names = {side.name for side, _ in hostile}
    ids = msgspec.json.encode(
        {"pdu_ids": ["$" + str(at).zfill(43) for at in range(1000)], "auth_chain_ids": []}
    )
    answers = {"get_missing_events": b'{"events":[]}'}
    longer_than = {"state": MAX_SHORT_STATE_BYTES, "state_ids": MAX_SHORT_LIST_BYTES}

    def forge_response(destination: ServerName, request: WireRequest) -> WireResponse | None:
        word = request.uri.split("/")[4]
        if destination not in names:
            return None
        if word in answers:
            return WireResponse(200, {}, answers[word])
        if request.max_bytes <= longer_than.get(word, 0):
            raise AnswerTooLong(destination, "its answer is too long")
        return None

    def choose_fate(transfer: Transfer) -> Fate:
        word = transfer.request.uri.split("/")[4]
        if transfer.destination not in names or word not in longer_than or word in answers:
            return Fate.ARRIVES
        open_[word] += 1
        return Fate.IS_NOT_ANSWERED

    network.interceptors.append(forge_response)
    network.choose_fate = choose_fate
    (_, middling), (_, longest) = STATE_SLOTS
    assert middling < longest
    for number_of_try, (answered, longer, most) in enumerate(
        (
            ((), MAX_SHORT_STATE_BYTES, Counter(state_ids=2)),
            (("state_ids",), MAX_SHORT_STATE_BYTES, Counter(state=3)),
            (("state_ids",), middling, Counter(state=1)),
        )
    ):
        answers.update((word, ids) for word in answered)
        longer_than["state"] = longer
        open_.clear()
        for number, (side, room_id) in enumerate(hostile):
            await side.push(
                NORTH,
                [(await forge_event(side, room.north, room_id, 10 * number_of_try + number)).pdu],
            )
        network.settle()
        assert open_ == most
        network.clock.pump([10.0] * 40)
        assert sum(open_.values()) >= len(hostile), "and each has its turn"
        network.clock.pump([3600.0] * 50)

    network.choose_fate = lambda _: Fate.ARRIVES
    await bring_with_a_gap(room, "honest")
    assert await seconds_until_shown(room, "honest") <= 5


async def test_a_large_room_is_joined_while_another_state_is_fetched(
    network: Network,
) -> None:
    room = await shared(network)
    east = Side(network.add(EAST))
    others = [
        create_room(side.server.register("host"), preset="public_chat")
        for side in (room.south, east)
    ]
    (_, middling), _ = STATE_SLOTS
    network.choose_fate = lambda transfer: (
        Fate.IS_NOT_ANSWERED
        if transfer.destination == SOUTH and transfer.request.max_bytes == middling
        else Fate.ARRIVES
    )
    padding = [{"x": "x" * 500_000}] * (MAX_SHORT_STATE_BYTES // 500_000 + 1)

    def pad(request: WireRequest, answer: WireResponse) -> WireResponse:
        if "/v2/send_join/" not in request.uri:
            return answer
        received = msgspec.json.decode(answer.body)
        return WireResponse(
            200,
            {},
            msgspec.json.encode({**received, "auth_chain": [*received["auth_chain"], *padding]}),
        )

    network.forge(SOUTH, pad)
    network.forge(EAST, pad)
    entering = [
        room.alice.start("POST", f"/_matrix/client/v3/join/{room_id}?via={name}", {})
        for room_id, name in zip(others, (SOUTH, EAST), strict=True)
    ]
    network.clock.pump([0.1] * 10)
    asked = [to for _, to, _, uri in network.log if "send_join" in uri]
    assert asked == [SOUTH, SOUTH, EAST, EAST]
    assert [each.done for each in entering] == [False, True]
    network.clock.pump([10.0] * 31)
    assert [each.answer.status for each in entering] == [502, 200]
