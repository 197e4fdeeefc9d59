"""Old read notifications are deleted: the list ends there, and counts do not change."""

from pathlib import Path

import pytest

from homeserver.services.push.old_push_actions import RETENTION_DAYS
from storage.engine.database import Database
from storage.engine.transaction import Transaction
from tests.helpers.server import TestServer, User
from tests.helpers.sync_requests import Json, Rooms, sync

DAY = 24 * 3600
rooms = Rooms()


@pytest.fixture
def server(tmp_path: Path, database: Database) -> TestServer:
    return TestServer(tmp_path, database)


def mention(user: User, room: str, other: User, text: str) -> str:
    return rooms.say(user, room, text, more={"m.mentions": {"user_ids": [other.user_id]}})


def listed(user: User) -> list[str]:
    answer: Json = user.get("/_matrix/client/v3/notifications").json
    return [each["event"]["content"]["body"] for each in answer["notifications"]]


def kept(server: TestServer, user: User) -> int:
    def count(txn: Transaction) -> int:
        return int(
            txn.query("SELECT count(*) FROM event_push_actions WHERE user_id = ?", (user.user_id,))[
                0
            ][0]
        )

    return server.run(server.app.database.read("test", count))


def forget(server: TestServer, limit: int = 10) -> None:
    """Run the job until it has visited everything."""
    while server.run(server.app.pushers.push_action_cleanup.do_delete(limit)) == limit:
        pass


@pytest.mark.parametrize("limit", [1, 10])
def test_only_old_and_read_notifications_are_deleted(server: TestServer, limit: int) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    read, unread, muted = (rooms.create(alice, bob) for _ in range(3))
    assert (
        bob.put(f"/_matrix/client/v3/pushrules/global/room/{muted}", {"actions": []}).status == 200
    )
    mention(alice, read, bob, "old")
    mention(alice, unread, bob, "unread")
    rooms.read(bob, muted, mention(alice, muted, bob, "old and muted"))
    server.clock.advance((RETENTION_DAYS - 1) * DAY)
    rooms.read(bob, read, mention(alice, read, bob, "new"))
    before = kept(server, bob)
    forget(server, limit)
    assert kept(server, bob) == before, "nothing is old yet"

    server.clock.advance(2 * DAY)
    counts = {
        room: sync(bob)["rooms"]["join"][room]["unread_notifications"]
        for room in (read, unread, muted)
    }
    forget(server, limit)
    assert kept(server, bob) == 2
    assert listed(bob) == ["new", "unread"]
    assert {
        room: sync(bob)["rooms"]["join"][room]["unread_notifications"] for room in counts
    } == counts
    mention(alice, muted, bob, "newest")
    assert listed(bob) == ["newest", "new", "unread"]
