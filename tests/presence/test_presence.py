"""Presence. spec: client-server-api#presence"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs, formatEvent

from federation.protocol.ids import ServerName, UserID
from homeserver.services.presence.remote_users import PresenceUpdate
from homeserver.services.presence.states import State
from storage.engine.database import Database, DatabaseUnavailable
from storage.engine.transaction import WriteTransaction
from storage.presence.presence import PresenceStore
from tests.helpers.clocks import settle
from tests.helpers.logins import another_device, password_auth
from tests.helpers.presence import get_presence, set_presence
from tests.helpers.room_actions import V3, ok, refused
from tests.helpers.server import TestServer, User
from tests.helpers.sync_requests import Json, Rooms, poll, sync

UNLIMITED = "rc_presence: {per_user: {per_second: 10000, burst_count: 10000}}\n"
ON = "presence: {enabled: true}\n" + UNLIMITED
FORBIDDEN = (403, "M_FORBIDDEN")
LIMITED = "presence: {enabled: true}\nrc_presence: {per_user: {per_second: 0.1, burst_count: 1}}\n"

rooms = Rooms()


@pytest.fixture
def server(tmp_path: Path, sqlite_database: Database) -> TestServer:
    return TestServer(tmp_path, sqlite_database, ON)


def wait(server: TestServer, seconds: float) -> None:
    """Let time pass, and run what is due in it."""
    whole = int(seconds)
    for _ in range(whole):
        server.clock.advance(1)
    server.clock.advance(seconds - whole)
    settle(server)


def presence_in(answer: Any) -> dict[str, Any]:
    """Presence by user in the presence section of a response."""
    events = answer["presence"]["events"]
    assert all(
        set(event) == {"type", "sender", "content"} and event["type"] == "m.presence"
        for event in events
    )
    return {event["sender"]: event["content"] for event in events}


def states(answer: Any) -> dict[str, str]:
    return {user_id: content["presence"] for user_id, content in presence_in(answer).items()}


def test_a_syncing_user_is_online_for_users_who_share_a_room(
    server: TestServer, alice: User, bob: User
) -> None:
    carol = server.register("carol")
    rooms.create(alice, bob)
    first, carols = sync(alice, set_presence="offline")["next_batch"], sync(carol)["next_batch"]
    sync(bob)
    settle(server)
    answer = sync(alice, first, set_presence="offline")
    assert presence_in(answer) == {
        bob.user_id: {"presence": "online", "last_active_ago": 0, "currently_active": True},
    }
    assert presence_in(sync(alice, answer["next_batch"], set_presence="offline")) == {}
    assert set(presence_in(sync(carol, carols))) == {carol.user_id}
    assert states(sync(alice, set_presence="offline")) == {bob.user_id: "online"}


def test_a_change_wakes_waiting_users_who_share_a_room(
    server: TestServer, alice: User, bob: User
) -> None:
    carol, dave = server.register("carol"), server.register("dave")
    room_id = rooms.create(alice, bob)
    rooms.create(bob, carol)
    for user in (alice, carol, dave):
        sync(user)
    settle(server)
    tokens = {user: sync(user)["next_batch"] for user in (alice, carol, dave)}
    no_presence = poll(alice, tokens[alice], filter={"presence": {"types": []}})
    others_only = poll(alice, tokens[alice], filter={"presence": {"not_senders": [bob.user_id]}})
    waiting = {user: poll(user, tokens[user]) for user in tokens}
    set_presence(bob, "online", status_msg="reading")
    settle(server)
    for user in (alice, carol):
        assert presence_in(waiting[user].answer.json)[bob.user_id]["status_msg"] == "reading"
    assert not waiting[dave].done
    assert not no_presence.done
    assert not others_only.done
    rooms.act(bob, room_id, "leave")
    set_presence(bob, "unavailable")
    wait(server, 1)
    assert states(sync(carol, waiting[carol].answer.json["next_batch"])) == {
        bob.user_id: "unavailable"
    }
    assert states(sync(alice, waiting[alice].answer.json["next_batch"])) == {}


def test_a_user_goes_offline_some_time_after_the_last_sync(
    server: TestServer, alice: User, bob: User
) -> None:
    rooms.create(alice, bob)
    sync(bob)
    settle(server)
    since = sync(alice, set_presence="offline")["next_batch"]
    wait(server, 29)
    sync(bob, set_presence="online")  # the device is still present
    wait(server, 29)
    assert get_presence(alice, bob)["presence"] == "online"
    wait(server, 2)
    assert get_presence(alice, bob) == {"presence": "offline", "last_active_ago": 60_000}
    answer = sync(alice, since, set_presence="offline")
    assert states(answer) == {bob.user_id: "offline"}
    assert (
        presence_in(sync(alice, set_presence="offline")) == {}
    )  # a first sync does not list offline users


def test_a_long_poll_keeps_a_user_online(server: TestServer, alice: User, bob: User) -> None:
    rooms.create(alice, bob)
    since = sync(bob, filter={"presence": {"types": []}})["next_batch"]
    waiting = poll(bob, since, filter={"presence": {"types": []}}, timeout=200_000)
    wait(server, 150)
    assert not waiting.done
    assert get_presence(alice, bob) == {
        "presence": "online",
        "last_active_ago": 150_000,
        "currently_active": False,
    }
    waiting.connection.close()  # the client disconnects
    wait(server, 31)
    assert get_presence(alice, bob)["presence"] == "offline"


def test_an_inactive_user_is_unavailable_until_they_are_active(
    server: TestServer, alice: User, bob: User
) -> None:
    room_id = rooms.create(alice, bob)
    quiet: Json = {"presence": {"types": []}, "room": {"rooms": []}}
    poll(bob, sync(bob, filter=quiet)["next_batch"], filter=quiet, timeout=300_000)
    settle(server)
    since = sync(alice, set_presence="offline")["next_batch"]
    wait(server, 60)
    answer = sync(alice, since, set_presence="offline")
    assert presence_in(answer) == {
        bob.user_id: {"presence": "online", "last_active_ago": 60_000, "currently_active": False}
    }
    wait(server, 239)
    since = answer["next_batch"]
    assert presence_in(sync(alice, since, set_presence="offline")) == {}
    wait(server, 1)
    answer = sync(alice, since, set_presence="offline")
    assert presence_in(answer) == {
        bob.user_id: {"presence": "unavailable", "last_active_ago": 300_000}
    }
    event_id = rooms.say(alice, room_id)
    acts: list[Callable[[], object]] = [
        lambda: rooms.say(bob, room_id),
        lambda: rooms.type(bob, room_id),
        lambda: rooms.read(bob, room_id, event_id),
        lambda: rooms.redact(bob, room_id, event_id),
    ]
    rooms.state(alice, room_id, "m.room.power_levels", {"redact": 0})
    for act in acts:
        act()
        assert get_presence(alice, bob) == {
            "presence": "online",
            "last_active_ago": 0,
            "currently_active": True,
        }
        since = sync(bob, filter=quiet)["next_batch"]
        poll(bob, since, filter=quiet, timeout=310_000)
        wait(server, 305)
        assert get_presence(alice, bob)["presence"] == "unavailable"


def test_the_most_present_device_counts(server: TestServer, alice: User, bob: User) -> None:
    rooms.create(alice, bob)
    phone = another_device(bob, "PHONE")
    sync(phone, set_presence="unavailable")
    assert get_presence(alice, bob)["presence"] == "unavailable"
    sync(bob, set_presence="online")
    assert get_presence(alice, bob)["presence"] == "online"
    wait(server, 20)
    sync(phone, set_presence="unavailable")
    wait(server, 11)
    assert get_presence(alice, bob)["presence"] == "unavailable"
    sync(phone, set_presence="offline")
    settle(server)
    assert get_presence(alice, bob)["presence"] == "offline"


def test_a_state_holds_until_the_next_one_is_set(alice: User, bob: User) -> None:
    rooms.create(alice, bob)
    sync(bob)
    set_presence(bob, "unavailable", status_msg="at lunch")
    sync(bob)
    assert get_presence(alice, bob) == {
        "presence": "unavailable",
        "last_active_ago": 0,
        "status_msg": "at lunch",
    }
    sync(bob, set_presence="online")
    assert get_presence(alice, bob)["presence"] == "online"
    assert get_presence(alice, bob)["status_msg"] == "at lunch"
    set_presence(bob, "offline", status_msg="at lunch")
    sync(bob)
    assert get_presence(alice, bob)["presence"] == "offline"
    set_presence(bob, "online")
    assert "status_msg" not in get_presence(alice, bob)


def test_sliding_sync_makes_a_user_present_too(server: TestServer, alice: User, bob: User) -> None:
    rooms.create(alice, bob)
    path = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
    ok(bob.post(path))
    assert get_presence(alice, bob)["presence"] == "online"
    ok(bob.post(f"{path}?set_presence=unavailable"))
    assert get_presence(alice, bob)["presence"] == "unavailable"
    ok(bob.post("/_matrix/client/v4/sync", {"set_presence": "offline"}))
    assert get_presence(alice, bob)["presence"] == "offline"
    pos = ok(bob.post(f"{path}?set_presence=offline"))["pos"]
    waiting = bob.start("POST", f"{path}?pos={pos}&timeout=30000&set_presence=offline", {})
    set_presence(alice, "online", status_msg="here")
    settle(server)
    assert not waiting.done  # sliding sync has no presence section, so presence does not wake it


def test_a_new_shared_room_sends_presence(server: TestServer, alice: User, bob: User) -> None:
    room_id = rooms.create(alice)
    sync(bob)
    settle(server)
    since = sync(alice)["next_batch"]
    settle(server)
    bobs = sync(bob)["next_batch"]
    rooms.join(bob, room_id)
    assert states(sync(alice, since))[bob.user_id] == "online"
    assert states(sync(bob, bobs))[alice.user_id] == "online"


def test_presence_of_ignored_users_is_not_sent(server: TestServer, alice: User, bob: User) -> None:
    rooms.create(alice, bob)
    rooms.keep(alice, "m.ignored_user_list", {"ignored_users": {bob.user_id: {}}})
    since = sync(alice, set_presence="offline")["next_batch"]
    set_presence(bob, "online")
    settle(server)
    assert presence_in(sync(alice, since, set_presence="offline")) == {}
    assert presence_in(sync(alice, set_presence="offline")) == {}


def test_only_users_who_share_a_room_may_read_presence(alice: User, bob: User) -> None:
    assert refused(alice.get(f"{V3}/presence/{bob.user_id}/status")) == FORBIDDEN
    assert refused(alice.get(f"{V3}/presence/@nobody:example.org/status")) == FORBIDDEN
    assert get_presence(alice, alice) == {"presence": "offline"}
    room_id = rooms.create(alice, bob)
    assert get_presence(alice, bob) == {"presence": "offline"}
    rooms.act(alice, room_id, "kick", bob)
    assert refused(alice.get(f"{V3}/presence/{bob.user_id}/status")) == FORBIDDEN


def test_bad_input_is_refused(alice: User, bob: User) -> None:
    own = f"{V3}/presence/{alice.user_id}/status"
    assert (
        refused(alice.put(f"{V3}/presence/{bob.user_id}/status", {"presence": "online"}))
        == FORBIDDEN
    )
    assert refused(alice.put(own, {"presence": "asleep"})) == (400, "M_BAD_JSON")
    assert refused(alice.put(own, {})) == (400, "M_BAD_JSON")
    assert refused(alice.put(own, {"presence": "online", "status_msg": 5})) == (400, "M_BAD_JSON")
    assert refused(alice.put(own, {"presence": "online", "status_msg": "x" * 2049})) == (
        400,
        "M_INVALID_PARAM",
    )
    assert refused(alice.put(own, {"presence": "online", "status_msg": "\0"})) == (
        400,
        "M_INVALID_PARAM",
    )
    assert refused(alice.get(f"{V3}/sync?set_presence=asleep"))[0] == 400
    assert get_presence(alice, alice) == {"presence": "offline"}


def test_changes_are_rate_limited(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database, LIMITED)
    alice = server.register("alice")
    set_presence(alice, "online")
    own = f"{V3}/presence/{alice.user_id}/status"
    assert refused(alice.put(own, {"presence": "unavailable"})) == (429, "M_LIMIT_EXCEEDED")
    sync(alice, set_presence="unavailable")  # in a sync, a change beyond the limit is ignored
    assert get_presence(alice, alice)["presence"] == "online"
    wait(server, 10)
    sync(alice, set_presence="unavailable")
    assert get_presence(alice, alice)["presence"] == "unavailable"


def test_presence_survives_a_restart(tmp_path: Path, database: Database) -> None:
    before = TestServer(tmp_path, database, ON)
    alice, bob, carol = (before.register(name) for name in ("alice", "bob", "carol"))
    room_id = rooms.create(alice, bob, carol)
    set_presence(bob, "online", status_msg="reading")
    sync(carol)
    since = sync(alice, set_presence="offline")["next_batch"]
    settle(before)
    since = sync(alice, since, set_presence="offline")["next_batch"]
    before.app.presence.start()
    wait(
        before, 30
    )  # long enough to be stored, too short for bob to be offline when the server stops
    later = before.clock.seconds() + 1
    after = TestServer(tmp_path, database, ON, seed=2, now=later)
    after.app.presence.start()
    for user in (alice, bob, carol):
        user.server = after
    answer = sync(alice, since, set_presence="offline")
    assert states(answer) == {}  # nothing has changed
    assert states(sync(alice, set_presence="offline")) == {
        bob.user_id: "online",
        carol.user_id: "online",
    }
    assert get_presence(alice, bob)["status_msg"] == "reading"
    sync(bob, set_presence="online")
    wait(after, 31)
    rooms.say(alice, room_id)
    answer = sync(alice, answer["next_batch"], set_presence="offline")
    assert get_presence(alice, bob)["presence"] == "offline"
    assert get_presence(alice, carol)["presence"] == "offline"
    assert get_presence(alice, bob)["status_msg"] == "reading"


def test_a_full_disk_is_logged_in_one_line(server: TestServer, alice: User) -> None:
    write = server.app.database.write

    async def refuse(name: str, *work: Any) -> Any:
        if name == "set_presence_states":
            raise DatabaseUnavailable("the disk is full\n")
        return await write(name, *work)

    server.app.presence.start()
    sync(alice)
    with pytest.MonkeyPatch.context() as patch, capturedLogs() as presence_in:
        patch.setattr(server.app.database, "write", refuse)
        wait(server, 30)
    lines = [
        each
        for each in presence_in
        if each["log_namespace"].startswith("homeserver.services.presence")
    ]
    assert [formatEvent(each) for each in lines] == [
        "presence could not be stored: the disk is full"
    ]
    assert "log_failure" not in lines[0]


def test_users_who_do_not_return_after_a_restart_go_offline(
    tmp_path: Path, database: Database
) -> None:
    before = TestServer(tmp_path, database, ON)
    alice, bob = before.register("alice"), before.register("bob")
    rooms.create(alice, bob)
    before.app.presence.start()
    sync(bob)
    settle(before)
    since = sync(alice, set_presence="offline")["next_batch"]
    quiet: Json = {"presence": {"types": []}, "room": {"rooms": []}}
    poll(bob, sync(bob, filter=quiet)["next_batch"], filter=quiet, timeout=100_000)
    wait(before, 31)
    after = TestServer(tmp_path, database, ON, seed=2, now=before.clock.seconds() + 1)
    after.app.presence.start()
    alice.server = bob.server = after
    answer = sync(alice, since, set_presence="offline")
    assert states(answer) == {}  # the client has that already
    late = sync(alice, set_presence="offline")
    assert states(late) == {bob.user_id: "online"}
    wait(after, 31)
    assert states(sync(alice, answer["next_batch"], set_presence="offline")) == {
        bob.user_id: "offline"
    }
    assert states(sync(alice, since, set_presence="offline")) == {
        bob.user_id: "offline"
    }  # a client that comes even later
    assert states(sync(alice, set_presence="offline")) == {}


@pytest.mark.parametrize("mode", ["false", "untracked"])
def test_presence_can_be_disabled(tmp_path: Path, sqlite_database: Database, mode: str) -> None:
    server = TestServer(tmp_path, sqlite_database, f"presence: {{enabled: {mode}}}\n{UNLIMITED}")
    alice, bob = server.register("alice"), server.register("bob")
    rooms.create(alice, bob)
    since = sync(alice)["next_batch"]
    set_presence(bob, "online", status_msg="here")
    sync(bob)
    settle(server)
    assert presence_in(sync(alice, since)) == presence_in(sync(alice)) == {}
    assert get_presence(alice, bob) == {"presence": "offline"}
    assert (
        refused(bob.put(f"{V3}/presence/{alice.user_id}/status", {"presence": "online"}))
        == FORBIDDEN
    )


def test_offline_users_are_listed_if_configured(tmp_path: Path, sqlite_database: Database) -> None:
    config = "presence: {enabled: true, include_offline_users_on_sync: true}\n"
    server = TestServer(tmp_path, sqlite_database, config)
    alice, bob, carol = (server.register(name) for name in ("alice", "bob", "carol"))
    server.register("dave")
    rooms.create(alice, bob, carol)
    sync(bob)
    settle(server)
    answer = sync(alice)
    assert states(answer) == {
        alice.user_id: "offline",
        bob.user_id: "online",
        carol.user_id: "offline",
    }
    assert states(sync(alice, answer["next_batch"])) == {}


def test_many_changes_are_broadcast_together_and_not_too_often(
    server: TestServer, alice: User
) -> None:
    people = [server.register(f"person{number}") for number in range(30)]
    rooms.create(alice, *people)
    sync(alice)
    settle(server)
    since = sync(alice)["next_batch"]
    polls = [
        poll(alice, since) for _ in range(100)
    ]  # each woken reader costs something: half a second for a hundred
    set_presence(people[0], "online")
    settle(server)
    assert all(each.done for each in polls)
    since = sync(alice)["next_batch"]
    for person in people:
        set_presence(person, "unavailable")
    waiting = poll(alice, since)
    server.clock.advance(0.4)
    settle(server)
    assert not waiting.done
    assert (
        get_presence(alice, people[3])["presence"] == "unavailable"
    )  # a request for one user gets the current value
    server.clock.advance(0.1)
    settle(server)
    assert set(states(waiting.answer.json).values()) == {"unavailable"}
    assert len(presence_in(waiting.answer.json)) == 30


def test_deactivation_deletes_presence(tmp_path: Path, database: Database) -> None:
    server = TestServer(tmp_path, database, ON)
    alice, bob = server.register("alice"), server.register("bob")
    rooms.create(alice, bob)
    set_presence(bob, "online", status_msg="here")
    settle(server)
    assert states(sync(alice, set_presence="offline")) == {bob.user_id: "online"}
    server.app.presence.start()
    auth = password_auth("bob")
    ok(bob.post(f"{V3}/account/deactivate", {"auth": auth}))
    wait(server, 61)
    assert states(sync(alice, set_presence="offline")) == {}
    rows: list[object] = []
    Deferred.fromCoroutine(PresenceStore(database).get_states([bob.user_id])).addCallback(
        rows.append
    )
    assert rows == [{}]


def remote(user_id: str, state: State, **more: Any) -> PresenceUpdate:
    return PresenceUpdate(UserID(user_id), state, **{"last_active_ago": 1000, **more})


def put_in_room(server: TestServer, user_id: str, like: User) -> None:
    """A remote user, in the rooms of the other one."""

    def write(txn: WriteTransaction) -> None:
        columns = "room_nid, membership, event_nid, position, sender"
        txn.execute(
            f"INSERT INTO memberships (user_id, is_local, {columns}) "
            f"SELECT ?, 0, {columns} FROM memberships"
            " WHERE user_id = ?",
            (user_id, like.user_id),
        )

    Deferred.fromCoroutine(server.app.database.write("test", write))


def test_other_servers_receive_presence_of_local_users(server: TestServer, alice: User) -> None:
    received: list[Sequence[PresenceUpdate]] = []
    server.app.presence.presence.subscribe(received.append)
    set_presence(alice, "online", status_msg="here")
    settle(server)
    assert received == [[PresenceUpdate(alice.user_id, "online", 0, True, "here")]]


@pytest.mark.parametrize("mode", ["true", "untracked"])
def test_presence_of_remote_users_is_shown(
    tmp_path: Path, sqlite_database: Database, mode: str
) -> None:
    server = TestServer(tmp_path, sqlite_database, f"presence: {{enabled: {mode}}}\n")
    alice, bob = server.register("alice"), server.register("bob")
    presence = server.app.presence.presence
    received: list[Sequence[PresenceUpdate]] = []
    presence.subscribe(received.append)
    zoe, yan = "@zoe:other.example", "@yan:other.example"
    rooms.create(alice)
    put_in_room(server, zoe, alice)
    quiet = {"set_presence": "offline"}
    since, bobs = sync(alice, **quiet)["next_batch"], sync(bob, **quiet)["next_batch"]
    waiting = poll(alice, since)
    others = [
        remote(yan, "online"),
        remote("@bob:example.org", "online"),
        remote("@x:third.example", "online"),
    ]
    presence.receive(
        ServerName("other.example"), [remote(zoe, "online", status_msg="y" * 5000), *others]
    )
    presence.receive(ServerName("example.org"), [remote("@bob:example.org", "online")])
    settle(server)
    content = {
        "presence": "online",
        "last_active_ago": 1000,
        "currently_active": False,
        "status_msg": "y" * 2048,
    }
    shown = presence_in(waiting.answer.json)
    assert shown.pop(alice.user_id, None) is None or mode == "true"
    assert shown == {zoe: content}
    assert get_presence(alice, zoe) == content
    assert refused(alice.get(f"{V3}/presence/{yan}/status")) == FORBIDDEN
    assert presence_in(sync(bob, bobs, **quiet)) == {}
    assert all(update.user_id == alice.user_id for updates in received for update in updates)
    since = sync(alice, **quiet)["next_batch"]
    wait(server, 30 * 60)
    Deferred.fromCoroutine(presence.do_expire_remote(50))
    wait(server, 1)
    assert states(sync(alice, since, **quiet))[zoe] == "offline"
    assert get_presence(alice, zoe)["presence"] == "offline"


def test_the_status_of_a_shadow_banned_user_is_not_sent(server: TestServer, alice: User) -> None:
    server.run(server.app.user_data.accounts.do_set_flags(alice.user_id, shadow_banned=True))
    set_presence(alice, "unavailable", status_msg="buy this")
    shown = alice.get(f"/_matrix/client/v3/presence/{alice.user_id}/status").json
    assert (shown["presence"], "status_msg" in shown) == ("unavailable", False)
