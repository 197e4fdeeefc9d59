"""Administrators read and delete reports."""

from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from storage.engine.database import Database
from tests.helpers.room_actions import V3, create, join, ok, redact, refused, room_path, say
from tests.helpers.server import START, TestServer, User

UNLIMITED = "rc_reports: {per_second: 1000, burst_count: 1000}\n"
EVENTS = "/_synapse/admin/v1/event_reports"
USERS = "/_synapse/admin/v1/user_reports"
ROOMS = "/_mahalla/admin/v1/room_reports"


@pytest.fixture
def server(tmp_path: Path, database: Database) -> TestServer:
    return TestServer(tmp_path, database, UNLIMITED)


@pytest.fixture
def admin(server: TestServer) -> User:
    user = server.register("admin")
    server.run(server.app.user_data.accounts.do_set_flags(user.user_id, is_admin=True))
    return user


def ask(admin: User, path: str, **query: object) -> Any:
    return ok(
        admin.get(f"{path}?{urlencode({name.rstrip('_'): value for name, value in query.items()})}")
    )


def report_event(user: User, room_id: str, event_id: str, reason: str) -> None:
    ok(user.post(room_path(room_id, "report", event_id), {"reason": reason}))


def report_user(user: User, user_id: str, reason: str) -> None:
    ok(user.post(f"{V3}/users/{quote(user_id)}/report", {"reason": reason}))


def reasons(answer: Any) -> list[str]:
    [entries] = [value for value in answer.values() if isinstance(value, list)]
    return [each["reason"] for each in entries]


def test_a_reported_event_is_shown_with_its_report(admin: User, alice: User, bob: User) -> None:
    room_id = create(alice, preset="public_chat", name="Lab", room_alias_name="lab")
    join(bob, room_id)
    event_id = say(alice, room_id, "rude")
    report_event(bob, room_id, event_id, "so rude")
    answer = ask(admin, EVENTS)
    assert answer["total"] == 1
    assert "next_token" not in answer
    [report] = answer["event_reports"]
    number = report.pop("id")
    assert report == {
        "received_ts": int(START * 1000),
        "room_id": room_id,
        "name": "Lab",
        "canonical_alias": "#lab:example.org",
        "event_id": event_id,
        "user_id": bob.user_id,
        "sender": alice.user_id,
        "reason": "so rude",
        "score": None,
    }
    one = ask(admin, f"{EVENTS}/{number}")
    event = one.pop("event_json")
    assert one == {"id": number, **report}
    assert (event["content"]["body"], event["sender"], event["room_id"]) == (
        "rude",
        alice.user_id,
        room_id,
    )
    assert {"auth_events", "hashes", "signatures"} <= event.keys()
    ok(redact(alice, room_id, event_id))
    assert ask(admin, f"{EVENTS}/{number}")["event_json"]["content"] == {}
    assert ok(admin.delete(f"{EVENTS}/{number}")) == {}
    assert ask(admin, EVENTS) == {"event_reports": [], "total": 0}
    assert refused(admin.get(f"{EVENTS}/{number}")) == (404, "M_NOT_FOUND")
    assert refused(admin.delete(f"{EVENTS}/{number}")) == (404, "M_NOT_FOUND")


def test_reports_are_paged(admin: User, alice: User, bob: User) -> None:
    room_id = create(alice, preset="public_chat")
    join(bob, room_id)
    event_id = say(alice, room_id, "rude")
    for number in range(5):
        report_event(bob, room_id, event_id, f"r{number}")
    report_user(bob, alice.user_id, "another kind")
    first = ask(admin, EVENTS, limit=2)
    assert (reasons(first), first["next_token"], first["total"]) == (["r4", "r3"], 2, 5)
    last = ask(admin, EVENTS, limit=3, from_=2)
    assert reasons(last) == ["r2", "r1", "r0"]
    assert "next_token" not in last
    forth = ask(admin, EVENTS, dir="f", limit=2, from_=2)
    assert (reasons(forth), forth["next_token"]) == (["r2", "r3"], 4)
    beyond = ask(admin, EVENTS, dir="f", from_=5)
    assert beyond == {"event_reports": [], "total": 5}
    assert ask(admin, EVENTS, limit=0)["event_reports"] == []


def test_reports_are_filtered(admin: User, alice: User, bob: User) -> None:
    one, other = (create(alice, preset="public_chat") for _ in range(2))
    for room_id in (one, other):
        join(bob, room_id)
    report_event(bob, one, say(alice, one, "x"), "in one")
    report_event(bob, other, say(alice, other, "x"), "in the other")
    report_event(alice, one, say(bob, one, "x"), "by alice")
    assert reasons(ask(admin, EVENTS, user_id="BOB")) == ["in the other", "in one"]
    assert reasons(ask(admin, EVENTS, user_id="%")) == []
    assert reasons(ask(admin, EVENTS, room_id=one[1:9])) == ["by alice", "in one"]
    assert reasons(ask(admin, EVENTS, event_sender_user_id=bob.user_id)) == ["by alice"]
    some = ask(admin, EVENTS, user_id="bob", room_id=other, event_sender_user_id=alice.user_id)
    assert (reasons(some), some["total"]) == (["in the other"], 1)


def test_reported_users_are_listed(admin: User, alice: User, bob: User) -> None:
    report_user(bob, alice.user_id, "spam")
    report_user(alice, "@eve:other.org", "scam")
    answer = ask(admin, USERS)
    assert (reasons(answer), answer["total"]) == (["scam", "spam"], 2)
    assert reasons(ask(admin, USERS, target_user_id="eve")) == ["scam"]
    assert reasons(ask(admin, USERS, user_id="bob")) == ["spam"]
    assert reasons(ask(admin, USERS, dir="f", limit=1)) == ["spam"]
    report = answer["user_reports"][1]
    expected = {"target_user_id": alice.user_id, "user_id": bob.user_id, "reason": "spam"}
    assert report == {"id": report["id"], "received_ts": int(START * 1000), **expected}
    assert ask(admin, f"{USERS}/{report['id']}") == report
    assert refused(admin.get(f"{EVENTS}/{report['id']}")) == (404, "M_NOT_FOUND"), "of another kind"
    assert refused(admin.delete(f"{EVENTS}/{report['id']}")) == (404, "M_NOT_FOUND")
    assert ok(admin.delete(f"{USERS}/{report['id']}")) == {}
    assert reasons(ask(admin, USERS)) == ["scam"]


def test_reported_rooms_are_listed(admin: User, alice: User, bob: User) -> None:
    here, elsewhere = create(alice, name="Lab"), "!far:other.org"
    for room_id in (here, elsewhere):
        ok(bob.post(room_path(room_id, "report"), {"reason": "sad"}))
    reports = ask(admin, ROOMS)["room_reports"]
    assert [(each["room_id"], each["name"]) for each in reports] == [
        (elsewhere, None),
        (here, "Lab"),
    ]
    assert ask(admin, ROOMS, room_id="other.org")["total"] == 1
    number = reports[0]["id"]
    assert ask(admin, f"{ROOMS}/{number}") == reports[0]
    assert ok(admin.delete(f"{ROOMS}/{number}")) == {}
    assert ask(admin, ROOMS)["total"] == 1


def test_only_administrators_may_read_reports(server: TestServer, alice: User) -> None:
    for path in (EVENTS, USERS, ROOMS):
        assert refused(alice.get(path)) == (403, "M_FORBIDDEN")
        assert refused(alice.get(f"{path}/1")) == (403, "M_FORBIDDEN")
        assert refused(alice.delete(f"{path}/1")) == (403, "M_FORBIDDEN")
        assert refused(server.get(path)) == (401, "M_MISSING_TOKEN")


@pytest.mark.parametrize(
    "query", ["from=-1", "limit=-1", "limit=1001", "from=x", "dir=x", f"from={10**30}"]
)
def test_invalid_pages_are_refused(admin: User, query: str) -> None:
    for path in (EVENTS, USERS, ROOMS):
        assert refused(admin.get(f"{path}?{query}")) == (400, "M_INVALID_PARAM")


@pytest.mark.parametrize("number", ["0", "-1", "12345", str(2**80)])
def test_unknown_reports_are_not_found(admin: User, number: str) -> None:
    for path in (EVENTS, USERS, ROOMS):
        for answer in (admin.get(f"{path}/{number}"), admin.delete(f"{path}/{number}")):
            assert answer.status in (400, 404)
    assert refused(admin.get(f"{EVENTS}/x")) == (400, "M_INVALID_PARAM")
    assert refused(admin.get(f"{EVENTS}?event_sender_user_id=bob")) == (400, "M_INVALID_PARAM")
