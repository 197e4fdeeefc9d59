"""Unread counts that change without any new event in the room are still sent to other clients, and
as badges."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from federation.protocol.ids import EventID, RoomID
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.persist.redactions import Redaction, redact_event
from tests.helpers.clocks import settle
from tests.helpers.federated_rooms import create_room
from tests.helpers.keys import V3, sync
from tests.helpers.push_gateway import PushGateway, set_pusher
from tests.helpers.retention import DAY, RULES, keep_for
from tests.helpers.room_actions import say
from tests.helpers.server import TestServer, User
from tests.helpers.sliding_client import SlidingClient, a_list


@pytest.fixture
def gateway() -> PushGateway:
    return PushGateway()


@pytest.fixture
def server(tmp_path: Path, database: Database, gateway: PushGateway) -> TestServer:
    server = TestServer(tmp_path, database, RULES, web=gateway)
    server.app.pushers.start()
    settle(server)
    return server


@pytest.fixture
def alice(server: TestServer) -> User:
    alice = server.register("alice")
    assert set_pusher(alice).status == 200
    return alice


def shared(alice: User, bob: User) -> RoomID:
    """A room of three, so that it is no talk of two."""
    room_id = create_room(bob)
    for user in (alice, alice.server.register("carol")):
        assert user.post(f"{V3}/join/{room_id}").status == 200
    settle(alice.server)
    return room_id


def counts(answer: Any, room_id: str) -> int | None:
    room = answer.get("rooms", {}).get("join", {}).get(room_id)
    return None if room is None else int(room["unread_notifications"]["notification_count"])


def ignore(user: User, *others: User) -> None:
    content: dict[str, Any] = {"ignored_users": {other.user_id: {} for other in others}}
    assert (
        user.put(f"{V3}/user/{user.user_id}/account_data/m.ignored_user_list", content).status
        == 200
    )


def badge(server: TestServer, gateway: PushGateway) -> int:
    """The badge that the icon shows in the end."""
    settle(server)
    server.clock.advance(3)
    settle(server)
    return int(gateway.taken[-1].notification["counts"].get("unread", 0))


def test_ignoring_a_user_sends_new_counts(
    server: TestServer, alice: User, bob: User, gateway: PushGateway
) -> None:
    room_id, quiet = shared(alice, bob), create_room(bob)
    assert alice.post(f"{V3}/join/{quiet}").status == 200
    for text in ("one", "two"):
        say(bob, room_id, text)
    assert badge(server, gateway) == 1
    since = sync(alice)["next_batch"]
    pending = alice.start("GET", f"{V3}/sync?since={since}&timeout=30000")
    ignore(alice, bob)
    server.clock.advance(0)
    assert pending.done
    assert counts(pending.answer.json, room_id) == 0
    assert counts(pending.answer.json, quiet) is None, "nothing is unread there"
    assert badge(server, gateway) == 0
    since = pending.answer.json["next_batch"]
    ignore(alice)
    assert counts(sync(alice, since), room_id) == 2
    assert badge(server, gateway) == 1


def test_purged_unread_messages_no_longer_count(
    server: TestServer, alice: User, bob: User, gateway: PushGateway
) -> None:
    room_id, other = shared(alice, bob), create_room(bob)
    assert alice.post(f"{V3}/join/{other}").status == 200
    keep_for(bob, room_id, DAY)
    read = say(bob, room_id, "read")
    assert alice.post(f"{V3}/rooms/{room_id}/receipt/m.read/{quote(read)}", {}).status == 200
    unread = say(bob, room_id, "unread")
    assert badge(server, gateway) == 1
    server.clock.advance(DAY + 1)
    since = sync(alice)["next_batch"]
    pending = alice.start("GET", f"{V3}/sync?since={since}&timeout=30000")
    (expiry,) = server.app.retention.expiries
    assert server.run(expiry.do_step(10)) == 2
    server.clock.advance(0)
    assert pending.done
    assert counts(pending.answer.json, room_id) == 0, unread
    assert badge(server, gateway) == 0
    say(bob, other, "new")
    assert badge(server, gateway) == 1


def test_purging_read_messages_sends_no_counts(server: TestServer, alice: User, bob: User) -> None:
    room_id = shared(alice, bob)
    keep_for(bob, room_id, DAY)
    read = say(bob, room_id, "read")
    assert alice.post(f"{V3}/rooms/{room_id}/receipt/m.read/{quote(read)}", {}).status == 200
    server.clock.advance(DAY + 1)
    since = sync(alice)["next_batch"]
    (expiry,) = server.app.retention.expiries
    assert server.run(expiry.do_step(10)) == 1
    assert "rooms" not in sync(alice, since)


@pytest.mark.parametrize("how", ["leave", "redact"])
def test_the_badge_is_cleared_when_unread_messages_are_purged(
    how: str, server: TestServer, alice: User, bob: User, gateway: PushGateway
) -> None:
    room_id = shared(alice, bob)
    event_id = say(bob, room_id, "unread")
    assert badge(server, gateway) == 1
    if how == "leave":
        assert alice.post(f"{V3}/rooms/{room_id}/leave").status == 200
    else:
        assert bob.put(f"{V3}/rooms/{room_id}/redact/{quote(event_id)}/1", {}).status == 200
    assert badge(server, gateway) == 0


def test_a_redacted_backfilled_event_is_not_counted(
    server: TestServer, alice: User, bob: User, gateway: PushGateway
) -> None:
    """As one that fell into a hole, and is read back when somebody scrolls there."""
    room_id, other = shared(alice, bob), create_room(bob)
    assert alice.post(f"{V3}/join/{other}").status == 200
    event_id = say(bob, room_id, "unread")
    assert badge(server, gateway) == 1
    stored = server.run(server.app.rooms.events.get_in_any_room([EventID(event_id)]))[
        EventID(event_id)
    ]
    bare = json.dumps({**stored.event.pdu, "content": {}}).encode()

    def redact(txn: WriteTransaction) -> None:
        redact_event(txn, stored.room_nid, stored.nid, None, Redaction(stored.nid, bare, None))

    server.run(server.app.database.write("redact", redact))
    say(bob, other, "new")
    assert badge(server, gateway) == 1


def test_a_message_redacted_by_an_ignored_user_no_longer_counts(
    server: TestServer, alice: User, bob: User, gateway: PushGateway
) -> None:
    room_id, dora = shared(alice, bob), server.register("dora")
    assert dora.post(f"{V3}/join/{room_id}").status == 200
    levels = bob.get(f"{V3}/rooms/{room_id}/state/m.room.power_levels").json
    levels["users"][dora.user_id] = 50
    assert bob.put(f"{V3}/rooms/{room_id}/state/m.room.power_levels/", levels).status == 200
    ignore(alice, dora)
    event_id = say(bob, room_id, "unread")
    assert badge(server, gateway) == 1
    client = SlidingClient(alice, lists={"all": a_list([0, 9])})
    client.sync()
    since = sync(alice)["next_batch"]
    pending = [alice.start("GET", f"{V3}/sync?since={since}&timeout=30000"), client.wait()]
    assert dora.put(f"{V3}/rooms/{room_id}/redact/{quote(event_id)}/1", {}).status == 200
    server.clock.advance(0)
    assert all(each.done for each in pending)
    assert counts(pending[0].answer.json, room_id) == 0
    assert pending[0].answer.json["rooms"]["join"][room_id]["timeline"]["events"] == []
    entry = pending[1].answer.json["rooms"][room_id]
    assert (entry["notification_count"], entry.get("timeline", [])) == (0, [])
    assert badge(server, gateway) == 0
    say(dora, room_id, "hidden")
    assert "rooms" not in sync(alice, pending[0].answer.json["next_batch"])
