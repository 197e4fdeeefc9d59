"""One item that a server refuses in a transaction blocks nothing else, and a server that refuses
everything loses nothing from its queue."""

from collections.abc import Callable

import msgspec
import pytest
from twisted.logger import capturedLogs, formatEvent

from federation.peers.wire import WireRequest, WireResponse
from federation.protocol.errors import RemoteError
from federation.protocol.ids import ServerName
from tests.helpers.clocks import pass_time
from tests.helpers.encrypted_rooms import numbers_in
from tests.helpers.federated_rooms import NORTH, SOUTH, Shared, texts
from tests.helpers.federation_sender import (
    delivery_metrics,
    restart_north,
    send_number_to,
    shared_room_with_keys,
)
from tests.helpers.keys import V3, sync
from tests.helpers.network import Network
from tests.helpers.recording_wire import SEND
from tests.helpers.room_actions import ok, room_path, say

HOUR = 3600
Refuses = Callable[[bytes], bool]


class Reader:
    """The rules by which the south, or a proxy in front of it, refuses content."""

    def __init__(
        self, network: Network, refuses: Refuses = lambda _: False, status: int = 400
    ) -> None:
        self.refuses = refuses
        self.status = status
        self.seen: list[bytes] = []
        network.interceptors.append(self._answer)

    def _answer(self, destination: ServerName, request: WireRequest) -> WireResponse | None:
        if destination != SOUTH or not request.uri.startswith(SEND):
            return None
        self.seen.append(request.body)
        return (
            WireResponse(self.status, {}, b'{"errcode":"M_BAD_JSON"}')
            if self.refuses(request.body)
            else None
        )


def holds(*bad: int) -> Refuses:
    return lambda body: any(b'"n":%d}' % number in body for number in bad)


def is_empty(body: bytes) -> bool:
    transaction = msgspec.json.decode(body)
    return not transaction["pdus"] and not transaction["edus"]


def size(body: bytes) -> int:
    transaction = msgspec.json.decode(body)
    return len(transaction["pdus"]) + len(transaction["edus"])


async def much(network: Network, messages: int = 30, words: int = 20) -> tuple[Shared, str]:
    """Alice has sent messages to Bob's device, and words to their room, which wait; and Bob's token
    from before."""
    room = await shared_room_with_keys(network)
    since = sync(room.bob)["next_batch"]
    network.cut(NORTH, SOUTH)
    for number in range(messages):
        send_number_to(room.alice, room.bob, number)
    for number in range(words):
        say(room.alice, room.room_id, f"w{number}")
    network.settle()
    network.mend(NORTH, SOUTH)
    return room, since


def words(room: Shared) -> list[str]:
    return texts(room.bob, room.room_id)[::-1]


def said(count: int) -> list[str]:
    return [f"w{number}" for number in range(count)]


@pytest.mark.parametrize("status", [400, 422])
async def test_a_refused_message_does_not_block_others(network: Network, status: int) -> None:
    room, since = await much(network)
    reader = Reader(network, holds(13), status)
    with capturedLogs() as logs:
        network.clock.advance(5)
        network.settle()

    assert numbers_in(sync(room.bob, since)) == [number for number in range(30) if number != 13]
    assert words(room) == said(20)
    assert len(reader.seen) <= 20, "it is found by halves"
    assert delivery_metrics(network)["dropped"] == 1
    assert delivery_metrics(network)["failing"] == delivery_metrics(network)["catching_up"] == 0
    (line,) = [text for log in logs if "which is dropped" in (text := formatEvent(log) or "")]
    assert SOUTH in line
    assert room.alice.user_id in line
    assert '"n"' not in line

    reader.seen.clear()
    say(room.alice, room.room_id, "w20")
    send_number_to(room.alice, room.bob, 30)
    pass_time(network, 2 * HOUR, 30)
    assert words(room) == said(21)
    assert numbers_in(sync(room.bob, since))[-1] == 30
    assert not any(map(reader.refuses, reader.seen)), "it is not tried again"


async def test_a_refused_event_does_not_block_others(network: Network) -> None:
    room = await shared_room_with_keys(network)
    Reader(network, lambda body: b'"w7"' in body)
    since = sync(room.bob)["next_batch"]
    for word in said(40):
        say(room.alice, room.room_id, word)
    network.settle()
    send_number_to(room.alice, room.bob, 1)
    network.settle()
    assert numbers_in(sync(room.bob, since)) == [1]
    assert words(room)[-32:] == said(40)[8:]
    assert delivery_metrics(network)["failing"] == 0


async def test_a_refused_item_that_is_alone_is_dropped(network: Network) -> None:
    room, since = await much(network, messages=0, words=0)
    reader = Reader(network, holds(1))
    send_number_to(room.alice, room.bob, 1)
    network.settle()
    send_number_to(room.alice, room.bob, 2)
    network.settle()
    assert numbers_in(sync(room.bob, since)) == [2]
    assert [size(body) for body in reader.seen] == [1, 0, 1]


@pytest.mark.parametrize("status", [401, 403, 404, 408, 429, 500, 502])
async def test_other_errors_drop_no_item(network: Network, status: int) -> None:
    room, since = await much(network)
    reader = Reader(network, lambda body: not is_empty(body), status)
    pass_time(network, 120, 30)
    assert len(reader.seen) > 1
    assert len(set(reader.seen)) == 1, "the same again"
    reader.refuses = lambda _: False
    pass_time(network, HOUR, 30)
    assert (numbers_in(sync(room.bob, since)), words(room)) == (list(range(30)), said(20))
    assert delivery_metrics(network)["dropped"] == 0


@pytest.mark.parametrize("status", [400, 413])
@pytest.mark.parametrize("hours", [1, 24])
async def test_a_proxy_that_refuses_everything_drops_no_item(
    network: Network, status: int, hours: int
) -> None:
    room, since = await much(network)
    reader = Reader(network, lambda _: True, status)
    pass_time(network, hours * HOUR, 30)
    assert len(reader.seen) <= 2 * (6 + hours)
    assert delivery_metrics(network)["failing"] == 1
    reader.refuses = lambda _: False
    pass_time(network, 2 * HOUR, 30)
    assert (numbers_in(sync(room.bob, since)), words(room)) == (list(range(30)), said(20))
    assert delivery_metrics(network)["dropped"] == 0


async def test_a_transaction_too_long_for_a_proxy_is_split(network: Network) -> None:
    room, since = await much(network, messages=90, words=40)
    reader = Reader(network, lambda body: len(body) > 6000, 413)
    network.clock.advance(5)
    network.settle()
    assert (numbers_in(sync(room.bob, since)), words(room)) == (list(range(90)), said(40))
    assert max(map(len, reader.seen)) > 6000
    assert delivery_metrics(network)["dropped"] == 0


async def test_a_message_too_long_for_a_proxy_does_not_block_others(network: Network) -> None:
    room, since = await much(network, words=0)
    reader = Reader(network, lambda body: len(body) > 20_000, 413)
    messages = {
        "messages": {room.bob.user_id: {room.bob.device_id: {"n": 30, "long": "a" * 20_000}}}
    }
    assert room.alice.put(f"{V3}/sendToDevice/org.example.number/30", messages).status == 200
    send_number_to(room.alice, room.bob, 31)
    network.clock.advance(5)
    network.settle()
    assert numbers_in(sync(room.bob, since)) == [*range(30), 31]
    assert delivery_metrics(network)["dropped"] == 1
    assert len(reader.seen) <= 20


async def test_a_proxy_with_a_wrong_limit_drops_no_item(network: Network) -> None:
    """Empty transactions are short enough for it."""
    room, since = await much(network)
    reader = Reader(network, lambda body: len(body) > 200, 413)
    pass_time(network, 2 * HOUR, 30)
    assert any(map(is_empty, reader.seen))
    assert len(reader.seen) <= 30
    reader.refuses = lambda _: False
    pass_time(network, 2 * HOUR, 30)
    assert (numbers_in(sync(room.bob, since)), words(room)) == (list(range(30)), said(20))
    assert delivery_metrics(network)["dropped"] == 0


async def test_parts_that_were_received_before_change_nothing(network: Network) -> None:
    """The server has read what it refuses, and answers so to whatever holds more than one thing."""
    room, since = await much(network)

    def refuse(request: WireRequest, answer: WireResponse) -> WireResponse:
        is_refused = request.uri.startswith(SEND) and size(request.body) > 1
        return WireResponse(400, {}, b"{}") if is_refused else answer

    network.forge(SOUTH, refuse)
    network.clock.advance(5)
    network.settle()
    assert (numbers_in(sync(room.bob, since)), words(room)) == (list(range(30)), said(20))


@pytest.mark.parametrize("trouble", ["is down", "refuses everything"])
@pytest.mark.parametrize("does_restart", [False, True])
@pytest.mark.parametrize("after", [1, 2, 3, 5, 8, 11, 14])
async def test_a_failure_during_the_search_loses_nothing(
    network: Network, trouble: str, does_restart: bool, after: int
) -> None:
    room, since = await much(network)
    is_in_trouble = True
    reader = Reader(network)

    def read(body: bytes) -> bool:
        if is_in_trouble and len(reader.seen) > after:
            if trouble == "is down":
                raise RemoteError(SOUTH, "it is down", retryable=True)
            return True
        return holds(13)(body)

    reader.refuses = read
    pass_time(network, HOUR, 30)
    if does_restart:
        room.alice = restart_north(network, room.alice)
    is_in_trouble = False
    pass_time(network, 2 * HOUR, 30)
    assert numbers_in(sync(room.bob, since)) == [number for number in range(30) if number != 13]
    assert words(room) == said(20)
    say(room.alice, room.room_id, "w20")
    network.settle()
    assert words(room) == said(21)
    assert delivery_metrics(network)["dropped"] == 1


async def test_a_server_that_takes_nothing_but_empty_transactions_costs_little(
    network: Network,
) -> None:
    room, since = await much(network)
    reader = Reader(network, lambda body: not is_empty(body))
    network.clock.advance(5)
    network.settle()
    assert delivery_metrics(network)["dropped"] == 3
    assert len(reader.seen) <= 16
    reader.seen.clear()
    pass_time(network, HOUR, 30)
    lost = delivery_metrics(network)["dropped"]
    assert lost <= 3 + 6, "one a try, and these are ever rarer"
    assert len(reader.seen) <= 6 * 8
    network.servers[NORTH].app.federation_sender.sender.record_activity(ServerName(SOUTH))
    reader.refuses = lambda _: False
    pass_time(network, 2 * HOUR, 30)
    assert (numbers_in(sync(room.bob, since)), words(room)) == (list(range(lost, 30)), said(20))


async def test_an_active_server_that_accepts_nothing_loses_little(network: Network) -> None:
    await much(network)
    Reader(network, lambda body: not is_empty(body))
    for _ in range(600):
        network.servers[NORTH].app.federation_sender.sender.record_activity(ServerName(SOUTH))
        network.clock.advance(1)
    assert delivery_metrics(network)["dropped"] <= 3 + 3 + 10, "one a minute"


async def test_many_refused_messages_in_a_row_are_dropped_one_by_one(network: Network) -> None:
    bad = range(2, 15)
    room, since = await much(network)
    reader = Reader(network, holds(*bad))
    pass_time(network, 14 * HOUR, 30)
    assert numbers_in(sync(room.bob, since)) == [
        number for number in range(30) if number not in bad
    ]
    assert words(room) == said(20)
    assert delivery_metrics(network)["dropped"] == len(bad)
    alone = [body for body in reader.seen if size(body) == 1 and reader.refuses(body)]
    assert len(alone) == len(bad)


async def test_refused_messages_among_accepted_ones_cause_no_backoff(network: Network) -> None:
    room, since = await much(network)
    Reader(network, holds(*range(0, 30, 2)))
    network.clock.advance(5)
    network.settle()
    assert numbers_in(sync(room.bob, since)) == list(range(1, 30, 2))
    assert words(room) == said(20)
    assert delivery_metrics(network)["dropped"] == 15


async def test_backoff_grows_while_single_items_are_refused(network: Network) -> None:
    room, _ = await much(network, messages=0, words=0)
    Reader(network, lambda body: not is_empty(body))
    for number in range(60):
        send_number_to(room.alice, room.bob, number)
        pass_time(network, 60, 30)
    assert delivery_metrics(network)["dropped"] <= 3 + 6


async def test_an_item_that_causes_500_does_not_block_others_forever(network: Network) -> None:
    """It answers 500, as it may for many reasons: so it has time to mend, and what it may get later
    is not thrown away."""
    room, since = await much(network)
    reader = Reader(network, lambda body: holds(13)(body) or b'"w7"' in body, 500)
    pass_time(network, 600, 30)
    assert len(set(reader.seen)) == 1, "the same again"
    assert delivery_metrics(network)["dropped"] == 0
    pass_time(network, 3600, 30)
    assert numbers_in(sync(room.bob, since)) == [number for number in range(30) if number != 13]
    assert words(room) == said(20), "which it has fetched"
    assert delivery_metrics(network)["dropped"] == 2
    assert delivery_metrics(network)["failing"] == 0
    assert len(reader.seen) <= 50


async def test_a_server_that_can_store_nothing_loses_nothing(network: Network) -> None:
    """It takes what it need not keep, and empty transactions, for a day."""
    room, since = await much(network)
    reader = Reader(
        network, lambda body: b"m.direct_to_device" in body or b'"pdus":[]' not in body, 500
    )
    for _ in range(48):
        ok(
            room.alice.put(
                room_path(room.room_id, "typing", room.alice.user_id),
                {"typing": True, "timeout": 60_000},
            )
        )
        pass_time(network, 1800, 30)
    assert delivery_metrics(network)["dropped"] == 0
    assert len(reader.seen) <= 24 * 75, "twice as many as there are things, and seldom so many"
    reader.refuses = lambda _: False
    pass_time(network, 2 * HOUR, 30)
    assert (numbers_in(sync(room.bob, since)), words(room)) == (list(range(30)), said(20))


async def test_a_single_item_that_causes_500_waits_for_another_to_be_accepted(
    network: Network,
) -> None:
    room, since = await much(network, messages=0, words=0)
    Reader(network, holds(1), 500)
    send_number_to(room.alice, room.bob, 1)
    pass_time(network, 5 * HOUR, 30)
    assert delivery_metrics(network)["dropped"] == 0
    send_number_to(room.alice, room.bob, 2)
    pass_time(network, 2 * HOUR, 30)
    assert numbers_in(sync(room.bob, since)) == [2]
    assert delivery_metrics(network)["dropped"] == 1


@pytest.mark.parametrize("bad", [range(3), range(12), range(10, 14)])
async def test_many_items_that_cause_500_do_not_block_others_forever(
    network: Network, bad: range
) -> None:
    """Such as all of one room that it cannot write to any more, from the oldest thing on that it
    lacks."""
    room, since = await much(network, messages=50)
    reader = Reader(network, holds(*bad), 500)
    pass_time(network, 6 * HOUR, 30)
    assert numbers_in(sync(room.bob, since)) == [
        number for number in range(50) if number not in bad
    ]
    assert words(room) == said(20)
    assert delivery_metrics(network)["dropped"] == len(bad)
    assert len(reader.seen) <= 100


async def test_a_server_that_can_store_no_events_gets_all_to_device_messages(
    network: Network,
) -> None:
    """However many there are; and the events when it can."""
    room, since = await much(network, messages=90)
    reader = Reader(network, lambda body: b'"pdus":[]' not in body, 500)
    pass_time(network, 12 * HOUR, 30)
    assert numbers_in(sync(room.bob, since)) == list(range(90))
    assert delivery_metrics(network)["dropped"] == 0
    seen = len(reader.seen)
    pass_time(network, 4 * HOUR, 30)
    assert not any(b"m.direct_to_device" in body for body in reader.seen[seen:]), (
        "they are not sent again"
    )
    reader.refuses = lambda _: False
    pass_time(network, 2 * HOUR, 30)
    assert words(room) == said(20)
