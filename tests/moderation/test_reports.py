"""Reports of events, rooms and users. spec: client-server-api#reporting-content"""

from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from storage.engine.database import Database
from storage.moderation.reports import NewReport, ReportFilter, ReportKind, ReportStore
from tests.helpers.room_actions import (
    V3,
    create,
    join,
    leave,
    ok,
    refused,
    room_path,
    say,
    set_state,
)
from tests.helpers.server import START, TestServer, User

UNLIMITED = "rc_reports: {per_second: 1000, burst_count: 1000}\n"


@pytest.fixture
def server(tmp_path: Path, database: Database) -> TestServer:
    return TestServer(tmp_path, database, UNLIMITED)


async def kept(server: TestServer, kind: ReportKind) -> list[NewReport]:
    """The stored reports, the newest first."""
    store = ReportStore(server.app.database)
    rows, _ = await store.get_page(kind, ReportFilter(), 0, 10, newest_first=True)
    return [each.report for each in rows]


def user_path(user_id: str) -> str:
    return f"{V3}/users/{quote(user_id)}/report"


async def test_a_user_reports_an_event(server: TestServer, alice: User, bob: User) -> None:
    room = create(alice, preset="public_chat")
    join(bob, room)
    event_id = say(alice, room, "rude")
    ok(bob.post(room_path(room, "report", event_id), {"reason": "so rude", "score": -100}))
    ok(bob.post(room_path(room, "report", event_id)))
    now = int(START * 1000)
    expected = NewReport(
        now, ReportKind.EVENT, bob.user_id, room, event_id, alice.user_id, "so rude"
    )
    without_reason = NewReport(
        now, ReportKind.EVENT, bob.user_id, room, event_id, alice.user_id, None
    )
    assert await kept(server, ReportKind.EVENT) == [without_reason, expected]
    assert await kept(server, ReportKind.ROOM) == []


async def test_an_event_that_the_user_may_not_see_cannot_be_reported(
    server: TestServer, alice: User, bob: User
) -> None:
    room = create(alice, preset="public_chat")
    set_state(alice, room, "m.room.history_visibility", {"history_visibility": "joined"})
    event_id = say(alice, room, "before")
    not_found = (404, "M_NOT_FOUND")
    assert refused(bob.post(room_path(room, "report", event_id))) == not_found
    join(bob, room)
    assert refused(bob.post(room_path(room, "report", event_id))) == not_found
    assert refused(bob.post(room_path(room, "report", "$none"))) == not_found
    assert refused(bob.post(room_path("!none:example.org", "report", event_id))) == not_found
    later = say(alice, room, "after")
    leave(bob, room)
    assert refused(bob.post(room_path(room, "report", later))) == not_found
    assert await kept(server, ReportKind.EVENT) == []


async def test_a_user_reports_a_room(server: TestServer, alice: User, bob: User) -> None:
    rooms = [create(alice, preset="private_chat"), "!far:other.org"]
    for room in rooms:
        ok(bob.post(room_path(room, "report"), {"reason": "makes me sad"}))
    assert [
        (each.room_id, each.user_id, each.reason) for each in await kept(server, ReportKind.ROOM)
    ] == [(room, bob.user_id, "makes me sad") for room in reversed(rooms)]


async def test_a_user_reports_another_user(server: TestServer, alice: User, bob: User) -> None:
    for user_id in (alice.user_id, "@olga:other.org", "@nobody:example.org"):
        ok(bob.post(user_path(user_id), {"reason": ""}))
    reports = await kept(server, ReportKind.USER)
    assert [(each.target_user_id, each.reason) for each in reports] == [
        ("@olga:other.org", ""),
        (alice.user_id, ""),
    ]


@pytest.mark.parametrize("body", [{}, {"reason": None}, {"reason": 5}, {"reason": "x" * 4097}])
def test_reports_of_rooms_and_users_need_a_reason(alice: User, body: dict[str, Any]) -> None:
    room = create(alice)
    assert refused(alice.post(room_path(room, "report"), body)) == (400, "M_BAD_JSON")
    assert refused(alice.post(user_path("@bob:example.org"), body)) == (400, "M_BAD_JSON")


def test_malformed_room_and_user_ids_are_refused(alice: User) -> None:
    assert refused(alice.post(user_path("nobody"), {"reason": ""})) == (400, "M_INVALID_PARAM")
    assert refused(alice.post(room_path("nothing", "report"), {"reason": ""})) == (
        400,
        "M_INVALID_PARAM",
    )


def test_reports_are_rate_limited(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(
        tmp_path, sqlite_database, "rc_reports: {per_second: 0.1, burst_count: 2}\n"
    )
    alice = server.register("alice")
    for _ in range(2):
        ok(alice.post(room_path("!r:other.org", "report"), {"reason": ""}))
    assert refused(alice.post(user_path("@bob:other.org"), {"reason": ""})) == (
        429,
        "M_LIMIT_EXCEEDED",
    )
    server.clock.advance(10)
    ok(alice.post(user_path("@bob:other.org"), {"reason": ""}))


def test_reports_need_an_account(server: TestServer, alice: User) -> None:
    room = create(alice, preset="public_chat")
    assert refused(server.post(room_path(room, "report"), {"reason": ""})) == (
        401,
        "M_MISSING_TOKEN",
    )
