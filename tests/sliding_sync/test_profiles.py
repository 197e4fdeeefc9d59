"""Sliding sync: the profiles extension. Proposal: MSC4262"""

from typing import Any

import pytest

from homeserver.services.sliding_sync import batches, profiles
from tests.helpers.room_actions import create, say
from tests.helpers.server import TestServer, User
from tests.helpers.sliding_client import SlidingClient, a_list, act, finish_poll

NAME = "org.matrix.msc4262.profiles"
LAZY = [["m.room.member", "$LAZY"]]


def set_field(user: User, field: str, value: object) -> None:
    answer = user.put(f"/_matrix/client/v3/profile/{user.user_id}/{field}", {field: value})
    assert answer.status == 200, answer.body


def remove_field(user: User, field: str) -> None:
    assert user.delete(f"/_matrix/client/v3/profile/{user.user_id}/{field}").status == 200


def client_of(user: User, **more: Any) -> SlidingClient:
    return SlidingClient(
        user,
        lists={"all": a_list([0, 0], state=LAZY)},
        extensions={NAME: {"enabled": True, **more}},
    )


def users_in(answer: dict[str, Any]) -> dict[str, Any]:
    users: dict[str, Any] = answer["extensions"][NAME].get("users", {})
    return users


def test_profiles_of_users_in_view_are_sent(server: TestServer, alice: User, bob: User) -> None:
    carol = server.register("carol")
    set_field(bob, "m.tz", "Asia/Tashkent")
    set_field(carol, "m.tz", "Asia/Nukus")
    room_id = create(alice, preset="public_chat", name="Tea")
    for user in (carol, bob):
        act(user, room_id, "join")
    say(bob, room_id, "hello")
    client = client_of(alice)
    received = users_in(client.sync())
    assert received[bob.user_id] == {"updated": {"displayname": "bob", "m.tz": "Asia/Tashkent"}}
    assert carol.user_id not in received  # nothing of what is shown comes from her
    assert users_in(client.sync()) == {}
    say(carol, room_id, "here")
    assert users_in(client.sync())[carol.user_id]["updated"]["m.tz"] == "Asia/Nukus"


def test_only_the_requested_fields_are_sent(alice: User, bob: User) -> None:
    for field in ("m.tz", "org.example.status"):
        set_field(bob, field, field)
    room_id = create(alice, preset="public_chat")
    act(bob, room_id, "join")
    say(bob, room_id, "hello")
    client = client_of(alice, fields=["m.tz"])
    assert users_in(client.sync()) == {bob.user_id: {"updated": {"m.tz": "m.tz"}}}
    set_field(bob, "org.example.status", "busy")
    assert users_in(client.sync()) == {}
    client.body["extensions"][NAME]["fields"] = ["m.tz", "org.example.status"]
    assert users_in(client.sync())[bob.user_id]["updated"]["org.example.status"] == "busy"


def test_changes_of_all_users_in_shared_rooms_are_sent(
    server: TestServer, alice: User, bob: User
) -> None:
    stranger = server.register("stranger")
    far = create(alice, preset="public_chat")
    act(bob, far, "join")
    create(alice)  # the only one in view
    client = client_of(alice)
    client.sync()
    pending = client.wait()
    set_field(stranger, "m.tz", "Asia/Nukus")
    set_field(bob, "m.tz", "Asia/Tashkent")
    answer = finish_poll(server, pending)
    assert users_in(answer) == {bob.user_id: {"updated": {"m.tz": "Asia/Tashkent"}}}
    assert users_in(client.sync()) == users_in(answer)  # not acknowledged: it comes again
    remove_field(bob, "m.tz")
    set_field(alice, "m.tz", "UTC")
    received = users_in(client.sync())
    assert received == {
        bob.user_id: {"removed": ["m.tz"]},
        alice.user_id: {"updated": {"m.tz": "UTC"}},
    }
    set_field(bob, "org.example.status", None)
    assert users_in(client.sync()) == {bob.user_id: {"updated": {"org.example.status": None}}}


def test_users_who_no_longer_share_a_room_are_removed(alice: User, bob: User) -> None:
    rooms = [create(alice, preset="public_chat") for _ in range(2)]
    for room_id in rooms:
        act(bob, room_id, "join")
    client = client_of(alice)
    client.sync()
    act(bob, rooms[0], "leave")
    assert users_in(client.sync()).get(bob.user_id, {}) is not None
    act(alice, rooms[1], "leave")
    assert users_in(client.sync()) == {bob.user_id: None}
    set_field(bob, "m.tz", "Asia/Tashkent")
    assert users_in(client.sync()) == {}


def test_a_user_who_left_gets_no_profiles_of_later_members(
    server: TestServer, alice: User, bob: User
) -> None:
    carol, dave = server.register("carol"), server.register("dave")
    room_id = create(bob, preset="public_chat")
    for user in (alice, dave):
        act(user, room_id, "join")
    client = client_of(alice)
    client.sync()
    act(alice, room_id, "leave")
    act(carol, room_id, "join")
    act(dave, room_id, "leave")
    assert users_in(client.sync()) == {bob.user_id: None, dave.user_id: None}
    act(carol, room_id, "leave")
    assert users_in(client.sync()) == {}
    act(carol, room_id, "join")
    act(bob, room_id, "ban", user_id=alice.user_id)
    assert users_in(client.sync()) == {}


def test_fields_that_were_not_requested_for_a_while_are_sent_again(alice: User, bob: User) -> None:
    room_id = create(alice, preset="public_chat")
    act(bob, room_id, "join")
    client = client_of(alice)
    client.sync()
    wanted = client.body.pop("extensions")
    set_field(bob, "m.tz", "Asia/Tashkent")
    client.sync()
    client.sync()
    client.body["extensions"] = wanted
    assert users_in(client.sync())[bob.user_id]["updated"]["m.tz"] == "Asia/Tashkent"
    client.body["extensions"] = {NAME: {"enabled": True, "fields": ["m.a"] * 101}}
    assert alice.post(client.path(), client.body).errcode == "M_INVALID_PARAM"


def test_the_feature_is_announced(server: TestServer) -> None:
    assert (
        server.get("/_matrix/client/versions").json["unstable_features"]["org.matrix.msc4262"]
        is True
    )


def test_a_client_that_missed_too_many_changes_starts_again(
    alice: User, bob: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    room_id = create(alice, preset="public_chat")
    act(bob, room_id, "join")
    client = client_of(alice)
    client.sync()
    monkeypatch.setattr(profiles, "MAX_CHANGES", 3)
    for number in range(3):
        set_field(bob, f"m.x{number}", number)
    assert set(users_in(client.sync())[bob.user_id]["updated"]) == {"m.x0", "m.x1", "m.x2"}
    for number in range(4):
        set_field(bob, f"m.y{number}", number)
    answer = alice.post(client.path(), client.body)
    assert (answer.status, answer.errcode) == (400, "M_UNKNOWN_POS")
    client.pos = None
    say(bob, room_id, "hello")
    assert users_in(client.sync())[bob.user_id]["updated"]["m.y3"] == 3


def test_more_profiles_than_fit_into_a_response_come_in_parts(
    server: TestServer, alice: User, bob: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles, "MAX_PROFILES", 3)
    people = [alice, bob, *(server.register(f"p{number}") for number in range(9))]
    first, second = create(alice, preset="public_chat"), create(alice, preset="public_chat")
    for user in people[1:]:
        act(user, first, "join")
    act(bob, second, "join")
    client = SlidingClient(
        alice, lists={"all": a_list([0, 0], limit=0)}, extensions={NAME: {"enabled": True}}
    )
    assert set(users_in(client.sync())) == {alice.user_id, bob.user_id}  # the second room alone
    client.body["lists"]["all"]["ranges"] = [[0, 9]]
    received: list[set[str]] = []
    pos = client.pos
    for _ in range(2):  # the first of the answers gets lost
        client.pos = pos
        received.append(set(users_in(client.sync())))
    assert received[0] == received[1]  # and besides those by whom the room is named
    assert (
        {user.user_id for user in people[:3]}
        <= received[0]
        <= {user.user_id for user in people[:7]}
    )
    act(people[-1], first, "leave")
    set_field(people[2], "m.tz", "UTC")
    answer = finish_poll(server, client.wait())  # at once: there is more
    assert users_in(answer)[people[2].user_id]["updated"]["m.tz"] == "UTC"
    assert people[4].user_id in users_in(answer)
    assert people[9].user_id not in users_in(answer)
    client.pos = answer["pos"]
    while more := users_in(client.sync()):
        received.append(set(more))
    assert set().union(*received, users_in(answer)) >= {user.user_id for user in people[:-1]}
    pending = client.wait()
    server.clock.advance(31)
    assert users_in(finish_poll(server, pending)) == {}


def test_rooms_added_while_profiles_are_pending_are_completed(
    server: TestServer, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles, "MAX_PROFILES", 2)
    monkeypatch.setattr(profiles, "MAX_PARTS", 2)
    rooms, everybody = [], {alice.user_id}
    for number in range(5):
        rooms.append(create(alice, preset="public_chat"))
        for name in "ab":
            user = server.register(f"{name}{number}")
            everybody.add(user.user_id)
            act(user, rooms[-1], "join")
    client = SlidingClient(
        alice, lists={"all": a_list([0, 0], limit=0)}, extensions={NAME: {"enabled": True}}
    )
    received: set[str] = set()
    for number in range(20):
        client.body["lists"]["all"]["ranges"] = [[0, min(number, 4)]]
        received.update(users_in(client.sync()))
    assert received == everybody
    assert users_in(client.sync()) == {}


def names_in(answer: dict[str, Any]) -> set[str]:
    return {str(user_id)[1:].split(":")[0] for user_id in users_in(answer)}


def with_people(server: TestServer, alice: User, *names: str) -> list[str]:
    """Rooms, with one member more in each."""
    rooms = []
    for name in names:
        rooms.append(create(alice, preset="public_chat", name=f"of {name}"))
        act(server.register(name), rooms[-1], "join")
    return rooms


def test_profiles_of_rooms_sent_before_are_sent_when_requested(
    server: TestServer, alice: User
) -> None:
    rooms = with_people(server, alice, "bob", "carol", "dave")
    for state in ([], LAZY):
        client = SlidingClient(alice, lists={"all": a_list([0, 9], limit=0, state=state)})
        assert len(client.sync()["rooms"]) == 3
        client.body |= {
            "lists": {"all": a_list([0, 0], limit=0, state=state)},
            "extensions": {NAME: {"enabled": True}},
        }
        assert names_in(client.sync()) == {"alice", "dave"}
        client.body["room_subscriptions"] = {
            rooms[0]: {"timeline_limit": 0, "required_state": state}
        }
        pos = client.pos
        assert names_in(client.sync()) == {"alice", "bob"}
        client.pos = pos  # that answer got lost
        assert names_in(client.sync()) == {"alice", "bob"}
        client.body["lists"]["all"]["ranges"] = [[0, 9]]
        assert names_in(client.sync()) == {"alice", "carol"}
        assert users_in(client.sync()) == {}


def test_profiles_are_sent_for_changed_fields_and_lists(server: TestServer, alice: User) -> None:
    with_people(server, alice, "bob", "carol")
    lists = {"first": a_list([0, 0], limit=0), "both": a_list([0, 1], limit=0)}
    client = SlidingClient(
        alice,
        lists=lists,
        extensions={NAME: {"enabled": True, "lists": ["first"], "fields": ["displayname"]}},
    )
    assert names_in(client.sync()) == {"alice", "carol"}
    client.body["extensions"][NAME]["lists"] = ["both"]
    assert names_in(client.sync()) == {"alice", "bob"}
    client.body["extensions"][NAME] = {"enabled": True, "lists": ["first"]}
    assert names_in(client.sync()) == {"alice", "carol"}
    client.body["extensions"][NAME]["lists"] = ["both"]
    assert names_in(client.sync()) == {"alice", "bob"}
    assert users_in(client.sync()) == {}


def test_profiles_of_rooms_that_did_not_fit_are_sent_with_them(
    server: TestServer, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms = with_people(server, alice, "bob", "carol", "dave")
    client = SlidingClient(alice, lists={"all": a_list([0, 9])})
    client.sync()
    for room_id in rooms:
        say(alice, room_id, "long")
    monkeypatch.setattr(batches, "MAX_EVENTS_PER_BATCH", 1)
    monkeypatch.setattr(batches, "MAX_RESPONSE_BYTES", 400)
    client.body["extensions"] = {NAME: {"enabled": True}}
    answers = [client.sync() for _ in range(3)]
    assert [list(answer["rooms"]) for answer in answers] == [
        [room_id] for room_id in reversed(rooms)
    ]
    assert [names_in(answer) - {"alice"} for answer in answers] == [{"dave"}, {"carol"}, {"bob"}]


def test_profiles_of_later_members_are_sent(
    server: TestServer, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where no members are asked for, and while the room is out of view; and however many they
    are."""
    bob, *others = (server.register(name) for name in ("bob", "carol", "dave", "erin"))
    room_id = create(alice, preset="public_chat", name="tea")
    client = SlidingClient(
        alice, lists={"all": a_list([0, 0])}, extensions={NAME: {"enabled": True}}
    )
    client.sync()
    act(bob, room_id, "join")
    assert names_in(client.sync()) == {"bob"}
    monkeypatch.setattr(profiles, "MAX_PROFILES", 2)
    for user in others:
        act(user, room_id, "join")
    create(alice, name="coffee")
    assert names_in(client.sync()) == {"alice"}
    client.body["lists"]["all"]["ranges"] = [[0, 1]]
    received = [names_in(client.sync()) for _ in range(4)]
    assert set().union(*received) >= {"carol", "dave", "erin"}
    assert received[-1] == set()
    assert max(map(len, received)) == 3  # and those who are shown


def test_all_members_in_view_are_sent_in_parts(
    server: TestServer, alice: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles, "MAX_PROFILES", 2)
    room_id = create(alice, preset="public_chat", name="tea")
    people = [server.register(f"p{number}") for number in range(7)]
    for user in people:
        act(user, room_id, "join")
    lists = {"all": a_list([0, 0], limit=1, state=[["m.room.member", "*"]])}
    client = SlidingClient(alice, lists=lists, extensions={NAME: {"enabled": True}})
    received = [names_in(client.sync()) for _ in range(5)]
    assert [len(names) for names in received] == [3, 2, 2, 2, 0]
    assert set().union(*received) == {"alice", *(f"p{number}" for number in range(7))}


def test_all_profiles_are_sent_when_lazy_loading_ends(alice: User, bob: User) -> None:
    room_id = create(alice, preset="public_chat", name="tea")
    act(bob, room_id, "join")
    say(alice, room_id, "hello")
    client = client_of(alice)
    assert names_in(client.sync()) == {"alice"}
    client.body["lists"]["all"]["required_state"] = []
    say(alice, room_id, "again")
    assert names_in(client.sync()) == {"alice", "bob"}
    assert users_in(client.sync()) == {}


def test_profiles_of_users_without_a_shared_room_are_not_sent(alice: User, bob: User) -> None:
    """Later changes of their profiles would not be sent either."""
    room_id = create(alice, preset="public_chat", name="tea")
    act(bob, room_id, "join")
    say(bob, room_id, "hello")
    act(bob, room_id, "leave")
    client = client_of(alice)
    client.body["lists"]["all"] |= {"timeline_limit": 5, "required_state": [["m.room.member", "*"]]}
    assert names_in(client.sync()) == {"alice"}
    other = create(alice, preset="public_chat", name="coffee")
    act(bob, other, "join")
    say(bob, other, "hello")
    assert names_in(client.sync()) == {"alice", "bob"}
