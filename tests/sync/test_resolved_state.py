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


class ForkedRoom:
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
def forked(network: Network) -> ForkedRoom:
    return ForkedRoom(network)


def topic_of(events: list[Json]) -> str:
    (topic,) = (event["content"]["topic"] for event in events if event["type"] == "m.room.topic")
    return str(topic)


def room_update(user: User, room_id: RoomID, since: str, *, after: bool = False) -> Json:
    return dict(sync(user, since, use_state_after=str(after).lower())["rooms"]["join"][room_id])


def test_a_state_change_reverted_without_an_event_is_sent(forked: ForkedRoom) -> None:
    since = sync(forked.alice)["next_batch"]
    sliding = SlidingFollower(forked.alice)
    sliding.catch_up()
    forked.part()
    forked.act(forked.dave, "ban", forked.bob)
    forked.pass_time()
    set_state(forked.bob, forked.room_id, "m.room.topic", {"topic": "new"})
    sliding.catch_up()
    received = sync(forked.alice, since)
    assert topic_of(received["rooms"]["join"][forked.room_id]["timeline"]["events"]) == "new"
    assert sliding.rooms[forked.room_id].state[TOPIC]["content"] == {"topic": "new"}
    forked.meet()
    room = room_update(forked.alice, forked.room_id, received["next_batch"])
    assert keys([event for event in room["timeline"]["events"] if "state_key" in event]) == {
        ("m.room.member", forked.bob.user_id)
    }
    assert topic_of(room["state"]["events"]) == "old"
    room = room_update(forked.alice, forked.room_id, received["next_batch"], after=True)
    assert topic_of(room["state_after"]["events"]) == "old"
    sliding.sync(EVERYTHING)
    assert sliding.rooms[forked.room_id].state[TOPIC]["content"] == {"topic": "old"}
    whole = sync(forked.alice)["rooms"]["join"][forked.room_id]
    assert topic_of(whole["state"]["events"]) == "old"
    assert keys([event for event in whole["timeline"]["events"] if "state_key" in event]) == {
        ("m.room.member", forked.bob.user_id)
    }


def test_a_state_change_reverted_by_a_filtered_event_is_sent(forked: ForkedRoom) -> None:
    """As above, for who wants no memberships in the timeline: so nothing in it says that there was
    a resolution."""
    since = sync(forked.alice)["next_batch"]
    forked.part()
    forked.act(forked.dave, "ban", forked.bob)
    forked.pass_time()
    set_state(forked.bob, forked.room_id, "m.room.topic", {"topic": "new"})
    forked.meet()
    answer = sync(forked.alice, since, {"room": {"timeline": {"not_types": ["m.room.member"]}}})
    room = answer["rooms"]["join"][forked.room_id]
    assert ("m.room.topic", "") not in keys(
        [event for event in room["timeline"]["events"] if "state_key" in event]
    )
    assert room["timeline"]["limited"] is True
    assert keys(room["state"]["events"]) == {("m.room.member", forked.bob.user_id)}


def test_a_user_kicked_after_a_resolution_sees_the_kick(forked: ForkedRoom) -> None:
    since = sync(forked.bob)["next_batch"]
    forked.part()
    set_state(forked.dave, forked.room_id, "m.room.topic", {"topic": "south"})
    forked.pass_time()
    set_state(forked.alice, forked.room_id, "m.room.topic", {"topic": "north"})
    forked.meet()
    said = say(forked.alice, forked.room_id, "farewell")
    forked.act(forked.alice, "kick", forked.bob)
    set_state(forked.alice, forked.room_id, "m.room.topic", {"topic": "not for bob"})
    forked.act(forked.alice, "ban", forked.bob)
    room = sync(forked.bob, since)["rooms"]["leave"][forked.room_id]
    received = room["timeline"]["events"]
    assert [event["content"].get("membership") for event in received] == [None, "leave", "ban"]
    assert received[0]["event_id"] == said
    assert topic_of(room["state"]["events"]) == "north"


@pytest.mark.parametrize("is_new", [True, False])
def test_a_reverted_rejoin_is_sent_as_a_leave(forked: ForkedRoom, is_new: bool) -> None:
    """Bob had left before, and what took his coming back from him is not his to see."""
    forked.act(forked.bob, "leave")
    forked.act(forked.alice, "invite", forked.bob)
    forked.pass_time()
    since = None if is_new else sync(forked.bob)["next_batch"]
    forked.part()
    set_state(forked.dave, forked.room_id, "m.room.join_rules", {"join_rule": "invite"})
    forked.pass_time()
    forked.act(forked.bob, "leave")
    forked.act(forked.bob, "join")
    forked.meet()
    room = sync(forked.bob, since, {"room": {"include_leave": True}})["rooms"]["leave"][
        forked.room_id
    ]
    changes = room["state"]["events"] + [
        event for event in room["timeline"]["events"] if "state_key" in event
    ]
    own = [
        event["content"]["membership"]
        for event in changes
        if event.get("state_key") == forked.bob.user_id
    ]
    assert own[-1] == "leave"


def test_a_late_change_that_loses_the_resolution_is_reverted(forked: ForkedRoom) -> None:
    """A client that computes the state from the timeline gets a timeline that begins after it; all
    others find it in the timeline."""
    since = sync(forked.alice)["next_batch"]
    forked.part()
    late = set_state(forked.dave, forked.room_id, "m.room.topic", {"topic": "south"})
    after = say(forked.dave, forked.room_id, "and this")
    forked.pass_time()
    set_state(forked.alice, forked.room_id, "m.room.topic", {"topic": "north"})
    received = sync(forked.alice, since)["next_batch"]
    forked.meet()
    current = forked.alice.get(f"/_matrix/client/v3/rooms/{forked.room_id}/state/m.room.topic").json
    assert current == {"topic": "north"}
    room = room_update(forked.alice, forked.room_id, received, after=True)
    assert [event["event_id"] for event in room["timeline"]["events"]] == [late, after]
    assert room["state_after"]["events"] == []
    room = room_update(forked.alice, forked.room_id, received)
    assert [event["event_id"] for event in room["timeline"]["events"]] == [after]
    assert room["timeline"]["limited"] is True
    assert room["state"]["events"] == []
    path = (
        f"/_matrix/client/v3/rooms/{forked.room_id}/messages?dir=b&limit=1"
        f"&from={room['timeline']['prev_batch']}"
    )
    assert forked.alice.get(path).json["chunk"][0]["event_id"] == late
    whole = sync(forked.alice)["rooms"]["join"][forked.room_id]
    assert late not in [event["event_id"] for event in whole["timeline"]["events"]]
    assert topic_of(whole["state"]["events"]) == "north"


def test_a_membership_reverted_without_an_event_is_sent(forked: ForkedRoom) -> None:
    """Carol came while the room was open, and elsewhere it had been closed before: then she never
    was in it."""
    since = sync(forked.alice)["next_batch"]
    forked.part()
    set_state(forked.dave, forked.room_id, "m.room.join_rules", {"join_rule": "invite"})
    forked.pass_time()
    forked.act(forked.carol, "join")
    carols = [
        SlidingFollower(forked.carol),
        SlidingFollower(forked.carol, stable=True, conn_id="other"),
    ]
    alices = SlidingFollower(forked.alice, stable=True)
    for follower in (*carols, alices):
        follower.catch_up()
    assert ("m.room.member", forked.carol.user_id) in alices.rooms[forked.room_id].state
    hers = sync(forked.carol)["next_batch"]
    theirs = sync(forked.alice, since)["next_batch"]
    forked.meet()
    assert forked.room_id in sync(forked.carol, hers)["rooms"]["leave"]
    assert (
        room_update(forked.alice, forked.room_id, theirs)["summary"]["m.joined_member_count"] == 3
    )
    alices.catch_up()
    assert ("m.room.member", forked.carol.user_id) not in alices.rooms[forked.room_id].state
    assert alices.rooms[forked.room_id].fields["joined_count"] == 3
    for follower in carols:
        entry = follower.ask(EVERYTHING)["rooms"][forked.room_id]
        assert entry["initial"] is True
        assert ("m.room.member", forked.carol.user_id) not in keys(entry["required_state"])
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
    received: dict[str, list[str]] = {}
    for name, path in answers.items():
        answer = user.get(path)
        assert answer.status == 200, (name, answer.body)
        parts = answer.json if isinstance(answer.json, list) else []
        if isinstance(answer.json, dict):
            for part in ("chunk", "state", "events_before", "event", "events_after"):
                found = answer.json.get(part, [])
                parts += found if isinstance(found, list) else [found]
        received[name] = sorted(
            event["event_id"] for event in parts if event.get("state_key") != user.user_id
        )
    return received


@pytest.mark.parametrize("later", ["", "ban"])
@pytest.mark.parametrize("how", ["closed", "kicked"])
def test_a_user_removed_without_an_event_reads_the_room_as_they_saw_it(
    forked: ForkedRoom, how: str, later: str
) -> None:
    """As who left then: whatever the resolution put in the place of their joining, and whatever
    becomes of that later."""
    forked.act(forked.alice, "invite", forked.carol)
    forked.pass_time()
    forked.part()
    set_state(forked.dave, forked.room_id, "m.room.join_rules", {"join_rule": "invite"})
    forked.act(forked.dave, "kick" if how == "kicked" else "ban", forked.carol)
    if how == "closed":
        forked.act(forked.dave, "unban", forked.carol)
    forked.pass_time()
    forked.act(forked.carol, "join")
    root = say(forked.alice, forked.room_id, "to carol")
    for number in range(5):
        said = say(forked.carol, forked.room_id, f"by carol {number}")
    before = everything_read(forked.carol, forked.room_id, said)
    forked.meet()
    assert forked.alice.get(f"/_matrix/client/v3/rooms/{forked.room_id}/joined_members").json[
        "joined"
    ].keys() == {
        forked.alice.user_id,
        forked.bob.user_id,
        forked.dave.user_id,
    }
    say(forked.alice, forked.room_id, "not for carol")
    set_state(forked.alice, forked.room_id, "m.room.topic", {"topic": "not for carol"})
    if later:
        forked.act(forked.alice, later, forked.carol)
    after = everything_read(forked.carol, forked.room_id, said)
    assert {root, said} <= set(after["backwards"]) & set(after["forwards"]) & set(after["context"])
    for name in ("backwards", "forwards", "context"):
        assert set(before[name]) <= set(after[name]), name
    received = forked.carol.get(f"/_matrix/client/v3/rooms/{forked.room_id}/state").json
    assert topic_of(received) == "old"
    assert forked.carol.get(
        f"/_matrix/client/v3/rooms/{forked.room_id}/state/m.room.topic"
    ).json == {"topic": "old"}
    assert "not for carol" not in str(
        [forked.carol.get(f"/_matrix/client/v3/rooms/{forked.room_id}/messages?dir=b").json]
    )
    assert sync(forked.carol, None, {"room": {"include_leave": True}})["rooms"]["leave"][
        forked.room_id
    ]["timeline"]["events"]


def test_list_filters_use_a_name_reverted_without_an_event(forked: ForkedRoom) -> None:
    set_state(forked.alice, forked.room_id, "m.room.name", {"name": "tea"})
    forked.pass_time()
    forked.part()
    forked.act(forked.dave, "ban", forked.bob)
    forked.pass_time()
    set_state(forked.bob, forked.room_id, "m.room.name", {"name": "coffee"})

    def shown(name: str) -> set[str]:
        lists = {"all": a_list([0, 9], room_name_like=name)}
        return set(SlidingClient(forked.alice, lists=lists).sync()["rooms"])

    assert (shown("tea"), shown("coffee")) == (set(), {forked.room_id})
    forked.meet()
    assert (shown("tea"), shown("coffee")) == ({forked.room_id}, set())


def test_members_at_a_token_are_those_of_the_resolved_state(forked: ForkedRoom) -> None:
    """Clients that load members lazily ask for all of them at the token of their latest /sync."""
    path = f"/_matrix/client/v3/rooms/{forked.room_id}/members"
    before = sync(forked.alice)["next_batch"]
    forked.part()
    forked.act(forked.carol, "join")
    set_state(forked.alice, forked.room_id, "m.room.topic", {"topic": "new"})
    forked.pass_time()
    say(forked.dave, forked.room_id, "from the other side")
    forked.meet()
    now = sync(forked.alice)["next_batch"]

    def members(at: str) -> set[str]:
        events = forked.alice.get(f"{path}?membership=join&at={at}").json["chunk"]
        return {event["state_key"] for event in events}

    everybody = {
        str(user.user_id) for user in (forked.alice, forked.bob, forked.carol, forked.dave)
    }
    assert members(now) == everybody
    assert members(before) == everybody - {forked.carol.user_id}


def test_context_returns_the_members_of_all_senders(forked: ForkedRoom) -> None:
    """Also who came in on one side, while the last of the events is from the other."""
    forked.part()
    forked.act(forked.carol, "join")
    hers = say(forked.carol, forked.room_id, "I am here")
    forked.pass_time()
    for number in range(3):
        say(forked.dave, forked.room_id, f"from the other side {number}")
    forked.meet()
    path = f"/_matrix/client/v3/rooms/{forked.room_id}/context/{hers}"
    answer = forked.alice.get(f"{path}?limit=20&filter=%7B%22lazy_load_members%22%3Atrue%7D").json
    speak = {
        event["sender"]
        for event in (*answer["events_before"], answer["event"], *answer["events_after"])
    }
    assert {forked.carol.user_id, forked.dave.user_id} <= speak
    assert {event["state_key"] for event in answer["state"]} == speak
