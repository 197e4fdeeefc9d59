"""Administrators purge the history of rooms; forgotten rooms are purged automatically."""

from pathlib import Path
from typing import Any

import pytest

from federation.protocol.ids import EventID
from storage.engine.database import Database, SQLiteConfig
from tests.helpers.databases import open_inline
from tests.helpers.retention import damage
from tests.helpers.room_actions import (
    all_texts,
    create,
    invite,
    join,
    leave,
    membership,
    messages,
    ok,
    put_event,
    redact,
    refused,
    room_path,
    say,
    set_state,
)
from tests.helpers.server import START, TestServer, User, make_admin, move_user

PURGE = "/_synapse/admin/v1/purge_history"
STATUS = "/_synapse/admin/v1/purge_history_status"
RECORD = "/_mahalla/admin/v1/purged_messages"
DAY = 86_400


@pytest.fixture
def server(tmp_path: Path, sqlite_database: Database) -> TestServer:
    return TestServer(tmp_path, sqlite_database, "forgotten_room_retention_period: 28d\n")


def work(server: TestServer) -> None:
    while server.run(server.app.retention.purges.do_step(10)):
        pass


def status(root: User, purge_id: str) -> dict[str, Any]:
    received = dict(ok(root.get(f"{STATUS}/{purge_id}")))
    assert received.pop("by") == root.user_id
    assert received.pop("created_ts") >= START * 1000
    return received


def begin(root: User, room_id: str, **body: Any) -> str:
    return str(ok(root.post(f"{PURGE}/{room_id}", body))["purge_id"])


def test_messages_before_a_time_are_purged(server: TestServer, alice: User, root: User) -> None:
    room_id = create(alice)
    old = say(alice, room_id, "one")
    server.clock.advance(60)
    say(alice, room_id, "two")
    say(alice, room_id, "three")
    purge_id = begin(
        root, room_id, purge_up_to_ts=int((START + 60) * 1000), delete_local_events=True
    )
    assert status(root, purge_id) == {"status": "active", "messages": 0}
    work(server)
    assert status(root, purge_id) == {"status": "complete", "messages": 1}
    assert all_texts(alice, room_id) == ["two", "three"]
    assert alice.get(room_path(room_id, "event", old)).status == 404
    (stored,) = server.run(server.app.rooms.events.get_in_any_room([EventID(old)])).values()
    assert stored.event.content == {}
    day = {"day": "2023-11-14", "room_id": room_id, "cause": "purge", "messages": 1}
    assert ok(root.get(RECORD)) == {"purged": [day]}


def test_messages_before_an_event_are_purged(server: TestServer, alice: User, root: User) -> None:
    room_id = create(alice)
    for text in ("one", "two"):
        say(alice, room_id, text)
    limit = say(alice, room_id, "three")
    purge_id = str(
        ok(root.post(f"{PURGE}/{room_id}/{limit}", {"delete_local_events": True}))["purge_id"]
    )
    work(server)
    assert status(root, purge_id)["messages"] == 2
    assert all_texts(alice, room_id) == ["three"]
    assert len(ok(alice.get(room_path(room_id, "state")))) == 6


def test_the_newest_message_and_messages_of_local_users_stay(
    server: TestServer, alice: User, root: User
) -> None:
    room_id = create(alice)
    for text in ("one", "two"):
        say(alice, room_id, text)
    later = int((START + 60) * 1000)
    begin(root, room_id, purge_up_to_ts=later)
    work(server)
    assert all_texts(alice, room_id) == ["one", "two"]
    begin(root, room_id, purge_up_to_ts=later, delete_local_events=True)
    work(server)
    assert all_texts(alice, room_id) == ["two"]
    say(alice, room_id, "three")
    assert all_texts(alice, room_id) == ["two", "three"]


def test_invalid_requests_are_refused(server: TestServer, alice: User, root: User) -> None:
    room_id, other = create(alice), create(alice)
    event_id = say(alice, other, "elsewhere")
    assert refused(root.post(f"{PURGE}/{room_id}", {})) == (400, "M_BAD_JSON")
    assert refused(root.post(f"{PURGE}/{room_id}", {"purge_up_to_ts": "soon"})) == (
        400,
        "M_BAD_JSON",
    )
    assert refused(root.post(f"{PURGE}/{room_id}", {"purge_up_to_ts": 2**60})) == (
        400,
        "M_BAD_JSON",
    )
    assert refused(root.post(f"{PURGE}/!none:example.org", {"purge_up_to_ts": 1})) == (
        404,
        "M_NOT_FOUND",
    )
    assert refused(root.post(f"{PURGE}/{room_id}/$none")) == (404, "M_NOT_FOUND")
    assert refused(root.post(f"{PURGE}/{room_id}/{event_id}")) == (400, "M_UNKNOWN")
    assert refused(root.get(f"{STATUS}/none")) == (404, "M_NOT_FOUND")
    assert refused(alice.post(f"{PURGE}/{room_id}", {"purge_up_to_ts": 1})) == (403, "M_FORBIDDEN")
    for token in ("x", "1_1_x", "1_1_", "1_1", "999999999999999_1_purge", "-1_1_purge", "1__purge"):
        assert refused(root.get(f"{RECORD}?from={token}")) == (400, "M_INVALID_PARAM")
    assert refused(root.get(f"{RECORD}?limit=0")) == (400, "M_INVALID_PARAM")
    begin(root, room_id, purge_up_to_ts=1)
    assert refused(root.post(f"{PURGE}/{room_id}", {"purge_up_to_ts": 1})) == (400, "M_UNKNOWN")
    begin(root, other, purge_up_to_ts=1)
    work(server)
    begin(root, room_id, purge_up_to_ts=1)


def test_an_event_in_the_path_needs_no_body(server: TestServer, alice: User, root: User) -> None:
    room_id = create(alice)
    limit = say(alice, room_id, "one")
    path = f"{PURGE}/{room_id}/{limit}"
    answer = server.client.request("POST", path, token=root.token)
    assert status(root, ok(answer)["purge_id"]) == {"status": "active", "messages": 0}


def test_the_record_is_paged(server: TestServer, alice: User, root: User) -> None:
    rooms = [create(alice) for _ in range(3)]
    for room_id in rooms:
        for text in ("one", "two"):
            say(alice, room_id, text)
        begin(root, room_id, purge_up_to_ts=2**53 - 1, delete_local_events=True)
    work(server)
    found, token = [], ""
    for _ in rooms:
        page = ok(root.get(f"{RECORD}?limit=1{token}"))
        found += [each["room_id"] for each in page["purged"]]
        token = f"&from={page['next_token']}"
    assert found == rooms[::-1]
    assert ok(root.get(f"{RECORD}?limit=1{token}")) == {"purged": []}


def test_a_restart_continues_a_purge(tmp_path: Path, sqlite: SQLiteConfig) -> None:
    server = TestServer(tmp_path, open_inline(sqlite))
    alice, root = server.register("alice"), make_admin(server)
    room_id = create(alice)
    for number in range(25):
        say(alice, room_id, str(number))
    purge_id = begin(
        root, room_id, purge_up_to_ts=int((START + 60) * 1000), delete_local_events=True
    )
    assert server.run(server.app.retention.purges.do_step(10)) == 10
    server.run(server.app.stop())
    restarted = TestServer(tmp_path, open_inline(sqlite), seed=2)
    ours = {each.user_id: move_user(restarted, each) for each in (alice, root)}
    assert status(ours[root.user_id], purge_id) == {"status": "active", "messages": 10}
    work(restarted)
    assert status(ours[root.user_id], purge_id) == {"status": "complete", "messages": 24}
    assert all_texts(ours[alice.user_id], room_id) == ["24"]


def test_a_forgotten_room_is_purged(server: TestServer, alice: User, root: User) -> None:
    room_id, kept = create(alice), create(alice)
    bob = server.register("bob")
    for each in (room_id, kept):
        invite(alice, each, bob)
        join(bob, each)
        say(alice, each, "secret")
        leave(alice, each)
        leave(bob, each)
        ok(membership(alice, each, "forget"))
    ok(membership(bob, room_id, "forget"))
    forgotten = server.app.retention.forgotten_rooms
    assert forgotten is not None
    for seconds, purged in ((0, 0), (27 * DAY, 0), (DAY, 1), (DAY, 1)):
        server.clock.advance(seconds)
        server.run(forgotten.do_step(1000))
        work(server)
        found = ok(root.get(RECORD))["purged"]
        assert sum(each["messages"] for each in found) == purged
    assert (found[0]["room_id"], found[0]["cause"]) == (room_id, "forgotten")
    assert all_texts(bob, kept) == ["secret"]


def begin_forgotten(server: TestServer) -> None:
    """Check rooms, and again when forgotten ones are due."""
    forgotten = server.app.retention.forgotten_rooms
    assert forgotten is not None
    for seconds in (0, 28 * DAY):
        server.clock.advance(seconds)
        server.run(forgotten.do_step(1000))


def leave_for_good(user: User, room_id: str) -> None:
    leave(user, room_id)
    ok(membership(user, room_id, "forget"))


def test_messages_in_a_room_that_a_user_rejoins_stay(
    server: TestServer, alice: User, root: User
) -> None:
    room_id = create(alice, preset="public_chat")
    for number in range(25):
        say(alice, room_id, f"old {number}")
    leave_for_good(alice, room_id)
    begin_forgotten(server)
    assert server.run(server.app.retention.purges.do_step(10)) == 10
    join(alice, room_id)
    say(alice, room_id, "new")
    server.run(server.app.retention.purges.do_step(10))
    server.clock.advance(10)
    say(alice, room_id, "newer")
    work(server)
    assert sum(each["messages"] for each in ok(root.get(RECORD))["purged"]) == 10
    assert all_texts(alice, room_id)[-2:] == ["new", "newer"]
    # forgotten again, it is purged again
    leave_for_good(alice, room_id)
    begin_forgotten(server)
    work(server)
    assert sum(each["messages"] for each in ok(root.get(RECORD))["purged"]) == 27


@pytest.mark.parametrize("by_event", [False, True])
def test_messages_sent_during_a_purge_stay(
    server: TestServer, alice: User, root: User, by_event: bool
) -> None:
    room_id, other = create(alice), create(alice)
    for number in range(25):
        say(alice, room_id, str(number))
    limit = say(alice, room_id, "limit")
    body = {"purge_up_to_event_id": limit} if by_event else {"purge_up_to_ts": 2**53 - 1}
    begin(root, room_id, delete_local_events=True, **body)
    begin(root, other, purge_up_to_ts=1)
    assert server.run(server.app.retention.purges.do_step(10)) == 10
    said = ["at once"]
    say(alice, room_id, said[0])
    server.clock.advance(5)
    for number in range(12):
        said.append(f"later {number}")
        say(alice, room_id, said[-1])
    work(server)
    assert all_texts(alice, room_id) == ["limit", *said]


def test_unreadable_messages_do_not_block_a_purge(tmp_path: Path, sqlite: SQLiteConfig) -> None:
    server = TestServer(tmp_path, open_inline(sqlite))
    alice, root = server.register("alice"), make_admin(server)
    rooms = [create(alice) for _ in range(3)]
    for room_id in rooms:
        said = [say(alice, room_id, str(number)) for number in range(3)]
        if room_id == rooms[1]:
            damage(server, said[0])
    unknown = "UPDATE rooms SET version = 'none' WHERE room_id = ?"
    purges = []
    for room_id in rooms:
        purges.append(begin(root, room_id, purge_up_to_ts=2**53 - 1, delete_local_events=True))
        server.clock.advance(1)
    server.run(server.app.database.write("damage", lambda txn: txn.execute(unknown, (rooms[0],))))
    server.run(server.app.stop())
    restarted = TestServer(tmp_path, open_inline(sqlite), seed=2, now=server.clock.seconds())
    work(restarted)
    root = move_user(restarted, root)
    failed, damaged, whole = (status(root, purge_id) for purge_id in purges)
    assert failed == {
        "status": "failed",
        "error": "An internal error: see the server's log",
        "messages": 0,
    }
    assert damaged == {"status": "complete", "messages": 1}
    assert whole == {"status": "complete", "messages": 2}


@pytest.mark.parametrize("last", ["redaction", "reaction", "edit", "topic", "purged"])
def test_the_newest_message_is_a_visible_one(
    server: TestServer, alice: User, root: User, last: str
) -> None:
    room_id = create(alice)
    for text in ("one", "two"):
        kept = say(alice, room_id, text)
    if last in ("redaction", "purged"):
        ok(redact(alice, room_id, say(alice, room_id, "three")))
    if last == "purged":
        begin(root, room_id, purge_up_to_ts=2**53 - 1, delete_local_events=True)
        work(server)
    elif last == "reaction":
        relation = {"m.relates_to": {"rel_type": "m.annotation", "event_id": kept, "key": "+"}}
        ok(put_event(alice, room_id, "m.reaction", relation))
    elif last == "edit":
        relation = {
            "m.relates_to": {"rel_type": "m.replace", "event_id": kept},
            "m.new_content": {"body": "better"},
        }
        ok(
            put_event(
                alice,
                room_id,
                "m.room.message",
                {"body": "* better", "msgtype": "m.text", **relation},
            )
        )
    elif last == "topic":
        set_state(alice, room_id, "m.room.topic", {"topic": "Tea"})
    begin(root, room_id, purge_up_to_ts=2**53 - 1, delete_local_events=True)
    work(server)
    assert all_texts(alice, room_id) == (["two"] if last != "edit" else ["two", "* better"])


def test_events_related_to_the_newest_message_stay(
    server: TestServer, alice: User, root: User
) -> None:
    room_id = create(alice)
    begun = say(alice, room_id, "thread")
    say(alice, room_id, "gone")
    in_thread = {"m.relates_to": {"rel_type": "m.thread", "event_id": begun}}
    question = {"m.poll.start": {"question": {"body": "Tea?"}, "answers": []}, **in_thread}
    poll = ok(put_event(alice, room_id, "org.matrix.msc3381.poll.start", question))["event_id"]
    vote = {"m.relates_to": {"rel_type": "m.reference", "event_id": poll}, "answers": ["yes"]}
    voted = ok(put_event(alice, room_id, "org.matrix.msc3381.poll.response", vote))["event_id"]
    liking = {"m.relates_to": {"rel_type": "m.annotation", "event_id": poll, "key": "+"}}
    liked = ok(put_event(alice, room_id, "m.reaction", liking))["event_id"]
    purge_id = begin(root, room_id, purge_up_to_ts=2**53 - 1, delete_local_events=True)
    work(server)
    assert status(root, purge_id)["messages"] == 1
    left = [
        event["event_id"] for event in messages(alice, room_id)["chunk"] if "state_key" not in event
    ]
    assert left == [liked, voted, poll, begun]


@pytest.mark.parametrize("with_own", [True, False])
def test_redactions_of_remaining_events_stay(
    server: TestServer, alice: User, root: User, with_own: bool
) -> None:
    room_id = create(alice)
    topic = set_state(alice, room_id, "m.room.topic", {"topic": "rude"})
    ok(redact(alice, room_id, topic, reason="of the topic"))
    said = say(alice, room_id, "rude")
    ok(redact(alice, room_id, said, reason="of a message"))
    server.clock.advance(60)
    say(alice, room_id, "newest")
    begin(root, room_id, purge_up_to_ts=2**53 - 1, delete_local_events=with_own)
    work(server)
    chunk = messages(alice, room_id)["chunk"]
    reasons = {
        event["event_id"]: event["unsigned"]["redacted_because"]["content"]["reason"]
        for event in chunk
        if "redacted_because" in event["unsigned"]
    }
    assert reasons == (
        {topic: "of the topic"} if with_own else {topic: "of the topic", said: "of a message"}
    )
    assert [event["type"] for event in chunk].count("m.room.redaction") == len(reasons)
