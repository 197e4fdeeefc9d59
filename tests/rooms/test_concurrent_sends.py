"""Sends into a room while another node writes into it faster."""

from typing import Any

import pytest

from federation.rooms.engine import MAX_REBUILDS
from storage.persist.room_writer import AppendResult, HeadMoved, RoomWriter
from tests.helpers.room_actions import all_texts, create, put_event
from tests.helpers.server import TestServer

TEXT = {"msgtype": "m.text", "body": "at last"}


def outrun(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """So often the head has moved when this node comes to write."""
    left = iter(range(times))
    append = RoomWriter.append

    def append_late(self: RoomWriter, *args: Any, **more: Any) -> AppendResult:
        if next(left, None) is not None:
            raise HeadMoved("!room:example.org")
        return append(self, *args, **more)

    monkeypatch.setattr(RoomWriter, "append", append_late)


def test_a_send_is_retried_while_another_node_is_faster(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = server.register("alice")
    room = create(alice)
    outrun(monkeypatch, 50)
    assert put_event(alice, room, "m.room.message", TEXT).status == 200


def test_a_send_that_always_conflicts_is_refused_and_can_be_retried(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no bug: nothing stands in the log as one, and what is sent again is there once."""
    alice = server.register("alice")
    room = create(alice)
    outrun(monkeypatch, MAX_REBUILDS)
    assert put_event(alice, room, "m.room.message", TEXT).status == 503
    assert put_event(alice, room, "m.room.message", TEXT).status == 200
    assert all_texts(alice, room) == ["at last"]
