"""Sliding sync: the fast path for rooms with plain messages returns the same as the complete path,
in random histories.

People do things at random; clients of one of them ask for something and mostly ask for the same
again. Each response with the short way in it is made in the full way too, and compared
(`tests/helpers/sync_comparison.py`). `MAHALLA_SYNC_RUNS=1000` makes a thousand such histories.
"""

import os

import pytest

from homeserver.services.sliding_sync import batches
from tests.helpers.chat_machine import ChatMachine
from tests.helpers.room_actions import create, say
from tests.helpers.server import TestServer
from tests.helpers.sliding_client import SlidingClient, a_list
from tests.helpers.state_machines import PHASES_WITHOUT_SHRINKING, run_machine
from tests.helpers.sync_comparison import both_ways

RUNS = int(os.environ.get("MAHALLA_SYNC_RUNS", "15"))
V3 = "/_matrix/client/v3"


def test_the_fast_path_returns_the_same_as_the_complete_path() -> None:
    ChatMachine.with_messages = ChatMachine.plainly = 0
    run_machine(ChatMachine, RUNS, 40, PHASES_WITHOUT_SHRINKING)
    assert ChatMachine.with_messages > 5 * RUNS
    assert ChatMachine.plainly > 5 * RUNS


def test_equal_requests_in_other_bytes_take_the_complete_path(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MAX_EVENTS_PER_BATCH", 30)
    alice = server.register("alice")
    room_ids = [create(alice) for _ in range(4)]
    client = SlidingClient(alice, lists={"all": a_list([0, 9], limit=20)})
    client.sync()
    client.sync()
    with both_ways() as compared:
        for room_id in room_ids:
            say(alice, room_id, "hello")
        assert client.sync()["rooms"].keys() == set(room_ids)
        assert len(compared) == 1
        monkeypatch.setattr(batches, "MAX_RESPONSE_BYTES", 100)
        for room_id in room_ids:
            say(alice, room_id, "again")
        answers = [client.sync() for _ in room_ids]
        # the newest first
        assert [list(answer["rooms"]) for answer in answers] == [
            [room_id] for room_id in reversed(room_ids)
        ]
