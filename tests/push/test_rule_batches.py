"""Push rules that are loaded, classified and evaluated in batches while users change them, join and
leave, and the database answers in any order: every user's rules decide about each message.

A change that is concurrent with a message may apply to it or not; one that was acknowledged before
applies. The caches hold few rules and rooms, so that they are reloaded all the time.
`MAHALLA_PUSH_RUNS=1000` runs a thousand histories.
"""

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from random import Random

import pytest
from twisted.internet.defer import ensureDeferred

from federation.protocol.events import Event
from federation.rooms.build import Classification, RoomBeforeEvent
from homeserver.services.push import event_push_actions as outcomes_module
from homeserver.services.push import room_rules as room_rules_module
from homeserver.services.push import user_rules as own_rules_module
from homeserver.wiring import push_rules as assembly_module
from storage.engine.database import PostgresConfig, SQLiteConfig
from storage.push.event_push_actions import HIGHLIGHTED, NOTIFIES
from tests.conftest import run_coroutine
from tests.helpers.federated_rooms import create_room
from tests.helpers.http import Pending
from tests.helpers.interleaving import Interleaving
from tests.helpers.room_actions import say
from tests.helpers.server import TestServer, User
from tests.helpers.sync_requests import sync

V3 = "/_matrix/client/v3"
RUNS = int(os.environ.get("MAHALLA_PUSH_RUNS", "6"))
PEOPLE = 6
MOVES = 400


@dataclass
class Bounds:
    """Lower and upper bound of a count."""

    least: int = 0
    most: int = 0

    def add(self, *possible: bool) -> None:
        self.least += min(possible)
        self.most += max(possible)


@dataclass(frozen=True)
class Rules:
    has_word: bool = False
    """Whether they have a keyword rule: a message with the word is a highlight."""
    is_muted: bool = False

    def says(self, called: bool) -> tuple[bool, bool]:
        """Return whether a message notifies, and whether it is a highlight."""
        calls = self.has_word and called
        return calls or not self.is_muted, calls

    def agrees(self, called: bool, row: int | None) -> bool:
        """Return whether the rules give the outcome in this row; without a row, the default one."""
        notifies, calls = self.says(called)
        if row is None:
            return (notifies, calls) == (not self.is_muted, False)
        return row == (NOTIFIES if notifies else 0) | (HIGHLIGHTED if calls else 0)


@dataclass
class Message:
    """One that is being sent, with all that somebody's rules may be meanwhile."""

    words: set[int]
    pending: Pending
    possible: list[set[Rules]]


@dataclass
class Judgement:
    """A message that is judged once more, at the same time as others: what comes of it is kept
    nowhere."""

    words: set[int]
    found: list[Classification]
    possible: list[set[Rules]]


@dataclass
class Person:
    user: User
    number: int
    rules: Rules = Rules()
    wanted: Rules = Rules()
    """The rules after the request that is under way."""
    changing: Pending | None = None
    notified: Bounds = field(default_factory=Bounds)
    called: Bounds = field(default_factory=Bounds)


class RuleModel:
    """Bob, who talks in a room of his, and others, who change their minds about it."""

    def __init__(self, server: TestServer, turns: Interleaving, chance: Random) -> None:
        self.server, self.turns, self.chance = server, turns, chance
        self.bob = server.register("bob")
        self.room_id = create_room(self.bob)
        self.people = [Person(server.register(f"user{number}"), number) for number in range(PEOPLE)]
        for person in self.people:
            assert person.user.post(f"{V3}/join/{self.room_id}").status == 200
        self.pending: list[Message] = []
        self.judging: list[Judgement] = []
        self.names = count()
        self.room_nid = server.run(
            server.app.room_engine.engine.get_snapshot(self.room_id)
        ).room.room_nid
        self.old = [
            self.say_at_once(words)
            for words in ({0, 2, 4}, {1, 3, 5}, set(range(PEOPLE)), set[int]())
        ]
        for person in self.people:
            person.notified = Bounds(len(self.old), len(self.old))

    def say_at_once(self, words: set[int]) -> tuple[set[int], Event]:
        event_id = say(self.bob, self.room_id, body_of(words))
        stored = self.server.run(self.server.app.rooms.events.get_event(self.room_nid, event_id))
        assert stored is not None
        return words, stored.event

    def move(self) -> None:
        kind = self.chance.random()
        if kind < 0.06:
            self.change(self.chance.choice(self.people))
        elif kind < 0.1 and len(self.pending) < 3:
            self.say()
        elif kind < 0.2 and len(self.judging) < 3:
            self.judge()
        elif kind < 0.4:
            self.server.clock.advance(0)
        else:
            self.turns.step()
        self.settle()

    def change(self, person: Person) -> None:
        if person.changing is not None:
            return
        now, rules = person.rules, f"{V3}/pushrules/global"
        if self.chance.random() < 0.5:
            person.wanted, path = Rules(not now.has_word, now.is_muted), f"{rules}/content/own"
            is_set = person.wanted.has_word
            body = {
                "pattern": f"word{person.number}",
                "actions": ["notify", {"set_tweak": "highlight"}],
            }
        else:
            person.wanted, path = (
                Rules(now.has_word, not now.is_muted),
                f"{rules}/room/{self.room_id}",
            )
            is_set, body = person.wanted.is_muted, {"actions": []}
        person.changing = (
            person.user.start("PUT", path, body) if is_set else person.user.start("DELETE", path)
        )
        for possible in [each.possible for each in self.pending] + [
            each.possible for each in self.judging
        ]:
            possible[person.number].add(person.wanted)

    def say(self) -> None:
        words = {person.number for person in self.people if self.chance.random() < 0.5}
        content = {"msgtype": "m.text", "body": body_of(words)}
        path = f"{V3}/rooms/{self.room_id}/send/m.room.message/own{next(self.names)}"
        self.pending.append(Message(words, self.bob.start("PUT", path, content), self.possible()))

    def judge(self) -> None:
        """As one that comes from another server meanwhile."""
        words, event = self.chance.choice(self.old)
        judgement = Judgement(words, [], self.possible())
        self.judging.append(judgement)
        work = self.server.app.push_rules.outcomes.classify(
            event, RoomBeforeEvent(self.room_nid, PEOPLE + 1, None)
        )
        ensureDeferred(work).addCallback(judgement.found.append)

    def possible(self) -> list[set[Rules]]:
        return [{person.rules, person.wanted} for person in self.people]

    def settle(self) -> None:
        """See what has been answered."""
        for person in self.people:
            if person.changing is not None and person.changing.done:
                assert person.changing.answer.status == 200, person.changing.answer.body
                person.changing, person.rules = None, person.wanted
        for message in [each for each in self.pending if each.pending.done]:
            assert message.pending.answer.status == 200, message.pending.answer.body
            self.pending.remove(message)
            for person in self.people:
                called = person.number in message.words
                says = [rules.says(called) for rules in message.possible[person.number]]
                person.notified.add(*(notifies for notifies, _ in says))
                person.called.add(*(calls for _, calls in says))

        for judgement in [each for each in self.judging if each.found]:
            self.judging.remove(judgement)
            for person in self.people:
                row = judgement.found[0].outcomes.get(person.user.user_id)
                called = person.number in judgement.words
                possible = judgement.possible[person.number]
                assert any(rules.agrees(called, row) for rules in possible), (called, row, possible)

    def end(self) -> None:
        self.turns.end()
        for _ in range(20):
            self.server.clock.advance(0)
            self.turns.end()
        self.settle()
        assert not self.pending
        assert not self.judging

    def check(self) -> None:
        for person in self.people:
            room = sync(person.user)["rooms"]["join"][self.room_id]
            counts = room["unread_notifications"]
            for name, bounds in (
                ("notification_count", person.notified),
                ("highlight_count", person.called),
            ):
                assert bounds.least <= counts[name] <= bounds.most, (person, counts)


def body_of(words: Iterable[int]) -> str:
    return " ".join(["so", *(f"word{number}" for number in words)])


@pytest.fixture
def in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assembly_module, "USERS_CACHED", 3)
    monkeypatch.setattr(room_rules_module, "MAX_CHANGES", 3)
    monkeypatch.setattr(own_rules_module, "USERS_PER_READ", 2)
    monkeypatch.setattr(room_rules_module, "USERS_PER_TURN", 2)
    monkeypatch.setattr(outcomes_module, "CLASSES_PER_TURN", 2)


@pytest.mark.parametrize("seed", range(RUNS))
@pytest.mark.usefixtures("in_pieces")
def test_each_message_is_judged_by_the_rules_of_each_user(
    tmp_path: Path, database_config: SQLiteConfig | PostgresConfig, seed: int
) -> None:
    turns, chance = Interleaving(), Random(seed)
    database = turns.open(database_config)
    model = RuleModel(TestServer(tmp_path, database), turns, chance)
    turns.begin(chance)
    for _ in range(MOVES):
        model.move()
    model.end()
    model.check()
    run_coroutine(database.close(), None)
