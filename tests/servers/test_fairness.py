"""Turns of other servers: so many at once, a pause for who asks too often, a refusal for who has
too many waiting."""

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from federation.api.request import Peer
from federation.peers.peer_queue import MAX_COUNTED, PeerLimits, PeerQueue
from federation.protocol.errors import LimitExceeded
from federation.protocol.ids import ServerName
from homeserver.api.endpoint import Auth, endpoint
from tests.helpers.http import client_for


class Waiting(list[Deferred[None]]):
    """The deferreds that the handlers wait for."""


NORTH, SOUTH = ServerName("north.example"), ServerName("south.example")
LIMITS = PeerLimits(window=1.0, requests_per_window=100, delay=0.5, max_waiting=4, max_concurrent=2)


def enter(turns: PeerQueue, server: ServerName = NORTH) -> Deferred[None]:
    return Deferred.fromCoroutine(turns.enter(server))


def test_a_bounded_number_run_at_once_and_the_others_follow_in_order() -> None:
    turns = PeerQueue(clock=Clock(), limits=LIMITS)
    asked = [enter(turns) for _ in range(5)]
    assert [each.called for each in asked] == [True, True, False, False, False]
    turns.leave(NORTH)
    assert [each.called for each in asked] == [True, True, True, False, False]
    turns.leave(NORTH)
    turns.leave(NORTH)
    assert all(each.called for each in asked)


def test_servers_do_not_wait_for_one_another() -> None:
    turns = PeerQueue(clock=Clock(), limits=LIMITS)
    for _ in range(6):
        enter(turns)
    assert enter(turns, SOUTH).called


async def test_a_server_with_too_many_waiting_requests_is_refused() -> None:
    turns = PeerQueue(clock=Clock(), limits=LIMITS)
    for _ in range(6):
        enter(turns)
    with pytest.raises(LimitExceeded):
        await turns.enter(NORTH)
    turns.leave(NORTH)
    assert not enter(turns).called


def test_a_server_above_the_rate_has_each_further_request_delayed() -> None:
    clock = Clock()
    turns = PeerQueue(
        clock=clock,
        limits=PeerLimits(
            window=1.0, requests_per_window=3, delay=0.5, max_waiting=9, max_concurrent=9
        ),
    )
    asked = [enter(turns) for _ in range(5)]
    assert [each.called for each in asked] == [True, True, True, False, False]
    clock.advance(0.5)
    assert all(each.called for each in asked)
    clock.advance(0.6)
    assert enter(turns).called


def test_a_server_above_the_rate_is_delayed_until_it_has_paused_for_a_window() -> None:
    clock = Clock()
    turns = PeerQueue(
        clock=clock,
        limits=PeerLimits(
            window=1.0, requests_per_window=5, delay=0.1, max_waiting=9, max_concurrent=99
        ),
    )
    for _ in range(5):
        assert enter(turns).called
    for _ in range(60):
        asked = enter(turns)
        assert not asked.called
        clock.advance(0.1)
        assert asked.called
    clock.advance(1.3)
    assert enter(turns).called


def test_a_limit_of_no_requests_delays_each() -> None:
    clock = Clock()
    turns = PeerQueue(
        clock=clock,
        limits=PeerLimits(
            window=1.0, requests_per_window=0, delay=0.5, max_waiting=9, max_concurrent=9
        ),
    )
    for _ in range(3):
        asked = enter(turns)
        assert not asked.called
        clock.advance(5)
        assert asked.called


def test_a_cancelled_request_frees_its_slot() -> None:
    clock = Clock()
    turns = PeerQueue(
        clock=clock,
        limits=PeerLimits(
            window=1.0, requests_per_window=3, delay=0.5, max_waiting=9, max_concurrent=1
        ),
    )
    enter(turns)
    gone, stays, delayed = enter(turns), enter(turns), enter(turns)
    for each in (gone, delayed):
        each.addErrback(lambda failure: failure.trap(CancelledError))
        each.cancel()
    assert clock.getDelayedCalls() == []
    turns.leave(NORTH)
    assert stays.called
    turns.leave(NORTH)
    last = enter(turns)  # the fifth within the second
    assert not last.called
    clock.advance(0.5)
    assert last.called


def test_memory_is_bounded() -> None:
    clock = Clock()
    turns = PeerQueue(clock=clock, limits=LIMITS)
    busy = ServerName("busy.example")
    enter(turns, busy)
    for number in range(3 * MAX_COUNTED):
        server = ServerName(f"s{number}.example")
        enter(turns, server)
        turns.leave(server)
        clock.advance(0.01)
    assert turns.count_servers() <= MAX_COUNTED
    turns.leave(busy)


class _NorthAsks:
    """Takes every request for one of the north's."""

    def check_head(self, authorization: list[str], uri: str) -> None:
        assert not authorization

    async def get_peer(
        self, authorization: list[str], method: str, uri: str, body: bytes, address: str = ""
    ) -> Peer:
        return Peer(NORTH)


@endpoint("GET", "/wait", auth=Auth.SERVER)
async def get_wait(waiting: Waiting, peer: Peer) -> dict[str, str]:
    """Answers when the test says so."""
    waiting.append(Deferred())
    await waiting[-1]
    return {"server": peer.server_name}


def test_a_server_above_the_rate_gets_429_and_loses_no_request() -> None:
    waiting = Waiting()
    clock = Clock()
    limits = PeerLimits(
        window=1.0, requests_per_window=100, delay=0.5, max_waiting=2, max_concurrent=1
    )
    client = client_for(
        [get_wait],
        {Waiting: waiting},
        signatures=_NorthAsks(),
        turns=PeerQueue(clock=clock, limits=limits),
        clock=clock,
    )
    asked = [client.start("GET", "/wait") for _ in range(4)]
    assert (asked[3].answer.status, asked[3].answer.json["errcode"]) == (429, "M_LIMIT_EXCEEDED")
    for number in range(3):
        assert len(waiting) == number + 1
        waiting[number].callback(None)
        assert asked[number].answer.json == {"server": NORTH}
