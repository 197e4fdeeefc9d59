"""Sliding sync: lists with filters, kept between requests, equal lists computed from all rooms."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from homeserver.services.sliding_sync.room_order import MAX_FILTERS
from storage.engine.database import Database
from tests.helpers.room_actions import create, say, set_state
from tests.helpers.server import TestServer, User
from tests.helpers.sliding_client import SlidingClient, a_list, act

pytestmark = pytest.mark.usefixtures("compared")

MEGOLM = {"algorithm": "m.megolm.v1.aes-sha2"}
FILTERS: dict[str, dict[str, Any]] = {
    "rooms": {"not_room_types": ["m.space"]},
    "people": {"is_dm": True},
    "favourites": {"tags": ["m.favourite"]},
    "secret": {"is_encrypted": True, "is_invite": False},
    "invites": {"is_invite": True},
    "tea": {"room_name_like": "tea", "not_tags": ["m.lowpriority"]},
}


def lists_of(user: User) -> dict[str, list[str]]:
    """By list the rooms in its window, in order."""
    found = {}
    for name, filters in FILTERS.items():
        answer = SlidingClient(user, "filters", lists={"a": a_list([0, 3], **filters)}).sync()
        count = answer["lists"]["a"]["count"]
        found[name] = [f"of {count}", *answer["rooms"]]
    return found


@pytest.mark.parametrize("seed", [1, 2])
def test_cached_filter_results_equal_computed_ones(
    tmp_path: Path, sqlite_database: Database, seed: int
) -> None:
    random = Random(seed)
    server = TestServer(tmp_path, sqlite_database)
    alice, bob = server.register("alice"), server.register("bob")
    data = f"/_matrix/client/v3/user/{alice.user_id}"
    rooms = [
        create(alice, name=f"{drink} {number}")
        for number in range(3)
        for drink in ("tea", "coffee")
    ]
    rooms.append(create(alice, creation_content={"type": "m.space"}))

    def tag(room_id: str) -> None:
        name = random.choice(("m.favourite", "m.lowpriority"))
        path = f"{data}/rooms/{room_id}/tags/{name}"
        assert (alice.delete(path) if random.random() < 0.4 else alice.put(path, {})).status == 200

    def leave(room_id: str) -> None:
        if len(rooms) > 4:
            act(alice, room_id, "leave")
            rooms.remove(room_id)

    def speak(room_id: str) -> None:
        say(alice, room_id, f"m{random.random()}")

    actions: list[Callable[[str], object]] = [
        speak,
        speak,
        lambda room_id: set_state(
            alice, room_id, "m.room.name", {"name": random.choice(("Tea", "milk"))}
        ),
        lambda room_id: set_state(alice, room_id, "m.room.encryption", MEGOLM),
        lambda _: alice.put(
            f"{data}/account_data/m.direct", {bob.user_id: random.sample(rooms, 2)}
        ),
        lambda _: rooms.append(create(alice, name="tea again")),
        lambda _: create(bob, invite=[alice.user_id], name="tea for two"),
        tag,
        leave,
    ]
    for step in range(24):
        random.choice(actions)(random.choice(rooms))
        kept = lists_of(alice)
        assert kept == lists_of(alice)
        alice.server = TestServer(tmp_path, sqlite_database, seed=step + 2)  # it remembers nothing
        assert kept == lists_of(alice), step
        alice.server = server


def test_many_filters_are_answered(server: TestServer) -> None:
    alice = server.register("alice")
    rooms = [create(alice, name=f"room {number}") for number in range(2 * MAX_FILTERS)]
    for _ in range(2):
        for number, room_id in enumerate(rooms):
            wanted = {"a": a_list([0, 15], room_name_like=f"M {number}")}
            found = SlidingClient(alice, "filters", lists=wanted).sync()
            assert room_id in found["rooms"]
