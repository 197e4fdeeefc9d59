"""/sync: a room with plain messages, which takes the short way, is what the full way gives;
whatever the filter, with several sessions and people, and whatever happened before. The histories
are those of `tests/sliding_sync/test_fast_path.py`, whose clients look on."""

import json
import os
from random import Random
from typing import Any, ClassVar
from urllib.parse import urlencode

from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule

from homeserver.services.sync.response import SyncResponse
from tests.helpers.chat_machine import SEED, ChatMachine
from tests.helpers.logins import password_auth
from tests.helpers.room_actions import V3
from tests.helpers.server import User
from tests.helpers.state_machines import PHASES_WITHOUT_SHRINKING, run_machine

RUNS = int(os.environ.get("MAHALLA_SYNC_RUNS", "6"))
CLIENTS = 4


def a_filter(chance: Random, rooms: list[str], someone: str) -> dict[str, Any]:
    """Mostly one that lets messages through."""
    timeline: dict[str, Any] = {}
    room: dict[str, Any] = {"timeline": timeline}
    whole: dict[str, Any] = {"room": room}
    if chance.random() < 0.6:
        timeline["limit"] = chance.choice([0, 1, 2, 5, 20])
    if chance.random() < 0.5:
        room["state"] = {
            "lazy_load_members": True,
            "include_redundant_members": chance.random() < 0.3,
        }
    if chance.random() < 0.5:
        timeline["unread_thread_notifications"] = True
    seldom: list[tuple[dict[str, Any], str, Any]] = [
        (timeline, "not_senders", [someone]),
        (timeline, "types", ["m.room.message"]),
        (timeline, "contains_url", False),
        (timeline, "not_rooms", rooms[:1]),
        (timeline, "rooms", rooms[:2]),
        (room, "not_rooms", rooms[1:2]),
        (room, "state", {"types": []}),
        (room, "ephemeral", {"types": []}),
        (whole, "event_format", "federation"),
        (whole, "event_fields", ["type", "content.body"]),
    ]
    for where, name, value in seldom:
        if chance.random() < 0.08:
            where[name] = value
    return whole


class ChatWithSyncMachine(ChatMachine):
    """Two sessions of Alice, and one of Bob, hear of it by /sync too."""

    answers: ClassVar[int] = 0
    """How many responses of /sync were compared, in all histories."""

    def __init__(self) -> None:
        super().__init__()
        alice, bob, _ = self.people
        login = password_auth(alice.user_id)
        second = User(self.server, self.server.post(f"{V3}/login", login).json)
        self.clients = (alice, bob, second, alice)
        self.asked: list[dict[str, str]] = [{} for _ in self.clients]

    @initialize(seed=SEED, short=st.booleans())
    def begin(self, seed: int, short: bool) -> None:
        super().begin(seed, short)
        self.sync()
        self.write_to_devices(
            seed
        )  # Hypothesis leaves some rules out of a history: this has a part in each

    @rule(at=st.integers(0, CLIENTS - 1), seed=SEED)
    def ask_by_filter(self, at: int, seed: int) -> None:
        """One of them asks for something else from now on."""
        chance = Random(seed)
        wanted = a_filter(chance, self.rooms, self.people[1].user_id)
        self.asked[at] |= {
            "filter": json.dumps(wanted),
            "use_state_after": json.dumps(chance.random() < 0.3),
        }

    @rule(number=st.integers(0, 2))
    def ignore(self, number: int) -> None:
        """Alice does not want to hear of so many of the others."""
        alice, *others = self.people
        ignored: dict[str, Any] = {user.user_id: {} for user in others[:number]}
        path = f"{V3}/user/{alice.user_id}/account_data/m.ignored_user_list"
        assert alice.put(path, {"ignored_users": ignored}).status == 200

    @rule(seed=SEED)
    def write_to_devices(self, seed: int) -> None:
        """Some of them get messages, and maybe nothing else happens."""
        chance = Random(seed)
        for _ in range(chance.randrange(1, 4)):
            self.count += 1
            user = chance.choice(self.clients)
            body = {
                "messages": {
                    user.user_id: {chance.choice([user.device_id, "*"]): {"n": self.count}}
                }
            }
            path = f"{V3}/sendToDevice/org.example.n/{self.count}"
            assert self.people[2].put(path, body).status == 200
        self.sync()

    def sync(self) -> None:
        super().sync()
        for at, (user, asked) in enumerate(zip(self.clients, self.asked, strict=True)):
            answer = user.get(f"{V3}/sync?{urlencode(asked)}")
            assert answer.status == 200, answer.body
            if self.count % 7 != at or "since" not in asked:  # else it got lost
                asked["since"] = answer.json["next_batch"]

    def teardown(self) -> None:
        ChatWithSyncMachine.answers += sum(
            isinstance(response, SyncResponse) for response in self.compared
        )
        super().teardown()


def test_the_fast_path_returns_the_same_as_the_complete_path() -> None:
    ChatWithSyncMachine.answers = 0
    run_machine(ChatWithSyncMachine, RUNS, 40, PHASES_WITHOUT_SHRINKING)
    assert ChatWithSyncMachine.answers > 10 * RUNS
