"""Access to profiles by the operator's settings."""

from pathlib import Path

from storage.engine.database import Database
from tests.helpers.room_actions import V3, create, join, leave, ok, refused
from tests.helpers.server import TestServer, User

MISSING_TOKEN = (401, "M_MISSING_TOKEN")


def test_by_default_everybody_may_read_profiles(server: TestServer) -> None:
    server.register("alice")
    ok(server.get(f"{V3}/profile/@alice:example.org"))


def test_an_account_may_be_required(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database, "require_auth_for_profile_requests: true\n")
    alice, bob = server.register("alice"), server.register("bob")
    ok(alice.put(f"{V3}/profile/{alice.user_id}/displayname", {"displayname": "Alisa"}))
    for path in (f"{V3}/profile/{alice.user_id}", f"{V3}/profile/{alice.user_id}/displayname"):
        assert refused(server.get(path)) == MISSING_TOKEN
        assert ok(bob.get(path)) == {"displayname": "Alisa"}


def test_a_common_room_may_be_required(tmp_path: Path, sqlite_database: Database) -> None:
    config = "limit_profile_requests_to_users_who_share_rooms: true\n"
    server = TestServer(tmp_path, sqlite_database, config)
    alice, bob = server.register("alice"), server.register("bob")
    path = f"{V3}/profile/{alice.user_id}"
    assert refused(server.get(path)) == MISSING_TOKEN
    assert refused(bob.get(path)) == (403, "M_FORBIDDEN")
    ok(alice.get(path))
    room_id = create(alice, preset="public_chat")
    join(bob, room_id)
    ok(bob.get(path))
    leave(bob, room_id)
    assert refused(bob.get(path)) == (403, "M_FORBIDDEN")


def test_a_guest_may_change_only_the_display_name(server: TestServer) -> None:
    guest = User(server, ok(server.post(f"{V3}/register?kind=guest", {})))
    ok(guest.put(f"{V3}/profile/{guest.user_id}/displayname", {"displayname": "G"}))
    for field in ("avatar_url", "m.tz"):
        path = f"{V3}/profile/{guest.user_id}/{field}"
        for answer in (guest.put(path, {field: "mxc://example.org/a"}), guest.delete(path)):
            assert refused(answer) == (403, "M_GUEST_ACCESS_FORBIDDEN")
