"""The list of notifications. spec: client-server-api#listing-notifications"""

import pytest

from tests.helpers.http import Answer
from tests.helpers.server import User
from tests.helpers.sync_requests import Json, Rooms

rooms = Rooms()
PATH = "/_matrix/client/v3/notifications"


@pytest.fixture
def room(alice: User, bob: User) -> str:
    return rooms.create(alice, bob)


def listed(user: User, query: str = "") -> list[Json]:
    answer = user.get(PATH + query)
    assert answer.status == 200, answer.body
    return list(answer.json["notifications"])


def test_a_notification_has_all_fields(alice: User, bob: User, room: str) -> None:
    assert listed(bob) == []
    first = rooms.say(alice, room, more={"m.mentions": {"user_ids": [bob.user_id]}})
    rooms.read(bob, room, first)
    rooms.say(alice, room, "news")
    newest, older = listed(bob)
    assert older["event"]["event_id"] == first
    assert (older["read"], newest["read"]) == (True, False)
    assert older["actions"] == [
        "notify",
        {"set_tweak": "sound", "value": "default"},
        {"set_tweak": "highlight"},
    ]
    assert newest["actions"] == ["notify", {"set_tweak": "sound", "value": "default"}], (
        "the room has two members"
    )
    assert newest["room_id"] == newest["event"]["room_id"] == room
    assert newest["event"]["content"]["body"] == "news"
    assert newest["event"]["unsigned"]["membership"] == "join"
    assert newest["ts"] == newest["event"]["origin_server_ts"]
    assert listed(alice) == []


def test_pages_cover_all_rooms(alice: User, bob: User) -> None:
    places = [rooms.create(alice, bob) for _ in range(4)]
    sent = [rooms.say(alice, places[number % 4 if number < 8 else 3]) for number in range(13)]
    found, query = [], "?limit=5"
    for _ in range(3):
        answer = bob.get(PATH + query)
        found += [each["event"]["event_id"] for each in answer.json["notifications"]]
        query = f"?limit=5&from={answer.json.get('next_token')}"
    assert found == sent[::-1]
    assert "next_token" not in answer.json, "there are no more"


def test_only_highlights_are_listed_on_request(alice: User, bob: User, room: str) -> None:
    rooms.say(alice, room)
    named = rooms.say(alice, room, more={"m.mentions": {"user_ids": [bob.user_id]}})
    called = rooms.say(alice, room, more={"m.mentions": {"room": True}})
    rooms.say(alice, room)
    assert [each["event"]["event_id"] for each in listed(bob, "?only=highlight")] == [called, named]
    assert [each["event"]["event_id"] for each in listed(bob, "?only=highlight&limit=1")] == [
        called
    ]


def test_events_that_the_user_may_not_see_are_left_out(alice: User, bob: User, room: str) -> None:
    redacted = rooms.say(alice, room)
    rooms.redact(alice, room, redacted)
    left = rooms.create(alice, bob)
    rooms.say(alice, left)
    rooms.act(bob, left, "leave")
    assert listed(bob) == []
    rooms.say(alice, left)
    rooms.join(bob, left)
    assert listed(bob) == [], "it was sent before the user rejoined"
    kept = rooms.say(alice, left)
    assert [each["event"]["event_id"] for each in listed(bob)] == [kept]
    ignored: Json = {"ignored_users": {alice.user_id: {}}}
    bob.put(f"/_matrix/client/v3/user/{bob.user_id}/account_data/m.ignored_user_list", ignored)
    assert listed(bob) == []


def test_an_invite_is_listed_while_it_is_pending(alice: User, bob: User) -> None:
    room = rooms.create(alice, preset="private_chat")
    rooms.act(alice, room, "invite", bob)
    (invite,) = listed(bob)
    assert invite["event"]["state_key"] == bob.user_id
    assert invite["actions"] == ["notify", {"set_tweak": "sound", "value": "default"}]
    assert not invite["read"]
    rooms.act(bob, room, "leave")
    assert listed(bob) == []


def test_an_invite_reveals_no_later_events(alice: User, bob: User) -> None:
    """The server is in the room, and has all of its events."""
    room = rooms.create(alice, preset="private_chat")
    rooms.say(alice, room, "before")
    rooms.act(alice, room, "invite", bob)
    rooms.say(alice, room, "after", more={"m.mentions": {"user_ids": [bob.user_id], "room": True}})
    (invite,) = listed(bob)
    assert invite["event"]["type"] == "m.room.member"


def test_the_newest_event_of_a_room_need_not_notify(
    alice: User, bob: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For any number of rooms per query."""
    monkeypatch.setattr("homeserver.services.notifications.notifications.ROOM_BATCH", 1)
    places = [rooms.create(alice, bob) for _ in range(3)]
    sent = [rooms.say(alice, place) for place in places]
    for place in places[::-1]:
        rooms.say(bob, place, "no news to bob")
    assert [each["event"]["event_id"] for each in listed(bob, "?limit=1")] == sent[-1:]
    assert [each["event"]["event_id"] for each in listed(bob, "?limit=2")] == sent[:0:-1]


def test_the_original_decision_counts(alice: User, bob: User, room: str) -> None:
    """Later rules do not change it."""
    called = rooms.say(alice, room, more={"m.mentions": {"user_ids": [bob.user_id]}})
    bob.put(
        "/_matrix/client/v3/pushrules/global/override/.m.rule.master/enabled", {"enabled": True}
    )
    rooms.say(alice, room)
    (found,) = listed(bob)
    assert found["event"]["event_id"] == called
    assert found["actions"] == ["notify", {"set_tweak": "highlight"}]


@pytest.mark.parametrize("query", ["?from=x", "?from=s1_2", "?only=loud", "?limit=x"])
def test_invalid_requests_are_refused(alice: User, query: str) -> None:
    answer: Answer = alice.get(PATH + query)
    assert (answer.status, answer.errcode) == (400, "M_INVALID_PARAM")
