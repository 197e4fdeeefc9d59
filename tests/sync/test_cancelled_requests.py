"""Both kinds of sync: a client that gives up its requests at any moment, and asks (in sliding sync,
for something else) from the same place again, holds in the end what the server holds, with every
receipt; whatever people do meanwhile, and in whatever order databases answer.

matrix-rust-sdk gives up the request that waits whenever a room is opened or a list grows. Here it
does so before, while and after its answer is made, and answers get lost; the server hears that it
is gone, or does not. People's deeds, reads and writes of the database go on meanwhile, one step of
one of them at a time: which, is left to chance (`tests/helpers/interleaving.py`).
`MAHALLA_SYNC_RUNS=1000` makes a thousand such histories.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import quote

import pytest

from homeserver.services.sliding_sync import batches, room_json, room_order
from homeserver.services.sliding_sync.connection_cache import ConnectionCache
from homeserver.services.sliding_sync.connections import SlidingConnection, SlidingConnections
from homeserver.services.sliding_sync.request import SlidingRequest
from homeserver.services.streams import recent_changes
from storage.engine.database import Database, PostgresConfig, SQLiteConfig
from tests.conftest import run_coroutine
from tests.helpers.http import Pending
from tests.helpers.interleaving import Interleaving
from tests.helpers.room_actions import create, say
from tests.helpers.server import TestServer, User, move_user
from tests.helpers.sliding_client import act
from tests.helpers.sliding_follower import EVERY_ROOM, STATES, UNSTABLE, Ask, SlidingFollower
from tests.helpers.sync_client import WHOLE_ROOM, Json, KnownRoom, SyncClient

RUNS = int(os.environ.get("MAHALLA_SYNC_RUNS", "4"))
V3 = "/_matrix/client/v3"
POSTGRES = "database: {name: psycopg2, args: {}}\n"
ROOMS = 4
MOVES = 150
LAZY = 1
"""The index of the state with lazy members."""
FILTERS: tuple[Json, ...] = (
    {"is_dm": True},
    {"is_dm": False},
    {"tags": ["u.1"]},
    {"not_tags": ["u.1"]},
    {"is_encrypted": True},
    {"is_encrypted": False, "is_dm": False},
    {"room_name_like": "1"},
)
DEEDS = (
    *("say",) * 8,
    *("read",) * 8,
    *("thread", "edit", "react", "redact", "type", "keep", "keep_in_room", "tag", "direct"),
    *(
        "name",
        "name",
        "encrypt",
        "thing",
        "call_oneself",
        "leave",
        "join",
        "join",
        "kick",
        "invite",
    ),
)


class Attempts:
    """A client's requests, which may fail at any moment."""

    def __init__(
        self,
        sessions: Sequence[User],
        ask: Callable[[Random], tuple[str, str, Json | None]],
        take: Callable[[Json], object],
    ) -> None:
        """`sessions`: the same one at each node. `ask`: method, path and body of the next request;
        `take`: takes an answer in."""
        self.sessions, self.ask, self.take = sessions, ask, take
        self.waiting: Pending | None = None
        self.lost = 0

    def move(self, chance: Random) -> None:
        """Ask, or do something with the request that is under way."""
        waiting = self.waiting
        if waiting is None:
            self.waiting = chance.choice(self.sessions).start(*self.ask(chance))
            return
        fate = chance.random()
        if waiting.done and fate < 0.7:
            assert waiting.answer.status == 200, waiting.answer.body
            self.take(waiting.answer.json)
            self.waiting = None
        elif waiting.done or fate < 0.5:  # given up: the server hears of it, or does not
            self.lost += 1
            if fate < 0.25:
                waiting.disconnect()
            self.waiting = None
            self.move(chance)

    def end(self) -> None:
        """Give up what waits."""
        if self.waiting is not None:
            self.waiting.disconnect()
            self.waiting = None


class Slider(SlidingFollower):
    """A client of sliding sync that asks for something else each time."""

    def __init__(self, sessions: Sequence[User], *, lazily: bool = False, **options: Any) -> None:
        """`lazily`: it always asks for members as they are needed."""
        super().__init__(sessions[0], **options)
        self.lazily = lazily
        self.attempts = Attempts(sessions, self._next, self.take)
        self.senders: dict[str, str] = {}

    def catch_up(self) -> None:
        for _ in range(20):
            if not self.sync(Ask(EVERY_ROOM, self.limit, LAZY if self.lazily else 0)):
                return
        raise AssertionError("there is always something new")

    def take(self, answer: Json) -> bool:
        for entry in answer["rooms"].values():
            self.senders.update(
                (event["event_id"], event["sender"]) for event in entry.get("timeline", ())
            )
        return super().take(answer)

    def check_members(self, truth: SyncClient) -> None:
        """Senders of shown events are known with their current membership."""
        for room_id, received in truth.rooms.items():
            if received.section == "join":
                for event_id in self.rooms[room_id].timeline:
                    key = ("m.room.member", self.senders[event_id])
                    assert self.rooms[room_id].state.get(key) == received.state[key], (room_id, key)

    def check_filters(self, truth: SyncClient) -> None:
        """Lists have the rooms that their filters let through."""
        joined = {
            room_id: received
            for room_id, received in truth.rooms.items()
            if received.section == "join"
        }
        direct = {
            room_id
            for rooms in truth.account_data.get("m.direct", {}).values()
            for room_id in rooms
        }
        for filters in FILTERS:
            a_list = {"ranges": [[0, EVERY_ROOM]], "timeline_limit": 0, "filters": filters}
            answer = self.user.post(UNSTABLE, {"conn_id": "filters", "lists": {"some": a_list}})
            wanted = {
                room_id
                for room_id, received in joined.items()
                if _fits(received, filters, room_id in direct)
            }
            assert answer.json["rooms"].keys() & joined.keys() == wanted, filters

    def _next(self, chance: Random) -> tuple[str, str, Json]:
        path, body = self.request(self._wish(chance), chance.choice([0, 30_000, 30_000]))
        if not self.stable and chance.random() < 0.5:  # a list more, which the server remembers
            body["lists"]["some"] = {**body["lists"]["all"], "filters": chance.choice(FILTERS)}
        return "POST", path, body

    def _wish(self, chance: Random) -> Ask:
        return Ask(
            window=chance.choice([0, 1, 2, EVERY_ROOM, EVERY_ROOM]),
            limit=chance.choice([0, 1, 1, 3, 6]),
            state=LAZY if self.lazily else chance.randrange(len(STATES)),
            subscribed=chance.choice([0, 0, 1, 2]),
            without=frozenset(
                name for name in ("account_data", "typing", "e2ee") if chance.random() < 0.12
            ),
        )

    def _check_state(self, room_id: str, known: Any, received: Any) -> None:
        if not self.lazily:
            super()._check_state(room_id, known, received)


class Syncer(SyncClient):
    """A client of /sync."""

    def __init__(self, sessions: Sequence[User], **options: Any) -> None:
        super().__init__(sessions[0], forks=True, **options)  # it leaves gaps
        self.attempts = Attempts(sessions, self._next, self.take)

    def _next(self, chance: Random) -> tuple[str, str, None]:
        timeout = chance.choice([0, 30_000, 30_000])
        return (
            "GET",
            self.path(self.limit, since=self.since, include_leave=True, timeout=timeout),
            None,
        )


def _fits(received: KnownRoom, filters: Json, is_direct: bool) -> bool:
    tags = received.account_data.get("m.tag", {"tags": {}})["tags"]
    name = received.state.get(("m.room.name", ""), {"content": {}})["content"].get("name", "")
    found = {
        "is_dm": is_direct,
        "is_encrypted": ("m.room.encryption", "") in received.state,
        "tags": ["u.1"] if "u.1" in tags else [],
    }
    if filters.get("room_name_like", "") not in name or (filters.get("not_tags") and "u.1" in tags):
        return False
    return all(found.get(each, value) == value for each, value in filters.items())


class Race:
    """Three people, their clients, and one server or two nodes of it."""

    def __init__(
        self, servers: Sequence[TestServer], turns: Sequence[Interleaving], chance: Random
    ) -> None:
        self.servers, self.turns, self.chance = servers, turns, chance
        self.people = [self._register(name) for name in ("alice", "bob", "carol")]
        self.rooms = [
            create(self.people[at % 2][0], preset="public_chat", name=f"room {at}")
            for at in range(ROOMS)
        ]
        self.pass_time(1)
        self.sent = {
            room_id: [say(self.people[0][0], room_id, "root")] for room_id in self.rooms[::2]
        }
        for at, room_id in enumerate(self.rooms):
            for sessions in self.people:
                if sessions is not self.people[at % 2]:
                    act(sessions[0], room_id, "join")
        self.pass_time(1)
        alice, bob, _ = self.people
        self.sliders = [
            Slider(alice),
            Slider(alice, stable=True, conn_id="other"),
            Slider(bob, conn_id="lazy", lazily=True, limit=2),
            Slider(bob, stable=True, lazily=True, limit=1),
        ]
        self.syncers = [Syncer(alice, state_after=True), Syncer(bob, lazy=True, limit=2)]
        self.attempts = [
            *(client.attempts for client in self.sliders),
            *(client.attempts for client in self.syncers),
        ]
        # what one node tells the other of who types may get lost
        self.possible = DEEDS if len(servers) == 1 else [deed for deed in DEEDS if deed != "type"]
        self.deeds: list[tuple[str, str, Pending]] = []
        self.count = 0

    def run(self) -> None:
        chance = self.chance
        for turns in self.turns:
            turns.begin(chance)
        for _ in range(MOVES):
            what = chance.random()
            if what < 0.35:
                self.do(chance.choice(self.possible))
            elif what < 0.75:
                chance.choice(self.attempts).move(chance)
            else:
                self.pass_time(chance.choice([0, 0, 0.2, 0.2, 1, 12]))
            for _ in range(chance.choice([0, 1, 3, 10, 40])):
                chance.choice(self.turns).step()
            self._look()
        for attempts in self.attempts:
            attempts.end()
        for _ in range(3):
            while sum(turns.step() for turns in self.turns):
                pass
            self.pass_time(1)
        for turns in self.turns:
            turns.end()
        self.pass_time(self.chance.choice([1, 200]))  # somebody types still, or nobody
        self._look()
        assert not self.deeds

    def check(self) -> None:
        for syncer in self.syncers:
            syncer.catch_up()
            syncer.check()
        for client in self.sliders:
            client.catch_up()
            truth = SyncClient(client.user, state_after=True)
            truth.sync(WHOLE_ROOM)
            client.check(truth.rooms, truth.account_data)
            client.check_filters(truth)
            if client.lazily:
                client.check_members(truth)

    def do(self, what: str) -> None:
        """Somebody does something, which goes on for a while."""
        chance = self.chance
        self.count += 1
        who, room_id = chance.randrange(3), chance.choice(self.rooms)
        user, value = chance.choice(self.people[who]), chance.randrange(12)
        known = self.sent.get(room_id, [])
        target = known[-1 - value % min(len(known), 4)] if known else "$unknown"
        room, own = f"{V3}/rooms/{room_id}", f"{V3}/user/{user.user_id}"
        message: Json = {"msgtype": "m.text", "body": f"{self.count}"}
        if what in ("say", "thread", "edit"):
            kind = {"thread": "m.thread", "edit": "m.replace"}.get(what)
            if kind is not None:
                message |= {
                    "m.relates_to": {"rel_type": kind, "event_id": target},
                    "m.new_content": dict(message),
                }
            self._begin(what, user, "PUT", f"{room}/send/m.room.message/{self.count}", message)
        elif what == "react":
            relation = {"rel_type": "m.annotation", "event_id": target, "key": f"{self.count}"}
            self._begin(
                what,
                user,
                "PUT",
                f"{room}/send/m.reaction/{self.count}",
                {"m.relates_to": relation},
            )
        elif what == "redact":
            self._begin(what, user, "PUT", f"{room}/redact/{target}/{self.count}", {})
        elif what == "read":
            thread = (
                {},
                {},
                {"thread_id": "main"},
                {"thread_id": known[0] if known else "$unknown"},
            )[value % 4]
            kind = chance.choice(["m.read", "m.read", "m.read.private"])
            self._begin(what, user, "POST", f"{room}/receipt/{kind}/{target}", thread)
        elif what == "type":
            self._begin(
                what,
                user,
                "PUT",
                f"{room}/typing/{user.user_id}",
                {"typing": value > 4, "timeout": 9000},
            )
        elif what == "keep":
            self._begin(
                what, user, "PUT", f"{own}/account_data/org.example.{value % 2}", {"n": self.count}
            )
        elif what == "keep_in_room":
            path = f"{own}/rooms/{quote(room_id)}/account_data/org.example.{value % 3}"
            self._begin(what, user, "PUT", path, {"n": self.count})
        elif what == "tag":
            verb, body = ("DELETE", {}) if value % 2 else ("PUT", {"order": 0.5})
            self._begin(
                what, user, verb, f"{own}/rooms/{quote(room_id)}/tags/u.{value % 3 % 2}", body
            )
        elif what == "direct":
            chosen = {f"@{value}:example.org": [room_id] if value % 2 else []}
            self._begin(what, user, "PUT", f"{own}/account_data/m.direct", chosen)
        elif what == "name":
            self._begin(what, user, "PUT", f"{room}/state/m.room.name/", {"name": f"{self.count}"})
        elif what == "encrypt":
            self._begin(
                what,
                user,
                "PUT",
                f"{room}/state/m.room.encryption/",
                {"algorithm": "m.megolm.v1.aes-sha2"},
            )
        elif what == "thing":
            self._begin(
                what, user, "PUT", f"{room}/state/org.example.thing/{who}", {"value": self.count}
            )
        elif what == "call_oneself":
            content = {"membership": "join", "displayname": f"{self.count}"}
            self._begin(what, user, "PUT", f"{room}/state/m.room.member/{user.user_id}", content)
        elif what in ("leave", "join"):
            self._begin(what, user, "POST", f"{room}/{what}", {})
        else:
            whom = self.people[(who + 1) % 3][0]
            self._begin(what, user, "POST", f"{room}/{what}", {"user_id": whom.user_id})

    def pass_time(self, seconds: float) -> None:
        for server in self.servers:
            server.clock.advance(seconds)
            server.clock.advance(0)

    def _begin(self, what: str, user: User, method: str, path: str, body: Json) -> None:
        self.pass_time(0.001)  # no two events are of the same moment
        self.deeds.append((what, path, user.start(method, path, body)))

    def _look(self) -> None:
        """See what has come of people's deeds."""
        for what, path, pending in [each for each in self.deeds if each[2].done]:
            assert pending.answer.status in (200, 400, 403, 404), (what, path, pending.answer.body)
            if what in ("say", "thread") and pending.answer.status == 200:
                self.sent.setdefault(path.split("/")[5], []).append(pending.answer.json["event_id"])
        self.deeds = [each for each in self.deeds if not each[2].done]

    def _register(self, name: str) -> list[User]:
        here = self.servers[0].register(name)
        return [here, *(move_user(server, here) for server in self.servers[1:])]


@pytest.fixture
def cramped(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other time answers end early, and go on in the next ones; and of some times little is
    remembered."""
    if seed % 2:
        monkeypatch.setattr(batches, "MAX_RESPONSE_BYTES", 2500)
        monkeypatch.setattr(batches, "MAX_EVENTS_PER_BATCH", 3)
        monkeypatch.setattr(room_json, "MAX_TIMELINE_BYTES", 1500)
    if seed % 4 > 1:  # what happened lately, and what rooms are in which order
        monkeypatch.setattr(recent_changes, "MAX_CHANGES", 4)
        # private: the capacity is an argument of the wiring; with this weight, nothing fits
        monkeypatch.setattr(room_order, "_weigh", lambda _order: 1 << 60)
    if seed % 3 == 2:  # what was sent to connections
        monkeypatch.setattr(ConnectionCache, "get", lambda _self, _key: None)
        find = SlidingConnections.find

        async def find_and_forget(
            self: SlidingConnections, request: SlidingRequest
        ) -> SlidingConnection:
            found = await find(self, request)
            self._known.remove(found.key)  # private: the capacity is an argument of the wiring
            return found

        monkeypatch.setattr(SlidingConnections, "find", find_and_forget)


@pytest.fixture(params=range(RUNS))
def seed(request: pytest.FixtureRequest) -> int:
    number: int = request.param
    return number


@pytest.mark.usefixtures("cramped")
def test_clients_that_cancel_requests_miss_nothing(
    tmp_path: Path, database_config: SQLiteConfig | PostgresConfig, seed: int
) -> None:
    turns = Interleaving()
    database = turns.open(database_config)
    race = Race([TestServer(tmp_path, database)], [turns], Random(seed))
    race.run()
    race.check()
    run_coroutine(database.close(), None)
    assert sum(attempts.lost for attempts in race.attempts)


def call_one_another(servers: list[TestServer], random: Random) -> None:
    """Each hears what the other says: at once, later, or not at all."""
    for number, server in enumerate(servers):
        notes, other = (each.app.accounts.node_messages for each in (server, servers[1 - number]))
        assert notes is not None
        assert other is not None

        async def send(
            bodies: Sequence[str], deliver: Any = other.receive, at: int = 1 - number
        ) -> None:
            for body in bodies:
                if random.random() < 0.8:
                    servers[at].clock.callLater(
                        random.choice((0.0, 0.0, 0.2, 1.5)), deliver, 2 - at, body
                    )

        notes.connect(send)


@pytest.fixture
def nodes(
    tmp_path: Path, postgresql: PostgresConfig, seed: int
) -> Iterator[tuple[list[TestServer], list[Interleaving]]]:
    """Two on one database, which every other time call one another."""
    turns = [Interleaving(), Interleaving()]
    databases: list[Database] = [each.open(postgresql) for each in turns]
    servers = [
        TestServer(tmp_path, database, POSTGRES, seed=at)
        for at, database in enumerate(databases, 1)
    ]
    for server in servers:
        assert server.app.peer_nodes is not None
        server.app.peer_nodes.start()
    if seed % 2:
        call_one_another(servers, Random(seed))
    yield servers, turns
    for server, database in zip(servers, databases, strict=True):
        assert server.app.peer_nodes is not None
        server.app.peer_nodes.stop()
        run_coroutine(database.close(), None)


@pytest.mark.usefixtures("cramped")
def test_clients_that_cancel_requests_on_two_nodes_miss_nothing(
    nodes: tuple[list[TestServer], list[Interleaving]], seed: int
) -> None:
    race = Race(*nodes, Random(seed))
    race.run()
    race.check()
