"""The law of /sync: an earlier response plus the changes since equals what a new client gets.

Users act at random in some rooms, now and then one of their clients syncs, at times the server is
restarted. In the end every client that only got changes has to know all that a new one sees.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from tests.helpers.databases import copy_sqlite, open_inline
from tests.helpers.http import Answer
from tests.helpers.server import TestServer, User
from tests.helpers.sync_client import SyncClient

pytestmark = pytest.mark.usefixtures("compared")

NAMES = ("alice", "bob", "carol")
ROOMS = 3

person = st.integers(0, len(NAMES) - 1)
room = st.integers(0, ROOMS - 1)
number = st.integers(0, 11)
Action = tuple[str, int, int, int]
actions = st.lists(
    st.tuples(
        st.sampled_from(
            ["message"] * 6
            + ["sync"] * 8
            + ["join", "invite"] * 4
            + ["leave", "state", "topic", "receipt", "redact", "kick"] * 2
            + [
                "ban",
                "unban",
                "knock",
                "forget",
                "rename",
                "visibility",
                "thread",
                "call",
                "private_receipt",
            ]
            + ["thread_receipt", "typing", "account_data", "room_data", "wait", "restart", "avatar"]
        ),
        person,
        room,
        number,
    ),
    min_size=5,
    max_size=45,
)


class SyncModel:
    """The server, its people and their clients."""

    def __init__(self, folder: Path, template: Path) -> None:
        self.folder = folder
        self.config = copy_sqlite(template, folder)
        self.database = open_inline(self.config)
        self.server = TestServer(folder, self.database)
        self.people = [self.server.register(name) for name in NAMES]
        self.clients = [
            SyncClient(self.people[0]),
            SyncClient(self.people[1], lazy=True, state_after=True),
            SyncClient(self.people[2], lazy=True),
            SyncClient(self.people[0], state_after=True),
        ]
        self.rooms = [self._create(index) for index in range(ROOMS)]
        self.sent: dict[int, list[str]] = {index: [] for index in range(ROOMS)}
        self.count = 0
        for person in self.people:
            person.post(self.path(0, "join"))

    def _create(self, index: int) -> str:
        body = {
            "preset": ("public_chat", "private_chat", "public_chat")[index],
            "name": ("", "", "Square")[index],
        }
        answer = self.people[index % 2].post("/_matrix/client/v3/createRoom", body)
        assert answer.status == 200, answer.body
        return str(answer.json["room_id"])

    def do(self, action: Action) -> None:
        """One thing; it may be refused."""
        name, who, where, value = action
        self.count += 1
        do: Callable[[User, int, int], Answer | None] = getattr(self, f"do_{name}")
        answer = do(self.people[who], where, value)
        assert answer is None or answer.status in (200, 400, 403, 404), (action, answer.body)

    def path(self, where: int, rest: str) -> str:
        return f"/_matrix/client/v3/rooms/{self.rooms[where]}/{rest}"

    def send(self, user: User, where: int, content: object) -> Answer:
        answer = user.put(self.path(where, f"send/m.room.message/{self.count}"), content)
        if answer.status == 200:
            self.sent[where].append(answer.json["event_id"])
        return answer

    def member(self, user: User, where: int, verb: str, value: int) -> Answer:
        return user.post(
            self.path(where, verb), {"user_id": self.people[value % len(NAMES)].user_id}
        )

    def any_event(self, where: int, value: int) -> str:
        sent = self.sent[where]
        return sent[-1 - value % min(len(sent), 4)] if sent else "$unknown"

    def do_message(self, user: User, where: int, value: int) -> Answer:
        answer = self.send(user, where, {"body": "hello", "msgtype": "m.text"})
        for _ in range(value if answer.status == 200 else 0):
            self.count += 1
            self.send(user, where, {"body": "more", "msgtype": "m.text"})
        return answer

    def do_thread(self, user: User, where: int, value: int) -> Answer:
        relation = {"rel_type": "m.thread", "event_id": self.any_event(where, value)}
        return self.send(
            user, where, {"body": "aside", "msgtype": "m.text", "m.relates_to": relation}
        )

    def do_call(self, user: User, where: int, value: int) -> Answer:
        mentions = {"room": value % 2 == 0, "user_ids": [self.people[value % len(NAMES)].user_id]}
        return self.send(user, where, {"body": "hey", "msgtype": "m.text", "m.mentions": mentions})

    def do_join(self, user: User, where: int, _value: int) -> Answer:
        return user.post(self.path(where, "join"))

    def do_leave(self, user: User, where: int, _value: int) -> Answer:
        return user.post(self.path(where, "leave"))

    def do_knock(self, user: User, where: int, _value: int) -> Answer:
        user.put(self.path(where, "state/m.room.join_rules"), {"join_rule": "knock"})
        return self.people[_value % len(NAMES)].post(
            f"/_matrix/client/v3/knock/{self.rooms[where]}"
        )

    def do_forget(self, user: User, where: int, _value: int) -> Answer:
        answer = user.post(self.path(where, "forget"))
        if answer.status == 200:
            for client in self.clients:
                if client.user is user:
                    client.catch_up()
                    client.forget(self.rooms[where])
        return answer

    def do_invite(self, user: User, where: int, value: int) -> Answer:
        return self.member(user, where, "invite", value)

    def do_kick(self, user: User, where: int, value: int) -> Answer:
        return self.member(user, where, "kick", value)

    def do_ban(self, user: User, where: int, value: int) -> Answer:
        return self.member(user, where, "ban", value)

    def do_unban(self, user: User, where: int, value: int) -> Answer:
        return self.member(user, where, "unban", value)

    def do_state(self, user: User, where: int, value: int) -> Answer:
        return user.put(self.path(where, f"state/org.example.thing/{value % 3}"), {"value": value})

    def do_topic(self, user: User, where: int, value: int) -> Answer:
        return user.put(self.path(where, "state/m.room.topic"), {"topic": f"{value}"})

    def do_avatar(self, user: User, where: int, value: int) -> Answer:
        content = {"membership": "join", "displayname": f"{value}"}
        return user.put(self.path(where, f"state/m.room.member/{user.user_id}"), content)

    def do_rename(self, user: User, where: int, value: int) -> Answer:
        return user.put(
            self.path(where, "state/m.room.name"), {"name": ("", "Hall", "Yard")[value % 3]}
        )

    def do_visibility(self, user: User, where: int, value: int) -> Answer:
        kind = ("joined", "shared", "invited", "world_readable")[value % 4]
        return user.put(
            self.path(where, "state/m.room.history_visibility"), {"history_visibility": kind}
        )

    def do_redact(self, user: User, where: int, value: int) -> Answer:
        return user.put(self.path(where, f"redact/{self.any_event(where, value)}/{self.count}"), {})

    def do_receipt(self, user: User, where: int, value: int) -> Answer:
        return user.post(self.path(where, f"receipt/m.read/{self.any_event(where, value)}"))

    def do_private_receipt(self, user: User, where: int, value: int) -> Answer:
        return user.post(self.path(where, f"receipt/m.read.private/{self.any_event(where, value)}"))

    def do_thread_receipt(self, user: User, where: int, value: int) -> Answer:
        thread = "main" if value % 2 else self.any_event(where, value + 1)
        event_id = self.any_event(where, value)
        return user.post(self.path(where, f"receipt/m.read/{event_id}"), {"thread_id": thread})

    def do_typing(self, user: User, where: int, value: int) -> Answer:
        body = {"typing": value % 3 != 0, "timeout": 1000 * value}
        return user.put(self.path(where, f"typing/{user.user_id}"), body)

    def do_account_data(self, user: User, _where: int, value: int) -> Answer:
        return user.put(
            f"/_matrix/client/v3/user/{user.user_id}/account_data/org.example.{value % 2}",
            {"n": value},
        )

    def do_room_data(self, user: User, where: int, value: int) -> Answer:
        path = (
            f"/_matrix/client/v3/user/{user.user_id}/rooms/{self.rooms[where]}/account_data"
            f"/org.example.{value % 2}"
        )
        return user.put(path, {"n": value})

    def do_wait(self, _user: User, _where: int, value: int) -> None:
        self.server.clock.advance(value)

    def do_sync(self, user: User, _where: int, value: int) -> None:
        mine = [client for client in self.clients if client.user is user]
        mine[value % len(mine)].sync(1 + value)

    def do_restart(self, _user: User, _where: int, _value: int) -> None:
        now = self.server.clock.seconds()
        Deferred.fromCoroutine(self.database.close())
        self.database = open_inline(self.config)
        self.server = TestServer(self.folder, self.database, seed=self.count + 1, now=now + 1)
        for person in self.people:
            person.server = self.server
        for client in self.clients:
            client.forget_typing()

    def check(self) -> None:
        for client in self.clients:
            client.catch_up()
            client.check()


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[
        Phase.explicit,
        Phase.reuse,
        Phase.generate,
    ],  # each trial makes a server: shrinking would take many minutes
)
@given(actions)
def test_changes_add_up_to_the_current_state(
    tmp_path_factory: pytest.TempPathFactory, sqlite_template: Path, things: list[Action]
) -> None:
    model = SyncModel(tmp_path_factory.mktemp("server"), sqlite_template)
    for action in things:
        model.do(action)
    model.check()
    Deferred.fromCoroutine(model.database.close())
