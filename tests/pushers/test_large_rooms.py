"""Rooms where many members have pushers or custom rules: they are processed in batches, and other
requests run in between."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from federation.protocol.ids import RoomID
from homeserver.services.push import event_push_actions as outcomes_module
from homeserver.services.push import room_rules as room_rules_module
from homeserver.services.push import user_rules as own_rules_module
from homeserver.services.push.actions import Actions
from homeserver.services.push.conditions import UNMENTIONED
from homeserver.services.push.event_properties import EvaluatedEvent
from homeserver.services.push.room_rules import RoomRuleClasses, RuleClass
from homeserver.services.push.rule_sets import RuleCompiler, RuleSet
from homeserver.services.push.user_rules import UserRules
from storage.engine.database import Database
from storage.push.pushers import PusherRow
from tests.helpers.clocks import settle
from tests.helpers.federated_rooms import create_room
from tests.helpers.many_pushers import AT_ONCE, CROWD, room_with_pushers, shrink_batches
from tests.helpers.push_gateway import PushGateway, start
from tests.helpers.room_actions import say
from tests.helpers.server import TestServer, User
from tests.helpers.sync_requests import sync

V3 = "/_matrix/client/v3"


@pytest.fixture
def server(
    tmp_path: Path, database: Database, gateway: PushGateway, monkeypatch: pytest.MonkeyPatch
) -> TestServer:
    shrink_batches(monkeypatch)
    return start(tmp_path, database, gateway)


def by_turn(server: TestServer, count: Callable[[], int]) -> list[int]:
    """Return by how many the count grows in each turn of the reactor."""
    counts: list[int] = []

    def turn() -> None:
        counts.append(count())
        if len(counts) < 10 * CROWD:
            server.clock.callLater(0, turn)

    turn()
    server.clock.advance(0)
    return [after - before for before, after in pairwise(counts)]


def test_a_message_is_pushed_to_a_large_room_in_batches(
    server: TestServer, gateway: PushGateway
) -> None:
    bob, room_id = room_with_pushers(server)
    say(bob, room_id, "hello")
    pushed = by_turn(server, lambda: len(gateway.taken))
    assert sum(pushed) == CROWD
    assert 0 < max(pushed) <= AT_ONCE


def test_a_redaction_updates_the_badges_of_a_large_room_in_batches(
    server: TestServer, gateway: PushGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    bob, room_id = room_with_pushers(server)
    event_id = say(bob, room_id, "hello")
    settle(server)
    deliveries, recipients = server.app.pushers.deliveries, list[str]()
    set_badge_due = deliveries.set_badge_due

    def note(row: PusherRow, position: int | None) -> None:
        recipients.append(row.user_id)
        set_badge_due(row, position)

    monkeypatch.setattr(deliveries, "set_badge_due", note)
    assert bob.put(f"{V3}/rooms/{room_id}/redact/{event_id}/1", {}).status == 200
    due = by_turn(server, lambda: len(recipients))
    assert sum(due) == CROWD
    assert max(due) <= AT_ONCE
    server.clock.advance(2)
    settle(server)
    assert gateway.badges == [0] * CROWD


def test_rules_of_a_large_room_are_compiled_and_evaluated_in_batches(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rules are not cached yet, as at the first message after a start."""
    before = TestServer(tmp_path, database)
    people = [before.register(f"user{number}") for number in range(CROWD)]
    room_id = create_room(people[0])
    for number, user in enumerate(people):
        assert user.post(f"{V3}/join/{room_id}").status == 200
        word = {"actions": ["notify"], "pattern": f"word{number}"}
        assert user.put(f"{V3}/pushrules/global/content/own", word).status == 200
    monkeypatch.setattr(own_rules_module, "USERS_PER_READ", AT_ONCE)
    monkeypatch.setattr(room_rules_module, "USERS_PER_TURN", AT_ONCE)
    monkeypatch.setattr(outcomes_module, "CLASSES_PER_TURN", AT_ONCE)
    compiled, classified, asked = list[bytes | None](), list[UserRules](), set[RuleSet]()
    compile, classify, find = RuleCompiler.compile, RoomRuleClasses.classify, RuleSet.find

    def note_compiled(compiler: RuleCompiler, kept: bytes | None) -> RuleSet:
        compiled.append(kept)
        return compile(compiler, kept)

    def note_classified(
        rules: RoomRuleClasses, own: UserRules, room_id: RoomID
    ) -> RuleClass | None:
        classified.append(own)
        return classify(rules, own, room_id)

    def note_asked(
        rules: RuleSet,
        occasion: EvaluatedEvent,
        user_id: str = UNMENTIONED,
        name: str | None = None,
    ) -> Actions:
        asked.add(rules)
        return find(rules, occasion, user_id, name)

    monkeypatch.setattr(RuleSet, "find", note_asked)
    monkeypatch.setattr(RuleCompiler, "compile", note_compiled)
    monkeypatch.setattr(RoomRuleClasses, "classify", note_classified)
    server = TestServer(tmp_path, database, seed=2, now=before.clock.seconds())
    compiled.clear()
    writer = User(
        server, {"user_id": people[0].user_id, "access_token": people[0].token, "device_id": "A"}
    )
    content = {"msgtype": "m.text", "body": f"word{CROWD - 1}"}
    sent = writer.start("PUT", f"{V3}/rooms/{room_id}/send/m.room.message/1", content)
    done_by_turns = [
        len(compiled),
        *by_turn(server, lambda: len(compiled) + len(classified) + len(asked)),
    ]
    assert sent.done
    assert sent.answer.status == 200
    assert (len(compiled), len(classified), len(asked)) == (CROWD, CROWD, CROWD + 1), (
        "and the default rules"
    )
    assert max(done_by_turns) <= 2 * AT_ONCE
    reader = User(
        server, {"user_id": people[-1].user_id, "access_token": people[-1].token, "device_id": "B"}
    )
    counts = sync(reader)["rooms"]["join"][room_id]["unread_notifications"]
    assert counts == {"notification_count": 1, "highlight_count": 0}
