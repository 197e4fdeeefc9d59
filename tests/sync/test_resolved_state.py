"""Sync responses when the resolution of a fork decides otherwise than the events that arrive."""

import pytest

from federation.protocol.ids import RoomID
from tests.helpers.federated_rooms import NORTH, SOUTH, create_room
from tests.helpers.network import Network
from tests.helpers.room_actions import say, set_state
from tests.helpers.server import User
from tests.helpers.sliding_client import SlidingClient, a_list
from tests.helpers.sliding_follower import EVERYTHING, SlidingFollower
from tests.helpers.sync_requests import Json, keys, sync

TOPIC = ("m.room.topic", "")


class Town:
    """Alice, Bob and Carol in the north and Dave in the south, who all but Carol share a public
    room."""

    def __init__(self, network: Network) -> None:
        self.network = network
        north, south = network.add(NORTH), network.add(SOUTH)
        self.alice, self.bob, self.carol = (
            north.register(name) for name in ("alice", "bob", "carol")
        )
        self.dave = south.register("dave")
        network.start_sending()
        self.room_id = create_room(
            self.alice, power_level_content_override={"users_default": 50, "invite": 0}
        )
        for user in (self.bob, self.dave):
            answer = user.post(f"/_matrix/client/v3/join/{self.room_id}?via={NORTH}")
            assert answer.status == 200, answer.body
        levels = self.alice.get(
            f"/_matrix/client/v3/rooms/{self.room_id}/state/m.room.power_levels"
        ).json
        people = {self.alice.user_id: 100, self.dave.user_id: 100}
        set_state(self.alice, self.room_id, "m.room.power_levels", {**levels, "users": people})
        set_state(self.alice, self.room_id, "m.room.topic", {"topic": "old"})
        self.pass_time()

    def pass_time(self, seconds: float = 1) -> None:
        self.network.clock.advance(seconds)
        self.network.settle()

    def act(self, user: User, verb: str, whom: User | None = None) -> None:
        body = {} if whom is None else {"user_id": str(whom.user_id)}
        answer = user.post(f"/_matrix/client/v3/rooms/{self.room_id}/{verb}", body)
        assert answer.status == 200, answer.body

    def part(self) -> None:
        """Nothing reaches the other side from now on."""
        self.network.hold()

    def meet(self) -> None:
        """All of it arrives."""
        self.network.deliver()
        self.pass_time()


@pytest.fixture
def town(network: Network) -> Town:
    return Town(network)


def topic_of(events: list[Json]) -> str:
    (topic,) = (event["content"]["topic"] for event in events if event["type"] == "m.room.topic")
    return str(topic)


def news(user: User, room_id: RoomID, since: str, *, after: bool = False) -> Json:
    return dict(sync(user, since, use_state_after=str(after).lower())["rooms"]["join"][room_id])


def test_a_state_change_reverted_without_an_event_is_sent(town: Town) -> None:
    since = sync(town.alice)["next_batch"]
    sliding = SlidingFollower(town.alice)
    sliding.catch_up()
    town.part()
    town.act(town.dave, "ban", town.bob)
    town.pass_time()
    set_state(town.bob, town.room_id, "m.room.topic", {"topic": "new"})
    sliding.catch_up()
    told = sync(town.alice, since)
    assert topic_of(told["rooms"]["join"][town.room_id]["timeline"]["events"]) == "new"
    assert sliding.rooms[town.room_id].state[TOPIC]["content"] == {"topic": "new"}
    town.meet()
    room = news(town.alice, town.room_id, told["next_batch"])
    assert keys([event for event in room["timeline"]["events"] if "state_key" in event]) == {
        ("m.room.member", town.bob.user_id)
    }
    assert topic_of(room["state"]["events"]) == "old"
    room = news(town.alice, town.room_id, told["next_batch"], after=True)
    assert topic_of(room["state_after"]["events"]) == "old"
    sliding.sync(EVERYTHING)
    assert sliding.rooms[town.room_id].state[TOPIC]["content"] == {"topic": "old"}
    whole = sync(town.alice)["rooms"]["join"][town.room_id]
    assert topic_of(whole["state"]["events"]) == "old"
    assert keys([event for event in whole["timeline"]["events"] if "state_key" in event]) == {
        ("m.room.member", town.bob.user_id)
    }


def test_a_state_change_reverted_by_a_filtered_event_is_sent(town: Town) -> None:
    """As above, for who wants no memberships in the timeline: so nothing in it says that there was
    a resolution."""
    since = sync(town.alice)["next_batch"]
    town.part()
    town.act(town.dave, "ban", town.bob)
    town.pass_time()
    set_state(town.bob, town.room_id, "m.room.topic", {"topic": "new"})
    town.meet()
    answer = sync(town.alice, since, {"room": {"timeline": {"not_types": ["m.room.member"]}}})
    room = answer["rooms"]["join"][town.room_id]
    assert ("m.room.topic", "") not in keys(
        [event for event in room["timeline"]["events"] if "state_key" in event]
    )
    assert room["timeline"]["limited"] is True
    assert keys(room["state"]["events"]) == {("m.room.member", town.bob.user_id)}


def test_a_user_kicked_after_a_resolution_sees_the_kick(town: Town) -> None:
    since = sync(town.bob)["next_batch"]
    town.part()
    set_state(town.dave, town.room_id, "m.room.topic", {"topic": "south"})
    town.pass_time()
    set_state(town.alice, town.room_id, "m.room.topic", {"topic": "north"})
    town.meet()
    said = say(town.alice, town.room_id, "farewell")
    town.act(town.alice, "kick", town.bob)
    set_state(town.alice, town.room_id, "m.room.topic", {"topic": "not for bob"})
    town.act(town.alice, "ban", town.bob)
    room = sync(town.bob, since)["rooms"]["leave"][town.room_id]
    told = room["timeline"]["events"]
    assert [event["content"].get("membership") for event in told] == [None, "leave", "ban"]
    assert told[0]["event_id"] == said
    assert topic_of(room["state"]["events"]) == "north"


@pytest.mark.parametrize("is_new", [True, False])
def test_a_reverted_rejoin_is_sent_as_a_leave(town: Town, is_new: bool) -> None:
    """Bob had left before, and what took his coming back from him is not his to see."""
    town.act(town.bob, "leave")
    town.act(town.alice, "invite", town.bob)
    town.pass_time()
    since = None if is_new else sync(town.bob)["next_batch"]
    town.part()
    set_state(town.dave, town.room_id, "m.room.join_rules", {"join_rule": "invite"})
    town.pass_time()
    town.act(town.bob, "leave")
    town.act(town.bob, "join")
    town.meet()
    room = sync(town.bob, since, {"room": {"include_leave": True}})["rooms"]["leave"][town.room_id]
    changes = room["state"]["events"] + [
        event for event in room["timeline"]["events"] if "state_key" in event
    ]
    own = [
        event["content"]["membership"]
        for event in changes
        if event.get("state_key") == town.bob.user_id
    ]
    assert own[-1] == "leave"


def test_a_late_change_that_loses_the_resolution_is_reverted(town: Town) -> None:
    """A client that computes the state from the timeline gets a timeline that begins after it; all
    others find it in the timeline."""
    since = sync(town.alice)["next_batch"]
    town.part()
    late = set_state(town.dave, town.room_id, "m.room.topic", {"topic": "south"})
    after = say(town.dave, town.room_id, "and this")
    town.pass_time()
    set_state(town.alice, town.room_id, "m.room.topic", {"topic": "north"})
    told = sync(town.alice, since)["next_batch"]
    town.meet()
    current = town.alice.get(f"/_matrix/client/v3/rooms/{town.room_id}/state/m.room.topic").json
    assert current == {"topic": "north"}
    room = news(town.alice, town.room_id, told, after=True)
    assert [event["event_id"] for event in room["timeline"]["events"]] == [late, after]
    assert room["state_after"]["events"] == []
    room = news(town.alice, town.room_id, told)
    assert [event["event_id"] for event in room["timeline"]["events"]] == [after]
    assert room["timeline"]["limited"] is True
    assert room["state"]["events"] == []
    path = (
        f"/_matrix/client/v3/rooms/{town.room_id}/messages?dir=b&limit=1"
        f"&from={room['timeline']['prev_batch']}"
    )
    assert town.alice.get(path).json["chunk"][0]["event_id"] == late
    whole = sync(town.alice)["rooms"]["join"][town.room_id]
    assert late not in [event["event_id"] for event in whole["timeline"]["events"]]
    assert topic_of(whole["state"]["events"]) == "north"


def test_a_membership_reverted_without_an_event_is_sent(town: Town) -> None:
    """Carol came while the room was open, and elsewhere it had been closed before: then she never
    was in it."""
    since = sync(town.alice)["next_batch"]
    town.part()
    set_state(town.dave, town.room_id, "m.room.join_rules", {"join_rule": "invite"})
    town.pass_time()
    town.act(town.carol, "join")
    carols = [
        SlidingFollower(town.carol),
        SlidingFollower(town.carol, stable=True, conn_id="other"),
    ]
    alices = SlidingFollower(town.alice, stable=True)
    for follower in (*carols, alices):
        follower.catch_up()
    assert ("m.room.member", town.carol.user_id) in alices.rooms[town.room_id].state
    hers = sync(town.carol)["next_batch"]
    theirs = sync(town.alice, since)["next_batch"]
    town.meet()
    assert town.room_id in sync(town.carol, hers)["rooms"]["leave"]
    assert news(town.alice, town.room_id, theirs)["summary"]["m.joined_member_count"] == 3
    alices.catch_up()
    assert ("m.room.member", town.carol.user_id) not in alices.rooms[town.room_id].state
    assert alices.rooms[town.room_id].fields["joined_count"] == 3
    for follower in carols:
        entry = follower.ask(EVERYTHING)["rooms"][town.room_id]
        assert entry["initial"] is True
        assert ("m.room.member", town.carol.user_id) not in keys(entry["required_state"])
        follower.catch_up()


def everything_read(user: User, room_id: RoomID, event_id: str) -> dict[str, list[str]]:
    """Return the other members that a user sees, by the API that they use."""
    room = f"/_matrix/client/v3/rooms/{room_id}"
    answers = {
        "backwards": f"{room}/messages?dir=b&limit=50",
        "forwards": f"{room}/messages?dir=f&limit=50",
        "state": f"{room}/state",
        "members": f"{room}/members",
        "context": f"{room}/context/{event_id}?limit=50",
        "threads": f"/_matrix/client/v1/rooms/{room_id}/threads",
    }
    told: dict[str, list[str]] = {}
    for name, path in answers.items():
        answer = user.get(path)
        assert answer.status == 200, (name, answer.body)
        parts = answer.json if isinstance(answer.json, list) else []
        if isinstance(answer.json, dict):
            for part in ("chunk", "state", "events_before", "event", "events_after"):
                found = answer.json.get(part, [])
                parts += found if isinstance(found, list) else [found]
        told[name] = sorted(
            event["event_id"] for event in parts if event.get("state_key") != user.user_id
        )
    return told


@pytest.mark.parametrize("later", ["", "ban"])
@pytest.mark.parametrize("how", ["closed", "kicked"])
def test_a_user_removed_without_an_event_reads_the_room_as_they_saw_it(
    town: Town, how: str, later: str
) -> None:
    """As who left then: whatever the resolution put in the place of their joining, and whatever
    becomes of that later."""
    town.act(town.alice, "invite", town.carol)
    town.pass_time()
    town.part()
    set_state(town.dave, town.room_id, "m.room.join_rules", {"join_rule": "invite"})
    town.act(town.dave, "kick" if how == "kicked" else "ban", town.carol)
    if how == "closed":
        town.act(town.dave, "unban", town.carol)
    town.pass_time()
    town.act(town.carol, "join")
    root = say(town.alice, town.room_id, "to carol")
    for number in range(5):
        said = say(town.carol, town.room_id, f"by carol {number}")
    before = everything_read(town.carol, town.room_id, said)
    town.meet()
    assert town.alice.get(f"/_matrix/client/v3/rooms/{town.room_id}/joined_members").json[
        "joined"
    ].keys() == {
        town.alice.user_id,
        town.bob.user_id,
        town.dave.user_id,
    }
    say(town.alice, town.room_id, "not for carol")
    set_state(town.alice, town.room_id, "m.room.topic", {"topic": "not for carol"})
    if later:
        town.act(town.alice, later, town.carol)
    after = everything_read(town.carol, town.room_id, said)
    assert {root, said} <= set(after["backwards"]) & set(after["forwards"]) & set(after["context"])
    for name in ("backwards", "forwards", "context"):
        assert set(before[name]) <= set(after[name]), name
    told = town.carol.get(f"/_matrix/client/v3/rooms/{town.room_id}/state").json
    assert topic_of(told) == "old"
    assert town.carol.get(f"/_matrix/client/v3/rooms/{town.room_id}/state/m.room.topic").json == {
        "topic": "old"
    }
    assert "not for carol" not in str(
        [town.carol.get(f"/_matrix/client/v3/rooms/{town.room_id}/messages?dir=b").json]
    )
    assert sync(town.carol, None, {"room": {"include_leave": True}})["rooms"]["leave"][
        town.room_id
    ]["timeline"]["events"]


def test_list_filters_use_a_name_reverted_without_an_event(town: Town) -> None:
    set_state(town.alice, town.room_id, "m.room.name", {"name": "tea"})
    town.pass_time()
    town.part()
    town.act(town.dave, "ban", town.bob)
    town.pass_time()
    set_state(town.bob, town.room_id, "m.room.name", {"name": "coffee"})

    def shown(name: str) -> set[str]:
        lists = {"all": a_list([0, 9], room_name_like=name)}
        return set(SlidingClient(town.alice, lists=lists).sync()["rooms"])

    assert (shown("tea"), shown("coffee")) == (set(), {town.room_id})
    town.meet()
    assert (shown("tea"), shown("coffee")) == ({town.room_id}, set())


def test_members_at_a_token_are_those_of_the_resolved_state(town: Town) -> None:
    """Clients that load members lazily ask for all of them at the token of their latest /sync."""
    path = f"/_matrix/client/v3/rooms/{town.room_id}/members"
    before = sync(town.alice)["next_batch"]
    town.part()
    town.act(town.carol, "join")
    set_state(town.alice, town.room_id, "m.room.topic", {"topic": "new"})
    town.pass_time()
    say(town.dave, town.room_id, "from the other side")
    town.meet()
    now = sync(town.alice)["next_batch"]

    def members(at: str) -> set[str]:
        events = town.alice.get(f"{path}?membership=join&at={at}").json["chunk"]
        return {event["state_key"] for event in events}

    everybody = {str(user.user_id) for user in (town.alice, town.bob, town.carol, town.dave)}
    assert members(now) == everybody
    assert members(before) == everybody - {town.carol.user_id}


def test_context_returns_the_members_of_all_senders(town: Town) -> None:
    """Also who came in on one side, while the last of the events is from the other."""
    town.part()
    town.act(town.carol, "join")
    hers = say(town.carol, town.room_id, "I am here")
    town.pass_time()
    for number in range(3):
        say(town.dave, town.room_id, f"from the other side {number}")
    town.meet()
    path = f"/_matrix/client/v3/rooms/{town.room_id}/context/{hers}"
    answer = town.alice.get(f"{path}?limit=20&filter=%7B%22lazy_load_members%22%3Atrue%7D").json
    speak = {
        event["sender"]
        for event in (*answer["events_before"], answer["event"], *answer["events_after"])
    }
    assert {town.carol.user_id, town.dave.user_id} <= speak
    assert {event["state_key"] for event in answer["state"]} == speak
