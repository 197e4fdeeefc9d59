"""Limits of a user's account data."""

from pathlib import Path

from storage.engine.database import Database
from tests.helpers.room_actions import V3, create, ok, refused, room_path, say
from tests.helpers.server import TestServer, User

FULL = (403, "M_USER_LIMIT_EXCEEDED")


def data_path(user: User, type_: str, room_id: str | None = None) -> str:
    return (
        f"{V3}/user/{user.user_id}/"
        + (f"rooms/{room_id}/" if room_id else "")
        + f"account_data/{type_}"
    )


def test_the_number_of_entries_is_limited(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database, "max_account_data_entries: 100\n")
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice)
    for number in range(100):
        ok(alice.put(data_path(alice, "m.x", f"!r{number}:example.org"), {"a": 1}))
    assert refused(alice.put(data_path(alice, "m.y"), {"a": 1})) == FULL
    ok(alice.put(data_path(alice, "m.y"), {}))  # which deletes it
    assert alice.put(data_path(alice, "m.y"), {"a": 1}).json["info_uri"] == "https://example.org/"
    assert refused(alice.put(f"{V3}/user/{alice.user_id}/rooms/{room_id}/tags/u.x", {})) == FULL
    ok(alice.put(data_path(alice, "m.x", "!r0:example.org"), {"a": 2}))
    ok(alice.delete(data_path(alice, "m.x", "!r1:example.org")))
    ok(alice.put(data_path(alice, "m.y"), {"a": 1}))  # there is space again
    assert refused(alice.put(data_path(alice, "m.x", "!r1:example.org"), {"a": 1})) == FULL
    # entries that the server manages are not refused
    ok(alice.post(room_path(room_id, "read_markers"), {"m.fully_read": say(alice, room_id, "x")}))
    ok(alice.put(f"{V3}/pushrules/global/override/own", {"actions": [], "conditions": []}))
    ok(bob.put(data_path(bob, "m.y"), {"a": 1}))


def test_the_number_of_bytes_is_limited(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database, "max_account_data_size: 100K\n")
    alice = server.register("alice")
    ok(alice.put(data_path(alice, "m.x"), {"a": "x" * 60_000}))
    assert refused(alice.put(data_path(alice, "m.y"), {"a": "x" * 60_000})) == FULL
    assert alice.get(data_path(alice, "m.y")).status == 404
    ok(alice.put(data_path(alice, "m.x"), {"a": "x" * 40_000}))
    ok(alice.put(data_path(alice, "m.y"), {"a": "x" * 60_000}))
    ok(alice.put(data_path(alice, "m.x"), {}))
    ok(alice.put(data_path(alice, "m.z"), {"a": "x" * 40_000}))
