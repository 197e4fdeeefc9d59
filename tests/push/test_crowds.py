"""Rooms with many who have pushers: they are told in pieces, and whoever else waits for the server has their turn between."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from federation.protocol.ids import RoomID
from homeserver.services.pushers import lines as lines_module
from homeserver.services.pushers import reading as reading_module
from storage.database import Database
from storage.pushers import PusherRow
from tests.helpers.federated import create_room, say
from tests.helpers.gateway import Gateway, set_pusher, settle, start
from tests.helpers.server import TestServer, User

V3 = "/_matrix/client/v3"
AT_ONCE = 3
CROWD = 8


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


@pytest.fixture
def server(tmp_path: Path, database: Database, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> TestServer:
    monkeypatch.setattr(reading_module, "TOLD_AT_ONCE", AT_ONCE)
    monkeypatch.setattr(lines_module, "WOKEN_AT_ONCE", AT_ONCE)
    return start(tmp_path, database, gateway)


def crowd(server: TestServer) -> tuple[User, RoomID]:
    """Bob, in a room of his, with so many who have pushers."""
    bob = server.register("bob")
    room_id = create_room(bob)
    for number in range(CROWD):
        user = server.register(f"user{number}")
        assert user.post(f"{V3}/join/{room_id}").status == 200
        assert set_pusher(user, f"key{number}").status == 200
    settle(server)
    return bob, room_id


def by_turn(server: TestServer, count: Callable[[], int]) -> list[int]:
    """How many more there are after each turn of the reactor."""
    counts: list[int] = []

    def turn() -> None:
        counts.append(count())
        if len(counts) < 10 * CROWD:
            server.clock.callLater(0, turn)

    turn()
    server.clock.advance(0)
    return [after - before for before, after in pairwise(counts)]


def test_a_message_is_pushed_to_a_crowd_in_pieces(server: TestServer, gateway: Gateway) -> None:
    bob, room_id = crowd(server)
    say(bob, room_id, "hello")
    pushed = by_turn(server, lambda: len(gateway.taken))
    assert sum(pushed) == CROWD
    assert 0 < max(pushed) <= AT_ONCE


def test_what_is_taken_back_changes_the_numbers_of_a_crowd_in_pieces(
    server: TestServer, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    bob, room_id = crowd(server)
    event_id = say(bob, room_id, "hello")
    settle(server)
    deliveries, told = server.app.pushers.deliveries, list[str]()
    set_badge_due = deliveries.set_badge_due

    def note(row: PusherRow, position: int | None) -> None:
        told.append(row.user_id)
        set_badge_due(row, position)

    monkeypatch.setattr(deliveries, "set_badge_due", note)
    assert bob.put(f"{V3}/rooms/{room_id}/redact/{event_id}/1", {}).status == 200
    due = by_turn(server, lambda: len(told))
    assert sum(due) == CROWD
    assert max(due) <= AT_ONCE
    server.clock.advance(2)
    settle(server)
    assert gateway.badges == [0] * CROWD
