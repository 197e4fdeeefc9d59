"""Sliding sync: a client that follows profiles knows the same of every member of the rooms it was
sent as a new client does. Proposal: MSC4262.

People set fields, come and go; a client looks at some rooms, then at others, for all fields or for
one, and loses answers. `MAHALLA_SYNC_RUNS=1000` makes a thousand such histories.
"""

import os
from copy import deepcopy
from pathlib import Path
from random import Random
from typing import Any

import pytest

from homeserver.services.sliding_sync import batches, profiles
from storage.engine.database import Database
from tests.helpers.room_actions import create
from tests.helpers.server import TestServer, User
from tests.helpers.sliding_client import SlidingClient, a_list

RUNS = int(os.environ.get("MAHALLA_SYNC_RUNS", "8"))
NAME = "org.matrix.msc4262.profiles"
V3 = "/_matrix/client/v3"
FIELDS = ("m.tz", "org.example.a", "displayname")


class Follower:
    """A client that stores the profiles it is sent."""

    def __init__(self, user: User) -> None:
        self.client = SlidingClient(user, lists={"all": a_list([0, 1], limit=1)})
        self.known: dict[str, dict[str, Any]] = {}

    def ask(
        self, window: int, fields: list[str] | None, *, is_wanted: bool, state: list[list[str]]
    ) -> None:
        """From now on."""
        self.client.body["lists"] = {"all": a_list([0, window], limit=1, state=state)}
        self.client.body["extensions"] = {NAME: {"enabled": is_wanted, "fields": fields}}

    def sync(self, *, is_lost: bool = False) -> None:
        """Sync; the client drops profiles and fields that it no longer asks for."""
        before, known = self.client.pos, deepcopy(self.known)
        asked = self.client.body.get("extensions", {}).get(NAME, {"enabled": False, "fields": None})
        for profile in self.known.values():
            for field in list(profile):
                if not asked["enabled"] or (
                    asked["fields"] is not None and field not in asked["fields"]
                ):
                    del profile[field]
        answer = self.client.sync()
        users = answer["extensions"].get(NAME, {}).get("users", {})
        for user_id, received in users.items():
            if received is None:
                self.known.pop(user_id, None)
                continue
            profile = self.known.setdefault(user_id, {})
            profile.update(received.get("updated", {}))
            for field in received.get("removed", ()):
                profile.pop(field, None)
        if is_lost:
            self.client.pos, self.known = before, known


@pytest.mark.parametrize("seed", range(RUNS))
def test_all_profiles_in_view_are_known(
    tmp_path: Path, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    chance = Random(seed)
    monkeypatch.setattr(profiles, "MAX_PROFILES", chance.choice([2, 3, 500]))
    monkeypatch.setattr(profiles, "MAX_PARTS", chance.choice([1, 2, 16]))
    if chance.random() < 0.5:
        monkeypatch.setattr(batches, "MAX_EVENTS_PER_BATCH", 1)
        monkeypatch.setattr(batches, "MAX_RESPONSE_BYTES", 1000)
    server = TestServer(tmp_path, sqlite_database)
    alice, *others = people = [
        server.register(name) for name in ("alice", "bob", "carol", "dave", "erin", "frank")
    ]
    rooms = [create(alice, preset="public_chat", name=f"{number}") for number in range(4)]
    follower = Follower(alice)

    def do() -> None:
        user, room_id = chance.choice(people), chance.choice(rooms)
        field = chance.choice(FIELDS)
        what = chance.randrange(6)
        if what == 0:
            user.put(f"{V3}/profile/{user.user_id}/{field}", {field: f"{chance.random()}"})
        elif what == 1:
            user.delete(f"{V3}/profile/{user.user_id}/{field}")
        elif what in (2, 3):
            user.post(f"{V3}/rooms/{room_id}/join", {})
        elif what == 4:
            user.post(f"{V3}/rooms/{room_id}/leave", {})
        else:
            user.put(
                f"{V3}/rooms/{room_id}/send/m.room.message/{chance.random()}",
                {"msgtype": "m.text", "body": "hello"},
            )

    for _ in range(25):
        for _ in range(chance.randrange(4)):
            do()
        if chance.random() < 0.4:
            fields = chance.choice([None, None, ["m.tz"], ["m.tz", "displayname"]])
            state = chance.choice([[], [], [["m.room.member", "*"]], [["m.room.member", "$LAZY"]]])
            follower.ask(chance.randrange(4), fields, is_wanted=chance.random() < 0.8, state=state)
        follower.sync(is_lost=chance.random() < 0.3)
    for user in (alice, *others[:3]):
        user.post(f"{V3}/rooms/{rooms[2]}/join", {})
    for state in ([], [["m.room.member", "$LAZY"]]):  # correctly sent profiles stay correct
        follower.ask(3, None, is_wanted=True, state=state)
        for _ in range(20):  # some may tell of people who have set nothing
            follower.sync()
        members = {
            member
            for room_id in rooms
            if (answer := alice.get(f"{V3}/rooms/{room_id}/joined_members")).status == 200
            for member in answer.json["joined"]
        }
        assert len(members) >= 4
        for member in members:
            assert follower.known.get(member, {}) == alice.get(f"{V3}/profile/{member}").json, (
                member
            )
        others[0].put(f"{V3}/profile/{others[0].user_id}/m.tz", {"m.tz": "UTC"})
