"""Responses about the state of a room are cached, and invalidated by every change of their
content."""

from typing import Any

from tests.helpers.room_actions import V3, create, join, leave, ok, redact, room_path, set_state
from tests.helpers.server import TestServer, User


def read(user: User, room_id: str, what: str) -> Any:
    return ok(user.get(room_path(room_id, what)))


def names(user: User, room_id: str) -> dict[str, str | None]:
    return {
        user_id: member["display_name"]
        for user_id, member in read(user, room_id, "joined_members")["joined"].items()
    }


def test_membership_changes_invalidate_cached_members(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice, preset="public_chat")
    assert set(names(alice, room_id)) == {alice.user_id}
    join(bob, room_id)
    assert set(names(alice, room_id)) == set(names(bob, room_id)) == {alice.user_id, bob.user_id}
    ok(bob.put(f"{V3}/profile/{bob.user_id}/displayname", {"displayname": "Bobur"}))
    server.clock.advance(60)
    assert names(alice, room_id)[bob.user_id] == "Bobur"
    assert {
        event["content"].get("displayname") for event in read(alice, room_id, "members")["chunk"]
    } >= {"Bobur"}
    leave(bob, room_id)
    assert set(names(alice, room_id)) == {alice.user_id}
    assert {
        event["content"]["membership"] for event in read(alice, room_id, "members")["chunk"]
    } == {"join", "leave"}


def test_a_redaction_invalidates_cached_state(server: TestServer) -> None:
    alice = server.register("alice")
    room_id = create(alice)
    event_id = set_state(alice, room_id, "m.room.topic", {"topic": "secret"})

    def topic() -> dict[str, Any]:
        return next(
            event["content"]
            for event in read(alice, room_id, "state")
            if event["type"] == "m.room.topic"
        )

    assert topic() == topic() == {"topic": "secret"}
    redact(alice, room_id, event_id)
    assert topic() == {}


def test_member_filters_are_cached_separately(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice, preset="public_chat")
    join(bob, room_id)
    leave(bob, room_id)

    def members(**query: str) -> list[str]:
        return sorted(
            event["state_key"]
            for event in ok(alice.get(room_path(room_id, "members", **query)))["chunk"]
        )

    for _ in range(2):
        assert members() == [alice.user_id, bob.user_id]
        assert members(membership="join") == [alice.user_id]
        assert members(not_membership="join") == [bob.user_id]
