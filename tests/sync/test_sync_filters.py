"""Filters of /sync, and lazy-loaded members. spec: client-server-api#filtering"""

import pytest

from tests.helpers.server import TestServer, User
from tests.helpers.sync_requests import Json, Rooms, bodies, ids, keys, sync, sync_path, token

pytestmark = pytest.mark.usefixtures("compared")

rooms = Rooms()
LAZY: Json = {"room": {"state": {"lazy_load_members": True}, "timeline": {"limit": 1}}}


def members(room: Json, name: str = "state") -> set[str]:
    return {
        event["state_key"] for event in room[name]["events"] if event["type"] == "m.room.member"
    }


@pytest.mark.parametrize(
    ("timeline", "shown"),
    [
        ({"types": ["m.room.message"]}, ["a1", "b1", "link"]),
        ({"types": ["m.room.*"], "not_types": ["m.room.m*", "m.room.topic"]}, []),
        ({"types": ["org.*.note"]}, ["note"]),
        ({"types": ["*message"], "senders": ["@bob:example.org"]}, ["b1"]),
        ({"types": ["m.room.message"], "not_senders": ["@bob:example.org"]}, ["a1", "link"]),
        ({"types": []}, []),
        ({"senders": []}, []),
        ({"contains_url": True}, ["link"]),
        ({"contains_url": False, "types": ["m.room.message"]}, ["a1", "b1"]),
        ({"types": ["m.room.message"], "limit": 2}, ["b1", "link"]),
        ({"limit": 0}, []),
        ({"rooms": []}, []),
        ({"rooms": ["!other:example.org"]}, []),
        ({"types": ["m.room.message"], "not_rooms": ["!other:example.org"]}, ["a1", "b1", "link"]),
    ],
)
def test_timelines_can_be_filtered(server: TestServer, timeline: Json, shown: list[str]) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room = rooms.create(alice, bob)
    since = token(alice)
    rooms.say(alice, room, "a1")
    rooms.say(bob, room, "b1")
    rooms.say(alice, room, "note", type="org.example.note")
    rooms.state(alice, room, "m.room.topic", {"topic": "tea"})
    rooms.say(alice, room, "link", more={"url": "mxc://example.org/x"})
    joined = sync(alice, since, {"room": {"timeline": timeline}})["rooms"]["join"][room]
    assert bodies(joined) == shown
    # whatever is hidden, the state is not lost
    received = joined["state"]["events"] + [
        event for event in joined["timeline"]["events"] if "state_key" in event
    ]
    assert keys(received) == {("m.room.topic", "")}


def test_a_state_change_replaced_by_a_filtered_one_is_not_sent_as_current(
    server: TestServer,
) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room = rooms.create(alice, bob, power_level_content_override={"users_default": 50})
    since = token(alice)
    rooms.say(alice, room, "before")
    rooms.state(alice, room, "m.room.topic", {"topic": "tea"})
    rooms.say(alice, room, "between")
    topic = rooms.state(bob, room, "m.room.topic", {"topic": "coffee"})
    rooms.say(alice, room, "after")
    joined = sync(alice, since, {"room": {"timeline": {"not_senders": [bob.user_id]}}})["rooms"][
        "join"
    ][room]
    assert [event["event_id"] for event in joined["state"]["events"]] == [topic]
    assert bodies(joined) == ["between", "after"]
    assert joined["timeline"]["limited"] is True


def test_rooms_can_be_filtered(server: TestServer) -> None:
    alice = server.register("alice")
    one, two = rooms.create(alice), rooms.create(alice)
    rooms.say(alice, one)
    assert sync(alice, filter={"room": {"rooms": [one]}})["rooms"]["join"].keys() == {one}
    assert sync(alice, filter={"room": {"not_rooms": [one]}})["rooms"]["join"].keys() == {two}
    assert "rooms" not in sync(alice, filter={"room": {"rooms": [one], "not_rooms": [one]}})
    assert "rooms" not in sync(alice, filter={"room": {"rooms": []}})
    joined = sync(
        alice, filter={"room": {"state": {"rooms": [two]}, "timeline": {"rooms": [one]}}}
    )["rooms"]["join"]
    assert not joined[one]["state"]["events"]
    assert joined[one]["timeline"]["events"]
    assert joined[two]["state"]["events"]
    assert not joined[two]["timeline"]["events"]


def test_state_can_be_filtered(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room = rooms.create(alice, bob)
    rooms.state(alice, room, "org.example.link", {"url": "mxc://example.org/x"})

    def state(**wanted: object) -> set[tuple[str, str]]:
        filter = {"room": {"timeline": {"limit": 0}, "state": wanted}}
        return keys(sync(alice, filter=filter)["rooms"]["join"][room]["state"]["events"])

    assert state(types=["m.room.create"]) == {("m.room.create", "")}
    assert state(types=["m.room.member"], senders=[bob.user_id]) == {("m.room.member", bob.user_id)}
    assert state(contains_url=True) == {("org.example.link", "")}
    assert state(types=[]) == set()
    assert ("m.room.member", bob.user_id) not in state(not_types=["m.room.mem*"]) != set()


def test_account_data_and_ephemeral_events_are_filtered(server: TestServer) -> None:
    alice = server.register("alice")
    room = rooms.create(alice)
    rooms.keep(alice, "a.b", {"n": 1})
    rooms.keep(alice, "c.d", {"n": 2})
    rooms.keep(alice, "a.b", {"n": 3}, room)
    rooms.read(alice, room, rooms.say(alice, room))
    rooms.type(alice, room)
    answer = sync(
        alice,
        filter={
            "account_data": {"types": ["a.*"]},
            "room": {"account_data": {"not_types": ["a.b"]}},
        },
    )
    assert answer["account_data"]["events"] == [{"type": "a.b", "content": {"n": 1}}]
    assert answer["rooms"]["join"][room]["account_data"]["events"] == []
    for wanted, types in (
        ({"types": ["m.typing"]}, {"m.typing"}),
        ({"not_types": ["m.typing"]}, {"m.receipt"}),
        ({"not_rooms": [room]}, set[str]()),
    ):
        joined = sync(alice, filter={"room": {"ephemeral": wanted}})["rooms"]["join"][room]
        assert {event["type"] for event in joined["ephemeral"]["events"]} == types


def test_event_fields_limit_the_fields_of_events(server: TestServer) -> None:
    alice = server.register("alice")
    room = rooms.create(alice)
    rooms.say(alice, room, "x")
    joined = sync(
        alice, filter={"event_fields": ["type", "content.body"], "room": {"timeline": {"limit": 1}}}
    )
    assert joined["rooms"]["join"][room]["timeline"]["events"] == [
        {"type": "m.room.message", "content": {"body": "x"}}
    ]
    assert all(
        event.keys() <= {"type", "content"}
        for event in joined["rooms"]["join"][room]["state"]["events"]
    )


def test_the_federation_event_format_is_returned(server: TestServer) -> None:
    alice = server.register("alice")
    room = rooms.create(alice)
    joined = sync(alice, filter={"event_format": "federation", "room": {"timeline": {"limit": 1}}})[
        "rooms"
    ]["join"][room]
    for event in joined["timeline"]["events"] + joined["state"]["events"]:
        assert {"auth_events", "prev_events", "hashes", "signatures", "depth"} <= event.keys()


def test_a_stored_filter_is_used_by_its_id(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room = rooms.create(alice)
    rooms.say(alice, room)
    body = {"room": {"timeline": {"types": ["a.b"]}}}
    filter_id = alice.post(f"/_matrix/client/v3/user/{alice.user_id}/filter", body).json[
        "filter_id"
    ]
    assert ids(sync(alice, filter=filter_id)["rooms"]["join"][room]) == []
    assert bob.get(sync_path(filter=filter_id)).errcode == "M_INVALID_PARAM"
    assert alice.get(sync_path(filter="{")).errcode in ("M_BAD_JSON", "M_NOT_JSON")


class TestLazyMembers:
    """spec: client-server-api#lazy-loading-room-members"""

    @pytest.fixture
    def people(self, server: TestServer) -> list[User]:
        return [server.register(name) for name in ("alice", "bob", "carol", "dora")]

    @pytest.fixture
    def room(self, people: list[User]) -> str:
        room = rooms.create(*people, name="Tea house")
        rooms.say(people[1], room)
        return room

    def test_lazy_loading_returns_the_user_and_the_senders(
        self, people: list[User], room: str
    ) -> None:
        joined = sync(people[0], filter=LAZY)["rooms"]["join"][room]
        assert members(joined) == {people[0].user_id, people[1].user_id}

    def test_heroes_are_sent(self, people: list[User]) -> None:
        room = rooms.create(*people)
        rooms.say(people[0], room)
        joined = sync(people[0], filter=LAZY)["rooms"]["join"][room]
        assert joined["summary"]["m.heroes"] == [person.user_id for person in people[1:]]
        assert members(joined) == {person.user_id for person in people}

    @pytest.mark.parametrize("after", ["false", "true"])
    def test_a_sent_member_is_not_sent_again(
        self, people: list[User], room: str, after: str
    ) -> None:
        alice, bob, carol, _ = people
        name = "state_after" if after == "true" else "state"
        since = sync(alice, filter=LAZY, use_state_after=after)["next_batch"]
        rooms.say(bob, room)
        answer = sync(alice, since, LAZY, use_state_after=after)
        assert members(answer["rooms"]["join"][room], name) == set()
        rooms.say(carol, room)
        answer = sync(alice, answer["next_batch"], LAZY, use_state_after=after)
        assert members(answer["rooms"]["join"][room], name) == {carol.user_id}
        redundant = {
            "room": {"state": {"lazy_load_members": True, "include_redundant_members": True}}
        }
        rooms.say(carol, room)
        answer = sync(alice, answer["next_batch"], redundant, use_state_after=after)
        assert members(answer["rooms"]["join"][room], name) == {carol.user_id}

    @pytest.mark.parametrize("after", ["false", "true"])
    def test_a_member_in_a_timeline_is_not_sent_again(
        self, people: list[User], room: str, after: str
    ) -> None:
        alice, bob, carol, _ = people
        name = "state_after" if after == "true" else "state"
        for user in (bob, carol):
            rooms.state(
                user,
                room,
                "m.room.member",
                {"membership": "join", "displayname": "new"},
                user.user_id,
            )
        rooms.say(bob, room)
        lazily = {"room": {"state": {"lazy_load_members": True}}}
        answer = sync(alice, filter=lazily, use_state_after=after)
        joined = answer["rooms"]["join"][room]
        assert {bob.user_id, carol.user_id} <= {
            event.get("state_key") for event in joined["timeline"]["events"]
        }
        assert ({bob.user_id, carol.user_id} <= members(joined, name)) is (after == "true")
        for user in (bob, carol):
            rooms.say(user, room)
            answer = sync(alice, answer["next_batch"], lazily, use_state_after=after)
            assert members(answer["rooms"]["join"][room], name) == set()

    def test_plain_responses_do_not_forget_sent_members(
        self, people: list[User], room: str
    ) -> None:
        """Also those with nothing in them."""
        alice, bob, *_ = people
        since = sync(alice, filter=LAZY)["next_batch"]
        for says in (True, True, False, True):
            if says:
                rooms.say(bob, room)
            else:
                rooms.keep(bob, "a.b", {"n": 1})
            answer = sync(alice, since, LAZY)
            since = answer["next_batch"]
            if says:
                assert members(answer["rooms"]["join"][room]) == set()

    def test_members_of_a_lost_response_are_sent_again(self, people: list[User], room: str) -> None:
        alice, _, carol, _ = people
        since = sync(alice, filter=LAZY)["next_batch"]
        rooms.say(carol, room)
        for _ in range(2):
            assert members(sync(alice, since, LAZY)["rooms"]["join"][room]) == {carol.user_id}

    def test_an_older_token_gets_its_members_again(self, people: list[User], room: str) -> None:
        """An app is opened again before it had stored what it heard last."""
        alice, _, carol, _ = people
        stored = sync(alice, filter=LAZY)["next_batch"]
        rooms.say(carol, room)
        received = sync(alice, stored, LAZY)["next_batch"]
        rooms.say(carol, room)
        assert members(sync(alice, received, LAZY)["rooms"]["join"][room]) == set()
        repeated = sync(alice, stored, LAZY)
        assert members(repeated["rooms"]["join"][room]) == {carol.user_id}
        rooms.say(carol, room)
        assert members(sync(alice, repeated["next_batch"], LAZY)["rooms"]["join"][room]) == set()

    def test_member_changes_in_a_gap_are_sent_even_for_silent_members(
        self, people: list[User], room: str
    ) -> None:
        alice, bob, carol, dora = people
        since = sync(alice, filter=LAZY)["next_batch"]
        rooms.act(carol, room, "leave")
        rooms.state(
            dora, room, "m.room.member", {"membership": "join", "displayname": "D"}, dora.user_id
        )
        for _ in range(3):
            rooms.say(bob, room)
        joined = sync(alice, since, LAZY)["rooms"]["join"][room]
        assert joined["timeline"]["limited"]
        assert members(joined) == {carol.user_id, dora.user_id}

    def test_each_device_is_sent_members_separately(
        self, server: TestServer, people: list[User], room: str
    ) -> None:
        alice, _, carol, _ = people
        since = sync(alice, filter=LAZY)["next_batch"]
        rooms.say(carol, room)
        received = sync(alice, since, LAZY)["next_batch"]
        rooms.say(carol, room)
        assert members(sync(alice, received, LAZY)["rooms"]["join"][room]) == set()
        login = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "alice"}}
        phone = User(
            server,
            server.post("/_matrix/client/v3/login", {**login, "password": "wonderland"}).json,
        )
        assert members(sync(phone, received, LAZY)["rooms"]["join"][room]) == {carol.user_id}

    def test_full_state_has_the_user_and_the_senders(self, people: list[User], room: str) -> None:
        alice, bob, *_ = people
        since = sync(alice, filter=LAZY)["next_batch"]
        rooms.say(bob, room)
        joined = sync(alice, since, LAZY, full_state="true")["rooms"]["join"][room]
        assert members(joined) == {alice.user_id, bob.user_id}
