"""Random histories of pushes to a large room, which are sent in batches.

Every unread event is pushed to every user, in order, with the current badge. This holds whatever
users do meanwhile, when the server stops or loses its lease, when the database fails, and in
whatever order it answers.

In every other history nothing stops and no lease is lost: then no event is pushed twice.
`MAHALLA_PUSH_RUNS=1000` runs a thousand histories.
"""

import os
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from homeserver.services.push import user_rules as own_rules_module
from homeserver.services.push.decisions import PushDecisions
from homeserver.services.pushers import queues as lines_module
from homeserver.services.pushers import stream_reader as reading_module
from homeserver.services.pushers.badges import BadgeCounts
from storage.engine.database import DatabaseUnavailable, PostgresConfig, SQLiteConfig
from storage.engine.transaction import WriteTransaction
from storage.push.push_stream import PushStream
from tests.conftest import run_coroutine
from tests.helpers.clocks import settle
from tests.helpers.federated_rooms import create_room
from tests.helpers.http import Pending
from tests.helpers.interleaving import Interleaving
from tests.helpers.push_gateway import PushGateway, pusher, set_pusher, start
from tests.helpers.server import TestServer, User, move_user
from tests.helpers.sync_requests import sync

V3 = "/_matrix/client/v3"
RUNS = int(os.environ.get("MAHALLA_PUSH_RUNS", "6"))
PEOPLE = 7
MOVES = 300
CALM = (*("say",) * 6, *("read",) * 3, "redact", "replace", "off", "away")
DEEDS = (*CALM, "lose", "end")
"""`CALM`, and the actions after which an event may be pushed twice."""


class Person:
    def __init__(self, user: User, number: int) -> None:
        self.user, self.number = user, number
        self.key = f"key{number}"
        self.pushed_from: int | None = 0
        """Index of the first event that must be pushed to that key; None: it is being replaced."""
        self.read: set[str] = set()
        """Events that they have read, or whose receipt is under way."""
        self.busy: Pending | None = None
        self.then: Callable[[], None] = lambda: None


class Disk:
    """Makes a query of the pushers fail now and then, as if the database were unavailable."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.fails_next = False
        for owner, name in (
            (PushDecisions, "get_actions"),
            (PushStream, "get_batch"),
            (BadgeCounts, "get"),
        ):
            self._patch(monkeypatch, owner, name)

    def _patch(self, monkeypatch: pytest.MonkeyPatch, owner: type, name: str) -> None:
        ask = getattr(owner, name)

        async def ask_or_fail(*arguments: Any) -> Any:
            if self.fails_next:
                self.fails_next = False
                raise DatabaseUnavailable("it is away")
            return await ask(*arguments)

        monkeypatch.setattr(owner, name, ask_or_fail)


class LargeRoomModel:
    """Bob, who writes to two rooms whose members have pushers."""

    def __init__(
        self,
        folder: Path,
        turns: Interleaving,
        config: SQLiteConfig | PostgresConfig,
        chance: Random,
        disk: Disk,
    ) -> None:
        self.folder, self.turns, self.chance, self.disk = folder, turns, chance, disk
        self.database = turns.open(config)
        self.gateway = PushGateway()
        self.server = start(folder, self.database, self.gateway)
        self.bob = self.server.register("bob")
        self.rooms = [create_room(self.bob) for _ in range(2)]
        self.people = [
            Person(self.server.register(f"user{number}"), number) for number in range(PEOPLE)
        ]
        for person in self.people:
            for room_id in self.rooms:
                assert person.user.post(f"{V3}/join/{room_id}").status == 200
            assert set_pusher(person.user, person.key).status == 200
            settle(self.server)
        self.said: list[tuple[str, Pending]] = []
        """Room and answer of each message, in the order of the requests."""
        self.redacting: dict[str, Pending] = {}
        self.names = count()
        self.builds = 1
        self.deeds: Sequence[str] = CALM

    def move(self) -> None:
        kind = self.chance.random()
        if kind < 0.12:
            self.do(self.chance.choice(self.deeds))
        elif kind < 0.4:
            self.server.clock.advance(0)
        elif kind < 0.45:
            self.server.clock.advance(1)
        else:
            self.turns.step()
        self.see()

    def do(self, deed: str) -> None:
        person, room_id = self.chance.choice(self.people), self.chance.choice(self.rooms)
        acknowledged = self.acknowledged(room_id)
        match deed:
            case "say":
                path = f"{V3}/rooms/{room_id}/send/m.room.message/own{next(self.names)}"
                self.said.append(
                    (room_id, self.bob.start("PUT", path, {"msgtype": "m.text", "body": "x"}))
                )
            case "redact" if acknowledged:
                event_id = self.chance.choice(acknowledged)
                path = f"{V3}/rooms/{room_id}/redact/{event_id}/own{next(self.names)}"
                self.redacting[event_id] = self.bob.start("PUT", path, {})
            case "away":
                self.disk.fails_next = True
            case "lose":
                self.lose()
            case "end":
                self.end()
            case "read" if acknowledged and person.busy is None:
                person.read.update(acknowledged)
                path = f"{V3}/rooms/{room_id}/receipt/m.read.private/{acknowledged[-1]}"
                self.begin(person, person.user.start("POST", path, {}))
            case "replace" if person.busy is None:
                person.key, person.pushed_from = f"key{person.number}.{next(self.names)}", None
                body = pusher(person.key)
                self.begin(
                    person,
                    person.user.start("POST", f"{V3}/pushers/set", body),
                    lambda: self.count_on(person),
                )
            case "off" if person.busy is None:
                person.pushed_from = None
                body = pusher(person.key, **{"org.matrix.msc3881.enabled": False})
                self.begin(
                    person,
                    person.user.start("POST", f"{V3}/pushers/set", body),
                    lambda: self.on(person),
                )

    def begin(self, person: Person, work: Pending, then: Callable[[], None] = lambda: None) -> None:
        person.busy, person.then = work, then

    def on(self, person: Person) -> None:
        body = pusher(person.key, **{"org.matrix.msc3881.enabled": True})
        self.begin(
            person,
            person.user.start("POST", f"{V3}/pushers/set", body),
            lambda: self.count_on(person),
        )

    def count_on(self, person: Person) -> None:
        """Expect every later event to be pushed to this key."""
        person.pushed_from = len(self.said)

    def acknowledged(self, room_id: str) -> list[str]:
        return [
            each.answer.json["event_id"]
            for where, each in self.said
            if where == room_id and each.done
        ]

    def see(self) -> None:
        for person in self.people:
            if person.busy is not None and person.busy.done:
                assert person.busy.answer.status == 200, person.busy.answer.body
                then, person.busy, person.then = person.then, None, lambda: None
                then()

    def lose(self) -> None:
        """Let another node take the lease, and stop at once."""

        def write(txn: WriteTransaction) -> None:
            txn.execute("UPDATE leases SET holder = 'another', expires_ts = 0 WHERE name = 'push'")

        work = Deferred.fromCoroutine(self.database.write("test", write))
        self.wait_for(lambda: work.called)

    def end(self) -> None:
        """Stop the pushers, let pending requests finish, and start another server."""
        stopping = Deferred.fromCoroutine(self.server.app.pushers.stop())
        self.wait_for(lambda: stopping.called)
        self.wait_for(lambda: all(each.done for _, each in self.said))
        self.wait_for(lambda: all(each.done for each in self.redacting.values()))
        while any(person.busy is not None for person in self.people):
            self.wait_for(
                lambda: all(person.busy is None or person.busy.done for person in self.people)
            )
            self.see()
        self.builds += 1
        now = self.server.clock.seconds() + 1
        self.server = TestServer(
            self.folder, self.database, seed=self.builds, now=now, web=self.gateway
        )
        self.server.app.pushers.start()
        self.bob = move_user(self.server, self.bob)
        for person in self.people:
            person.user = move_user(self.server, person.user)

    def wait_for(self, is_done: Callable[[], bool]) -> None:
        for _ in range(2000):
            if is_done():
                return
            if self.chance.random() < 0.3:
                self.server.clock.advance(0)
            else:
                self.turns.step()
        raise AssertionError("it does not end")

    def finish(self) -> None:
        for _ in range(60):
            self.turns.end()
            self.see()
            self.server.clock.advance(1)
            settle(self.server)
        assert all(person.busy is None for person in self.people)

    def check(self) -> None:
        events = [each.answer.json["event_id"] for _, each in self.said]
        rows = self.server.run(
            self.database.read(
                "test", lambda txn: txn.query("SELECT event_id FROM events ORDER BY position", ())
            )
        )
        order = {event_id: at for at, (event_id,) in enumerate(rows)}
        for person in self.people:
            taken = [each for each in self.gateway.taken if each.pushkey == person.key]
            pushed = [
                each.notification["event_id"] for each in taken if "event_id" in each.notification
            ]
            first = list(dict.fromkeys(pushed))
            if self.deeds is CALM:
                assert first == pushed, "nothing is pushed twice"
            else:
                # the next server may see that there is a newer receipt, and read it later
                first = [event_id for event_id in first if event_id not in person.read]
            assert [order[event_id] for event_id in first] == sorted(
                order[event_id] for event_id in first
            )
            assert person.pushed_from is not None
            missing = (
                set(events[person.pushed_from :]) - set(pushed) - person.read - set(self.redacting)
            )
            assert not missing, (person.key, missing)
            rooms = sync(person.user)["rooms"]["join"]
            unread = sum(
                1 for room in rooms.values() if room["unread_notifications"]["notification_count"]
            )
            if taken:
                assert taken[-1].notification["counts"].get("unread", 0) == unread, person.key


@pytest.fixture
def in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading_module, "NOTIFY_BATCH", 2)
    monkeypatch.setattr(lines_module, "WAKES_PER_TURN", 2)
    monkeypatch.setattr(own_rules_module, "USERS_PER_READ", 2)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


@pytest.mark.parametrize("seed", range(RUNS))
@pytest.mark.usefixtures("in_pieces")
def test_unread_events_are_pushed_to_every_user_in_any_history(
    tmp_path: Path, database_config: SQLiteConfig | PostgresConfig, disk: Disk, seed: int
) -> None:
    chance = Random(seed)
    turns = Interleaving()
    model = LargeRoomModel(tmp_path, turns, database_config, chance, disk)
    if seed % 2:
        model.deeds = DEEDS
    turns.begin(chance)
    for _ in range(MOVES):
        model.move()
    model.finish()
    model.check()
    run_coroutine(model.database.close(), None)
