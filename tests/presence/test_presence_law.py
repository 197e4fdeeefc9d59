"""The law of presence: a client that received every change knows the same as a client that starts
now."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from tests.helpers.databases import copy_sqlite, open_inline, silence
from tests.helpers.room_actions import V3, ok
from tests.helpers.server import TestServer, User
from tests.helpers.sync_requests import sync

NAMES = ("alice", "bob", "carol", "dave")
ON = "presence: {enabled: true}\nrc_presence: {per_user: {per_second: 10000, burst_count: 10000}}\n"
STATES = ("online", "unavailable", "offline")

person = st.integers(0, len(NAMES) - 1)
number = st.integers(0, 5)
actions = st.lists(
    st.tuples(
        st.sampled_from(
            ["sync"] * 4 + ["put", "say", "wait"] * 2 + ["join", "leave", "look", "restart"]
        ),
        person,
        number,
    ),
    min_size=5,
    max_size=40,
)


class PresenceModel:
    """The server, its users, two rooms, and two clients that only receive changes."""

    def __init__(self, folder: Path, template: Path) -> None:
        self.folder = folder
        self.database = open_inline(copy_sqlite(template, folder))
        self.server = TestServer(folder, self.database, ON)
        self.server.app.presence.start()
        self.people = [self.server.register(name) for name in NAMES]
        created = [
            ok(self.people[0].post(f"{V3}/createRoom", {"preset": "public_chat"})) for _ in range(2)
        ]
        self.rooms = [str(room["room_id"]) for room in created]
        self.count = 0
        self.known: list[dict[str, Any]] = [{}, {}]
        self.tokens: list[str | None] = [None, None]

    def do(self, action: str, who: int, what: int) -> None:
        user, room = self.people[who], self.rooms[what % 2]
        self.count += 1
        match action:
            case "sync":
                sync(user, set_presence=STATES[what % 3])
            case "put":
                body = {"presence": STATES[what % 3], "status_msg": str(what)}
                ok(user.put(f"{V3}/presence/{user.user_id}/status", body))
            case "say":
                user.put(f"{V3}/rooms/{room}/send/m.room.message/{self.count}", {"body": "x"})
            case "wait":
                self.wait((0.1, 5, 20, 31, 100, 310)[what])
            case "join" | "leave":
                user.post(f"{V3}/rooms/{room}/{action}", {})
            case "look":
                self.look(what % 2)
            case "restart":
                self.restart()

    def wait(self, seconds: float) -> None:
        for _ in range(int(seconds)):
            self.server.clock.advance(1)
        self.server.clock.advance(seconds % 1)
        for _ in range(4):
            self.server.clock.advance(0)

    def look(self, which: int) -> None:
        answer = sync(self.people[which], self.tokens[which], set_presence="offline")
        self.tokens[which] = answer["next_batch"]
        self.known[which].update(presence_in(answer))

    def restart(self) -> None:
        Deferred.fromCoroutine(self.server.app.presence.presence.stop())
        silence(self.database.streams)
        now = self.server.clock.seconds() + 1
        self.server = TestServer(self.folder, self.database, ON, seed=self.count + 1, now=now)
        self.server.app.presence.start()
        for user in self.people:
            user.server = self.server

    def check(self) -> None:
        self.wait(2)
        for which in range(2):
            self.look(which)
            me = self.people[which]
            initial = presence_in(sync(me, set_presence="offline"))
            sharing = [other for other in self.people if other is me or shares_room(me, other)]
            for other in sharing:
                here = initial.get(other.user_id, "offline")
                assert self.known[which].get(other.user_id, "offline") == here, other.user_id
            assert initial.keys() <= {other.user_id for other in sharing}


def presence_in(answer: Any) -> dict[str, Any]:
    """Presence by user, without values that change with time."""
    return {
        event["sender"]: "offline"
        if event["content"]["presence"] == "offline"
        else {name: value for name, value in event["content"].items() if name != "last_active_ago"}
        for event in answer["presence"]["events"]
    }


def shares_room(one: User, other: User) -> bool:
    joined = [set(ok(user.get(f"{V3}/joined_rooms"))["joined_rooms"]) for user in (one, other)]
    return bool(joined[0] & joined[1])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(todo=actions)
@example(
    [("sync", 0, 0), ("put", 0, 0), ("look", 0, 0), ("restart", 0, 0)]
)  # stored, but not broadcast before the restart
@example(
    [("sync", 1, 0), ("wait", 0, 0), ("look", 0, 0), ("join", 1, 0), ("restart", 0, 0)]
)  # after a restart, the join is no longer among the changes in memory
def test_a_client_that_received_all_changes_knows_the_presence(
    tmp_path_factory: pytest.TempPathFactory,
    sqlite_template: Path,
    todo: list[tuple[str, int, int]],
) -> None:
    model = PresenceModel(tmp_path_factory.mktemp("server"), sqlite_template)
    for action, who, what in todo:
        model.do(action, who, what)
    model.check()
    Deferred.fromCoroutine(model.database.close())
