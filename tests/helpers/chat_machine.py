"""A state machine of three users who chat, and of clients that follow by sliding sync."""

from contextlib import ExitStack
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, ClassVar
from urllib.parse import quote

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from homeserver.services.sliding_sync import batches, room_json
from homeserver.services.sliding_sync.sliding_sync import SlidingResponse
from tests.conftest import run_coroutine
from tests.helpers.databases import copy_sqlite, make_sqlite_template, open_inline
from tests.helpers.logins import password_auth
from tests.helpers.room_actions import create
from tests.helpers.server import TestServer, User
from tests.helpers.sliding_client import STABLE, UNSTABLE, act
from tests.helpers.sync_comparison import both_ways, plain_timelines

V3 = "/_matrix/client/v3"
RETENTION = "retention: {enabled: true}\n"
ROOMS = 6
SEED = st.integers(0, 2**32)
"""A seed; the details are left to chance, which varies them more than Hypothesis' search for simple
examples."""
WINDOWS: list[list[int] | None] = [[0, 1], [0, 3], [0, 99], [0, 99], [0, 99], [1, 3], None]
LAZY = [["m.room.name", ""], ["m.room.member", "$LAZY"], ["m.room.member", "$ME"]]
STATES: list[list[list[str]]] = [
    [],
    LAZY,
    LAZY,
    [["*", "*"], ["m.room.member", "$LAZY"]],
    [["*", "*"]],
    [["m.room.member", "*"], ["org.example.thing", "*"]],
    [*LAZY, ["org.example.thing", "*"], ["m.room.create", ""]],
    [
        ["m.room.name", "*"],
        ["org.example.thing", "1"],
        ["org.example.thing", "*"],
        ["m.room.member", "$ME"],
    ],
    [["m.room.member", "$LAZY"], ["m.room.history_visibility", ""], ["m.room.topic", ""]],
]
FILTERS: list[dict[str, Any]] = [
    {},
    {},
    {},
    {"is_dm": False},
    {"is_dm": True},
    {"tags": ["u.x"]},
    {"not_tags": ["u.x"]},
    {"is_encrypted": False},
    {"is_invite": False},
    {"room_types": [None]},
]
EXTENSIONS = [
    "account_data",
    "e2ee",
    "receipts",
    "to_device",
    "typing",
    "io.element.msc4308.thread_subscriptions",
]
ACTIONS = [*range(14), 5, 7, 7, 7, 9, *range(14, 26)]
VERSIONS = ["1", "2", "3", "6", "8", "10", "11", "12"]


def random_request(
    chance: Random, user: User, room_ids: list[str], *, stable: bool
) -> dict[str, Any]:
    """A client's request, in either form."""

    def config() -> dict[str, Any]:
        limit, state = chance.randrange(5), chance.choice(STATES)
        if not stable:
            return {"timeline_limit": limit, "required_state": state}
        include = [
            {
                name: user.user_id if value == "$ME" else value
                for name, value in zip(("type", "state_key"), pair, strict=True)
                if value != "*"
            }
            for pair in state
            if pair[1] != "$LAZY"
        ]
        lazy = ["m.room.member", "$LAZY"] in state
        return {
            "timeline_limit": limit,
            "required_state": {"include": include, "lazy_members": lazy},
        }

    lists = {}
    for number in range(chance.choice([1, 1, 1, 2, 0])):
        window = chance.choice(WINDOWS)
        lists[f"l{number}"] = config() | {"filters": chance.choice(FILTERS)}
        if window is not None:
            lists[f"l{number}"] |= {"range": window} if stable else {"ranges": [window]}
    subscribed = chance.sample(room_ids, chance.choice([0, 0, 1, 2, 4]))
    return {
        "lists": lists,
        "room_subscriptions": {room_id: config() for room_id in subscribed},
        "extensions": {name: {"enabled": True} for name in EXTENSIONS if chance.random() < 0.6},
    }


class ChatMachine(RuleBasedStateMachine):
    """Alice looks, from two devices, and like Bob and Carol writes."""

    with_messages: ClassVar[int] = 0
    """How many responses of sliding sync were compared, in all histories."""
    plainly: ClassVar[int] = 0
    """How many rooms took the short way."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        path = Path(self.stack.enter_context(TemporaryDirectory()))
        self.database = open_inline(copy_sqlite(make_sqlite_template(path), path))
        self.path, self.started = path, 1
        self.server = TestServer(path, self.database, RETENTION)
        self.people = [self.server.register(name) for name in ("alice", "bob", "carol")]
        login = password_auth("alice")
        phone = User(self.server, self.server.post(f"{V3}/login", login).json)
        self.devices = [self.people[0], self.people[0], phone]
        self.rooms: list[str] = []
        self.count = 0
        self.events: dict[int, list[str]] = {}
        self.pos: list[str | None] = [None, None, None]
        self.bodies: list[dict[str, Any]] = [{}, {}, {}]
        self.patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        self.compared = self.stack.enter_context(both_ways())
        self.plain = self.stack.enter_context(plain_timelines())

    @initialize(seed=SEED, short=st.booleans())
    def begin(self, seed: int, short: bool) -> None:
        if short:  # answers end early, and go on in the next ones
            self.patch.setattr(batches, "MAX_RESPONSE_BYTES", 2500)
            self.patch.setattr(batches, "MAX_EVENTS_PER_BATCH", 5)
            self.patch.setattr(room_json, "MAX_TIMELINE_BYTES", 1500)
        alice, *others = self.people
        for at, version in enumerate(Random(seed).choices(VERSIONS, k=ROOMS)):
            # the last two are not Alice's from the beginning
            creator = (alice, others[0])[at > 3]
            room_id = create(creator, preset="public_chat", name=f"room {at}", room_version=version)
            for user in others:
                act(user, room_id, "join")
            self.rooms.append(room_id)
        for at in range(3):
            self.ask(at, seed + at)

    @rule(at=st.integers(0, 2), seed=SEED)
    def ask(self, at: int, seed: int) -> None:
        """One of the clients asks for something else from now on. The second one uses the accepted
        form."""
        self.bodies[at] = {
            "conn_id": f"c{at}",
            **random_request(Random(seed), self.people[0], self.rooms, stable=at == 1),
        }

    @rule(times=st.integers(1, 4), lost=st.integers(0, 5), seed=SEED)
    def talk(self, times: int, lost: int, seed: int) -> None:
        """Clients hear of what people say; of some of it twice: an answer got lost, and what was
        said meanwhile is new."""
        chance = Random(seed)
        self.sync()
        for number in range(times):
            for _ in range(chance.randrange(7)):
                self.say(chance)
            before = list(self.pos)
            self.sync()
            if number == lost:
                self.pos = before

    @rule(at=st.integers(0, 2), seed=SEED)
    def wander(self, at: int, seed: int) -> None:
        """A client begins again with a small window, into which rooms come that are new to it."""
        chance = Random(seed)
        self.ask(at, seed)
        wanted = next(iter(self.bodies[at]["lists"].values()), {"timeline_limit": 3})
        window = {"range": [0, 1]} if at == 1 else {"ranges": [[0, 1]]}
        self.bodies[at] |= {"lists": {"some": wanted | window}, "room_subscriptions": {}}
        self.pos[at] = None
        for _ in range(5):
            self.sync()
            for _ in range(chance.choice([1, 1, 1, 2])):
                self.say(chance)
        self.sync()

    @rule(at=st.integers(0, 2), seed=SEED)
    def begin_again(self, at: int, seed: int) -> None:
        """A client begins again several times, with rooms that other clients, and it, were just
        sent; now and then something happens meanwhile."""
        chance = Random(seed)
        limit = {"timeline_limit": chance.choice([1, 2, 4])}
        for asked in self.bodies[at]["lists"].values():
            asked.update(limit)
        for _ in range(5):
            self.pos[at] = None
            if chance.random() < 0.3:
                chance.choice([self.say, self.do])(chance)
            self.sync()

    @rule(seed=SEED)
    def happen(self, seed: int) -> None:
        """Something else than messages, or beside them, happens to who has just heard of
        everything."""
        chance = Random(seed)
        self.sync()
        for _ in range(chance.choice([1, 1, 2])):
            self.do(chance)
        for _ in range(chance.choice([0, 0, 1, 2])):
            self.say(chance)
        self.sync()

    def sync(self) -> None:
        for at, (body, pos) in enumerate(zip(self.bodies, self.pos, strict=True)):
            if at == 1:
                answer = self.devices[at].post(
                    STABLE, body if pos is None else {**body, "pos": pos}
                )
            else:
                answer = self.devices[at].post(
                    UNSTABLE if pos is None else f"{UNSTABLE}?pos={pos}", body
                )
            assert answer.status == 200, answer.body
            self.pos[at] = answer.json["pos"]

    def say(self, chance: Random) -> None:
        who, where, kind = chance.randrange(3), chance.randrange(ROOMS), chance.randrange(12)
        self.count += 1
        known = self.events.setdefault(where, [])
        target = known[-1 - kind % min(len(known), 3)] if known else "$unknown"
        content: dict[str, Any] = {
            "msgtype": "m.text",
            "body": f"{self.count}%d" * (1 + 40 * (kind == 1)),
        }
        type = "m.room.message"
        if kind == 2:
            content["m.mentions"] = {"user_ids": [self.people[0].user_id]}
        elif kind in (3, 4):
            content["m.relates_to"] = {
                "rel_type": ("m.thread", "m.replace")[kind - 3],
                "event_id": target,
            }
            content["m.new_content"] = {"msgtype": "m.text", "body": "better"}
        elif kind == 5:
            type, content = (
                "m.reaction",
                {
                    "m.relates_to": {
                        "rel_type": "m.annotation",
                        "event_id": target,
                        "key": f"{self.count}",
                    }
                },
            )
        elif kind == 6:
            type = "m.sticker"  # moves the room up, and so do the next but one not
        elif kind == 7:
            type = "org.example.note"
        elif kind == 10:
            type, content = (
                "m.room.encrypted",
                {"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "x", "session_id": "y"},
            )
        path = f"{V3}/rooms/{self.rooms[where]}/send/{type}/{self.count}"
        if kind == 11:
            path += "?org.matrix.msc4354.sticky_duration_ms=3000"
        answer = self.people[who].put(path, content)
        if answer.status == 200 and type == "m.room.message":
            known.append(answer.json["event_id"])

    def do(self, chance: Random) -> None:
        who, where, what = chance.randrange(3), chance.randrange(ROOMS), chance.choice(ACTIONS)
        self.count += 1
        user, room_id = self.people[who], self.rooms[where]
        alice = self.people[0]
        room = f"{V3}/rooms/{room_id}"
        own = f"{V3}/user/{user.user_id}"
        if what == 0:
            user.put(f"{room}/state/m.room.name/", {"name": f"{self.count}"})
        elif what == 1:
            user.put(f"{room}/state/org.example.thing/{who}", {"value": self.count})
        elif what == 2:
            user.post(f"{room}/leave", {})
        elif what in (3, 4):
            user.post(f"{room}/join", {})
        elif what == 5 and self.events.get(where):
            user.post(f"{room}/receipt/m.read/{self.events[where][-1]}", {})
        elif what == 6 and self.events.get(where):
            user.put(f"{room}/redact/{self.events[where][-1]}/{self.count}", {})
        elif what == 7:
            user.put(
                f"{room}/typing/{user.user_id}", {"typing": chance.random() < 0.7, "timeout": 9000}
            )
        elif what == 8:
            user.put(f"{own}/rooms/{quote(room_id)}/tags/u.x", {"order": 0.5})
        elif what == 9:
            user.put(f"{own}/account_data/m.direct", {self.people[1].user_id: [room_id]})
        elif what == 10:
            user.post(f"{room}/{('kick', 'invite')[self.count % 2]}", {"user_id": alice.user_id})
        elif what == 11:
            user.put(f"{V3}/profile/{user.user_id}/displayname", {"displayname": f"{self.count}"})
        elif what == 12:
            device = {alice.device_id or "": {"n": self.count}}
            user.put(
                f"{V3}/sendToDevice/org.example.x/{self.count}",
                {"messages": {alice.user_id: device}},
            )
        elif what == 13:
            ignored: dict[str, Any] = {user.user_id: {}} if self.count % 3 == 0 and who else {}
            alice.put(
                f"{V3}/user/{alice.user_id}/account_data/m.ignored_user_list",
                {"ignored_users": ignored},
            )
        elif what < 20:
            self.do_beside(chance, what, user, where)
        elif what == 20:
            self.reset()
        elif what == 21:
            user.post(f"{room}/leave", {})
            user.post(f"{room}/forget", {})
        elif what == 22:
            self.people[1].post(
                f"{room}/{('ban', 'unban')[self.count % 2]}", {"user_id": alice.user_id}
            )
        else:
            visibility = chance.choice(["joined", "invited", "shared", "world_readable"])
            type, content = chance.choice(
                [
                    ("m.room.encryption", {"algorithm": "m.megolm.v1.aes-sha2"}),
                    ("m.room.retention", {"max_lifetime": chance.choice([2000, 10000])}),
                    ("m.room.history_visibility", {"history_visibility": visibility}),
                    ("m.room.tombstone", {"replacement_room": self.rooms[0], "body": "there"}),
                ]
            )
            user.put(f"{room}/state/{type}/", content)
        self.server.clock.advance(chance.choice([0, 0, 5]))

    def do_beside(self, chance: Random, what: int, user: User, where: int) -> None:
        """Receipts of all kinds, and what Alice keeps of the room."""
        room_id, alice = self.rooms[where], self.people[0].user_id
        entry = f"user/{alice}/rooms/{quote(room_id)}/account_data/org.example.kept"
        if what > 17:
            self.people[0].put(f"{V3}/{entry}", {"n": self.count})
        elif what == 17:
            self.people[0].delete(f"/_matrix/client/unstable/org.matrix.msc3391/{entry}")
        elif known := self.events.get(where):
            event_id = chance.choice(known[-4:])
            if what == 16:
                user.post(f"{V3}/rooms/{room_id}/read_markers", {"m.fully_read": event_id})
                return
            body = {"thread_id": chance.choice(["main", known[0]])} if what == 15 else {}
            kind = chance.choice(["m.read", "m.read.private", "m.read.private"])
            user.post(f"{V3}/rooms/{room_id}/receipt/{kind}/{event_id}", body)

    def reset(self) -> None:
        """The server, which remembers nothing then."""
        self.started += 1
        self.server = TestServer(
            self.path, self.database, RETENTION, seed=self.started, clock=self.server.clock
        )
        for user in (*self.people, *self.devices):
            user.server = self.server

    def teardown(self) -> None:
        ChatMachine.with_messages += sum(
            isinstance(response, SlidingResponse) for response in self.compared
        )
        ChatMachine.plainly += len(self.plain)
        self.stack.close()
        run_coroutine(self.database.close(), None)
