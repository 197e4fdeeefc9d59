"""Push decisions for an event, as the push sender gets them."""

from typing import Any

import pytest

from federation.protocol.ids import EventID, RoomID, UserID
from federation.rooms.events import StoredEvent
from homeserver.services.push.actions import Actions
from tests.helpers.server import TestServer, User
from tests.helpers.sync_requests import Json, Rooms

rooms = Rooms()
V3 = "/_matrix/client/v3"
LOUD = ["notify", {"set_tweak": "sound", "value": "default"}]


class People:
    """Alice writes; Bob, Carol and Dave may be notified."""

    def __init__(self, server: TestServer) -> None:
        self.server = server
        self.alice, self.bob, self.carol, self.dave = (
            server.register(name) for name in ("alice", "bob", "carol", "dave")
        )
        self.room = rooms.create(self.alice, self.bob, self.carol)

    def stored(self, event_id: str, room: str | None = None) -> StoredEvent:
        app = self.server.app
        snapshot = self.server.run(app.room_engine.engine.get_snapshot(RoomID(room or self.room)))
        event = self.server.run(
            app.rooms.events.get_event(snapshot.room.room_nid, EventID(event_id))
        )
        assert event is not None
        return event

    def get_notified(self, event_id: str, room: str | None = None) -> dict[UserID, Actions]:
        users = [person.user_id for person in (self.alice, self.bob, self.carol, self.dave)]
        actions = self.server.app.notifications.push_decisions.get_actions(
            self.stored(event_id, room), users
        )
        return dict(self.server.run(actions))

    def rule(self, user: User, path: str, body: Json) -> None:
        assert user.put(f"{V3}/pushrules/global/{path}", body).status == 200


@pytest.fixture
def people(server: TestServer) -> People:
    return People(server)


def names(notified: dict[UserID, Any]) -> set[str]:
    return {user_id[1:].partition(":")[0] for user_id in notified}


def test_all_members_except_the_sender_are_notified(people: People) -> None:
    notified = people.get_notified(rooms.say(people.alice, people.room))
    assert names(notified) == {"bob", "carol"}
    one, other = notified.values()
    assert one is other, "the same rules were asked once"
    assert (one.raw, one.notify, one.highlight, one.sound) == (("notify",), True, False, None)


def test_own_rules_and_mentions_apply(people: People) -> None:
    people.rule(people.bob, f"room/{people.room}", {"actions": []})
    named = {"m.mentions": {"user_ids": [people.bob.user_id]}}
    assert names(people.get_notified(rooms.say(people.alice, people.room))) == {"carol"}
    notified = people.get_notified(rooms.say(people.alice, people.room, more=named))
    assert {user: actions.highlight for user, actions in notified.items()} == {
        people.bob.user_id: True,
        people.carol.user_id: False,
    }
    assert notified[people.bob.user_id].tweaks == {"sound": "default", "highlight": True}
    people.rule(
        people.carol,
        "content/tea",
        {"pattern": "tea", "actions": ["notify", {"set_tweak": "sound", "value": "x"}]},
    )
    assert (
        people.get_notified(rooms.say(people.alice, people.room, "tea?"))[
            people.carol.user_id
        ].sound
        == "x"
    )


def test_users_who_join_later_leave_or_ignore_the_sender_are_not_notified(people: People) -> None:
    before = rooms.say(people.alice, people.room)
    rooms.join(people.dave, people.room)
    rooms.state(
        people.bob,
        people.room,
        "m.room.member",
        {"membership": "join", "displayname": "B"},
        people.bob.user_id,
    )
    assert names(people.get_notified(before)) == {"bob", "carol"}, "a new name is no new joining"
    after = rooms.say(people.alice, people.room)
    assert names(people.get_notified(after)) == {"bob", "carol", "dave"}
    rooms.act(people.carol, people.room, "leave")
    ignored: Json = {"ignored_users": {people.alice.user_id: {}}}
    assert (
        people.dave.put(
            f"{V3}/user/{people.dave.user_id}/account_data/m.ignored_user_list", ignored
        ).status
        == 200
    )
    assert names(people.get_notified(after)) == {"bob"}
    rooms.redact(people.alice, people.room, after)
    assert people.get_notified(after) == {}


def test_an_invited_user_is_notified(people: People) -> None:
    room = rooms.create(people.alice, people.bob)
    rooms.act(people.alice, room, "invite", people.dave)
    state = people.alice.get(
        f"{V3}/rooms/{room}/state/m.room.member/{people.dave.user_id}?format=event"
    ).json
    notified = people.get_notified(state["event_id"], room)
    assert names(notified) == {"dave"}
    assert list(notified[people.dave.user_id].raw) == LOUD
    rooms.act(people.dave, room, "leave")
    assert people.get_notified(state["event_id"], room) == {}, "they have declined it"


def test_messages_in_a_room_of_two_play_a_sound(people: People) -> None:
    room = rooms.create(people.alice, people.bob)
    (notified,) = people.get_notified(rooms.say(people.alice, room), room).values()
    assert list(notified.raw) == LOUD
