"""Waiting for a policy server delays no other event: it is asked before events get their turn in
the room."""

import msgspec
import pytest
from twisted.internet.defer import Deferred

from federation.protocol.events import StateKey
from federation.protocol.ids import ServerName, UserID
from federation.protocol.room_versions import ROOM_VERSIONS
from federation.rooms.receipt_checks import Verdict
from tests.helpers.federated_rooms import EAST, NORTH, SOUTH, Side, create_room, shared, texts
from tests.helpers.network import Fate, Network
from tests.helpers.policy_server import SIGN, PolicyServer, message_path, named
from tests.helpers.remote_membership import join_via
from tests.helpers.room_actions import ok, room_path, say, set_state


async def test_a_slow_policy_server_does_not_delay_local_senders(
    network: Network,
) -> None:
    room = await shared(network)
    judge = PolicyServer("11")
    set_state(room.alice, room.room_id, "m.room.policy", named())
    network.cut(NORTH, SOUTH)
    signed = await room.by_bob("signed")
    unsigned = say(room.bob, room.room_id, "unsigned")
    network.mend(NORTH, SOUTH)
    network.choose_fate = lambda transfer: (
        Fate.IS_NOT_ANSWERED if transfer.request.uri == SIGN else Fate.ARRIVES
    )

    pdu = await room.south.pdu(room.room_id, unsigned)
    late = Deferred.fromCoroutine(room.south.push(NORTH, [pdu]))
    await room.north.federation.receiver.receive(room.room_id, [judge.vouch(signed.pdu)])
    assert texts(room.alice, room.room_id) == ["signed"]
    assert not late.called

    network.clock.advance(6)
    assert await late == {"pdus": {unsigned: {}}}
    assert texts(room.alice, room.room_id) == ["signed"]


async def test_remote_events_wait_for_at_most_one_local_message(
    network: Network,
) -> None:
    room = await shared(network)
    judge = PolicyServer("11")
    set_state(room.alice, room.room_id, "m.room.policy", named())
    other = await room.by_bob("by bob")
    network.forge(SOUTH, judge.answer_late)
    network.hold()
    body = {"msgtype": "m.text", "body": "by alice"}
    first, second, third = (
        room.alice.start("PUT", message_path(room.room_id, txn), body) for txn in "abc"
    )
    received = Deferred.fromCoroutine(
        room.north.federation.receiver.receive(room.room_id, [judge.vouch(other.pdu)])
    )
    fourth = room.alice.start("PUT", message_path(room.room_id, "d"), body)

    answered = []
    for _ in range(2):
        network.clock.advance(2)
        assert network.deliver(most=1) == 1
        answered.append([each.done for each in (first, second, third, fourth)])
    assert answered == [[True, False, False, False], [True, True, False, False]]
    assert received.called

    network.deliver()
    assert third.done
    assert fourth.done
    assert len(texts(room.alice, room.room_id)) == 5


async def test_joins_and_changed_events_are_checked_before_their_turn(
    network: Network,
) -> None:
    room = await shared(network)
    judge = PolicyServer("11")
    set_state(room.alice, room.room_id, "m.room.policy", named())
    other = await room.by_bob("changed")
    changed = {**other.pdu, "content": {"body": "by whom?"}}
    east = Side(network.add(EAST))
    carol = east.server.register("carol")
    network.forge(SOUTH, judge.answer_late)
    network.hold()
    receive = room.north.federation.receiver.receive
    joining = carol.start("POST", f"/_matrix/client/v3/join/{room.room_id}?via={NORTH}", {})
    while not [transfer for transfer in network.held() if transfer.request.uri == SIGN]:
        network.deliver(most=1)
    receiving = Deferred.fromCoroutine(receive(room.room_id, [changed], origin=room.south.name))
    assert len([transfer for transfer in network.held() if transfer.request.uri == SIGN]) == 2

    signed = await room.by_bob("signed")
    (outcome,) = await receive(room.room_id, [judge.vouch(signed.pdu)])
    assert outcome.verdict is Verdict.ACCEPT, "its turn is not held up"

    network.deliver()
    (outcome,) = await receiving
    assert outcome.verdict is Verdict.REDACT
    assert joining.answer.status == 200


@pytest.mark.parametrize("what", ["knock", "leave"])
async def test_knocks_and_declined_invites_are_checked_before_their_turn(
    network: Network, what: str
) -> None:
    room = await shared(network)
    judge = PolicyServer("11")
    carol = network.add(EAST).register("carol")
    network.forge(SOUTH, judge.answer_late)
    if what == "leave":
        ok(room.alice.post(room_path(room.room_id, "invite"), {"user_id": carol.user_id}))
    network.clock.advance(1)  # else it would be left to their ids which of the join rules is newer
    set_state(room.alice, room.room_id, "m.room.join_rules", {"join_rule": "knock"})
    set_state(room.alice, room.room_id, "m.room.policy", named())
    asked = len(judge.asked)
    network.clock.advance(1)  # and which of the memberships
    network.hold()
    path = (
        f"/_matrix/client/v3/knock/{room.room_id}?via={NORTH}"
        if what == "knock"
        else room_path(room.room_id, what)
    )
    pending = carol.start("POST", path, {})
    while not [transfer for transfer in network.held() if transfer.request.uri == SIGN]:
        network.deliver(most=1)

    signed = await room.by_bob("signed")
    (outcome,) = await room.north.federation.receiver.receive(
        room.room_id, [judge.vouch(signed.pdu)]
    )
    assert outcome.verdict is Verdict.ACCEPT, "its turn is not held up"

    network.deliver()
    assert pending.answer.status == 200
    assert len(judge.asked) == asked + 1
    state = await room.north.state(room.room_id)
    assert (await room.pdu(state[StateKey("m.room.member", carol.user_id)]))["content"][
        "membership"
    ] == what


async def test_an_outlier_is_checked_before_its_turn(
    network: Network,
) -> None:
    room = await shared(network)
    judge = PolicyServer("11")
    set_state(room.alice, room.room_id, "m.room.policy", named())
    outlier, signed = await room.by_bob("first of all"), await room.by_bob("signed")
    receiver = room.north.federation.receiver
    await receiver.receive_outliers(room.room_id, [outlier])
    network.forge(SOUTH, judge.answer_late)
    network.hold()
    receiving = Deferred.fromCoroutine(receiver.receive(room.room_id, [outlier.pdu]))
    assert len([transfer for transfer in network.held() if transfer.request.uri == SIGN]) == 1

    (outcome,) = await receiver.receive(room.room_id, [judge.vouch(signed.pdu)])
    assert outcome.verdict is Verdict.ACCEPT, "its turn is not held up"

    network.deliver()
    (outcome,) = await receiving
    assert outcome.verdict is Verdict.ACCEPT


async def test_unauthorized_events_are_not_sent_to_the_policy_server(network: Network) -> None:
    room = await shared(network)
    judge = PolicyServer("11")
    set_state(room.alice, room.room_id, "m.room.join_rules", {"join_rule": "invite"})
    set_state(room.alice, room.room_id, "m.room.policy", named())
    network.interceptors.append(judge.answer)
    asked = len(judge.asked)
    east = Side(network.add(EAST))
    carol = UserID(f"@carol:{EAST}")
    state = {
        key: (await room.north.find(room.room_id, event_id))
        for key, event_id in (await room.north.state(room.room_id)).items()
    }
    known = {key: stored.event for key, stored in state.items() if stored is not None}
    prev = await room.north.last(room.room_id)
    pdus = [
        (
            await east.build(
                ROOM_VERSIONS["11"],
                room.room_id,
                prev,
                known,
                carol,
                "m.room.member",
                {"membership": what},
                carol,
            )
        ).pdu
        for what in ("join", "knock", "leave")
    ]
    answers = (await east.push(NORTH, pdus))["pdus"]
    assert all("error" in answer for answer in answers.values())
    assert len(judge.asked) == asked


async def test_a_slow_policy_server_delays_the_sending_server_a_few_seconds(
    network: Network,
) -> None:
    room = await shared(network)
    judge = PolicyServer("11")
    other = create_room(room.alice)
    ok(join_via(room.bob, other, NORTH))
    set_state(room.alice, room.room_id, "m.room.policy", named())
    network.cut(NORTH, SOUTH)
    said = [say(room.bob, room.room_id, f"{number:02}") for number in range(20)]
    pdus = [await room.south.pdu(room.room_id, event_id) for event_id in said]
    elsewhere = await room.south.pdu(other, say(room.bob, other, "elsewhere"))
    network.mend(NORTH, SOUTH)
    network.forge(SOUTH, judge.answer_late)
    network.hold()
    receive = room.north.server.app.federation_receiver.transactions.receive
    first, second = (
        Deferred.fromCoroutine(receive(ServerName(SOUTH), txn_id, sent, []))
        for txn_id, sent in (("a", pdus), ("b", [elsewhere]))
    )

    def answer_in(seconds: float) -> None:
        network.clock.advance(seconds)
        network.deliver(most=5)

    answer_in(4)

    assert msgspec.json.decode(await first) == {"pdus": {event_id: {} for event_id in said}}
    assert second.called
    assert texts(room.alice, other) == ["elsewhere"]
    for _ in range(20):
        answer_in(4)
    assert texts(room.alice, room.room_id) == [f"{number:02}" for number in reversed(range(20))]
    assert len(judge.asked) == 20
