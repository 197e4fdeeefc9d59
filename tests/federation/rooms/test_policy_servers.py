"""Rooms with a policy server: what it does not sign is not sent, and not shown where others send
it."""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from federation.protocol.ids import RoomID, UserID
from federation.protocol.policy_server import KEY_ID
from federation.protocol.signing import SigningKey
from storage.federation.inbox import InboxLimits
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
from tests.helpers.large_rooms import is_whole, large_room
from tests.helpers.network import Network
from tests.helpers.policy_server import SIGN, PolicyServer, message_path, named
from tests.helpers.remote_membership import join_via
from tests.helpers.room_actions import ok, room_path, say, set_state
from tests.helpers.server import User

KEYS = named()["public_keys"]
SPAM = {"msgtype": "m.text", "body": "spam"}


@pytest.mark.parametrize("version", ["1", "6", "12"])
async def test_signed_events_are_sent_with_the_signature_and_refused_ones_are_not_sent(
    network: Network, version: str
) -> None:
    room = await shared(network, version)
    judge = PolicyServer(version)
    network.interceptors.append(judge.answer)
    set_state(room.alice, room.room_id, "m.room.policy", named())
    assert judge.asked == [], "it has no say about the event that names it"

    said = say(room.alice, room.room_id, "salom")
    assert KEY_ID in (await room.pdu(said))["signatures"][SOUTH]

    answer = room.alice.put(message_path(room.room_id), SPAM)
    assert (answer.status, answer.json) == (
        403,
        {"errcode": "ORG.EXAMPLE_SPAM", "error": "No spam, please"},
    )
    assert texts(room.alice, room.room_id)[0] == "salom"
    say(room.alice, room.room_id, "va alaykum")

    set_state(room.alice, room.room_id, "m.room.policy", {})
    say(room.alice, room.room_id, "spam")


@pytest.mark.parametrize("keys", [{"public_key": KEYS["ed25519"]}, {"public_keys": KEYS}])
async def test_an_older_room_names_its_policy_server_by_the_unstable_event(
    network: Network, keys: Mapping[str, Any]
) -> None:
    """Proposal: MSC4284"""
    room = await shared(network)
    judge = PolicyServer("11")
    judge.path = "/_matrix/policy/unstable/org.matrix.msc4284/sign"
    network.interceptors.append(judge.answer)
    set_state(room.alice, room.room_id, "org.matrix.msc4284.policy", {"via": SOUTH, **keys})
    assert judge.asked == [], "it has no say about the event that names it"

    said = say(room.alice, room.room_id, "salom")
    assert KEY_ID in (await room.pdu(said))["signatures"][SOUTH]
    assert room.alice.put(message_path(room.room_id), SPAM).status == 403
    spam, ham = await room.by_bob("spam"), await room.by_bob("by bob")
    await room.south.push(NORTH, [spam.pdu, ham.pdu])
    assert sorted(texts(room.alice, room.room_id)) == ["by bob", "salom"]

    # the event of now counts where it is, be it to say that there is none any more
    asked = len(judge.asked)
    set_state(room.alice, room.room_id, "m.room.policy", {})
    say(room.alice, room.room_id, "spam")
    assert len(judge.asked) == asked


async def test_a_remote_event_without_the_policy_servers_signature_is_not_shown(
    network: Network,
) -> None:
    room = await shared(network)
    judge = PolicyServer("11")
    policy = set_state(room.alice, room.room_id, "m.room.policy", named())
    network.cut(NORTH, SOUTH)
    spam, ham, by_hand = (say(room.bob, room.room_id, text) for text in ("spam", "salom", "signed"))
    assert not judge.asked
    network.mend(NORTH, SOUTH)
    network.interceptors.append(judge.answer)
    pdus = [await room.south.pdu(room.room_id, event_id) for event_id in (spam, ham, by_hand)]
    answer = await room.south.push(NORTH, pdus)
    assert answer == {"pdus": {spam: {}, ham: {}, by_hand: {}}}
    assert texts(room.alice, room.room_id)[:2] == ["signed", "salom"]
    assert len(judge.asked) == 3
    assert policy


@pytest.mark.parametrize(
    ("content", "counts"),
    [
        (named(), True),
        (named(via="east.example"), False),
        ({"via": SOUTH}, False),
        ({"via": SOUTH, "public_keys": {"ed25519": "AAAA"}}, False),
        ({"via": "no name", "public_keys": named()["public_keys"]}, False),
        ({"via": SOUTH, "public_keys": []}, False),
        ({"via": 5}, False),
    ],
)
async def test_only_a_valid_policy_event_names_a_policy_server(
    network: Network, content: dict[str, Any], counts: bool
) -> None:
    room = await shared(network)
    judge = PolicyServer("11")
    network.interceptors.append(judge.answer)
    set_state(room.alice, room.room_id, "m.room.policy", content)
    say(room.alice, room.room_id, "salom")
    assert bool(judge.asked) is counts


async def test_a_signature_by_another_key_is_invalid(network: Network) -> None:
    room = await shared(network)
    judge = PolicyServer("11")
    judge.key = SigningKey("policy_server", bytes(32))
    network.interceptors.append(judge.answer)
    set_state(room.alice, room.room_id, "m.room.policy", named())
    answer = room.alice.put(message_path(room.room_id), {"msgtype": "m.text", "body": "salom"})
    assert (answer.status, answer.json["errcode"]) == (403, "M_FORBIDDEN")


async def test_an_unreachable_policy_server_is_not_asked_for_each_event(network: Network) -> None:
    room = await shared(network)
    judge = PolicyServer("11")
    judge.is_away = True
    network.interceptors.append(judge.answer)
    set_state(room.alice, room.room_id, "m.room.policy", named())
    for number in range(5):
        assert room.alice.put(message_path(room.room_id, str(number)), SPAM).status == 502
    assert len(judge.asked) == 1
    judge.is_away = False
    network.clock.advance(31)
    say(room.alice, room.room_id, "salom")


async def test_an_unreachable_policy_server_can_be_removed(network: Network) -> None:
    room = await shared(network)
    judge = PolicyServer("11")
    judge.is_away = True
    network.interceptors.append(judge.answer)
    set_state(room.alice, room.room_id, "m.room.policy", named())
    set_state(room.alice, room.room_id, "m.room.policy", {})
    say(room.alice, room.room_id, "salom")


async def read_back(network: Network, judge: PolicyServer) -> tuple[User, RoomID]:
    """Somebody of a third server comes into a room whose past has what nobody signed, and that has
    a policy server now."""
    room = await shared(network)
    for text in ("spam", "salom"):
        say(room.alice, room.room_id, text)
    set_state(room.alice, room.room_id, "m.room.policy", named())
    network.interceptors.append(judge.answer)
    east = Side(network.add(EAST))
    carol = east.server.register("carol")
    is_away, judge.is_away = judge.is_away, False
    await adopt(room.north, east, UserID(carol.user_id), room.room_id)
    judge.is_away = is_away
    return carol, room.room_id


async def test_unsigned_past_events_are_not_shown(network: Network) -> None:
    """spec: client-server-api#policy-servers: events from before it was enabled, too"""
    judge = PolicyServer("11")
    carol, room_id = await read_back(network, judge)

    assert texts(carol, room_id) == ["salom"]

    asked = len(judge.asked)
    assert texts(carol, room_id) == ["salom"]
    assert len(judge.asked) == asked


async def test_past_events_wait_for_an_unreachable_policy_server(network: Network) -> None:
    judge = PolicyServer("11")
    judge.is_away = True
    carol, room_id = await read_back(network, judge)
    assert texts(carol, room_id) == []

    judge.is_away = False
    network.clock.advance(61)

    assert texts(carol, room_id) == ["salom"]


async def test_new_events_wait_for_a_policy_server_that_rate_limits(network: Network) -> None:
    room = await shared(network)
    judge = PolicyServer("11")
    set_state(room.alice, room.room_id, "m.room.policy", named())
    network.cut(NORTH, SOUTH)
    said = [say(room.bob, room.room_id, f"{number}") for number in range(7)]
    network.mend(NORTH, SOUTH)

    network.interceptors.append(judge.answer)
    judge.left, judge.wait_ms = 3, 7_000
    answer = await room.south.push(
        NORTH, [await room.south.pdu(room.room_id, event_id) for event_id in said]
    )

    assert answer == {"pdus": {event_id: {} for event_id in said}}
    assert texts(room.alice, room.room_id) == ["2", "1", "0"]
    assert judge.refusals == 1
    mine = room.alice.put(message_path(room.room_id), {"msgtype": "m.text", "body": "mine"})
    assert (mine.status, mine.json["retry_after_ms"]) == (429, 7_000)
    assert judge.refusals == 1, "it is left alone"

    judge.left = None
    network.clock.advance(11)
    assert texts(room.alice, room.room_id) == ["6", "5", "4", "3", "2", "1", "0"]


async def test_a_policy_server_that_always_rate_limits_does_not_block_other_rooms(
    network: Network,
) -> None:
    room = await shared(network)
    judge = PolicyServer("11")
    other = create_room(room.alice)
    ok(join_via(room.bob, other, NORTH))
    levels = {"users": {room.alice.user_id: 100, room.bob.user_id: 100}}
    set_state(room.alice, room.room_id, "m.room.power_levels", levels)
    await room.north.push(SOUTH, [event.pdu for event in await room.north.last(room.room_id)])
    set_state(room.alice, room.room_id, "m.room.policy", named())
    network.cut(NORTH, SOUTH)
    places = InboxLimits()
    said = [
        say(room.bob, room.room_id, f"{number}")
        for number in range(places.awaiting_verdict_per_room + 50)
    ]
    another = set_state(room.bob, room.room_id, "m.room.policy", named(via=EAST))
    before, after = say(room.bob, other, "before"), say(room.bob, other, "after")
    network.mend(NORTH, SOUTH)
    network.interceptors.append(judge.answer)
    judge.left, judge.wait_ms = 0, 3_600_000

    answers: dict[str, Any] = {}
    for start in range(0, len(said), 50):
        pdus = [
            await room.south.pdu(room.room_id, event_id) for event_id in said[start : start + 50]
        ]
        answers |= (await room.south.push(NORTH, pdus))["pdus"]
    assert [event_id for event_id in said if "error" in answers[event_id]] == said[
        places.awaiting_verdict_per_room :
    ]
    naming = await room.south.pdu(room.room_id, another)
    assert await room.south.push(NORTH, [naming]) == {"pdus": {another: {}}}, (
        "it may be what ends the waiting"
    )
    assert await room.south.push(NORTH, [await room.south.pdu(other, after)]) == {
        "pdus": {after: {}}
    }
    assert texts(room.alice, other)[:2] == ["after", "before"]
    assert before

    judge.left = None
    network.clock.advance(3_600)
    await room.south.push(
        NORTH, [await room.south.pdu(room.room_id, say(room.bob, room.room_id, "last"))]
    )
    for _ in range(5):
        network.clock.advance(3_600)
    assert texts(room.alice, room.room_id)[: len(said) + 1] == [
        "last",
        *(f"{number}" for number in reversed(range(len(said)))),
    ]


async def test_a_join_is_refused_while_the_policy_server_cannot_be_asked(network: Network) -> None:
    limit = "rc_joins_per_room: {per_second: 0.001, burst_count: 1}\n"
    room = await shared(network, "11", {NORTH: limit})
    judge = PolicyServer("11")
    network.interceptors.append(judge.answer)
    set_state(room.alice, room.room_id, "m.room.join_rules", {"join_rule": "public"})
    set_state(room.alice, room.room_id, "m.room.policy", named())
    dan, eve = (room.north.server.register(name) for name in ("dan", "eve"))
    judge.is_away = True
    assert join_via(dan, room.room_id).status == 502

    judge.is_away = False
    network.clock.advance(31)
    assert join_via(eve, room.room_id).status == 200


async def test_clients_get_the_retry_after_of_a_policy_server_as_a_number(
    network: Network,
) -> None:
    room = await shared(network)
    judge = PolicyServer("11")
    set_state(room.alice, room.room_id, "m.room.policy", named())
    network.interceptors.append(judge.answer)
    judge.left, judge.wait_ms = 0, True

    answer = room.alice.put(message_path(room.room_id), {"msgtype": "m.text", "body": "salom"})

    assert (answer.status, answer.json["retry_after_ms"]) == (429, 1_000)


async def test_a_known_event_is_not_checked_again(network: Network) -> None:
    room = await shared(network)
    judge = PolicyServer("11")
    set_state(room.alice, room.room_id, "m.room.policy", named())
    network.cut(NORTH, SOUTH)
    event_id = say(room.bob, room.room_id, "salom")
    network.mend(NORTH, SOUTH)
    pdu = await room.south.pdu(room.room_id, event_id)
    network.interceptors.append(judge.answer)
    judge.is_away = True  # so that it has said nothing that could be remembered
    await room.south.push(NORTH, [pdu])
    network.rebuild(NORTH)
    network.clock.advance(31)
    judge.asked.clear()

    await room.south.push(NORTH, [pdu])

    assert judge.asked == []


async def test_past_events_are_complete_after_a_rate_limited_policy_server_checked_them(
    network: Network,
) -> None:
    judge = PolicyServer("11")
    carol, room_id = await read_back(network, judge)
    judge.asked.clear()
    judge.left = 0
    assert texts(carol, room_id) == []

    for _ in range(50):
        judge.left = 1
        network.clock.advance(61)
        if texts(carol, room_id):
            break
        restarted = Side(network.rebuild(EAST))
        carol = User(
            restarted.server,
            {"user_id": carol.user_id, "access_token": carol.token, "device_id": "-"},
        )

    assert texts(carol, room_id) == ["salom"]
    said = [msgspec.json.encode(pdu, order="sorted") for pdu in judge.asked]
    assert len(said) == len(set(said)) > 1, "what it has said of an event is not asked again"


async def judged_in_part(network: Network, *said: str) -> tuple[User, RoomID, PolicyServer]:
    """Somebody who has come into a room in part, of which a third server is the policy server since
    these things were said."""
    alice, bob, room_id = await large_room(network, room_version="11")
    ok(join_via(network.add(EAST).register("carol"), room_id, NORTH))
    for text in said:
        say(alice, RoomID(room_id), text)
    judge = PolicyServer("11", EAST)
    network.forge(EAST, judge.answer_late)
    set_state(alice, RoomID(room_id), "m.room.policy", named(via=EAST))
    ok(join_via(bob, room_id, NORTH))
    assert not is_whole(bob, room_id)
    return bob, RoomID(room_id), judge


async def test_refused_past_events_stay_refused_after_partial_state_is_completed(
    network: Network,
) -> None:
    bob, room_id, judge = await judged_in_part(network, "spam", "salom")
    assert texts(bob, room_id) == ["salom"]
    asked = len(judge.asked)

    network.start_completing()
    network.settle()

    assert is_whole(bob, room_id)
    assert texts(bob, room_id) == ["salom"]
    assert len(judge.asked) == asked


async def test_past_events_are_checked_while_partial_state_is_completed(network: Network) -> None:
    """When the past is read the state is here in part, and when it may be shown all of it is."""
    said = ["salom"] * 150
    bob, room_id, _ = await judged_in_part(network, *said)

    network.hold()
    reading = bob.start("GET", room_path(room_id, "messages", dir="b", limit=50))
    network.start_completing()
    while not is_whole(bob, room_id):
        network.deliver(
            lambda transfers: [transfer.request.uri == SIGN for transfer in transfers].index(False),
            1,
        )
        network.settle()
    assert not reading.done
    network.deliver()

    assert texts(bob, room_id) == said
