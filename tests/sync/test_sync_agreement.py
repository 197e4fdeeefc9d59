"""A client that follows a server by /sync or sliding sync knows in the end what a new client gets:
state(t0) + changes = state(t1), also while the rooms' histories are forked, and over restarts. A
user who has left a room gets no later state event, except their own membership.

Users of two servers do random things in some rooms. Some runs are part of the suite;
`MAHALLA_SYNC_RUNS=1000 pytest tests/sync/test_sync_agreement.py` makes as many.
"""

import os
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from homeserver.services.sliding_sync import batches, room_json
from homeserver.services.sliding_sync.connection_cache import ConnectionCache
from storage.engine.database import Database
from tests.conftest import run_coroutine
from tests.helpers.databases import copy_sqlite, make_sqlite_template, open_inline
from tests.helpers.federated_rooms import NORTH, SOUTH
from tests.helpers.http import Pending
from tests.helpers.leave_positions import LeavePositions
from tests.helpers.network import Network
from tests.helpers.sliding_follower import EVERY_ROOM, STATES, Ask, SlidingFollower
from tests.helpers.state_machines import PHASES_WITHOUT_SHRINKING, run_machine
from tests.helpers.sync_client import WHOLE_ROOM, SyncClient

pytestmark = pytest.mark.usefixtures("compared")

RUNS = int(os.environ.get("MAHALLA_SYNC_RUNS", "15"))
V3 = "/_matrix/client/v3"
MOST_ROOMS = 5

WHO = st.integers(0, 3)
"""Three in the north, whose clients are looked at, and one in the south."""
LOCAL = st.integers(0, 2)
ROOM = st.integers(0, MOST_ROOMS - 1)
NUMBER = st.integers(0, 11)
ASK = st.builds(
    Ask,
    window=st.sampled_from([0, 1, 2, EVERY_ROOM, EVERY_ROOM]),
    limit=st.integers(0, 6),
    state=st.integers(0, len(STATES) - 1),
    subscribed=st.integers(0, 2),
)


class SyncAgreementMachine(RuleBasedStateMachine):
    """Alice, Bob and Carol in the north, Dave in the south."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = TemporaryDirectory()
        self.path = Path(self.directory.name)
        self.databases: list[Database] = []
        self.patch = pytest.MonkeyPatch()
        template = make_sqlite_template(self.path)

        def open_another() -> Database:
            self.databases.append(open_inline(copy_sqlite(template, self.path)))
            return self.databases[-1]

        self.network = Network(self.path, open_another)
        north, south = self.network.add(NORTH), self.network.add(SOUTH)
        self.departures = LeavePositions(north.app.database)
        self.people = [
            *(north.register(name) for name in ("alice", "bob", "carol")),
            south.register("dave"),
        ]
        self.network.start_sending()
        self.rooms: list[str] = []
        self.sent: dict[str, list[str]] = {}
        self.count = 0
        self.pending: list[tuple[str, Pending]] = []
        alice, bob, carol, _ = self.people
        self.v3 = [
            SyncClient(alice, forks=True, limit=3),
            SyncClient(alice, forks=True, state_after=True),
            SyncClient(bob, forks=True, lazy=True, state_after=True, limit=2),
            SyncClient(carol, forks=True, lazy=True, limit=5),
        ]
        self.sliding = [
            SlidingFollower(alice),
            SlidingFollower(bob, stable=True),
            SlidingFollower(carol, limit=1),
            SlidingFollower(alice, stable=True, conn_id="other"),
            SlidingFollower(carol, conn_id="bare", limit=0),
        ]
        self.clients: list[SyncClient | SlidingFollower] = [*self.v3, *self.sliding]

    @initialize(short=st.booleans(), forgetful=st.booleans())
    def begin(self, short: bool, forgetful: bool) -> None:
        if (
            forgetful
        ):  # what sliding sync keeps in memory of connections is gone whenever it is looked for
            self.patch.setattr(ConnectionCache, "get", lambda _self, _key: None)
        if short:  # answers of sliding sync end early, and go on in the next ones
            self.patch.setattr(batches, "MAX_RESPONSE_BYTES", 2500)
            self.patch.setattr(batches, "MAX_EVENTS_PER_BATCH", 3)
            self.patch.setattr(room_json, "MAX_TIMELINE_BYTES", 1500)
        for at, preset in ((0, "public_chat"), (1, "public_chat"), (0, "private_chat")):
            self.create(at, preset)
        for who in range(4):
            self.join(who, 0)
        self.join(3, 1)
        members = self.people[0].get(f"{V3}/rooms/{self.rooms[0]}/joined_members").json["joined"]
        assert len(members) == len(self.people)

    @rule(who=WHO, preset=st.sampled_from(["public_chat", "private_chat"]))
    def create(self, who: int, preset: str) -> None:
        if len(self.rooms) < MOST_ROOMS:
            levels = {
                "users_default": 50,
                "state_default": 50,
                "invite": 0,
                "events": {"m.room.power_levels": 50},
            }
            answer = self.people[who].post(
                f"{V3}/createRoom", {"preset": preset, "power_level_content_override": levels}
            )
            assert answer.status == 200, answer.body
            self.rooms.append(answer.json["room_id"])
            self.settle()

    @rule(who=WHO, where=ROOM, more=NUMBER)
    def say(self, who: int, where: int, more: int) -> None:
        for _ in range(1 + more % 8):
            self.send(who, where, {"msgtype": "m.text", "body": "hello"})

    @rule(
        who=WHO,
        where=ROOM,
        value=NUMBER,
        kind=st.sampled_from(["m.thread", "m.replace", "m.annotation", "call"]),
    )
    def relate(self, who: int, where: int, value: int, kind: str) -> None:
        target = self.any_event(where, value)
        content: dict[str, Any] = {"msgtype": "m.text", "body": "aside"}
        if kind == "call":
            content["m.mentions"] = {
                "room": value % 2 == 0,
                "user_ids": [self.people[value % 3].user_id],
            }
        else:
            content["m.relates_to"] = {"rel_type": kind, "event_id": target}
        if kind == "m.replace":
            content["m.new_content"] = {"msgtype": "m.text", "body": "better"}
        if kind == "m.annotation":
            content = {
                "m.relates_to": {"rel_type": kind, "event_id": target, "key": f"{self.count}"}
            }
        self.send(who, where, content, "m.reaction" if kind == "m.annotation" else "m.room.message")

    @rule(who=WHO, where=ROOM)
    def join(self, who: int, where: int) -> None:
        if where < len(self.rooms):
            uri = f"{V3}/join/{self.rooms[where]}?via={NORTH if who == 3 else SOUTH}"
            self.note("join", self.people[who].start("POST", uri, {}))

    @rule(who=WHO, where=ROOM)
    def leave(self, who: int, where: int) -> None:
        self.act(who, where, "POST", "leave", {})

    @rule(
        who=WHO,
        where=ROOM,
        whom=WHO,
        what=st.sampled_from(["invite", "invite", "kick", "ban", "unban"]),
    )
    def change_membership(self, who: int, where: int, whom: int, what: str) -> None:
        self.act(who, where, "POST", what, {"user_id": self.people[whom].user_id})

    @rule(who=LOCAL, where=ROOM)
    def knock(self, who: int, where: int) -> None:
        if where < len(self.rooms):
            self.note(
                "knock", self.people[who].start("POST", f"{V3}/knock/{self.rooms[where]}", {})
            )

    @rule(
        where=ROOM,
        whom=LOCAL,
        out=st.sampled_from(["kick", "leave", "ban"]),
        then=st.sampled_from(["ban", "unban", "invite", "knock"]),
        value=NUMBER,
    )
    def put_out(self, where: int, whom: int, out: str, then: str, value: int) -> None:
        """Somebody goes, others change the room's state, and something becomes of the membership
        that is not one any more."""
        other = (whom + 1) % 3
        if out == "leave":
            self.leave(whom, where)
        else:
            self.change_membership(other, where, whom, out)
        self.set_state(other, where, value, "org.example.thing")
        self.set_state(other, where, value, "m.room.name")
        if then == "knock":
            self.set_state(other, where, 2, "m.room.join_rules")
            self.knock(whom, where)
        else:
            self.change_membership(other, where, whom, then)
        self.set_state(other, where, value + 1, "m.room.topic")
        if then in ("invite", "knock") and value % 3:
            self.leave(whom, where)

    @rule(who=LOCAL, where=ROOM)
    def forget(self, who: int, where: int) -> None:
        if where >= len(self.rooms):
            return
        user, room_id = self.people[who], self.rooms[where]
        if user.post(f"{V3}/rooms/{room_id}/forget").status == 200:
            for client in self.clients:
                if client.user is user:
                    client.catch_up()
                    client.forget(room_id)

    @rule(
        who=WHO,
        where=ROOM,
        value=NUMBER,
        type=st.sampled_from(
            ["org.example.thing"] * 3
            + ["m.room.name", "m.room.topic", "m.room.join_rules", "m.room.avatar"]
        ),
    )
    def set_state(self, who: int, where: int, value: int, type: str) -> None:
        contents: dict[str, dict[str, Any]] = {
            "org.example.thing": {"value": value},
            "m.room.name": {"name": ("", "Hall", "Yard")[value % 3]},
            "m.room.topic": {"topic": f"{value}"},
            "m.room.join_rules": {"join_rule": ("public", "invite", "knock", "public")[value % 4]},
            "m.room.avatar": {"url": f"mxc://north.example/{value}"} if value % 3 else {},
        }
        key = f"{value % 2}" if type == "org.example.thing" else ""
        self.act(who, where, "PUT", f"state/{type}/{key}", contents[type])

    @rule(who=WHO, where=ROOM, levels=st.tuples(*[st.sampled_from([0, 50, 100])] * 3))
    def set_levels(self, who: int, where: int, levels: tuple[int, int, int]) -> None:
        if where < len(self.rooms):
            answer = self.people[who].get(
                f"{V3}/rooms/{self.rooms[where]}/state/m.room.power_levels"
            )
            if answer.status == 200:
                others = [user for at, user in enumerate(self.people) if at != where % 2]
                users = answer.json["users"] | {
                    u.user_id: level for u, level in zip(others, levels, strict=True)
                }
                self.act(
                    who, where, "PUT", "state/m.room.power_levels/", {**answer.json, "users": users}
                )

    @rule(who=WHO, where=ROOM, value=NUMBER)
    def set_profile(self, who: int, where: int, value: int) -> None:
        user = self.people[who]
        content = {"membership": "join", "displayname": f"{value}"}
        self.act(who, where, "PUT", f"state/m.room.member/{user.user_id}", content)

    @rule(
        who=WHO,
        where=ROOM,
        value=st.sampled_from(["joined", "shared", "invited", "world_readable"]),
    )
    def set_visibility(self, who: int, where: int, value: str) -> None:
        self.act(
            who, where, "PUT", "state/m.room.history_visibility/", {"history_visibility": value}
        )

    @rule(who=WHO, where=ROOM, value=NUMBER)
    def redact(self, who: int, where: int, value: int) -> None:
        self.act(who, where, "PUT", f"redact/{self.any_event(where, value)}/{self.count}", {})

    @rule(
        who=WHO,
        where=ROOM,
        value=NUMBER,
        kind=st.sampled_from(["m.read", "m.read", "m.read.private"]),
    )
    def read(self, who: int, where: int, value: int, kind: str) -> None:
        body = ({}, {}, {"thread_id": "main"}, {"thread_id": self.any_event(where, value + 1)})[
            value % 4
        ]
        self.act(who, where, "POST", f"receipt/{kind}/{self.any_event(where, value)}", body)

    @rule(who=WHO, where=ROOM, typing=st.booleans())
    def type(self, who: int, where: int, typing: bool) -> None:
        body = {"typing": typing, "timeout": 10_000}
        self.act(who, where, "PUT", f"typing/{self.people[who].user_id}", body)

    @rule(who=LOCAL, value=NUMBER)
    def keep(self, who: int, value: int) -> None:
        user = self.people[who]
        user.put(f"{V3}/user/{user.user_id}/account_data/org.example.{value % 2}", {"n": value})

    @rule(who=LOCAL, where=ROOM, value=NUMBER)
    def keep_in_room(self, who: int, where: int, value: int) -> None:
        if where < len(self.rooms):
            user = self.people[who]
            path = f"{V3}/user/{user.user_id}/rooms/{self.rooms[where]}"
            if value % 2:
                user.put(f"{path}/account_data/org.example.{value % 3}", {"n": value})
            else:
                user.put(f"{path}/tags/u.{value % 3}", {"order": 0.5})

    @rule()
    def cut(self) -> None:
        self.network.cut(NORTH, SOUTH)

    @rule(order=st.integers(0, 2**16))
    def mend(self, order: int) -> None:
        """Deliver the events that both sides wrote meanwhile."""
        self.network.mend(NORTH, SOUTH)
        random = Random(order)
        self.network.deliver(lambda letters: random.randrange(len(letters)))
        self.pass_time(1)

    @rule(
        where=ROOM,
        who=LOCAL,
        ours=st.sampled_from(["thing", "name", "level", "ban", "leave", "invite", "join", "join"]),
        theirs=st.sampled_from(["thing", "name", "level", "kick", "say", "close", "close"]),
        meanwhile=st.integers(0, 3),
        order=st.integers(0, 2**16),
        value=NUMBER,
    )
    def fork(
        self, where: int, who: int, ours: str, theirs: str, meanwhile: int, order: int, value: int
    ) -> None:
        """Both sides change the same while they do not hear of each other."""
        self.network.hold()
        for side, what in ((3, theirs), (who, ours), (0, "thing")):
            if what == "level":
                self.set_levels(side, where, ((0, 50, 100)[value % 3], 100, 50))
            elif what in ("thing", "name"):
                self.set_state(
                    side, where, 2 * side, "m.room.name" if what == "name" else "org.example.thing"
                )
            elif what == "say":
                self.say(side, where, 0)
            elif what == "leave":
                self.leave(side, where)
            elif what == "join":
                self.leave(side, where)
                self.join(side, where)
            elif what == "close":
                self.set_state(side, where, 1, "m.room.join_rules")
            else:
                self.change_membership(side, where, (value + side) % 4, what)
        for _ in range(meanwhile % 2):
            self.v3[value % 4].sync()
        self.mend(order)

    @rule()
    def hold(self) -> None:
        self.network.deliver()
        self.network.hold()

    @rule(seconds=st.sampled_from([1, 20]))
    def wait(self, seconds: int) -> None:
        self.network.clock.advance(seconds)
        self.settle()

    @rule()
    def restart(self) -> None:
        self.network.clock.advance(
            1
        )  # as it takes: of a room, the moment of its making is a part of the name
        server = self.network.rebuild(NORTH)
        for user in self.people[:3]:
            user.server = server
        for client in self.clients:
            client.forget_typing()
        self.settle()

    @rule(at=st.integers(0, 3), times=st.integers(1, 2))
    def sync(self, at: int, times: int) -> None:
        """Of two answers to the same token the first got lost."""
        client = self.v3[at]
        if times == 2:
            client.ask(client.limit, since=client.since)
        client.sync()

    @rule(at=st.integers(0, 4), ask=ASK, lost=st.none() | ASK)
    def slide(self, at: int, ask: Ask, lost: Ask | None) -> None:
        client = self.sliding[at]
        if lost is not None:
            client.ask(lost)
        client.sync(ask)

    def send(self, who: int, where: int, content: Any, type: str = "m.room.message") -> None:
        self.count += 1
        pending = self.act(who, where, "PUT", f"send/{type}/{self.count}", content)
        if (
            pending is not None
            and pending.done
            and pending.answer.status == 200
            and type == "m.room.message"
        ):
            self.sent.setdefault(self.rooms[where], []).append(pending.answer.json["event_id"])

    def any_event(self, where: int, value: int) -> str:
        sent = self.sent.get(self.rooms[where], []) if where < len(self.rooms) else []
        return sent[-1 - value % min(len(sent), 4)] if sent else "$unknown"

    def act(
        self, who: int, where: int, method: str, path: str, body: Any, query: str = ""
    ) -> Pending | None:
        if where >= len(self.rooms):
            return None
        self.count += 1
        uri = f"{V3}/rooms/{self.rooms[where]}/{path}{query}"
        return self.note(f"{method} {path}", self.people[who].start(method, uri, body))

    def note(self, what: str, pending: Pending) -> Pending:
        self.network.clock.advance(0.001)  # no two events are of the same moment
        self.settle()
        self.pending.append((what, pending))
        self.pending = [(name, each) for name, each in self.pending if not self.is_done(name, each)]
        return pending

    def is_done(self, what: str, pending: Pending) -> bool:
        if pending.done:
            assert pending.answer.status in (200, 400, 403, 404, 502, 504), (
                what,
                pending.answer.body,
            )
        return pending.done

    def settle(self) -> None:
        self.network.settle()

    def pass_time(self, hours: int) -> None:
        for _ in range(hours):
            self.network.clock.advance(3600)
            self.settle()

    def teardown(self) -> None:
        try:
            self.settle()
            self.check()
        finally:
            self.patch.undo()
            for database in self.databases:
                run_coroutine(database.close(), None)
            self.directory.cleanup()

    def check(self) -> None:
        for client in self.clients:
            client.catch_up()
        if self.count % 2:  # changes without an event have to be sent too
            for where in range(len(self.rooms)):
                for who in range(3):
                    self.read(who, where, 0, "m.read")
            for client in self.clients:
                client.catch_up()
        for client in self.clients:
            self.departures.check(
                client.user.user_id, [(id, room.state) for id, room in client.rooms.items()]
            )
        for client in self.v3:
            client.check()
        for sliding in self.sliding:
            truth = SyncClient(sliding.user, state_after=True)
            truth.sync(WHOLE_ROOM)
            sliding.check(truth.rooms, truth.account_data)


def test_clients_of_both_syncs_agree_with_a_new_client() -> None:
    run_machine(SyncAgreementMachine, RUNS, 40, PHASES_WITHOUT_SHRINKING)
