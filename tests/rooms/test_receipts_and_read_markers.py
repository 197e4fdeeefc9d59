"""Receipts, read markers and typing notifications. spec: client-server-api#receipts,
#fully-read-markers, #typing-notifications"""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from storage.engine.database import Database, SQLiteConfig
from tests.helpers.databases import QueryCounter, open_inline
from tests.helpers.room_actions import (
    V3,
    create,
    join,
    leave,
    ok,
    put_event,
    redact,
    refused,
    room_path,
    say,
    set_state,
)
from tests.helpers.server import TestServer, User

FORBIDDEN = (403, "M_FORBIDDEN")
INVALID = (400, "M_INVALID_PARAM")


@pytest.fixture
def room_id(alice: User, bob: User) -> str:
    room_id = create(alice, preset="public_chat")
    join(bob, room_id)
    return room_id


def mark(user: User, room_id: str, kind: str, event_id: str, **body: Any) -> Any:
    return user.post(room_path(room_id, "receipt", kind, event_id), body)


def ephemeral(user: User, room_id: str, kind: str) -> Any:
    room = ok(user.get(f"{V3}/sync"))["rooms"]["join"][room_id]
    found = [event["content"] for event in room["ephemeral"]["events"] if event["type"] == kind]
    return found[0] if found else None


def fully_read(user: User, room_id: str) -> Any:
    path = f"{V3}/user/{user.user_id}/rooms/{quote(room_id, safe='')}/account_data/m.fully_read"
    answer = user.get(path)
    return None if answer.status == 404 else ok(answer)["event_id"]


def test_private_receipts_are_visible_to_their_user_only(
    alice: User, bob: User, room_id: str
) -> None:
    first, second = say(alice, room_id, "1"), say(alice, room_id, "2")
    assert ok(mark(bob, room_id, "m.read", first)) == {}
    ok(mark(bob, room_id, "m.read.private", second))
    seen = ephemeral(alice, room_id, "m.receipt")
    assert seen == {
        first: {"m.read": {bob.user_id: {"ts": seen[first]["m.read"][bob.user_id]["ts"]}}}
    }
    assert set(ephemeral(bob, room_id, "m.receipt")) == {first, second}


async def test_the_marker_moves_forwards_in_backfilled_history(
    tmp_path: Path, database: Database
) -> None:
    alice = TestServer(tmp_path, database).register("alice")
    room_id = create(alice)
    first, second, last = (say(alice, room_id, text) for text in "123")
    await database.write(
        "write",
        lambda txn: txn.execute(
            "UPDATE events SET position = NULL WHERE event_id IN (?, ?)", (first, second)
        ),
    )
    alice.server = TestServer(tmp_path, database, seed=9)  # they are not new to the user
    reached: list[str] = []
    for event_id in (first, second, first, last, second):
        ok(
            alice.post(
                room_path(room_id, "read_markers"), {"m.fully_read": event_id, "m.read": event_id}
            )
        )
        reached.append(fully_read(alice, room_id))
        assert list(ephemeral(alice, room_id, "m.receipt")) == reached[-1:]
    assert reached == [first, second, second, last, last]


def test_receipts_only_move_forwards(alice: User, bob: User, room_id: str) -> None:
    first, second = say(alice, room_id, "1"), say(alice, room_id, "2")
    ok(mark(bob, room_id, "m.read", second))
    ok(mark(bob, room_id, "m.read", first))
    assert set(ephemeral(alice, room_id, "m.receipt")) == {second}


def test_a_receipt_needs_an_event_of_the_room(alice: User, bob: User, room_id: str) -> None:
    first, second = say(alice, room_id, "1"), say(alice, room_id, "2")
    ok(mark(bob, room_id, "m.read", second))
    for elsewhere in ("$no", say(bob, create(bob), "x")):
        for kind in ("m.read", "m.read.private"):
            assert refused(mark(bob, room_id, kind, elsewhere)) == (404, "M_NOT_FOUND")
    ok(mark(bob, room_id, "m.read", first))
    assert set(ephemeral(alice, room_id, "m.receipt")) == {second}
    assert (
        ok(bob.get(f"{V3}/sync"))["rooms"]["join"][room_id]["unread_notifications"][
            "notification_count"
        ]
        == 0
    )


def test_each_thread_has_its_own_receipt(alice: User, bob: User, room_id: str) -> None:
    root, other = say(alice, room_id, "root"), say(alice, room_id, "other")
    relation = {"m.relates_to": {"rel_type": "m.thread", "event_id": root}}
    reply = ok(put_event(alice, room_id, "m.room.message", {"body": "reply", **relation}))[
        "event_id"
    ]
    ok(mark(bob, room_id, "m.read", reply, thread_id=root))
    ok(mark(bob, room_id, "m.read", other, thread_id="main"))
    ok(mark(bob, room_id, "m.read", root))
    content = ephemeral(alice, room_id, "m.receipt")
    assert content[reply]["m.read"][bob.user_id]["thread_id"] == root
    assert content[other]["m.read"][bob.user_id]["thread_id"] == "main"
    assert "thread_id" not in content[root]["m.read"][bob.user_id]
    assert refused(mark(bob, room_id, "m.read", reply, thread_id="main")) == INVALID
    assert refused(mark(bob, room_id, "m.read", reply, thread_id=other)) == INVALID
    for invented in ("$invented", other):
        assert refused(mark(bob, room_id, "m.read", root, thread_id=invented)) == INVALID
    annotation = {"m.relates_to": {"rel_type": "m.annotation", "event_id": reply, "key": "+1"}}
    liked = ok(put_event(alice, room_id, "m.reaction", annotation))["event_id"]
    assert refused(mark(bob, room_id, "m.read", liked, thread_id="main")) == INVALID
    ok(mark(bob, room_id, "m.read", liked, thread_id=root))
    annotation = {"m.relates_to": {"rel_type": "m.annotation", "event_id": root, "key": "+1"}}
    of_root = ok(put_event(alice, room_id, "m.reaction", annotation))["event_id"]
    for thread_id in ("main", root):
        ok(mark(alice, room_id, "m.read", of_root, thread_id=thread_id))
    assert refused(mark(alice, room_id, "m.read", of_root, thread_id=reply)) == INVALID
    for event_id in (root, other):
        assert refused(mark(alice, room_id, "m.read", event_id, thread_id=event_id)) == INVALID, (
            "it is in no thread"
        )
    assert ephemeral(alice, room_id, "m.receipt")[liked]["m.read"][bob.user_id]["thread_id"] == root


async def test_receipts_at_redacted_thread_replies_are_accepted(
    tmp_path: Path, database: Database
) -> None:
    """Clients leave a redacted reply in its thread, or move it to the main timeline: the redacted
    event has no relation."""
    server = TestServer(tmp_path, database)
    alice = server.register("alice")
    room_id = create(alice)
    root, other = say(alice, room_id, "root"), say(alice, room_id, "other")

    def relate(rel_type: str, target: str, type_: str = "m.room.message", **more: str) -> str:
        content = {"body": "x", "m.relates_to": {"rel_type": rel_type, "event_id": target, **more}}
        return str(ok(put_event(alice, room_id, type_, content))["event_id"])

    def gone(event_id: str) -> str:
        return str(ok(redact(alice, room_id, event_id))["event_id"])

    reply, silent = relate("m.thread", root), relate("m.thread", root, "m.silent")
    liked = relate("m.annotation", reply, "m.reaction", key="1")
    liked_no_more = relate("m.annotation", reply, "m.reaction", key="2")
    beside = relate("m.annotation", root, "m.reaction", key="3")
    redactions = [gone(liked_no_more), gone(silent), gone(reply), gone(beside)]
    for event_id in (reply, silent, liked, liked_no_more, *redactions[:3]):
        ok(mark(alice, room_id, "m.read", event_id, thread_id=root))
        ok(mark(alice, room_id, "m.read", event_id, thread_id="main"))
        ok(mark(alice, room_id, "m.read", event_id))
        assert refused(mark(alice, room_id, "m.read", event_id, thread_id=other)) == INVALID
    for event_id in (beside, redactions[3]):
        ok(mark(alice, room_id, "m.read", event_id, thread_id="main"))
        assert refused(mark(alice, room_id, "m.read", event_id, thread_id=root)) == INVALID


def test_receipts_and_markers_need_a_visible_event(alice: User, bob: User) -> None:
    room_id = create(alice, preset="public_chat")
    set_state(alice, room_id, "m.room.history_visibility", {"history_visibility": "joined"})
    hidden = say(alice, room_id, "before bob came")
    join(bob, room_id)
    first = say(alice, room_id, "1")
    leave(bob, room_id)
    between = say(alice, room_id, "while bob was away")
    join(bob, room_id)
    unknown = mark(bob, room_id, "m.read", "$no")
    assert refused(unknown) == (404, "M_NOT_FOUND")
    for event_id in (hidden, between):
        for kind in ("m.read", "m.read.private"):
            answer = mark(bob, room_id, kind, event_id)
            assert (answer.status, answer.body) == (unknown.status, unknown.body)
        for name in ("m.fully_read", "m.read"):
            answer = bob.post(
                room_path(room_id, "read_markers"), {"m.read.private": first, name: event_id}
            )
            assert (answer.status, answer.body) == (unknown.status, unknown.body)
    assert (ephemeral(bob, room_id, "m.receipt"), fully_read(bob, room_id)) == (None, None)
    ok(bob.post(room_path(room_id, "read_markers"), {"m.fully_read": first, "m.read": first}))
    assert (list(ephemeral(alice, room_id, "m.receipt")), fully_read(bob, room_id)) == (
        [first],
        first,
    )


def test_a_receipt_needs_no_query(tmp_path: Path, sqlite: SQLiteConfig) -> None:
    counter = QueryCounter()
    server = TestServer(tmp_path, open_inline(sqlite, counter))
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice, preset="public_chat")
    join(bob, room_id)
    ok(mark(bob, room_id, "m.read", say(alice, room_id, "1")))
    event_id = say(alice, room_id, "2")
    counter.clear()
    ok(mark(bob, room_id, "m.read", event_id))
    assert set(counter.queries) == {"set_receipts"}


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        ("m.read", {"thread_id": ""}, INVALID),
        ("m.read", {"thread_id": "nonsense"}, INVALID),
        ("m.read", {"thread_id": 1}, INVALID),
        ("m.read", {"thread_id": None}, INVALID),
        ("m.read.private", {"thread_id": ["main"]}, INVALID),
        ("m.fully_read", {"thread_id": "main"}, INVALID),
        ("m.seen", {}, INVALID),
    ],
)
def test_invalid_receipts_are_refused(
    alice: User, room_id: str, kind: str, body: dict[str, Any], expected: tuple[int, str]
) -> None:
    assert refused(mark(alice, room_id, kind, say(alice, room_id, "x"), **body)) == expected


def test_markers_are_set_together_and_move_forwards(alice: User, bob: User, room_id: str) -> None:
    first, second = say(alice, room_id, "1"), say(alice, room_id, "2")
    path = room_path(room_id, "read_markers")
    assert (
        ok(bob.post(path, {"m.fully_read": first, "m.read": second, "m.read.private": second}))
        == {}
    )
    assert fully_read(bob, room_id) == first
    assert set(ephemeral(alice, room_id, "m.receipt")) == {second}
    ok(bob.post(path, {}))
    ok(mark(bob, room_id, "m.fully_read", second))
    assert fully_read(bob, room_id) == second
    ok(bob.post(path, {"m.fully_read": first}))
    assert fully_read(bob, room_id) == second
    assert fully_read(alice, room_id) is None


def test_a_marker_needs_an_event_of_the_room(alice: User, room_id: str) -> None:
    path = room_path(room_id, "read_markers")
    elsewhere = say(alice, create(alice), "x")
    assert refused(alice.post(path, {"m.fully_read": elsewhere})) == (404, "M_NOT_FOUND")
    assert refused(alice.post(path, {"m.fully_read": "nonsense"})) == INVALID
    assert refused(alice.post(path, {"m.read": 1})) == (400, "M_BAD_JSON")
    assert fully_read(alice, room_id) is None


def test_markers_move_atomically(alice: User, bob: User, room_id: str) -> None:
    first, second = say(alice, room_id, "1"), say(alice, room_id, "2")
    path = room_path(room_id, "read_markers")
    ok(bob.post(path, {"m.fully_read": first, "m.read": first}))
    since = ok(bob.get(f"{V3}/sync"))["next_batch"]
    elsewhere = say(alice, create(alice), "x")
    assert refused(bob.post(path, {"m.fully_read": second, "m.read": elsewhere})) == (
        404,
        "M_NOT_FOUND",
    )
    assert (
        refused(bob.post(path, {"m.fully_read": second, "m.read.private": "nonsense"})) == INVALID
    )
    assert refused(bob.post(path, {"m.fully_read": elsewhere, "m.read": second})) == (
        404,
        "M_NOT_FOUND",
    )
    assert fully_read(bob, room_id) == first
    assert set(ephemeral(bob, room_id, "m.receipt")) == {first}
    assert "rooms" not in ok(bob.get(f"{V3}/sync?since={since}"))


def test_only_members_send_receipts_and_typing(alice: User, bob: User, room_id: str) -> None:
    event_id = say(alice, room_id, "x")
    leave(bob, room_id)
    assert refused(mark(bob, room_id, "m.read", event_id)) == FORBIDDEN
    assert refused(bob.post(room_path(room_id, "read_markers"), {"m.read": event_id})) == FORBIDDEN
    assert (
        refused(bob.put(room_path(room_id, "typing", bob.user_id), {"typing": True})) == FORBIDDEN
    )
    assert (
        refused(alice.put(room_path(room_id, "typing", bob.user_id), {"typing": True})) == FORBIDDEN
    )
    assert refused(alice.put(room_path(room_id, "typing", alice.user_id), {})) == (
        400,
        "M_BAD_JSON",
    )


def test_typing_ends_by_timeout_or_on_request(
    server: TestServer, alice: User, bob: User, room_id: str
) -> None:
    path = room_path(room_id, "typing", bob.user_id)

    def typing() -> list[str]:
        content = ephemeral(alice, room_id, "m.typing")
        return [] if content is None else list(content["user_ids"])

    assert ok(bob.put(path, {"typing": True, "timeout": 5000})) == {}
    assert typing() == [bob.user_id]
    server.clock.advance(4)
    ok(bob.put(path, {"typing": True, "timeout": 5000}))
    server.clock.advance(4)
    assert typing() == [bob.user_id]
    server.clock.advance(1.1)
    assert typing() == []
    ok(bob.put(path, {"typing": True, "timeout": None}))
    ok(bob.put(path, {"typing": False}))
    assert typing() == []
    ok(bob.put(path, {"typing": True, "timeout": 10**15}))
    server.clock.advance(121)
    assert typing() == []
    ok(bob.put(path, {"typing": True, "timeout": -5}))
    server.clock.advance(0.1)
    assert typing() == []


def test_receipts_and_markers_work_on_both_databases(tmp_path: Path, database: Database) -> None:
    server = TestServer(tmp_path, database)
    alice = server.register("alice")
    room_id = create(alice)
    event_id = say(alice, room_id, "x")
    ok(
        alice.post(
            room_path(room_id, "read_markers"), {"m.fully_read": event_id, "m.read": event_id}
        )
    )
    assert fully_read(alice, room_id) == event_id
    assert set(ephemeral(alice, room_id, "m.receipt")) == {event_id}
