"""Power levels that local users set. spec: server-server-api#definitions"""

from typing import Any

import pytest

from tests.helpers.server import TestServer

V3 = "/_matrix/client/v3"


@pytest.mark.parametrize(
    "levels",
    [
        {"ban": "50"},
        {"users": {"@alice:example.org": "100"}},
        {"events": {"m.x": True}},
        {"notifications": {"room": "1"}},
    ],
)
def test_local_power_levels_are_integers_in_every_version(
    server: TestServer, levels: dict[str, Any]
) -> None:
    alice = server.register("alice")
    room = {"room_version": "9"}  # versions in which other servers may still send strings
    room_id = alice.post(f"{V3}/createRoom", room).json["room_id"]
    answer = alice.put(f"{V3}/rooms/{room_id}/state/m.room.power_levels", levels)
    assert (answer.status, answer.errcode) == (400, "M_BAD_JSON")
    answer = alice.post(f"{V3}/createRoom", {**room, "power_level_content_override": levels})
    assert (answer.status, answer.errcode) == (400, "M_BAD_JSON")
