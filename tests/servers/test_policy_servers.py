"""Rooms with a policy server: what it does not sign is not sent, and not shown where others send it."""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest
from twisted.internet.defer import Deferred

from federation.protocol.errors import RemoteError
from federation.protocol.events import Event, encode_reference, parse_event
from federation.protocol.ids import RoomID, ServerName, UserID
from federation.protocol.policy_server import KEY_ID
from federation.protocol.room_versions import ROOM_VERSIONS
from federation.protocol.signing import SigningKey, add_signature, encode_base64
from federation.rooms.check import Verdict
from federation.wire import WireAnswer, WireRequest
from tests.helpers.federated import EAST, NORTH, SOUTH, Shared, Side, adopt, create_room, say, set_state, shared, texts
from tests.helpers.handshakes import join_via
from tests.helpers.large_rooms import is_whole, large_room
from tests.helpers.network import Fate, Network
from tests.helpers.server import User
from tests.helpers.talk import ok, room_path

KEY = SigningKey("policy_server", b"p" * 32)
SIGN = "/_matrix/policy/v1/sign"


class Judge:
    """The south, say, as a policy server: it signs what is not spam."""

    def __init__(self, version: str, name: str = SOUTH) -> None:
        self.version = version
        self.name = name
        self.key = KEY
        self.is_away = False
        self.left: int | None = None
        """So many events more it looks at before it says that these are too many."""
        self.wait_ms = 1_000
        """So long nobody is to ask again then."""
        self.refusals = 0
        self.asked: list[dict[str, Any]] = []

    def answer(self, destination: ServerName, request: WireRequest) -> WireAnswer | None:
        """Takes the place of the server in the network."""
        if request.uri != SIGN:
            return None
        assert destination == self.name
        pdu = msgspec.json.decode(request.body)
        if self.left == 0:
            self.refusals += 1
            refusal = {"errcode": "M_LIMIT_EXCEEDED", "error": "Not so fast", "retry_after_ms": self.wait_ms}
            return WireAnswer(429, {}, msgspec.json.encode(refusal))
        self.asked.append(pdu)
        if self.is_away:
            raise RemoteError(destination, "away", retryable=True)
        if self.left is not None:
            self.left -= 1
        if "spam" in str(pdu["content"]):
            refusal = {"errcode": "ORG.EXAMPLE_SPAM", "error": "No spam, please"}
            return WireAnswer(400, {}, msgspec.json.encode(refusal))
        return WireAnswer(200, {}, msgspec.json.encode({self.name: {KEY_ID: self.sign(pdu)}}))

    def answer_late(self, request: WireRequest, answer: WireAnswer) -> WireAnswer:
        """Takes the place of the server's own answer, once that has come."""
        return self.answer(ServerName(self.name), request) or answer

    def sign(self, pdu: Mapping[str, Any]) -> str:
        """Its signature."""
        version = ROOM_VERSIONS[self.version]
        return self.key.sign(encode_reference(version, parse_event(version, pdu).pdu))

    def vouch(self, pdu: Mapping[str, Any]) -> dict[str, Any]:
        """The event with its signature."""
        return add_signature(pdu, self.name, KEY_ID, self.sign(pdu))


def named(key: SigningKey = KEY, via: str = SOUTH) -> dict[str, Any]:
    return {"via": via, "public_keys": {"ed25519": encode_base64(key.public_key)}}


def message_path(room_id: str, txn_id: str = "m") -> str:
    return f"/_matrix/client/v3/rooms/{room_id}/send/m.room.message/{txn_id}"


SPAM = {"msgtype": "m.text", "body": "spam"}


@pytest.mark.parametrize("version", ["1", "6", "12"])
async def test_what_it_signs_is_sent_with_its_signature_and_what_it_refuses_is_not_sent(
    network: Network, version: str
) -> None:
    room = await shared(network, version)
    judge = Judge(version)
    network.liars.append(judge.answer)
    set_state(room.alice, room.room_id, "m.room.policy", named())
    assert judge.asked == [], "it has no say about the event that names it"

    said = say(room.alice, room.room_id, "salom")
    assert KEY_ID in (await room.pdu(said))["signatures"][SOUTH]

    answer = room.alice.put(message_path(room.room_id), SPAM)
    assert (answer.status, answer.json) == (403, {"errcode": "ORG.EXAMPLE_SPAM", "error": "No spam, please"})
    assert texts(room.alice, room.room_id)[0] == "salom"
    say(room.alice, room.room_id, "va alaykum")

    set_state(room.alice, room.room_id, "m.room.policy", {})
    say(room.alice, room.room_id, "spam")


async def test_an_event_of_others_without_its_signature_is_not_shown(network: Network) -> None:
    room = await shared(network)
    judge = Judge("11")
    policy = set_state(room.alice, room.room_id, "m.room.policy", named())
    network.cut(NORTH, SOUTH)
    spam, ham, by_hand = (say(room.bob, room.room_id, text) for text in ("spam", "salom", "signed"))
    assert not judge.asked
    network.mend(NORTH, SOUTH)
    network.liars.append(judge.answer)
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
async def test_which_rooms_have_one(network: Network, content: dict[str, Any], counts: bool) -> None:
    room = await shared(network)
    judge = Judge("11")
    network.liars.append(judge.answer)
    set_state(room.alice, room.room_id, "m.room.policy", content)
    say(room.alice, room.room_id, "salom")
    assert bool(judge.asked) is counts


async def test_a_signature_by_another_key_than_the_rooms_is_none(network: Network) -> None:
    room = await shared(network)
    judge = Judge("11")
    judge.key = SigningKey("policy_server", bytes(32))
    network.liars.append(judge.answer)
    set_state(room.alice, room.room_id, "m.room.policy", named())
    answer = room.alice.put(message_path(room.room_id), {"msgtype": "m.text", "body": "salom"})
    assert (answer.status, answer.json["errcode"]) == (403, "M_FORBIDDEN")


async def test_one_that_is_away_is_not_asked_for_each_event(network: Network) -> None:
    room = await shared(network)
    judge = Judge("11")
    judge.is_away = True
    network.liars.append(judge.answer)
    set_state(room.alice, room.room_id, "m.room.policy", named())
    for number in range(5):
        assert room.alice.put(message_path(room.room_id, str(number)), SPAM).status == 502
    assert len(judge.asked) == 1
    judge.is_away = False
    network.clock.advance(31)
    say(room.alice, room.room_id, "salom")


async def test_a_room_may_be_rid_of_one_that_is_away(network: Network) -> None:
    room = await shared(network)
    judge = Judge("11")
    judge.is_away = True
    network.liars.append(judge.answer)
    set_state(room.alice, room.room_id, "m.room.policy", named())
    set_state(room.alice, room.room_id, "m.room.policy", {})
    say(room.alice, room.room_id, "salom")


async def read_back(network: Network, judge: Judge) -> tuple[User, RoomID]:
    """Somebody of a third server comes into a room whose past has what nobody signed, and that has a policy server now."""
    room = await shared(network)
    for text in ("spam", "salom"):
        say(room.alice, room.room_id, text)
    set_state(room.alice, room.room_id, "m.room.policy", named())
    network.liars.append(judge.answer)
    east = Side(network.add(EAST))
    carol = east.server.register("carol")
    is_away, judge.is_away = judge.is_away, False
    await adopt(room.north, east, UserID(carol.user_id), room.room_id)
    judge.is_away = is_away
    return carol, room.room_id


async def test_what_it_does_not_sign_is_not_shown_of_the_past_either(network: Network) -> None:
    """spec: client-server-api#policy-servers: events from before it was enabled, too"""
    judge = Judge("11")
    carol, room_id = await read_back(network, judge)

    assert texts(carol, room_id) == ["salom"]

    asked = len(judge.asked)
    assert texts(carol, room_id) == ["salom"]
    assert len(judge.asked) == asked


async def test_the_past_waits_for_one_that_is_away(network: Network) -> None:
    judge = Judge("11")
    judge.is_away = True
    carol, room_id = await read_back(network, judge)
    assert texts(carol, room_id) == []

    judge.is_away = False
    network.clock.advance(61)

    assert texts(carol, room_id) == ["salom"]


async def test_news_wait_for_one_that_is_asked_too_much(network: Network) -> None:
    room = await shared(network)
    judge = Judge("11")
    set_state(room.alice, room.room_id, "m.room.policy", named())
    network.cut(NORTH, SOUTH)
    said = [say(room.bob, room.room_id, f"{number}") for number in range(7)]
    network.mend(NORTH, SOUTH)

    network.liars.append(judge.answer)
    judge.left, judge.wait_ms = 3, 7_000
    answer = await room.south.push(NORTH, [await room.south.pdu(room.room_id, event_id) for event_id in said])

    assert answer == {"pdus": {event_id: {} for event_id in said}}
    assert texts(room.alice, room.room_id) == ["2", "1", "0"]
    assert judge.refusals == 1
    mine = room.alice.put(message_path(room.room_id), {"msgtype": "m.text", "body": "mine"})
    assert (mine.status, mine.json["retry_after_ms"]) == (429, 7_000)
    assert judge.refusals == 1, "it is left alone"

    judge.left = None
    network.clock.advance(11)
    assert texts(room.alice, room.room_id) == ["6", "5", "4", "3", "2", "1", "0"]


async def test_how_long_it_wants_to_be_left_alone_is_passed_on_as_a_number(network: Network) -> None:
    room = await shared(network)
    judge = Judge("11")
    set_state(room.alice, room.room_id, "m.room.policy", named())
    network.liars.append(judge.answer)
    judge.left, judge.wait_ms = 0, True

    answer = room.alice.put(message_path(room.room_id), {"msgtype": "m.text", "body": "salom"})

    assert (answer.status, answer.json["retry_after_ms"]) == (429, 1_000)


async def test_one_that_is_slow_holds_up_who_sends_for_a_few_seconds_only(network: Network) -> None:
    room = await shared(network)
    judge = Judge("11")
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
    receive = room.north.server.app.incoming.transactions.receive
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


async def test_what_is_here_already_is_not_asked_about_again(network: Network) -> None:
    room = await shared(network)
    judge = Judge("11")
    set_state(room.alice, room.room_id, "m.room.policy", named())
    network.cut(NORTH, SOUTH)
    event_id = say(room.bob, room.room_id, "salom")
    network.mend(NORTH, SOUTH)
    pdu = await room.south.pdu(room.room_id, event_id)
    network.liars.append(judge.answer)
    judge.is_away = True  # so that it has said nothing that could be remembered
    await room.south.push(NORTH, [pdu])
    network.rebuild(NORTH)
    network.clock.advance(31)
    judge.asked.clear()

    await room.south.push(NORTH, [pdu])

    assert judge.asked == []


async def test_a_past_that_it_looks_at_bit_by_bit_is_complete_in_the_end(network: Network) -> None:
    judge = Judge("11")
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
        carol = User(restarted.server, {"user_id": carol.user_id, "access_token": carol.token, "device_id": "-"})

    assert texts(carol, room_id) == ["salom"]
    said = [msgspec.json.encode(pdu, order="sorted") for pdu in judge.asked]
    assert len(said) == len(set(said)) > 1, "what it has said of an event is not asked again"


async def by_bob(room: Shared, text: str) -> Event:
    """A message that the north does not have yet."""
    content = {"msgtype": "m.text", "body": text}
    return await room.south.build_next(room.room_id, room.bob.user_id, "m.room.message", content)


async def test_one_that_is_slow_to_judge_what_others_send_holds_up_nobody_else(network: Network) -> None:
    room = await shared(network)
    judge = Judge("11")
    set_state(room.alice, room.room_id, "m.room.policy", named())
    network.cut(NORTH, SOUTH)
    signed = await by_bob(room, "signed")
    unsigned = say(room.bob, room.room_id, "unsigned")
    network.mend(NORTH, SOUTH)
    network.weather = lambda letter: Fate.IS_NOT_ANSWERED if letter.request.uri == SIGN else Fate.ARRIVES

    pdu = await room.south.pdu(room.room_id, unsigned)
    late = Deferred.fromCoroutine(room.south.push(NORTH, [pdu]))
    await room.north.federation.receiver.receive(room.room_id, [judge.vouch(signed.pdu)])
    assert texts(room.alice, room.room_id) == ["signed"]
    assert not late.called

    network.clock.advance(6)
    assert await late == {"pdus": {unsigned: {}}}
    assert texts(room.alice, room.room_id) == ["signed"]


async def test_while_one_is_slow_what_others_send_waits_for_one_message_and_not_for_all(network: Network) -> None:
    room = await shared(network)
    judge = Judge("11")
    set_state(room.alice, room.room_id, "m.room.policy", named())
    other = await by_bob(room, "by bob")
    network.forge(SOUTH, judge.answer_late)
    network.hold()
    body = {"msgtype": "m.text", "body": "by alice"}
    first, second, third = (room.alice.start("PUT", message_path(room.room_id, txn), body) for txn in "abc")
    received = Deferred.fromCoroutine(room.north.federation.receiver.receive(room.room_id, [judge.vouch(other.pdu)]))
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


async def judged_in_part(network: Network, *said: str) -> tuple[User, RoomID, Judge]:
    """Somebody who has come into a room in part, of which a third server is the policy server since these things were said."""
    alice, bob, room_id = await large_room(network, room_version="11")
    ok(join_via(network.add(EAST).register("carol"), room_id, NORTH))
    for text in said:
        say(alice, RoomID(room_id), text)
    judge = Judge("11", EAST)
    network.forge(EAST, judge.answer_late)
    set_state(alice, RoomID(room_id), "m.room.policy", named(via=EAST))
    ok(join_via(bob, room_id, NORTH))
    assert not is_whole(bob, room_id)
    return bob, RoomID(room_id), judge


async def test_what_it_refused_of_the_past_stays_refused_when_the_rest_of_the_state_has_come(network: Network) -> None:
    bob, room_id, judge = await judged_in_part(network, "spam", "salom")
    assert texts(bob, room_id) == ["salom"]
    asked = len(judge.asked)

    network.start_completing()
    network.settle()

    assert is_whole(bob, room_id)
    assert texts(bob, room_id) == ["salom"]
    assert len(judge.asked) == asked


async def test_a_past_that_it_looks_at_while_the_rest_of_the_state_comes(network: Network) -> None:
    """When the past is read the state is here in part, and when it may be shown all of it is."""
    said = ["salom"] * 150
    bob, room_id, _ = await judged_in_part(network, *said)

    network.hold()
    reading = bob.start("GET", room_path(room_id, "messages", dir="b", limit=50))
    network.start_completing()
    while not is_whole(bob, room_id):
        network.deliver(lambda letters: [letter.request.uri == SIGN for letter in letters].index(False), 1)
        network.settle()
    assert not reading.done
    network.deliver()

    assert texts(bob, room_id) == said


async def test_joins_and_what_was_changed_on_the_way_are_asked_about_before_their_turn_too(network: Network) -> None:
    room = await shared(network)
    judge = Judge("11")
    set_state(room.alice, room.room_id, "m.room.policy", named())
    other = await by_bob(room, "changed")
    changed = {**other.pdu, "content": {"body": "by whom?"}}
    east = Side(network.add(EAST))
    carol = east.server.register("carol")
    network.forge(SOUTH, judge.answer_late)
    network.hold()
    receive = room.north.federation.receiver.receive
    joining = carol.start("POST", f"/_matrix/client/v3/join/{room.room_id}?via={NORTH}", {})
    while not [letter for letter in network.held() if letter.request.uri == SIGN]:
        network.deliver(most=1)
    receiving = Deferred.fromCoroutine(receive(room.room_id, [changed]))
    assert len([letter for letter in network.held() if letter.request.uri == SIGN]) == 2

    signed = await by_bob(room, "signed")
    (outcome,) = await receive(room.room_id, [judge.vouch(signed.pdu)])
    assert outcome.verdict is Verdict.ACCEPT, "its turn is not held up"

    network.deliver()
    (outcome,) = await receiving
    assert outcome.verdict is Verdict.REDACT
    assert joining.answer.status == 200
