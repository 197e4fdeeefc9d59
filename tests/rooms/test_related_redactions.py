"""Redactions that include events related to their target (MSC3912)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from twisted.logger import capturedLogs

from federation.protocol.errors import Forbidden, LimitExceeded, RemoteError, StateIncomplete
from federation.protocol.ids import RoomID, ServerName
from federation.rooms.event_drafts import Draft
from federation.rooms.events import StoredEvent
from homeserver.services.rooms.related_redactions import (
    EVENTS_PER_WRITE,
    LEASE_MS,
    MAX_TRIES,
    RETRIES,
)
from storage.accounts.accounts import AccountStore
from storage.engine.database import Database, DatabaseUnavailable, PostgresConfig, SQLiteConfig
from storage.rooms.related_redactions import RelatedRedaction, add_redactions
from tests.helpers.databases import open_inline
from tests.helpers.executors import PausableExecutor
from tests.helpers.federated_rooms import shared
from tests.helpers.network import Network
from tests.helpers.policy_server import PolicyServer, named
from tests.helpers.room_actions import (
    create,
    invite,
    join,
    leave,
    ok,
    redact,
    refused,
    relate,
    room_path,
    say,
    set_state,
)
from tests.helpers.server import TestServer, User


@pytest.fixture
def server(tmp_path: Path, database: Database) -> TestServer:
    return TestServer(tmp_path, database)


@pytest.fixture
def room(alice: User, bob: User) -> str:
    room = create(alice, preset="private_chat")
    invite(alice, room, bob)
    join(bob, room)
    return room


def edit(user: User, room: str, target: str) -> str:
    return relate(
        user,
        room,
        target,
        "m.replace",
        "child",
        **{"m.new_content": {"msgtype": "m.text", "body": "new"}},
    )


def is_redacted(user: User, room: str, event_id: str) -> bool:
    return bool(ok(user.get(room_path(room, "event", event_id)))["content"] == {})


def test_edits_are_redacted_with_their_event(alice: User, room: str) -> None:
    message = say(alice, room, "hello")
    edits = [edit(alice, room, message) for _ in range(2)]
    reply = relate(alice, room, message, "m.thread")
    ok(redact(alice, room, message, reason="oops", with_rel_types=["m.replace"]))
    assert all(is_redacted(alice, room, event_id) for event_id in (message, *edits))
    assert not is_redacted(alice, room, reply)
    event = ok(alice.get(room_path(room, "event", edits[0])))
    assert event["unsigned"]["redacted_because"]["content"]["reason"] == "oops"
    assert event["unsigned"]["redacted_because"]["sender"] == alice.user_id


@pytest.mark.parametrize("name", ["with_rel_types", "org.matrix.msc3912.with_relations"])
def test_a_wildcard_redacts_all_related_events(
    alice: User, bob: User, room: str, name: str
) -> None:
    message = say(alice, room, "poll")
    children = [
        relate(bob, room, message, rel_type)
        for rel_type in ("m.thread", "m.reference", "org.example.x")
    ]
    grandchild = relate(bob, room, children[0], "m.reference")
    ok(redact(alice, room, message, **{name: ["*", "m.thread"]}))
    assert all(is_redacted(alice, room, child) for child in children)
    assert not is_redacted(alice, room, grandchild)


def test_without_relation_types_only_the_event_is_redacted(alice: User, room: str) -> None:
    bodies: list[dict[str, Any]] = [{}, {"with_rel_types": []}, {"with_rel_types": None}]
    for body in bodies:
        message = say(alice, room, "hello")
        child = relate(alice, room, message, "m.thread")
        ok(redact(alice, room, message, **body))
        assert not is_redacted(alice, room, child)


def test_related_events_that_the_sender_may_not_redact_stay(
    alice: User, bob: User, room: str
) -> None:
    message = say(bob, room, "hello")
    theirs, own = relate(alice, room, message, "m.thread"), relate(bob, room, message, "m.thread")
    ok(redact(bob, room, message, with_rel_types=["m.thread"]))
    assert is_redacted(bob, room, own)
    assert not is_redacted(bob, room, theirs)
    assert refused(redact(bob, room, theirs, with_rel_types=["m.thread"])) == (403, "M_FORBIDDEN")


def test_invalid_replacements_are_not_redacted(alice: User, bob: User, room: str) -> None:
    message = say(alice, room, "hello")
    by_another, empty = edit(bob, room, message), relate(alice, room, message, "m.replace")
    ok(redact(alice, room, message, with_rel_types=["*"]))
    assert not is_redacted(alice, room, by_another)
    assert not is_redacted(alice, room, empty)


def test_many_related_events_are_redacted(alice: User, room: str) -> None:
    message = say(alice, room, "root")
    children = [relate(alice, room, message, "m.thread") for _ in range(2 * EVENTS_PER_WRITE + 3)]
    ok(redact(alice, room, message, with_rel_types=["m.thread"]))
    assert all(is_redacted(alice, room, child) for child in children)


def test_later_related_events_are_redacted(alice: User, bob: User, room: str) -> None:
    message, other = say(alice, room, "root"), say(alice, room, "other")
    ok(redact(alice, room, message, with_rel_types=["m.thread"]))
    ok(redact(alice, room, other))
    late, unasked, elsewhere = (
        relate(bob, room, message, "m.thread"),
        relate(bob, room, message, "m.reference"),
        relate(bob, room, other, "m.thread"),
    )
    alice.server.clock.advance(1)
    assert is_redacted(alice, room, late)
    assert not is_redacted(alice, room, unasked)
    assert not is_redacted(alice, room, elsewhere)


def test_a_redaction_without_permission_for_later_events_does_not_block_another(
    server: TestServer, alice: User, room: str
) -> None:
    aaron = server.register("aaron")
    bob = server.register("bobby")
    for user in (aaron, bob):
        invite(alice, room, user)
        join(user, room)
    message, other = say(aaron, room, "root"), say(aaron, room, "other")
    for target in (message, other):
        ok(redact(aaron, room, target, with_rel_types=["*"]))
        ok(redact(alice, room, target, with_rel_types=["*"]))
    late = relate(bob, room, message, "m.thread")
    alice.server.clock.advance(1)
    assert is_redacted(alice, room, late)
    leave(aaron, room)
    later = relate(bob, room, other, "m.thread")
    alice.server.clock.advance(1)
    assert is_redacted(alice, room, later)


def test_a_user_who_left_redacts_no_later_events(alice: User, bob: User, room: str) -> None:
    message = say(bob, room, "root")
    ok(redact(bob, room, message, with_rel_types=["*"]))
    leave(bob, room)
    late = relate(alice, room, message, "m.thread")
    alice.server.clock.advance(1)
    assert not is_redacted(alice, room, late)
    say(alice, room, "the room goes on")


@pytest.mark.parametrize("is_suspended", [False, True])
async def test_a_redaction_is_completed_after_a_crash(
    tmp_path: Path, database_config: SQLiteConfig | PostgresConfig, *, is_suspended: bool
) -> None:
    """Whichever of its writes is the last of a server, who starts it again need do nothing. Nor who
    was suspended."""
    for steps in range(1, 20):  # each write is a step, and so is hearing that it is done
        writer = PausableExecutor()
        before = TestServer(tmp_path, open_inline(database_config, writer=writer), seed=steps)
        alice = before.register(f"alice{steps}")
        room = create(alice)
        message = say(alice, room, "root")
        children = [relate(alice, room, message, "m.thread") for _ in range(EVENTS_PER_WRITE + 1)]
        await set_flags(alice, suspended=is_suspended)
        writer.is_held = True
        pending = alice.start(
            "PUT", room_path(room, "redact", message, "t"), {"with_rel_types": ["m.thread"]}
        )
        for _ in range(steps):
            writer.run_queued()
        after = TestServer(tmp_path, open_inline(database_config), seed=100 + steps)
        alice.server = after
        assert is_redacted(alice, room, message)
        after.app.room_services.related_redactions.start()
        assert all(is_redacted(alice, room, child) for child in children)
        assert await after.app.room_services.related_redactions.do_resume(50, at_start=True) == 0
        if pending.done:
            assert steps > 4
            return
    raise AssertionError("it never came to its end")


async def set_flags(user: User, **flags: bool) -> None:
    accounts = AccountStore(user.server.app.database)
    await user.server.app.database.write("set_flags", accounts.set_flags, user.user_id, **flags)


async def leave_three_undone(server: TestServer, alice: User) -> list[tuple[str, str, str]]:
    """Leave three redactions unfinished, as a crash does. Return, in order, the redacted targets,
    their rooms, and a child of each, which is not redacted."""
    left: list[tuple[str, str, str]] = []
    for _ in range(3):
        room = create(alice)
        target = say(alice, room, "root")
        child = relate(alice, room, target, "m.thread")
        server.clock.advance(1)
        ok(redact(alice, room, target))
        nid = (await server.app.room_engine.engine.get_snapshot(RoomID(room))).room.room_nid
        due_ts = int(server.clock.seconds() * 1000) + LEASE_MS
        note = RelatedRedaction(target, alice.user_id, "m.thread", nid, None, due_ts=due_ts)
        await server.app.database.write("note", add_redactions, [note])
        left.append((target, room, child))
    return sorted(left)


async def test_another_node_continues_an_abandoned_redaction_after_the_lease(
    server: TestServer, alice: User
) -> None:
    left = await leave_three_undone(server, alice)
    server.app.jobs.start()
    for _ in range(LEASE_MS // 60_000 - 1):
        server.clock.advance(60)
    assert [is_redacted(alice, room, child) for _, room, child in left] == [False, False, False], (
        "it may be at it"
    )
    for _ in range(2):
        server.clock.advance(60)
    assert [is_redacted(alice, room, child) for _, room, child in left] == [True, True, True]


async def test_a_node_stops_when_its_lease_expires(
    server: TestServer, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = await leave_three_undone(server, alice)
    related, send = server.app.room_services.related_redactions, server.app.room_engine.engine.send
    by_others: list[int] = []

    async def slowly(*args: Any, **more: Any) -> Any:
        sent = await send(*args, **more)
        monkeypatch.undo()
        server.clock.advance(LEASE_MS / 1000)
        by_others.append(await related.do_resume(50))
        return sent

    monkeypatch.setattr(server.app.room_engine.engine, "send", slowly)
    assert await related.do_resume(50, at_start=True) == 1
    assert by_others == [3], "all of them, since it is not known whether the first one was done"
    assert all(is_redacted(alice, room, child) for _, room, child in left)


@pytest.mark.parametrize(
    "trouble",
    [
        RemoteError(ServerName("policy.example"), "it does not answer", retryable=True),
        LimitExceeded(retry_after_ms=5),
        StateIncomplete(),
        ValueError("nobody has thought of that"),
    ],
)
async def test_a_failing_redaction_does_not_block_others(
    tmp_path: Path, database: Database, trouble: Exception
) -> None:
    server = TestServer(tmp_path, database)
    alice = server.register("alice")
    left = await leave_three_undone(server, alice)
    send = server.app.room_engine.engine.send

    async def unless_first(room_id: RoomID, drafts: Sequence[Draft]) -> list[StoredEvent]:
        if room_id == left[0][1]:
            raise trouble
        return await send(room_id, drafts)

    with pytest.MonkeyPatch.context() as patch, capturedLogs():
        patch.setattr(server.app.room_engine.engine, "send", unless_first)
        server.app.room_services.related_redactions.start()
    assert [is_redacted(alice, room, child) for _, room, child in left] == [False, True, True]
    assert await server.app.room_services.related_redactions.do_resume(50) == 0, "not at once"
    server.clock.advance(RETRIES.first_ms / 1000)
    assert await server.app.room_services.related_redactions.do_resume(50) == 1
    assert is_redacted(alice, left[0][1], left[0][2])


async def test_a_redaction_that_always_fails_is_dropped(
    server: TestServer, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    await leave_three_undone(server, alice)
    tries = 0

    async def be_busy(_room_id: RoomID, _drafts: Sequence[Draft]) -> list[StoredEvent]:
        nonlocal tries
        tries += 1
        raise LimitExceeded

    monkeypatch.setattr(server.app.room_engine.engine, "send", be_busy)
    server.app.room_services.related_redactions.start()
    hours = 0
    while await server.app.room_services.related_redactions.do_resume(50, at_start=True):
        hours += 1
        server.clock.advance(RETRIES.max_ms / 1000)
    assert tries == 3 * MAX_TRIES
    assert hours < 25


async def test_a_refused_redaction_does_not_block_others(
    server: TestServer, alice: User, room: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    message = say(alice, room, "root")
    children = [relate(alice, room, message, "m.thread") for _ in range(3)]
    send = server.app.room_engine.engine.send

    async def refuse_second(room_id: RoomID, drafts: Sequence[Draft]) -> list[StoredEvent]:
        if any(draft.redacts == children[1] for draft in drafts):
            raise Forbidden
        return await send(room_id, drafts)

    monkeypatch.setattr(server.app.room_engine.engine, "send", refuse_second)
    ok(redact(alice, room, message, with_rel_types=["m.thread"]))
    assert [is_redacted(alice, room, child) for child in children] == [True, False, True]


@pytest.mark.parametrize(
    ("flag", "expected"), [("suspended", 1), ("locked", 0), ("shadow_banned", 0), (None, 2)]
)
async def test_a_suspended_or_locked_user_redacts_only_what_they_still_may(
    server: TestServer, alice: User, bob: User, room: str, flag: str | None, expected: int
) -> None:
    """The rest of a redaction that a crash ended, and what comes later, are no way around a
    suspension."""
    message = say(alice, room, "root")
    children = [relate(user, room, message, "m.thread") for user in (alice, bob)]
    ok(redact(alice, room, message))
    nid = (await server.app.room_engine.engine.get_snapshot(RoomID(room))).room.room_nid
    note = RelatedRedaction(message, alice.user_id, "m.thread", nid, None, due_ts=0)
    await server.app.database.write("note", add_redactions, [note])
    if flag is not None:
        await set_flags(alice, **{flag: True})
    await server.app.room_services.related_redactions.do_resume(50)
    late = relate(bob, room, message, "m.thread")
    server.clock.advance(1)
    assert [is_redacted(bob, room, child) for child in children] == [expected > 0, expected > 1]
    assert is_redacted(bob, room, late) is (expected > 1)


async def test_no_redaction_is_tried_while_the_database_is_away(
    server: TestServer, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    await leave_three_undone(server, alice)
    tried: list[RoomID] = []

    async def be_away(room_id: RoomID, _: Sequence[Draft]) -> list[StoredEvent]:
        tried.append(room_id)
        raise DatabaseUnavailable("it is away")

    monkeypatch.setattr(server.app.room_engine.engine, "send", be_away)
    with pytest.raises(DatabaseUnavailable):
        await server.app.room_services.related_redactions.do_resume(50, at_start=True)
    assert len(tried) == 1


async def test_a_rate_limiting_policy_server_gets_all_redactions(network: Network) -> None:
    shared_room = await shared(network)
    alice, room = shared_room.alice, shared_room.room_id
    judge = PolicyServer("11")
    network.interceptors.append(judge.answer)
    set_state(alice, room, "m.room.policy", named())
    message = say(alice, room, "root")
    children = [relate(alice, room, message, "m.thread") for _ in range(9)]
    alice.server.app.jobs.start()
    judge.wait_ms = 30_000
    judge.left = 1

    ok(redact(alice, room, message, with_rel_types=["m.thread"]))
    assert not any(is_redacted(alice, room, child) for child in children)
    for _ in range(6):
        judge.left = 2
        for _ in range(2):
            network.clock.advance(60)
    assert all(is_redacted(alice, room, child) for child in children)

    judge.left = 1
    late = relate(alice, room, message, "m.thread")
    network.clock.advance(1)
    assert not is_redacted(alice, room, late)
    judge.left = None
    for _ in range(3):
        network.clock.advance(60)
    assert is_redacted(alice, room, late)


def test_a_repeated_request_redacts_once(alice: User, room: str) -> None:
    message = say(alice, room, "root")
    path = room_path(room, "redact", message, "same")
    first = ok(alice.put(path, {"with_rel_types": ["m.thread"]}))
    assert ok(alice.put(path, {"with_rel_types": ["m.thread"]})) == first


async def test_suspended_users_redact_their_own_related_events(
    alice: User, bob: User, room: str
) -> None:
    message = say(alice, room, "root")
    own, theirs = relate(alice, room, message, "m.thread"), relate(bob, room, message, "m.thread")
    await set_flags(alice, suspended=True)
    ok(redact(alice, room, message, with_rel_types=["m.thread"]))
    assert is_redacted(bob, room, own)
    assert not is_redacted(bob, room, theirs)


@pytest.mark.parametrize("types", ["m.thread", [5], [""], ["x" * 256], ["m.x"] * 21])
def test_invalid_relation_types_are_refused(alice: User, room: str, types: object) -> None:
    message = say(alice, room, "root")
    assert refused(redact(alice, room, message, with_rel_types=types)) == (400, "M_BAD_JSON")
    assert not is_redacted(alice, room, message)


def test_the_feature_is_advertised(server: TestServer) -> None:
    assert (
        ok(server.get("/_matrix/client/versions"))["unstable_features"]["org.matrix.msc3912"]
        is True
    )
