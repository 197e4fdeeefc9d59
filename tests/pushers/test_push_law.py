"""The law of pushers: whatever fails, unread events are pushed in order, and read ones are not."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from federation.http_client.errors import OutboundError
from federation.protocol.ids import EventID
from tests.helpers.clocks import settle
from tests.helpers.databases import copy_sqlite, open_inline
from tests.helpers.federated_rooms import create_room
from tests.helpers.leases import stop_renewing
from tests.helpers.push_gateway import PushGateway, set_pusher
from tests.helpers.room_actions import say
from tests.helpers.server import START, TestServer, move_user

V3 = "/_matrix/client/v3"
actions = st.lists(
    st.tuples(
        st.sampled_from(
            ["say"] * 4
            + ["hold", "one"] * 2
            + ["read", "answer", "down", "refuse", "up", "free", "crash", "wait"]
        ),
        st.integers(0, 5),
    ),
    min_size=4,
    max_size=30,
)
BEHIND = [
    *[("refuse", 0), ("say", 0), ("say", 0), ("say", 1), ("wait", 2)],
    *[("hold", 0), ("up", 0), ("wait", 2), ("one", 0), ("wait", 3), ("crash", 0)],
]
"""A pusher that is behind has got one of three pushes when the server crashes."""


class PushModel:
    """Alice, who has a pusher, and Bob, in two rooms; a gateway that comes and goes; a server that
    crashes."""

    def __init__(self, folder: Path, template: Path) -> None:
        self.folder = folder
        self.database = open_inline(copy_sqlite(template, folder))
        self.gateway = PushGateway()
        self.crashes = 0
        self.server = self.build(START)
        self.alice, self.bob = self.server.register("alice"), self.server.register("bob")
        self.rooms = [create_room(self.bob) for _ in range(2)]
        for room_id in self.rooms:
            assert self.alice.post(f"{V3}/join/{room_id}").status == 200
        assert set_pusher(self.alice).status == 200
        settle(self.server)
        self.said: list[tuple[int, EventID]] = []
        """By room, in order."""
        self.read = [0, 0]
        """The number of events of each room that are read."""
        self.read_unpushed: set[EventID] = set()
        """Events that were read before a gateway took them, with no push under way."""

    def build(self, now: float) -> TestServer:
        server = TestServer(
            self.folder, self.database, seed=self.crashes + 1, now=now, web=self.gateway
        )
        server.app.pushers.start()
        settle(server)
        return server

    def of_room(self, room: int) -> list[EventID]:
        return [event_id for where, event_id in self.said if where == room]

    def do(self, action: str, number: int) -> None:
        room = number % 2
        match action:
            case "say":
                self.said.append((room, say(self.bob, self.rooms[room], "x")))
            case "read" if self.of_room(room):
                last = self.of_room(room)[-1]
                path = f"{V3}/rooms/{self.rooms[room]}/receipt/m.read.private/{last}"
                assert self.alice.post(path, {}).status == 200
                self.note_read(room)
            case "answer":
                say(self.alice, self.rooms[room], "mine")
                self.note_read(room)
            case "down":
                self.gateway.failure = OutboundError("it is down")
            case "refuse":
                self.gateway.failure = 503
            case "up":
                self.gateway.failure = None
            case "free":
                self.gateway.release()
            case "hold":
                self.gateway.held = self.gateway.held or []
            case "one" if self.gateway.held:
                self.gateway.held.pop(0).callback(None)
            case "crash":
                self.crash()
            case "wait":
                self.wait((1, 10, 60, 300, 600, 1200)[number])
        settle(self.server)

    def note_read(self, room: int) -> None:
        events = self.of_room(room)
        asked = self.gateway.asked[-1:] if self.gateway.held else []
        under_way = {each.notification.get("event_id") for each in asked}
        self.read_unpushed |= set(events) - set(self.gateway.events) - under_way
        self.read[room] = len(events)

    def crash(self) -> None:
        """Kill the process, and start a new one."""
        old = self.server.app.pushers
        stop_renewing(old.reading)
        old.deliveries.stop()
        self.crashes += 1
        self.gateway.held = None if self.gateway.held is None else []
        self.server = self.build(self.server.clock.seconds() + 40)
        self.alice, self.bob = move_user(self.server, self.alice), move_user(self.server, self.bob)

    def wait(self, seconds: int) -> None:
        for _ in range(max(1, seconds // 30)):
            self.server.clock.advance(min(seconds, 30))
            settle(self.server)

    def check(self) -> None:
        self.do("up", 0)
        self.do("free", 0)
        self.wait(7200)
        pushed = [EventID(event_id) for event_id in dict.fromkeys(self.gateway.events)]
        order = {event_id: at for at, (_, event_id) in enumerate(self.said)}
        assert [order[event_id] for event_id in pushed] == sorted(
            order[event_id] for event_id in pushed
        )
        unread = {
            event_id for room in range(2) for event_id in self.of_room(room)[self.read[room] :]
        }
        assert unread <= set(pushed)
        assert not self.read_unpushed & set(pushed)
        if not self.crashes:
            assert len(pushed) == len(self.gateway.events), "nothing is pushed twice"
        unread_rooms = sum(1 for room in range(2) if self.of_room(room)[self.read[room] :])
        if self.gateway.taken:
            assert self.gateway.taken[-1].notification["counts"].get("unread", 0) == unread_rooms


@settings(
    max_examples=40,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(history=actions)
@example(history=BEHIND)
def test_unread_events_are_pushed_in_any_history(
    sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory, history: list[tuple[str, int]]
) -> None:
    folder = tmp_path_factory.mktemp("law")
    model = PushModel(folder, sqlite_template)
    for action, number in history:
        model.do(action, number)
    model.check()
    Deferred.fromCoroutine(model.database.close())
