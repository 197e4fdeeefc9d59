"""/sync with the state after the timeline, under the name by which the client asked for it."""

import json
from urllib.parse import quote

import pytest

from tests.helpers.federated_rooms import two_users
from tests.helpers.network import Network
from tests.helpers.room_actions import create, invite, leave
from tests.helpers.server import TestServer, User


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
def test_the_section_has_the_requested_name(server: TestServer, query: str, section: str) -> None:
    alice = server.register("alice")
    room_id = alice.post("/_matrix/client/v3/createRoom", {"name": "Choyxona"}).json["room_id"]
    room = alice.get(f"/_matrix/client/v3/sync?{query}").json["rooms"]["join"][room_id]
    assert [name for name in room if "state" in name] == [section]
    named = [event for event in room[section]["events"] if event["type"] == "m.room.name"]
    assert bool(named) == (section != "state"), (
        "the name is in the timeline, so not in the state before it"
    )


def own_departures(user: User, room_id: str, since: str, state: object = None) -> list[object]:
    """The state after the timeline of a room that the user has rejected."""
    filter_ = quote(json.dumps({"room": {"state": state or {}}}))
    answer = user.get(
        f"/_matrix/client/v3/sync?use_state_after=true&since={since}&filter={filter_}"
    ).json
    (received,) = answer["rooms"]["leave"][room_id]["timeline"]["events"][-1:]
    events = answer["rooms"]["leave"][room_id]["state_after"]["events"]
    assert all(event["event_id"] == received["event_id"] for event in events)
    return [(event["state_key"], event["content"]["membership"]) for event in events]


def turn_down(alice: User, bob: User) -> tuple[str, str]:
    """Bob is invited, and does not come; the room, and a token of before he said so."""
    room_id = create(alice, name="Choyxona")
    invite(alice, room_id, bob)
    since = bob.get("/_matrix/client/v3/sync").json["next_batch"]
    leave(bob, room_id)
    return room_id, since


def test_a_declined_invite_is_in_the_leave_section(server: TestServer) -> None:
    bob = server.register("bob")
    room_id, since = turn_down(server.register("alice"), bob)
    assert own_departures(bob, room_id, since) == [(bob.user_id, "leave")]
    assert own_departures(bob, room_id, since, {"types": ["m.room.name"]}) == []


def test_a_declined_remote_invite_is_in_the_leave_section(network: Network) -> None:
    alice, bob = two_users(network)
    room_id, since = turn_down(alice, bob)
    assert own_departures(bob, room_id, since) == [(bob.user_id, "leave")]
    assert own_departures(bob, room_id, since, {"not_types": ["m.room.member"]}) == []
