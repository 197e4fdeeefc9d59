"""Backups of room keys over HTTP."""

from pathlib import Path
from typing import Any

import pytest

from homeserver.services.encryption.key_backups import KEYS_PER_BATCH, MAX_SESSION_DATA_BYTES
from storage.encryption.key_backups import MAX_BACKUPS, KeyBackupStore
from storage.engine.database import Database
from tests.helpers.logins import password_auth
from tests.helpers.server import TestServer, User

KEYS = "/_matrix/client/v3/room_keys"
ROOM, OTHER = "!room:example.org", "!other:example.org"
DEFINITION = {
    "algorithm": "m.megolm_backup.v1.curve25519-aes-sha2",
    "auth_data": {"public_key": "abc"},
}


def key(
    first: int = 0, forwarded: int = 0, *, verified: bool = False, data: str = "x"
) -> dict[str, Any]:
    return {
        "first_message_index": first,
        "forwarded_count": forwarded,
        "is_verified": verified,
        "session_data": {"ciphertext": data},
    }


@pytest.fixture
def version(alice: User) -> str:
    answer = alice.post(f"{KEYS}/version", DEFINITION)
    assert answer.status == 200, answer.body
    return str(answer.json["version"])


def test_backup_versions_are_created_read_and_deleted(alice: User, version: str) -> None:
    assert alice.get(f"{KEYS}/version").json == {
        **DEFINITION,
        "version": version,
        "etag": "0",
        "count": 0,
    }
    second = alice.post(f"{KEYS}/version", DEFINITION).json["version"]
    assert second != version
    assert alice.get(f"{KEYS}/version").json["version"] == second
    assert alice.delete(f"{KEYS}/version/{second}").status == 200
    assert alice.delete(f"{KEYS}/version/{second}").status == 200, "the response may have been lost"
    assert alice.delete(f"{KEYS}/version/77").errcode == "M_NOT_FOUND"
    assert alice.get(f"{KEYS}/version").json["version"] == version
    assert alice.get(f"{KEYS}/version/{second}").errcode == "M_NOT_FOUND"
    third = alice.post(f"{KEYS}/version", DEFINITION).json["version"]
    assert third not in (version, second), "a number is never reused"


def test_a_user_has_a_bounded_number_of_backups(alice: User, version: str) -> None:
    for _ in range(MAX_BACKUPS - 1):
        assert alice.post(f"{KEYS}/version", DEFINITION).status == 200
    refused = alice.post(f"{KEYS}/version", DEFINITION)
    assert (refused.status, refused.errcode) == (403, "M_FORBIDDEN")
    assert alice.delete(f"{KEYS}/version/{version}").status == 200
    assert alice.post(f"{KEYS}/version", DEFINITION).json["version"] == str(MAX_BACKUPS + 1)


def test_without_a_backup_requests_are_not_found(alice: User) -> None:
    answer = alice.get(f"{KEYS}/version")
    assert (answer.status, answer.errcode) == (404, "M_NOT_FOUND")
    answer = alice.put(f"{KEYS}/keys?version=1", {"rooms": {}})
    assert (answer.status, answer.errcode) == (404, "M_NOT_FOUND")


def test_keys_are_stored_and_read_by_room_and_session(alice: User, version: str) -> None:
    one = alice.put(f"{KEYS}/keys/{ROOM}/s1?version={version}", key())
    assert one.json == {"etag": "1", "count": 1}
    room = alice.put(f"{KEYS}/keys/{ROOM}?version={version}", {"sessions": {"s2": key()}})
    assert room.json == {"etag": "2", "count": 2}
    every = alice.put(
        f"{KEYS}/keys?version={version}", {"rooms": {OTHER: {"sessions": {"s3": key()}}}}
    )
    assert every.json == {"etag": "3", "count": 3}
    rooms = alice.get(f"{KEYS}/keys?version={version}").json["rooms"]
    assert {room_id: set(room["sessions"]) for room_id, room in rooms.items()} == {
        ROOM: {"s1", "s2"},
        OTHER: {"s3"},
    }
    assert set(alice.get(f"{KEYS}/keys/{ROOM}?version={version}").json["sessions"]) == {"s1", "s2"}
    assert alice.get(f"{KEYS}/keys/{ROOM}/s1?version={version}").json == key()
    assert alice.get(f"{KEYS}/keys/{ROOM}/none?version={version}").errcode == "M_NOT_FOUND"
    assert alice.delete(f"{KEYS}/keys/{ROOM}/s1?version={version}").json == {
        "etag": "4",
        "count": 2,
    }
    assert alice.delete(f"{KEYS}/keys/{ROOM}?version={version}").json == {"etag": "5", "count": 1}
    assert alice.delete(f"{KEYS}/keys?version={version}").json == {"etag": "6", "count": 0}


@pytest.mark.parametrize("number", [1, KEYS_PER_BATCH, KEYS_PER_BATCH + 1, 2 * KEYS_PER_BATCH + 50])
def test_a_long_backup_is_streamed_in_pieces_and_complete(
    alice: User, version: str, number: int
) -> None:
    rooms: dict[str, Any] = {}
    for at in range(number):
        room_id = f"!r{at % 3}:example.org" if at % 2 else ROOM
        rooms.setdefault(room_id, {"sessions": {}})["sessions"][f'q"{at}'] = key(at, data=str(at))
    assert alice.put(f"{KEYS}/keys?version={version}", {"rooms": rooms}).status == 200
    answer = alice.get(f"{KEYS}/keys?version={version}")
    assert answer.json == {"rooms": rooms}
    assert ("transfer-encoding" in answer.headers) == (number > KEYS_PER_BATCH)
    for room_id, room in rooms.items():
        assert alice.get(f"{KEYS}/keys/{room_id}?version={version}").json == room
    assert alice.get(f"{KEYS}/keys/{OTHER}?version={version}").json == {"sessions": {}}


def test_an_empty_backup_has_no_keys(alice: User, version: str) -> None:
    assert alice.get(f"{KEYS}/keys?version={version}").json == {"rooms": {}}
    assert alice.get(f"{KEYS}/keys?version=77").errcode == "M_NOT_FOUND"
    assert alice.get(f"{KEYS}/keys/{ROOM}?version=77").errcode == "M_NOT_FOUND"


def test_the_data_of_a_session_is_bounded(alice: User, version: str) -> None:
    rooms = {ROOM: {"sessions": {"s1": key(), "s2": key(data="x" * MAX_SESSION_DATA_BYTES)}}}
    answer = alice.put(f"{KEYS}/keys?version={version}", {"rooms": rooms})
    assert (answer.status, answer.errcode) == (413, "M_TOO_LARGE")
    assert alice.get(f"{KEYS}/keys?version={version}").json == {"rooms": {}}


@pytest.mark.parametrize(
    ("kept", "offered", "replaces"),
    [
        (key(5), key(3), True),
        (key(3), key(5), False),
        (key(3, 2), key(3, 1), True),
        (key(3, 1), key(3, 2), False),
        (key(0), key(9, verified=True), True),
        (key(9, verified=True), key(0), False),
        (key(3), key(3, data="y"), False),
    ],
)
def test_a_worse_key_never_replaces_a_better_one(
    alice: User, version: str, kept: dict[str, Any], offered: dict[str, Any], replaces: bool
) -> None:
    path = f"{KEYS}/keys/{ROOM}/s?version={version}"
    alice.put(path, kept)
    answer = alice.put(path, offered)
    assert answer.json == {"etag": "2" if replaces else "1", "count": 1}
    assert alice.get(path).json == (offered if replaces else kept)


def test_keys_go_into_the_newest_version_only(alice: User, version: str) -> None:
    newest = alice.post(f"{KEYS}/version", DEFINITION).json["version"]
    answer = alice.put(f"{KEYS}/keys/{ROOM}/s?version={version}", key())
    assert (answer.status, answer.errcode) == (403, "M_WRONG_ROOM_KEYS_VERSION")
    assert answer.json["current_version"] == newest


def test_bytes_of_uploaded_keys_are_rate_limited(tmp_path: Path, sqlite_database: Database) -> None:
    """Half a million keys of 64 KiB each would fill a disk."""
    server = TestServer(
        tmp_path, sqlite_database, "rc_key_backup_bytes: {per_second: 1000, burst_count: 20000}\n"
    )
    alice, bob = server.register("alice"), server.register("bob")
    versions = {
        user: user.post(f"{KEYS}/version", DEFINITION).json["version"] for user in (alice, bob)
    }

    def put(user: User, session: str, version: str = "") -> int:
        body = {"sessions": {session: key(data="x" * 9_900)}}
        return user.put(f"{KEYS}/keys/{ROOM}?version={version or versions[user]}", body).status

    assert [put(alice, "none", "77") for _ in range(5)] == [404] * 5, (
        "keys that are not stored do not count"
    )
    assert [put(alice, f"s{number}") for number in range(3)] == [200, 200, 429]
    assert put(bob, "s") == 200
    assert alice.get(f"{KEYS}/version").json["count"] == 2
    server.clock.advance(5)
    assert [put(alice, f"s{number}") for number in (2, 3)] == [200, 429]


def test_the_stored_part_of_a_refused_request_counts(
    tmp_path: Path, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of very many keys, some are written before the backup turns out to be full."""
    monkeypatch.setattr("storage.encryption.key_backups.PUT_CHUNK", 2)
    monkeypatch.setattr("homeserver.services.encryption.key_backups.PUT_CHUNK", 2)
    monkeypatch.setattr(KeyBackupStore.__init__, "__kwdefaults__", {"max_keys": 2})
    server = TestServer(
        tmp_path, sqlite_database, "rc_key_backup_bytes: {per_second: 1000, burst_count: 20000}\n"
    )
    alice = server.register("alice")
    version = alice.post(f"{KEYS}/version", DEFINITION).json["version"]

    def put(*sessions: str) -> int:
        body = {"sessions": {session: key(data="x" * 9_900) for session in sessions}}
        return alice.put(f"{KEYS}/keys/{ROOM}?version={version}", body).status

    assert put("a", "b", "c") == 413
    assert alice.get(f"{KEYS}/version").json["count"] == 2
    assert put("d") == 429
    server.clock.advance(30)
    assert [put("e"), put("f"), put("g")] == [413] * 3, "none of these was stored"


def test_the_data_of_a_version_can_be_changed(alice: User, version: str) -> None:
    changed = {**DEFINITION, "auth_data": {"public_key": "def"}}
    assert alice.put(f"{KEYS}/version/{version}", {**changed, "version": version}).status == 200
    assert alice.get(f"{KEYS}/version").json["auth_data"] == {"public_key": "def"}
    for wrong in ({**changed, "algorithm": "other"}, {**changed, "version": "99"}):
        assert alice.put(f"{KEYS}/version/{version}", wrong).errcode == "M_INVALID_PARAM"


def test_backups_of_other_users_are_inaccessible(server: TestServer, version: str) -> None:
    bob = server.register("bob")
    assert bob.get(f"{KEYS}/version/{version}").errcode == "M_NOT_FOUND"
    assert bob.put(f"{KEYS}/keys/{ROOM}/s?version={version}", key()).errcode == "M_NOT_FOUND"


def test_deactivation_deletes_the_backup(server: TestServer, alice: User, version: str) -> None:
    alice.put(f"{KEYS}/keys/{ROOM}/s1?version={version}", key())
    proof = password_auth(alice.user_id)
    assert alice.post("/_matrix/client/v3/account/deactivate", {"auth": proof}).status == 200
    backups = KeyBackupStore(database=server.app.database)
    assert server.run(backups.get_backup(alice.user_id, None)) is None
