"""Destinations that answer 429 get nothing until the time that they name, and do not count as down.

spec: client-server-api#rate-limiting
"""

from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from federation.peers.wire import WireRequest, WireResponse
from federation.protocol.ids import ServerName
from federation.sender import transaction_sender
from homeserver.services.federation.destinations import DEAD_DAYS
from tests.helpers.encrypted_rooms import begin_claim, encrypted_room, receive_numbers, send_number
from tests.helpers.federated_rooms import EAST, NORTH, SOUTH, Shared, Side, adopt, texts
from tests.helpers.federation_sender import DESTINATIONS, LARGE_TEXT, SLOW_TO_DEVICE, restart_north
from tests.helpers.keys import claim, query
from tests.helpers.logins import another_device
from tests.helpers.network import Fate, Network
from tests.helpers.recording_wire import SEND
from tests.helpers.room_actions import say
from tests.helpers.server import make_admin


class Busy:
    """The south, where it has too much to do with transactions."""

    def __init__(
        self, network: Network, headers: Mapping[str, str], body: Mapping[str, Any]
    ) -> None:
        self.is_busy = True
        self.tries: list[float] = []
        """After how many seconds each transaction came."""
        self._answer = _busy(headers, body)
        self._network = network
        self._begun = network.clock.seconds()
        network.interceptors.append(self._refuse)

    def _refuse(self, destination: ServerName, request: WireRequest) -> WireResponse | None:
        if destination != SOUTH or not request.uri.startswith(SEND):
            return None
        self.tries.append(self._network.clock.seconds() - self._begun)
        return self._answer if self.is_busy else None

    def lets_wait(self, seconds: int) -> None:
        """From now on it asks for so much."""
        self._answer = _busy({"retry-after": f"{seconds}"}, {})

    def pass_time(self, seconds: int) -> None:
        self._network.settle()
        for _ in range(seconds):
            self._network.clock.advance(1)
            self._network.settle()


@pytest.mark.parametrize(
    ("headers", "body", "tries"),
    [
        ({"retry-after": "60"}, {}, [0, 60, 120, 180, 315]),
        ({}, {"retry_after_ms": 60_000}, [0, 60, 120, 180, 315]),
        ({"retry-after": "60"}, {"retry_after_ms": 1000}, [0, 60, 120, 180, 315]),
        ({"retry-after": "1"}, {}, [0, 5, 20, 65, 200]),
        ({"retry-after": "-1"}, {"retry_after_ms": "soon"}, [0, 5, 20, 65, 200]),
        ({"retry-after": "999999999"}, {}, [0, 3600]),
        ({}, {"retry_after_ms": 1 << 60}, [0, 3600]),
        ({}, {"retry_after_ms": -1}, [0, 5, 20, 65, 200]),
        ({}, {"retry_after_ms": True}, [0, 5, 20, 65, 200]),
        ({"retry-after": "soon"}, {"retry_after_ms": [60_000]}, [0, 5, 20, 65, 200]),
        (
            {
                "retry-after": "Mon, 01 Jan 2001 00:01:00 GMT",
                "date": "Mon, 01 Jan 2001 00:00:00 GMT",
            },
            {"retry_after_ms": 1000},
            [0, 60, 120, 180, 315],
        ),
        ({"retry-after": "Fri, 31 Dec 2100 23:59:59 GMT"}, {}, [0, 3600]),
        ({"retry-after": "Mon, 01 Jan 2001 00:01:00 GMT"}, {}, [0, 5, 20, 65, 200]),
    ],
    ids=[
        "header",
        "body",
        "header before body",
        "too soon",
        "malformed",
        "too late",
        "too late in the body",
        "negative",
        "no number",
        "no number in a list",
        "a date",
        "a date too late",
        "a date that is over",
    ],
)
async def test_a_rate_limited_destination_is_left_alone_until_retry_after(
    network: Network, headers: Mapping[str, str], body: Mapping[str, Any], tries: list[float]
) -> None:
    """And as long as our own pauses are, but no longer than the longest of these."""
    room = await encrypted_room(network)
    busy = Busy(network, headers, body)
    say(room.alice, room.room_id, "salom")
    busy.pass_time(int(tries[-1]) + 1)
    assert busy.tries == tries

    busy.is_busy = False
    busy.pass_time(3600)
    assert texts(room.bob, room.room_id)[0] == "salom"


async def test_activity_of_a_server_that_asked_to_wait_causes_no_earlier_try(
    network: Network,
) -> None:
    room = await encrypted_room(network)
    busy = Busy(network, {"retry-after": "60"}, {})
    say(room.alice, room.room_id, "salom")
    for _ in range(5):
        busy.pass_time(10)
        say(room.bob, room.room_id, "alik")
    assert busy.tries == [0]
    busy.is_busy = False
    busy.pass_time(12)
    assert busy.tries == [0, 60]
    assert "salom" in texts(room.bob, room.room_id)


async def test_a_rate_limited_destination_may_be_queried_for_keys(network: Network) -> None:
    """However long it is that it takes no transactions: whose keys cannot be had cannot read what
    is sent."""
    room = await encrypted_room(network)
    busy = Busy(network, {"retry-after": "600"}, {})
    say(room.alice, room.room_id, "salom")
    busy.pass_time(40)
    assert query(room.alice, room.bob)["failures"] == {}
    assert query(room.alice, room.bob)["device_keys"][room.bob.user_id].keys() == {
        room.bob.device_id
    }
    assert claim(room.alice, room.bob)
    assert busy.tries == [0]


def claim_while_mended(network: Network, room: Shared) -> None:
    """A claim that begins while the way is cut is answered once it is not."""
    claiming = begin_claim(room)
    network.clock.advance(1)
    assert not claiming.done
    network.mend(NORTH, SOUTH)
    network.clock.advance(1)
    assert claiming.answer.json["one_time_keys"][room.bob.user_id][room.bob.device_id]


async def test_a_claim_is_retried_while_the_server_that_asked_to_wait_restarts(
    network: Network,
) -> None:
    """It was there all the time, though it took in nothing."""
    room = await encrypted_room(network)
    busy = Busy(network, {"retry-after": "600"}, {})
    say(room.alice, room.room_id, "salom")
    busy.pass_time(40)
    network.cut(NORTH, SOUTH)
    claim_while_mended(network, room)


async def test_a_server_that_asked_to_wait_is_not_down_after_one_failed_try(
    network: Network,
) -> None:
    """Not before it has said nothing for as long as one takes to start again."""
    room = await encrypted_room(network)
    busy = Busy(network, {"retry-after": "60"}, {})
    say(room.alice, room.room_id, "salom")
    busy.pass_time(55)
    busy.is_busy = False
    network.cut(NORTH, SOUTH)
    busy.pass_time(6)
    claim_while_mended(network, room)


async def test_messages_for_a_returning_destination_are_not_dropped(network: Network) -> None:
    """It was away for nearly as long as messages are kept for a server that cannot be reached, and
    has much to do now."""
    room = await encrypted_room(network)
    _, since = receive_numbers(room.bob)
    destinations = room.north.server.app.federation_sender.destinations
    network.cut(NORTH, SOUTH)
    send_number(room.alice, 0, {room.bob.user_id: {room.bob.device_id: {"n": 0}}})
    network.settle()
    for _ in range(DEAD_DAYS - 1):
        network.clock.advance(24 * 3600)
    network.mend(NORTH, SOUTH)
    busy = Busy(network, {"retry-after": "3600"}, {})
    for _ in range(25):
        busy.pass_time(1)
        network.clock.advance(3600)
    assert len(busy.tries) > 20
    assert room.north.server.run(destinations.do_remove_expired(10)) == 0
    busy.is_busy = False
    network.clock.advance(3600)
    network.settle()
    assert receive_numbers(room.bob, since)[0] == [0]


async def test_retry_after_survives_a_restart(network: Network) -> None:
    """And our own pauses are no longer for it."""
    room = await encrypted_room(network)
    busy = Busy(network, {"retry-after": "600"}, {})
    say(room.alice, room.room_id, "salom")
    busy.pass_time(10)
    room.alice = restart_north(network, room.alice)
    for _ in range(5):
        busy.pass_time(10)
        say(room.bob, room.room_id, "alik")
    assert query(room.alice, room.bob)["failures"] == {}
    busy.pass_time(530)
    assert busy.tries == [0]
    busy.lets_wait(1)
    busy.pass_time(30)
    assert busy.tries == [0, 600, 615]
    busy.is_busy = False
    busy.pass_time(60)
    assert "salom" in texts(room.bob, room.room_id)


async def test_a_transaction_whose_response_was_lost_is_not_received_twice(
    network: Network,
) -> None:
    """Then it asks us to wait, and gets in parts what it has."""
    room = await encrypted_room(network)
    _, since = receive_numbers(room.bob)
    network.cut(NORTH, SOUTH)
    for number in range(8):
        send_number(room.alice, number, {room.bob.user_id: {room.bob.device_id: {"n": number}}})
        say(room.alice, room.room_id, f"w{number}")
    network.settle()
    network.mend(NORTH, SOUTH)
    network.choose_fate = lambda transfer: (
        Fate.ANSWER_IS_LOST if SEND in transfer.request.uri else Fate.ARRIVES
    )
    network.clock.advance(5)
    network.settle()
    busy = Busy(network, {"retry-after": "60"}, {})
    busy.pass_time(20)
    network.choose_fate = lambda _: Fate.ARRIVES
    busy.is_busy = False
    busy.pass_time(60)
    assert len(busy.tries) > 2, "it came in parts"
    assert receive_numbers(room.bob, since)[0] == [*range(8)]
    assert texts(room.bob, room.room_id)[:8] == [f"w{number}" for number in reversed(range(8))]


async def test_a_destination_that_fails_after_some_parts_loses_nothing(network: Network) -> None:
    """As one whose disk is full: what it took before does not show that it is what is left at which
    it breaks down."""
    room = await encrypted_room(network)
    _, since = receive_numbers(room.bob)
    network.cut(NORTH, SOUTH)
    for number in range(30):
        send_number(room.alice, number, {room.bob.user_id: {room.bob.device_id: {"n": number}}})
    network.settle()
    network.mend(NORTH, SOUTH)
    room_left, is_broken = 20, False

    def answer(destination: ServerName, request: WireRequest) -> WireResponse | None:
        nonlocal room_left
        if destination != SOUTH or not request.uri.startswith(SEND):
            return None
        edus = len(msgspec.json.decode(request.body)["edus"])
        if is_broken:
            return WireResponse(500, {}, b"{}") if edus else None
        if edus > room_left:
            return WireResponse(429, {"retry-after": "60"}, b"{}")
        room_left -= edus
        return None

    network.interceptors.append(answer)
    for _ in range(8):
        network.clock.advance(30)
    taken, since = receive_numbers(room.bob, since)
    assert 0 < len(taken) < 30
    is_broken = True
    for _ in range(24):
        network.clock.advance(1800)
    network.interceptors.clear()
    network.clock.advance(3600)
    network.settle()
    assert [*taken, *receive_numbers(room.bob, since)[0]] == [*range(30)]


async def test_only_some_split_transactions_stay_in_memory_while_servers_ask_to_wait(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transaction is built again from the unsent data, and nothing is lost."""
    monkeypatch.setattr(transaction_sender, "MAX_RETAINED_TRANSACTIONS", 1)
    room = await encrypted_room(network)
    east = Side(network.add(EAST))
    carol = east.server.register("carol")
    await adopt(room.north, east, carol.user_id, room.room_id)
    people = {SOUTH: room.bob, EAST: carol}
    network.settle()
    tokens = {server: receive_numbers(user)[1] for server, user in people.items()}
    network.cut(NORTH, SOUTH)
    network.cut(NORTH, EAST)
    for number in range(4):
        send_number(
            room.alice,
            number,
            {user.user_id: {user.device_id: {"n": number}} for user in people.values()},
        )
    network.settle()
    network.mend(NORTH, SOUTH)
    network.mend(NORTH, EAST)
    seen: dict[str, list[int]] = {SOUTH: [], EAST: []}

    def refuse(destination: ServerName, request: WireRequest) -> WireResponse | None:
        if destination not in seen or not request.uri.startswith(SEND):
            return None
        seen[destination].append(len(msgspec.json.decode(request.body)["edus"]))
        return WireResponse(429, {"retry-after": "60"}, b"{}")

    network.interceptors.append(refuse)
    for _ in range(6 * 120):
        network.clock.advance(30)
    assert sorted(sizes[-1] for sizes in seen.values()) == [1, 4]
    network.interceptors.clear()
    network.clock.advance(3600)
    network.settle()
    for server, user in people.items():
        assert receive_numbers(user, tokens[server])[0] == [*range(4)]


async def test_an_operator_sees_that_a_destination_is_rate_limited(network: Network) -> None:
    """And when it is tried again; and since when it cannot be reached, once that is so."""
    room = await encrypted_room(network)
    root = make_admin(room.north.server)
    busy = Busy(network, {"retry-after": "600"}, {})

    def look() -> tuple[dict[str, Any], int, int]:
        figures = room.north.server.app.federation_sender.deliveries.get_metrics()
        return (
            root.get(f"{DESTINATIONS}/{SOUTH}").json,
            figures["failing"],
            figures["rate_limiting"],
        )

    say(room.alice, room.room_id, "salom")
    network.settle()
    now = int(network.clock.seconds() * 1000)
    standing, failing, waiting = look()
    assert (failing, waiting) == (0, 1)
    assert standing["failure_ts"] is None
    assert (standing["retry_last_ts"], standing["retry_interval"]) == (now, 600_000)
    assert standing["asked_until_ts"] == now + 600_000
    assert "429" in standing["error"]

    busy.is_busy = False
    network.cut(NORTH, SOUTH)
    busy.pass_time(601)
    standing, failing, waiting = look()
    assert (failing, waiting) == (1, 0)
    assert standing["failure_ts"] == standing["retry_last_ts"] > now
    assert standing["asked_until_ts"] is None

    network.mend(NORTH, SOUTH)
    busy.pass_time(60)
    standing, failing, waiting = look()
    assert (failing, waiting) == (0, 0)
    assert (standing["failure_ts"], standing["asked_until_ts"], standing["retry_interval"]) == (
        None,
        None,
        0,
    )


async def test_an_operator_can_retry_a_rate_limited_destination_at_once(network: Network) -> None:
    room = await encrypted_room(network)
    root = make_admin(room.north.server)
    busy = Busy(network, {"retry-after": "600"}, {})
    say(room.alice, room.room_id, "salom")
    busy.pass_time(10)
    assert root.get(f"{DESTINATIONS}/{SOUTH}").json["retry_interval"] == 600_000
    busy.is_busy = False
    assert root.post(f"{DESTINATIONS}/{SOUTH}/reset_connection", {}).status == 200
    busy.pass_time(1)
    assert texts(room.bob, room.room_id)[0] == "salom"


async def test_two_of_our_servers_respect_each_others_rate_limits(network: Network) -> None:
    """Messages beyond the rate limit of the other server wait as long as it says, and arrive in
    order, mixed with room messages."""
    room = await encrypted_room(network)
    room.north.server = room.alice.server = network.rebuild(NORTH, SLOW_TO_DEVICE)
    second = another_device(room.alice)
    network.settle()
    (_, since), (_, seconds) = receive_numbers(room.alice), receive_numbers(second)
    transactions = len(sent(network))
    for number in range(20):
        send_number(
            room.bob, number, {room.alice.user_id: {"*": {"n": number, "padding": LARGE_TEXT}}}
        )
        say(room.bob, room.room_id, f"w{number}")
        network.settle()
    for _ in range(320):  # twenty messages of sixteen seconds each
        network.clock.advance(1)
        network.settle()
    assert (
        receive_numbers(room.alice, since)[0] == receive_numbers(second, seconds)[0] == [*range(20)]
    )
    assert texts(room.alice, room.room_id)[:20] == [f"w{number}" for number in reversed(range(20))]
    assert len(sent(network)) - transactions <= 40, "two a message"


def _busy(headers: Mapping[str, str], body: Mapping[str, Any]) -> WireResponse:
    return WireResponse(
        429, dict(headers), msgspec.json.encode({"errcode": "M_LIMIT_EXCEEDED", **body})
    )


def sent(network: Network) -> list[str]:
    return [uri for _, to, _, uri in network.log if to == NORTH and uri.startswith(SEND)]
