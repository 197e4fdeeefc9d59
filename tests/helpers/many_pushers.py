"""A room in which many users have pushers, and push batches of a few users."""

from typing import Final

import pytest

from federation.protocol.ids import RoomID
from homeserver.services.pushers import queues, stream_reader
from tests.helpers.clocks import settle
from tests.helpers.federated_rooms import create_room
from tests.helpers.push_gateway import set_pusher
from tests.helpers.server import TestServer, User

AT_ONCE: Final = 3
CROWD: Final = 8


def shrink_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reduce the batch sizes of push and of waking to `AT_ONCE`."""
    monkeypatch.setattr(stream_reader, "NOTIFY_BATCH", AT_ONCE)
    monkeypatch.setattr(queues, "WAKES_PER_TURN", AT_ONCE)


def room_with_pushers(server: TestServer) -> tuple[User, RoomID]:
    """Create Bob's room with `CROWD` users who have pushers. Return Bob and the room."""
    bob = server.register("bob")
    room_id = create_room(bob)
    for number in range(CROWD):
        user = server.register(f"user{number}")
        assert user.post(f"/_matrix/client/v3/join/{room_id}").status == 200
        assert set_pusher(user, f"key{number}").status == 200
    settle(server)
    return bob, room_id
