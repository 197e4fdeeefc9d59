"""Unread counts do not change when a user changes their display name."""

from typing import Any

from tests.helpers.room_actions import V3, create, join, ok, say, set_state
from tests.helpers.server import TestServer, User

OFTEN = 60


def unread(user: User, room_id: str) -> int:
    room: Any = ok(user.get(f"{V3}/sync"))["rooms"]["join"][room_id]
    return int(room["unread_notifications"]["notification_count"])


def test_unread_messages_are_counted_across_many_profile_changes(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(bob, preset="public_chat")
    say(bob, room_id, "before alice comes")
    join(alice, room_id)
    say(bob, room_id, "before the changes")
    for number in range(OFTEN):
        content = {"membership": "join", "displayname": f"Alice {number}"}
        set_state(alice, room_id, "m.room.member", content, alice.user_id)
    say(bob, room_id, "after the changes")

    server.app.notifications.unread.cache.clear()  # as after a restart

    assert unread(alice, room_id) == 2
    listed = ok(alice.get(f"{V3}/notifications"))["notifications"]
    texts = [
        each["event"]["content"]["body"]
        for each in listed
        if each["event"]["type"] == "m.room.message"
    ]
    assert texts == ["after the changes", "before the changes"]
