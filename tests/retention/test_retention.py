"""Messages expire: a message older than the retention of its room is hidden everywhere, and then
purged. Proposal: MSC1763"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from storage.engine.database import Database, SQLiteConfig
from tests.helpers.databases import open_inline
from tests.helpers.media_files import upload_uri
from tests.helpers.retention import (
    DAY,
    RULES,
    SECRET,
    find_tables,
    index,
    keep_for,
    purge,
    settle,
    track_references,
)
from tests.helpers.room_actions import (
    V3,
    create,
    join,
    messages,
    ok,
    put_event,
    redact,
    refused,
    room_path,
    say,
    set_state,
)
from tests.helpers.server import START, TestServer, User
from tests.helpers.sync_comparison import plain_timelines
from tests.helpers.sync_requests import sync


@pytest.fixture
def server(tmp_path: Path, sqlite_database: Database) -> TestServer:
    return TestServer(tmp_path, sqlite_database, RULES)


def search(user: User, term: str) -> Any:
    body = {"search_categories": {"room_events": {"search_term": term, "event_context": {}}}}
    return ok(user.post(f"{V3}/search", body))["search_categories"]["room_events"]


def sliding(user: User, room_id: str) -> Sequence[Any]:
    body = {"room_subscriptions": {room_id: {"timeline_limit": 20, "required_state": []}}}
    path = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync"
    return list(ok(user.post(path, body))["rooms"][room_id]["timeline"])


# Which lifetime counts.


@pytest.mark.parametrize(
    ("default", "content", "gone_after", "kept_until"),
    [
        (None, None, None, 300 * DAY),
        ("7d", None, 7 * DAY, 7 * DAY),
        ("7d", {"max_lifetime": 2 * DAY * 1000}, 2 * DAY, 2 * DAY),
        (None, {"max_lifetime": 1000}, 3600, 3600),
        (None, {"max_lifetime": 90 * DAY * 1000}, 30 * DAY, 30 * DAY),
        ("7d", {"min_lifetime": 1000}, 30 * DAY, 30 * DAY),
        ("7d", {}, 7 * DAY, 7 * DAY),
        ("7d", {"max_lifetime": "soon"}, 7 * DAY, 7 * DAY),
        ("7d", {"max_lifetime": -1}, 7 * DAY, 7 * DAY),
        ("7d", {"max_lifetime": 1000, "min_lifetime": 2000}, 7 * DAY, 7 * DAY),
        ("90d", None, 30 * DAY, 30 * DAY),
    ],
)
def test_messages_expire_after_their_lifetime(
    tmp_path: Path,
    sqlite_database: Database,
    default: str | None,
    content: dict[str, Any] | None,
    gone_after: int | None,
    kept_until: int,
) -> None:
    rules = RULES
    if default is not None:
        rules = rules.replace(
            "enabled: true", f"enabled: true, default_policy: {{max_lifetime: {default}}}"
        )
    server = TestServer(tmp_path, sqlite_database, rules)
    alice = server.register("alice")
    room_id = create(alice)
    if content is not None:
        set_state(alice, room_id, "m.room.retention", content)
    event_id = say(alice, room_id, SECRET)
    server.clock.advance(kept_until)
    assert alice.get(room_path(room_id, "event", event_id)).status == 200
    if gone_after is not None:
        server.clock.advance(0.001)
        assert refused(alice.get(room_path(room_id, "event", event_id))) == (404, "M_NOT_FOUND")
        assert purge(server) == 1
    assert purge(server) == 0


def test_the_present_policy_counts_for_all_messages(server: TestServer, alice: User) -> None:
    room_id = create(alice)
    event_id = say(alice, room_id, "old")
    server.clock.advance(2 * DAY)
    path = room_path(room_id, "event", event_id)
    assert alice.get(path).status == 200
    keep_for(alice, room_id, DAY)
    assert alice.get(path).status == 404
    keep_for(alice, room_id, 3 * DAY)
    assert alice.get(path).status == 200
    keep_for(alice, room_id, DAY)
    state_event = alice.get(room_path(room_id, "state", "m.room.retention", "")).json
    assert state_event == {"max_lifetime": DAY * 1000}
    retention_id = next(
        event["event_id"]
        for event in ok(alice.get(room_path(room_id, "state")))
        if event["type"] == "m.room.retention"
    )
    ok(alice.put(room_path(room_id, "redact", retention_id, "r1"), {}))
    assert alice.get(path).status == 200


# Expired messages are hidden, before and after they are purged.


def shown_anywhere(
    server: TestServer, user: User, room_id: str, said: Sequence[str], since: str
) -> dict[str, bool]:
    """Return the endpoints that show the user a part of the messages with SECRET in them."""
    index(server)
    root = said[0]
    state = next(
        e for e in ok(user.get(room_path(room_id, "state"))) if e["type"] == "m.room.retention"
    )
    around = room_path(room_id, "context", state["event_id"], limit=50)
    found: dict[str, Any] = {
        "first sync": sync(user),
        "sync since": sync(user, since),
        "sync of filtered": sync(user, None, {"room": {"timeline": {"types": ["m.room.message"]}}}),
        "federation format": sync(user, None, {"event_format": "federation"}),
        "sliding": sliding(user, room_id),
        "messages": messages(user, room_id, "b", limit=100),
        "messages forwards": messages(user, room_id, "f", limit=100),
        "initial sync": ok(user.get(room_path(room_id, "initialSync"))),
        "all initial sync": ok(user.get(f"{V3}/initialSync")),
        "events": ok(user.get(f"{V3}/events?from={since}&timeout=0")),
        "event": user.get(room_path(room_id, "event", root)).json,
        "old event": user.get(f"{V3}/events/{root}").json,
        "context": user.get(room_path(room_id, "context", root)).json,
        "context of state": ok(user.get(around)),
        "relations": user.get(f"/_matrix/client/v1/rooms/{room_id}/relations/{root}").json,
        "threads": ok(user.get(f"/_matrix/client/v1/rooms/{room_id}/threads")),
        "search": search(user, SECRET)["results"],
        "notifications": ok(user.get(f"{V3}/notifications")),
    }
    shown = {name: SECRET in repr(answer) for name, answer in found.items()}
    by_time = (
        f"/_matrix/client/v1/rooms/{room_id}/timestamp_to_event?dir=b&ts={int((START + 60) * 1000)}"
    )
    shown["by time"] = user.get(by_time).json.get("event_id") in said
    shown["search count"] = search(user, SECRET)["count"] > 0
    return shown


def send_secrets(user: User, room_id: str) -> list[str]:
    """Send a message, a reply in a thread, and an event that refers to it, all with SECRET in
    them."""
    root = say(user, room_id, f"{SECRET} bob")
    events: list[str] = [root]
    for kind in ("m.thread", "m.reference"):
        relation = {"m.relates_to": {"rel_type": kind, "event_id": root}}
        content = {"msgtype": "m.text", "body": f"{SECRET} {kind}", **relation}
        events.append(ok(put_event(user, room_id, "m.room.message", content))["event_id"])
    return events


def test_expired_messages_are_hidden_in_all_endpoints(
    server: TestServer, alice: User, bob: User
) -> None:
    room_id = create(alice, preset="public_chat")
    join(bob, room_id)
    keep_for(alice, room_id, DAY)
    since = str(sync(bob)["next_batch"])
    said = send_secrets(alice, room_id)
    before = shown_anywhere(server, bob, room_id, said, since)
    assert before == dict.fromkeys(before, True)
    server.clock.advance(DAY + 1)
    nowhere = dict.fromkeys(before, False)
    assert shown_anywhere(server, bob, room_id, said, since) == nowhere
    assert purge(server) == 3
    assert shown_anywhere(server, bob, room_id, said, since) == nowhere
    keep_for(alice, room_id, 20 * DAY)  # a longer lifetime does not bring purged messages back
    assert shown_anywhere(server, bob, room_id, said, since) == nowhere


# Purged messages are gone.


def test_nothing_is_left_in_the_database(tmp_path: Path, database: Database) -> None:
    server = TestServer(tmp_path, database, RULES)
    alice, bob = server.register("alice"), server.register("bob")
    server.app.calls.delayed_events.start()
    room_id = create(alice, preset="public_chat")
    join(bob, room_id)
    keep_for(alice, room_id, DAY)
    said = send_secrets(alice, room_id)
    edit = {
        "m.relates_to": {"rel_type": "m.replace", "event_id": said[0]},
        "m.new_content": {"body": f"{SECRET} new"},
    }
    ok(put_event(alice, room_id, "m.room.message", {"msgtype": "m.text", "body": SECRET, **edit}))
    taken_back = {"reason": SECRET, "org.matrix.msc3912.with_relations": ["m.reference"]}
    ok(redact(alice, room_id, said[1], **taken_back))
    late = room_path(
        room_id, "send", "m.room.message", "late", **{"org.matrix.msc4140.delay": 1000}
    )
    ok(alice.put(late, {"msgtype": "m.text", "body": f"{SECRET} late"}))
    for seconds in (1.5, 0, 0, 0.5):
        server.clock.advance(seconds)
    index(server)
    kept = say(alice, room_id, "later")
    here = server.run(find_tables(database, SECRET))
    assert {"delayed_events", "events", "related_redactions", "searchable_events"} <= set(here)
    server.clock.advance(DAY)
    assert purge(server) == 6
    settle(server)
    assert server.run(find_tables(database, SECRET)) == []
    assert alice.get(room_path(room_id, "event", kept)).status == 200


def test_nothing_is_left_in_the_database_file(tmp_path: Path, sqlite: SQLiteConfig) -> None:
    database = open_inline(sqlite)
    server = TestServer(tmp_path, database, RULES)
    alice = server.register("alice")
    room_id = create(alice)
    keep_for(alice, room_id, DAY)
    for number in range(50):
        say(alice, room_id, f"{SECRET} {number} " + "long " * (number * 50))
    index(server)
    server.clock.advance(DAY + 1)
    files = [Path(sqlite.path), Path(f"{sqlite.path}-wal")]
    assert any(SECRET.encode() in file.read_bytes() for file in files)
    assert purge(server) == 50
    settle(server)
    assert not any(SECRET.encode() in file.read_bytes() for file in files)
    server.run(server.app.stop())
    assert SECRET.encode() not in files[0].read_bytes()


def test_clients_can_page_across_purged_messages(server: TestServer, alice: User) -> None:
    room_id = create(alice)
    for number in range(5):
        say(alice, room_id, f"before {number}")
    server.clock.advance(10 * DAY)
    for number in range(40):
        say(alice, room_id, f"{SECRET} {number}")
        if number % 10 == 0:
            set_state(alice, room_id, "m.room.topic", {"topic": str(number)})
    keep_for(alice, room_id, DAY)
    server.clock.advance(DAY + 1)
    last = say(alice, room_id, "after")

    def page_through(dir: str, limit: int) -> list[str]:
        found: list[str] = []
        query: dict[str, Any] = {}
        for _ in range(100):
            page = messages(alice, room_id, dir, limit=limit, **query)
            found += [event["event_id"] for event in page["chunk"]]
            if "end" not in page:
                return found
            query["from_"] = page["end"]
        raise AssertionError("the pages have no end")

    everything = page_through("f", 100)
    assert len(everything) == 6 + 4 + 1 + 1
    for is_purged in (False, True):
        assert page_through("f", 3) == everything
        assert page_through("b", 2) == everything[::-1]
        first = sync(alice, None, {"room": {"timeline": {"limit": 5}}})["rooms"]["join"][room_id]
        shown = [event["event_id"] for event in first["timeline"]["events"]]
        assert shown == everything[-len(shown) :]
        older = messages(alice, room_id, "b", from_=first["timeline"]["prev_batch"], limit=100)[
            "chunk"
        ]
        assert [event["event_id"] for event in older] == everything[: -len(shown)][::-1]
        assert (first["state"]["events"] != []) is True
        if not is_purged:
            assert purge(server) == 45
    assert everything[-1] == last


def test_members_are_returned_for_old_messages_too(
    server: TestServer, alice: User, bob: User
) -> None:
    room_id = create(alice, preset="public_chat")
    keep_for(alice, room_id, DAY)
    say(alice, room_id, SECRET)
    token = messages(alice, room_id, "b", limit=1)["start"]
    join(bob, room_id)
    server.clock.advance(DAY + 1)
    for _ in range(2):
        members = ok(alice.get(room_path(room_id, "members", at=token)))["chunk"]
        assert [each["state_key"] for each in members] == [alice.user_id]
        purge(server)


def test_unread_counts_leave_out_purged_messages(
    server: TestServer, alice: User, bob: User
) -> None:
    room_id = create(alice, preset="public_chat")
    join(bob, room_id)
    keep_for(alice, room_id, DAY)
    called = {"msgtype": "m.text", "body": "bob", "m.mentions": {"user_ids": [bob.user_id]}}
    ok(put_event(alice, room_id, "m.room.message", called))
    server.clock.advance(DAY / 2)
    say(alice, room_id, "hello")

    def unread() -> Any:
        return sync(bob)["rooms"]["join"][room_id]["unread_notifications"]

    assert unread() == {"notification_count": 2, "highlight_count": 1}
    server.clock.advance(DAY / 2 + 1)
    assert purge(server) == 1
    assert unread() == {"notification_count": 1, "highlight_count": 0}


def test_media_is_deleted_with_the_last_message_that_shows_it(
    server: TestServer, alice: User
) -> None:
    room_id, other = create(alice), create(alice)
    keep_for(alice, room_id, DAY)
    for name in ("gone", "kept"):
        address = upload(alice, name)
        ok(
            put_event(
                alice,
                room_id,
                "m.room.message",
                {"msgtype": "m.file", "body": name, "url": address},
            )
        )
    ok(
        put_event(
            alice, other, "m.room.message", {"msgtype": "m.file", "body": "kept", "url": address}
        )
    )
    attached = upload(alice, "attached")
    path = room_path(
        room_id, "send", "m.room.encrypted", "enc", **{"org.matrix.msc3911.attach_media": attached}
    )
    track_references(server)
    ok(alice.put(path, {"ciphertext": "…"}))
    server.clock.advance(DAY + 1)
    purge(server)
    track_references(server)
    server.clock.advance(3600)
    upkeep = server.app.media.maintenance
    assert server.run(upkeep.removal.do_remove_unreferenced(1000)) == 2
    deletions = server.run(upkeep.removal.get_deletions(None, 10))
    assert {each.reason for each in deletions} == {"retention"}
    assert (
        alice.get(f"/_matrix/client/v1/media/download/{address.removeprefix('mxc://')}").status
        == 200
    )


def upload(user: User, text: str) -> str:
    return upload_uri(user, text.encode())


@pytest.mark.parametrize("is_purged", [False, True])
def test_expired_sticky_events_are_not_sent(
    tmp_path: Path, sqlite_database: Database, is_purged: bool
) -> None:
    server = TestServer(tmp_path, sqlite_database, "retention: {enabled: true}\n")
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice, preset="public_chat")
    keep_for(alice, room_id, 60)
    path = room_path(
        room_id, "send", "m.room.message", "1", **{"org.matrix.msc4354.sticky_duration_ms": 600_000}
    )
    event_id = ok(alice.put(path, {"msgtype": "m.text", "body": SECRET}))["event_id"]
    join(bob, room_id)
    name = "org.matrix.msc4354.sticky_events"
    body = {
        "lists": {"all": {"ranges": [[0, 5]], "timeline_limit": 1, "required_state": []}},
        "extensions": {name: {"enabled": True}},
    }
    newest = {"room": {"timeline": {"limit": 1}}}

    def received() -> list[bool]:
        asked = bob.post("/_matrix/client/unstable/org.matrix.simplified_msc3575/sync", body)
        return [
            event_id in repr(each)
            for each in (sync(bob, None, newest), ok(asked)["extensions"][name])
        ]

    assert received() == [True, True]
    server.clock.advance(61)
    if is_purged:
        assert purge(server) == 1
    assert received() == [False, False]


@pytest.mark.parametrize("is_purged", [True, False])
@pytest.mark.parametrize("asked_before", [True, False])
def test_redactions_of_state_expire_too(
    server: TestServer, alice: User, bob: User, asked_before: bool, is_purged: bool
) -> None:
    room_id = create(alice, preset="public_chat")
    join(bob, room_id)
    topic = set_state(alice, room_id, "m.room.topic", {"topic": "rude"})
    ok(redact(alice, room_id, topic, reason=SECRET))
    keep_for(alice, room_id, DAY)

    def read() -> str:
        members = bob.get(room_path(room_id, "members")).body
        return (
            bob.get(room_path(room_id, "state")).body
            + members
            + bob.get(room_path(room_id, "event", topic)).body
        ).decode()

    if asked_before:
        assert SECRET in read()
    server.clock.advance(DAY + 1)
    if is_purged:
        assert purge(server) == 1
    assert SECRET not in read()


@pytest.mark.usefixtures("compared")
def test_a_client_that_is_up_to_date_gets_unexpired_messages_only(
    server: TestServer, alice: User, bob: User
) -> None:
    """The short way of /sync respects retention as the full way does."""
    room_id = create(alice, preset="public_chat")
    keep_for(alice, room_id, DAY)
    join(bob, room_id)
    since = sync(bob)["next_batch"]
    with plain_timelines() as plain:
        say(alice, room_id, "one")
        answer = sync(bob, since)
        assert [
            event["content"]["body"]
            for event in answer["rooms"]["join"][room_id]["timeline"]["events"]
        ] == ["one"]
        assert len(plain) == 1
        say(alice, room_id, "two")
        server.clock.advance(DAY + 1)
        assert "two" not in str(sync(bob, answer["next_batch"]))
        assert len(plain) == 1
