"""A user who reads a room on one device is not notified on another: the push waits a moment for
the receipt."""

from pathlib import Path

import pytest

from federation.http_client.errors import OutboundError
from homeserver.services.pushers.active_readers import RECENT_SECONDS, WAIT_SECONDS
from storage.engine.database import Database
from tests.helpers.clocks import settle
from tests.helpers.databases import silence
from tests.helpers.http import Pending
from tests.helpers.leases import renew_lease, stop_renewing
from tests.helpers.logins import another_device
from tests.helpers.push_gateway import PushGateway, set_pusher, start
from tests.helpers.server import User, move_user
from tests.helpers.sync_requests import Json, Rooms, poll, token

V3 = "/_matrix/client/v3"
rooms = Rooms()


class Scenario:
    """Alice has a telephone with a pusher, and a client at a desk; Bob writes to her."""

    def __init__(self, folder: Path, database: Database, gateway: PushGateway) -> None:
        self.folder, self.database, self.gateway = folder, database, gateway
        self.server = start(folder, database, gateway)
        self.phone, self.bob, carol = (
            self.server.register(name) for name in ("alice", "bob", "carol")
        )
        self.room = rooms.create(self.bob, self.phone, carol)
        self.desk = another_device(self.phone)
        assert set_pusher(self.phone).status == 200
        self.last = self.say("first")
        self.gateway.taken.clear()
        self.polls: list[Pending] = []

    def say(self, text: str, room: str | None = None, more: Json | None = None) -> str:
        event_id = rooms.say(self.bob, room or self.room, text, more=more)
        settle(self.server)
        return event_id

    def in_thread(self, root: str, text: str) -> str:
        return self.say(text, more={"m.relates_to": {"rel_type": "m.thread", "event_id": root}})

    def read(
        self,
        event_id: str,
        thread: str | None = None,
        kind: str = "m.read",
        user: User | None = None,
    ) -> None:
        body = {} if thread is None else {"thread_id": thread}
        path = f"{V3}/rooms/{self.room}/receipt/{kind}/{event_id}"
        assert (user or self.desk).post(path, body).status == 200
        settle(self.server)

    def sit_down(self, user: User | None = None) -> None:
        """The client syncs."""
        user = user or self.desk
        self.polls.append(poll(user, token(user), timeout=300_000))
        settle(self.server)

    def pass_time(self, seconds: float) -> None:
        for _ in range(round(seconds * 4)):
            self.server.clock.advance(0.25)
            settle(self.server)

    def restart(self) -> None:
        """The server is killed."""
        old = self.server.app
        stop_renewing(old.pushers.reading)
        old.pushers.deliveries.stop()
        silence(self.database.streams)
        now = self.server.clock.seconds() + 1
        self.server = start(self.folder, self.database, self.gateway, seed=2, now=now + 31)
        self.phone, self.bob, self.desk = (
            move_user(self.server, user) for user in (self.phone, self.bob, self.desk)
        )


@pytest.fixture
def scenario(tmp_path: Path, database: Database, gateway: PushGateway) -> Scenario:
    return Scenario(tmp_path, database, gateway)


@pytest.mark.parametrize("kind", ["m.read", "m.read.private"])
@pytest.mark.parametrize("thread", [None, "main"])
def test_a_user_who_reads_at_another_device_gets_no_push(
    scenario: Scenario, gateway: PushGateway, kind: str, thread: str | None
) -> None:
    scenario.read(scenario.last, thread, kind)
    scenario.pass_time(5)
    gateway.asked.clear()
    for number in range(3):
        scenario.sit_down()
        event_id = scenario.say(f"and {number}")
        assert scenario.polls[-1].done, "the desk is told at once"
        scenario.pass_time(1.5)
        scenario.read(event_id, thread, kind)
        scenario.pass_time(20)
        scenario.sit_down()
    assert gateway.asked == [], "nor is the number told, which was never another"


def test_a_user_who_writes_at_another_device_counts_as_reading(
    scenario: Scenario, gateway: PushGateway
) -> None:
    scenario.sit_down()
    rooms.say(scenario.desk, scenario.room, "hello")
    scenario.sit_down()
    event_id = scenario.say("hello yourself")
    assert gateway.events == []
    rooms.say(scenario.desk, scenario.room, "and again")
    scenario.pass_time(10)
    assert event_id not in gateway.events


def test_an_event_not_read_in_time_is_pushed_and_later_ones_do_not_wait(
    scenario: Scenario, gateway: PushGateway
) -> None:
    scenario.read(scenario.last)
    scenario.sit_down()
    first = scenario.say("1")
    scenario.pass_time(1)
    second = scenario.say("2")
    scenario.pass_time(WAIT_SECONDS - 1.25)
    assert gateway.events == []
    scenario.pass_time(0.25)
    assert gateway.events == [first]
    scenario.pass_time(1)
    assert gateway.events == [first, second]
    scenario.sit_down()
    third = scenario.say("3")
    assert gateway.events == [first, second, third], "they have turned away"
    assert [each.notification["counts"]["unread"] for each in gateway.taken] == [1, 1, 1]
    scenario.read(first)
    scenario.sit_down()
    fourth = scenario.say("4")
    assert gateway.events[-1] == fourth, "they have not come to the end"
    scenario.read(fourth)
    scenario.sit_down()
    scenario.say("5")
    assert gateway.events[-1] == fourth, "now they read again"


def test_a_later_message_does_not_overtake_one_that_waits(
    scenario: Scenario, gateway: PushGateway
) -> None:
    """Both are pushed once the user is not reading any more."""
    scenario.read(scenario.last)
    scenario.pass_time(RECENT_SECONDS - 1)
    scenario.sit_down()
    first = scenario.say("1")
    scenario.pass_time(1.5)
    assert gateway.events == []
    second = scenario.say("2")
    assert gateway.events == [first, second]
    scenario.pass_time(10)
    assert gateway.events == [first, second]


def test_a_user_who_does_not_read_the_room_gets_the_push_at_once(
    scenario: Scenario, gateway: PushGateway
) -> None:
    scenario.sit_down()
    unread = scenario.say("nobody has read this room")
    assert gateway.events == [unread]
    scenario.read(unread)
    scenario.pass_time(RECENT_SECONDS + 1)
    scenario.sit_down()
    late = scenario.say("they read long ago")
    assert gateway.events == [unread, late]


def test_a_user_without_another_syncing_device_gets_the_push_at_once(
    scenario: Scenario, gateway: PushGateway
) -> None:
    scenario.pass_time(30)
    scenario.read(scenario.last)
    away = scenario.say("the desk is switched off")
    assert gateway.events == [away]
    scenario.read(away, user=scenario.phone)
    scenario.sit_down(scenario.phone)
    own = scenario.say("the telephone itself syncs")
    assert gateway.events == [away, own]


def test_a_client_between_two_syncs_counts_as_syncing(
    scenario: Scenario, gateway: PushGateway
) -> None:
    scenario.sit_down()
    scenario.read(scenario.last)
    assert scenario.polls[-1].done
    scenario.pass_time(5)
    event_id = scenario.say("it works off what the last one brought")
    scenario.read(event_id)
    scenario.pass_time(10)
    assert gateway.events == []
    scenario.pass_time(10)
    gone = scenario.say("it has not come back")
    assert gateway.events == [gone]


def test_the_pusher_of_the_syncing_device_does_not_wait(
    scenario: Scenario, gateway: PushGateway
) -> None:
    """It is pushed to at once; the pushers of other devices wait for its receipt."""
    set_pusher(scenario.desk, "desk", app_id="org.example.desk")
    scenario.read(scenario.last)
    scenario.sit_down()
    event_id = scenario.say("x")
    assert [each.pushkey for each in gateway.taken] == ["desk"]
    scenario.pass_time(WAIT_SECONDS)
    assert [each.pushkey for each in gateway.taken] == ["desk", "key"]
    assert gateway.events == [event_id, event_id]


def test_a_push_about_another_room_does_not_wait(scenario: Scenario, gateway: PushGateway) -> None:
    other = rooms.create(scenario.bob, scenario.phone, scenario.server.register("dave"))
    scenario.read(scenario.last)
    scenario.sit_down()
    held = scenario.say("x")
    elsewhere = scenario.say("y", other)
    assert gateway.events == [elsewhere]
    scenario.pass_time(WAIT_SECONDS)
    assert gateway.events == [elsewhere, held]


@pytest.mark.parametrize(
    "type",
    [
        "m.call.invite",
        "m.rtc.notification",
        "org.matrix.msc4075.rtc.notification",
        "org.example.bell",
    ],
)
def test_ringing_events_do_not_wait(scenario: Scenario, gateway: PushGateway, type: str) -> None:
    sound = "ring" if type == "org.example.bell" else "default"
    rule: Json = {"actions": ["notify", {"set_tweak": "sound", "value": sound}]}
    rule["conditions"] = [{"kind": "event_match", "key": "type", "pattern": type}]
    assert scenario.desk.put(f"{V3}/pushrules/global/override/calls", rule).status == 200
    scenario.read(scenario.last)
    scenario.sit_down()
    held = scenario.say("x")
    ring = rooms.send(
        scenario.bob, scenario.room, type, {"call_id": "1", "version": "1", "lifetime": 60_000}
    )
    settle(scenario.server)
    assert gateway.events == [ring]
    scenario.pass_time(WAIT_SECONDS)
    assert gateway.events == [ring, held]


def test_a_mention_waits_for_the_receipt_too(scenario: Scenario, gateway: PushGateway) -> None:
    scenario.read(scenario.last)
    scenario.sit_down()
    event_id = scenario.say("Alice!", more={"m.mentions": {"user_ids": [scenario.phone.user_id]}})
    scenario.read(event_id)
    scenario.pass_time(10)
    assert gateway.events == []


def test_reading_a_thread_holds_back_only_pushes_of_that_thread(
    scenario: Scenario, gateway: PushGateway
) -> None:
    root = scenario.last
    first = scenario.in_thread(root, "1")
    scenario.read(first, root)
    gateway.taken.clear()
    scenario.sit_down()
    second = scenario.in_thread(root, "2")
    outside = scenario.say("outside of it")
    assert gateway.events == [outside]
    scenario.read(second, root)
    scenario.pass_time(10)
    assert gateway.events == [outside]


def test_an_unthreaded_receipt_covers_threads(scenario: Scenario, gateway: PushGateway) -> None:
    scenario.read(scenario.last)
    scenario.sit_down()
    event_id = scenario.in_thread(scenario.last, "1")
    scenario.read(event_id)
    scenario.pass_time(10)
    assert gateway.events == []


def test_a_badge_change_is_sent_although_a_push_was_held_back(
    scenario: Scenario, gateway: PushGateway
) -> None:
    """Another room is read while a push waits: the new badge is sent once that push is decided."""
    other = rooms.create(scenario.bob, scenario.phone, scenario.server.register("dave"))
    elsewhere = scenario.say("y", other)
    assert gateway.events == [elsewhere]
    scenario.read(scenario.last)
    scenario.pass_time(10)
    gateway.taken.clear()
    scenario.sit_down()
    held = scenario.say("x")
    path = f"{V3}/rooms/{other}/receipt/m.read/{elsewhere}"
    assert scenario.desk.post(path, {}).status == 200
    scenario.read(held)
    scenario.pass_time(5)
    assert (gateway.events, gateway.badges) == ([], [0])


def test_a_message_redacted_during_the_wait_is_not_pushed(
    scenario: Scenario, gateway: PushGateway
) -> None:
    scenario.read(scenario.last)
    scenario.sit_down()
    rooms.redact(scenario.bob, scenario.room, scenario.say("oops"))
    scenario.pass_time(10)
    assert gateway.events == []


def test_a_pusher_deleted_during_the_wait_gets_nothing(
    scenario: Scenario, gateway: PushGateway
) -> None:
    scenario.read(scenario.last)
    scenario.sit_down()
    scenario.say("x")
    assert scenario.phone.post(f"{V3}/logout").status == 200
    scenario.pass_time(10)
    assert gateway.events == []


def test_a_kill_during_the_wait_loses_no_push_although_a_later_one_was_sent(
    scenario: Scenario, gateway: PushGateway
) -> None:
    other = rooms.create(scenario.bob, scenario.phone, scenario.server.register("dave"))
    scenario.pass_time(10)
    scenario.read(scenario.last)
    scenario.sit_down()
    held = scenario.say("x")
    elsewhere = scenario.say("y", other)
    scenario.server.run(scenario.server.app.pushers.deliveries.store_states(all_states=True))
    scenario.server.run(renew_lease(scenario.server.app.pushers.reading))
    assert gateway.events == [elsewhere]
    scenario.restart()
    assert gateway.events == [elsewhere, held, elsewhere], "from where all had been told"


def test_a_message_read_before_a_kill_is_not_pushed_after_it(
    scenario: Scenario, gateway: PushGateway
) -> None:
    scenario.read(scenario.last)
    scenario.sit_down()
    held = scenario.say("x")
    scenario.read(held)
    scenario.restart()
    scenario.pass_time(10)
    assert gateway.events == []


def test_a_stop_during_the_wait_loses_no_push(scenario: Scenario, gateway: PushGateway) -> None:
    scenario.read(scenario.last)
    scenario.sit_down()
    held = scenario.say("x")
    scenario.server.run(scenario.server.app.pushers.stop())
    assert gateway.events == []
    scenario.restart()
    assert gateway.events == [held]


def test_a_failed_gateway_is_retried_in_the_order_of_the_stream(
    scenario: Scenario, gateway: PushGateway
) -> None:
    other = rooms.create(scenario.bob, scenario.phone, scenario.server.register("dave"))
    scenario.read(scenario.last)
    scenario.sit_down()
    gateway.failure = OutboundError("it is down")
    held = scenario.say("x")
    elsewhere = scenario.say("y", other)
    assert [each.notification["event_id"] for each in gateway.asked][-1] == elsewhere
    scenario.pass_time(WAIT_SECONDS)
    gateway.failure = None
    scenario.pass_time(60)
    assert gateway.events == [held, elsewhere]
