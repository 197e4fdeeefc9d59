"""/sync with the state after the timeline, under the name by which the client asked for it."""

import pytest

from tests.helpers.server import TestServer


@pytest.mark.parametrize(
    ("query", "section"),
    [
        ("", "state"),
        ("use_state_after=false", "state"),
        ("use_state_after=true", "state_after"),
        ("org.matrix.msc4222.use_state_after=true", "org.matrix.msc4222.state_after"),
        ("use_state_after=true&org.matrix.msc4222.use_state_after=true", "state_after"),
    ],
)
def test_the_name_of_the_section(server: TestServer, query: str, section: str) -> None:
    alice = server.register("alice")
    room_id = alice.post("/_matrix/client/v3/createRoom", {"name": "Choyxona"}).json["room_id"]
    room = alice.get(f"/_matrix/client/v3/sync?{query}").json["rooms"]["join"][room_id]
    assert [name for name in room if "state" in name] == [section]
    named = [event for event in room[section]["events"] if event["type"] == "m.room.name"]
    assert bool(named) == (section != "state"), "the name is in the timeline, so not in the state before it"
