"""A changed name reaches every room, even if the server stops in between.

spec: client-server-api#events-on-change-of-profile-information
"""

from pathlib import Path

import pytest
from twisted.internet.defer import Deferred

from federation.protocol.ids import RoomID
from federation.rooms.engine import RoomEngine
from storage.engine.database import Database
from tests.helpers.event_search import begin_jobs
from tests.helpers.room_actions import create, get_state, join, ok, room_path
from tests.helpers.server import TestServer, User, move_user

ROOMS = 5


class Crash(Exception):
    """Stands for the end of the process."""


def rename(user: User, name: str) -> None:
    ok(user.put(f"/_matrix/client/v3/profile/{user.user_id}/displayname", {"displayname": name}))


def names_of(user: User, rooms: list[str]) -> list[str]:
    return [
        get_state(user, room_id, "m.room.member", user.user_id)["displayname"] for room_id in rooms
    ]


def failing_after(monkeypatch: pytest.MonkeyPatch, sent: int, error: Exception) -> list[RoomID]:
    """Let sending fail after a number of events; return the attempts."""
    tried: list[RoomID] = []
    send = RoomEngine.send

    async def send_some(engine: RoomEngine, room_id: RoomID, drafts: object) -> object:
        tried.append(room_id)
        if len(tried) > sent:
            raise error
        return await send(engine, room_id, drafts)  # type: ignore[arg-type]

    monkeypatch.setattr(RoomEngine, "send", send_some)
    return tried


def test_a_name_reaches_all_rooms(server: TestServer) -> None:
    alice = server.register("alice")
    rooms = [create(alice) for _ in range(ROOMS)]
    rename(alice, "Alice of the hills")
    assert names_of(alice, rooms) == ["Alice of the hills"] * ROOMS


def test_a_user_who_is_leaving_does_not_rejoin(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(bob, preset="public_chat")
    join(alice, room_id)
    before: Deferred[None] = Deferred()

    async def wait() -> None:
        await before

    Deferred.fromCoroutine(server.app.room_engine.engine.in_turn(RoomID(room_id), wait))
    leaving = alice.start("POST", room_path(room_id, "leave"), {})
    rename(alice, "Alice of the hills")
    before.callback(None)

    assert leaving.answer.status == 200
    assert get_state(bob, room_id, "m.room.member", alice.user_id) == {"membership": "leave"}


def test_a_restart_continues_with_the_remaining_rooms(
    tmp_path: Path, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = TestServer(tmp_path, sqlite_database)
    alice = server.register("alice")
    rooms = [create(alice) for _ in range(ROOMS)]
    with monkeypatch.context() as patched:
        failing_after(patched, 2, Crash())
        rename(alice, "later")
    assert sorted(names_of(alice, rooms)) == ["alice"] * 3 + ["later"] * 2
    restarted = TestServer(tmp_path, sqlite_database, seed=2)
    alice = move_user(restarted, alice)
    before = restarted.app.database.streams.current()
    restarted.app.profiles.start()
    assert names_of(alice, rooms) == ["later"] * ROOMS
    # rooms with the new name were skipped: one event, and the end of the queue entry
    assert restarted.app.database.streams.current() - before <= 3 * 2


def test_a_user_whose_propagation_fails_does_not_block_others(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_jobs(server)
    alice, bob = server.register("alice"), server.register("bob")
    of_alice, of_bob = [create(alice)], [create(bob)]
    with monkeypatch.context() as patched:
        failing_after(patched, 0, Crash())
        rename(alice, "new alice")
    rename(bob, "new bob")
    assert names_of(bob, of_bob) == ["new bob"]
    assert names_of(alice, of_alice) == ["new alice"]  # and the failed one was retried with it


def test_a_failed_propagation_is_retried(
    server: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin_jobs(server)
    alice = server.register("alice")
    rooms = [create(alice)]
    with monkeypatch.context() as patched:
        failing_after(patched, 0, Crash())
        rename(alice, "later")
    assert names_of(alice, rooms) == ["alice"]
    server.clock.advance(61)
    assert names_of(alice, rooms) == ["later"]
