"""Responses to transactions are cached for each server, within a bound."""

import tracemalloc

from federation.protocol.ids import ServerName
from federation.receiver.transactions import MAX_CACHED_RESPONSES, TransactionResponseCache
from tests.helpers.federated_rooms import NORTH, SOUTH, shared, texts
from tests.helpers.network import Network
from tests.helpers.room_actions import say

NORTHERN, SOUTHERN = ServerName("north.example"), ServerName("south.example")


async def test_the_latest_responses_to_a_server_are_cached(network: Network) -> None:
    room = await shared(network)
    network.cut(NORTH, SOUTH)
    first, second = [
        await room.pdu(say(room.alice, room.room_id, text)) for text in ("first", "second")
    ]
    network.mend(NORTH, SOUTH)
    for txn_id in ("one", "two", "three"):
        await room.north.push(SOUTH, [first], txn_id=txn_id)
    await room.north.push(SOUTH, [second], txn_id="three")
    assert texts(room.bob, room.room_id) == ["first"]
    await room.north.push(SOUTH, [second], txn_id="one")
    assert texts(room.bob, room.room_id) == ["second", "first"]


def test_the_latest_responses_to_each_server_are_cached() -> None:
    answers = TransactionResponseCache()
    for number in range(5):
        answers.add(NORTHERN, f"{number}", b"n%d" % number)
        answers.add(SOUTHERN, f"{number}", b"s%d" % number)
    kept = [number for number in range(5) if answers.find(NORTHERN, f"{number}") is not None]
    assert kept == list(range(5 - MAX_CACHED_RESPONSES, 5))
    assert (answers.find(NORTHERN, "4"), answers.find(SOUTHERN, "4")) == (b"n4", b"s4")


def test_the_cache_is_bounded_and_evicts_idle_servers_first() -> None:
    answers = TransactionResponseCache(1 << 20)
    answers.add(SOUTHERN, "idle", b"s")
    tracemalloc.start()
    try:
        for number in range(20_000):
            answers.add(ServerName(f"x{number}.example"), f"{number}", b"x" * (number % 7000))
            answers.add(NORTHERN, f"{number}", b"n")
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 3 << 20
    assert answers.find(SOUTHERN, "idle") is None
    assert answers.find(NORTHERN, "19999") == b"n"
    assert answers.find(ServerName("x19999.example"), "19999") is not None
    assert answers.find(ServerName("x15000.example"), "15000") is None
