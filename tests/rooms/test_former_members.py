"""A former member reads the state of the room as it was when they left, whatever their membership
becomes later, and by every endpoint.

spec: client-server-api#room-history-visibility
"""

import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest

from tests.helpers.room_actions import (
    create,
    invite,
    join,
    leave,
    membership,
    ok,
    room_path,
    say,
    set_state,
)
from tests.helpers.server import TestServer, User
from tests.helpers.sliding_client import STABLE, SlidingClient, a_list
from tests.helpers.spaces import hierarchy_path, summary_path
from tests.helpers.sync_requests import sync

EVERYTHING = [["*", "*"]]


def knock_and_take_it_back(_alice: User, bob: User, room_id: str) -> None:
    ok(bob.post(f"/_matrix/client/v3/knock/{room_id}"))
    leave(bob, room_id)


def decline_an_invite(alice: User, bob: User, room_id: str) -> None:
    invite(alice, room_id, bob)
    leave(bob, room_id)


def see_an_invite_taken_back(alice: User, bob: User, room_id: str) -> None:
    invite(alice, room_id, bob)
    ok(membership(alice, room_id, "kick", bob))


def be_banned(alice: User, bob: User, room_id: str) -> None:
    ok(membership(alice, room_id, "ban", bob))


def be_banned_and_let_off(alice: User, bob: User, room_id: str) -> None:
    ok(membership(alice, room_id, "ban", bob))
    ok(membership(alice, room_id, "unban", bob))


LATER = (
    knock_and_take_it_back,
    decline_an_invite,
    see_an_invite_taken_back,
    be_banned,
    be_banned_and_let_off,
)
"""Later changes to the membership of a former member."""


class Room:
    """A room that bob was put out of; then its state changed; then something became of his
    membership, twice."""

    def __init__(self, server: TestServer, later: Callable[[User, User, str], None]) -> None:
        self.alice, self.bob, self.carol = (
            server.register(name) for name in ("alice", "bob", "carol")
        )
        start: list[dict[str, Any]] = [
            {"type": "m.room.join_rules", "content": {"join_rule": "knock"}},
            {"type": "m.room.history_visibility", "content": {"history_visibility": "joined"}},
        ]
        self.room_id = create(self.alice, preset="private_chat", name="before", initial_state=start)
        invite(self.alice, self.room_id, self.bob)
        join(self.bob, self.room_id)
        self.own_event = say(self.bob, self.room_id, "mine")
        self.inside = sync(self.bob)["next_batch"]
        self.sliding = SlidingClient(self.bob, lists={"all": a_list([0, 9], state=EVERYTHING)})
        self.sliding.sync()
        ok(membership(self.alice, self.room_id, "kick", self.bob))
        self.outside = sync(self.bob, self.inside)["next_batch"]
        self.sliding.sync()
        for turn in range(2):
            set_state(self.alice, self.room_id, "m.room.name", {"name": f"SECRET {turn}"})
            set_state(self.alice, self.room_id, "m.room.topic", {"topic": f"SECRET {turn}"})
            set_state(
                self.alice, self.room_id, "m.room.pinned_events", {"pinned": [f"$SECRET{turn}"]}
            )
            invite(self.alice, self.room_id, self.carol)
            join(self.carol, self.room_id)
            later(self.alice, self.bob, self.room_id)
            set_state(self.alice, self.room_id, "m.room.topic", {"topic": f"SECRET after {turn}"})
            leave(self.carol, self.room_id)


def by_first_sync(room: Room) -> Iterator[list[Any]]:
    for limit in (1, 30):
        for after in ("false", "true"):
            wanted = {"room": {"include_leave": True, "timeline": {"limit": limit}}}
            left = sync(room.bob, filter=wanted, use_state_after=after)["rooms"]["leave"][
                room.room_id
            ]
            received = [
                *left["state_after" if after == "true" else "state"]["events"],
                *left["timeline"]["events"],
            ]
            assert {"m.room.create", "m.room.name"} <= {event["type"] for event in received}
            yield received


def by_further_sync(room: Room) -> Iterator[list[Any]]:
    for since in (room.inside, room.outside):
        for limit in (0, 1, 30):
            for after in ("false", "true"):
                wanted = {"room": {"timeline": {"limit": limit}}}
                left = sync(room.bob, since, wanted, use_state_after=after)["rooms"]["leave"][
                    room.room_id
                ]
                yield [
                    *left["state_after" if after == "true" else "state"]["events"],
                    *left["timeline"]["events"],
                ]


def by_sliding_subscription(room: Room) -> Iterator[list[Any]]:
    wanted = {"timeline_limit": 1, "required_state": EVERYTHING}
    entry = SlidingClient(room.bob, "new", room_subscriptions={room.room_id: wanted}).sync()[
        "rooms"
    ][room.room_id]
    assert entry["name"] == "before"
    yield [*entry["required_state"], *entry["timeline"]]
    stable = {"timeline_limit": 30, "required_state": {"include": [{}]}}
    answer = ok(room.bob.post(STABLE, {"room_subscriptions": {room.room_id: stable}}))
    entry = answer["rooms"][room.room_id]
    yield [*entry["required_state"], *entry["timeline"]]


def by_sliding_on(room: Room) -> Iterator[list[Any]]:
    room.sliding.body["room_subscriptions"] = {
        room.room_id: {"timeline_limit": 1, "required_state": EVERYTHING}
    }
    entry = room.sliding.sync()["rooms"][room.room_id]
    assert "name" not in entry
    assert "initial" not in entry
    changed = {(event["type"], event["state_key"]) for event in entry["required_state"]}
    assert changed == {("m.room.member", room.bob.user_id)}, (
        "what has changed since is not told either"
    )
    yield [*entry["required_state"], *entry["timeline"]]


def by_context(room: Room) -> Iterator[list[Any]]:
    for wanted in ("{}", '{"lazy_load_members":true}'):
        query = {"limit": 100, "filter": wanted}
        context = ok(room.bob.get(room_path(room.room_id, "context", room.own_event, **query)))
        yield [
            *context["state"],
            *context["events_before"],
            context["event"],
            *context["events_after"],
        ]


def by_members_at(room: Room) -> Iterator[list[Any]]:
    now = sync(room.bob)["next_batch"]
    yield ok(room.bob.get(room_path(room.room_id, "members", at=now)))["chunk"]


def by_state(room: Room) -> Iterator[list[Any]]:
    yield ok(room.bob.get(room_path(room.room_id, "state")))
    yield ok(room.bob.get(room_path(room.room_id, "members")))["chunk"]


def by_first_sync_of_old(room: Room) -> Iterator[list[Any]]:
    rooms = [ok(room.bob.get(room_path(room.room_id, "initialSync")))]
    rooms += ok(room.bob.get("/_matrix/client/v3/initialSync?archived=true"))["rooms"]
    for each in rooms:
        yield [*each["state"], *each["messages"]["chunk"]]


def by_messages(room: Room) -> Iterator[list[Any]]:
    wanted = json.dumps({"lazy_load_members": True})
    for direction in ("b", "f"):
        page = ok(
            room.bob.get(
                room_path(room.room_id, "messages", dir=direction, limit=100, filter=wanted)
            )
        )
        yield [*page["chunk"], *page.get("state", [])]


WAYS = (
    by_first_sync,
    by_further_sync,
    by_sliding_subscription,
    by_sliding_on,
    by_context,
    by_members_at,
    by_state,
    by_first_sync_of_old,
    by_messages,
)


@pytest.mark.parametrize("later", LATER)
def test_a_former_member_reads_nothing_later(
    server: TestServer, later: Callable[[User, User, str], None]
) -> None:
    room = Room(server, later)
    for way in WAYS:
        for events in way(room):
            assert "SECRET" not in json.dumps(events), way.__name__
            members = {event["state_key"] for event in events if event["type"] == "m.room.member"}
            assert members <= {room.alice.user_id, room.bob.user_id}, way.__name__
    assert room.bob.get(room_path(room.room_id, "aliases")).status == 403
    assert room.bob.get(room_path(room.room_id, "joined_members")).status == 403


def test_a_former_member_knows_their_own_membership(server: TestServer) -> None:
    room = Room(server, be_banned)

    def own(events: list[Any]) -> set[str]:
        key = ("m.room.member", room.bob.user_id)
        return {
            event["content"]["membership"]
            for event in events
            if (event["type"], event["state_key"]) == key
        }

    for since, limit in ((None, 0), (room.outside, 0)):
        wanted = {"room": {"include_leave": True, "timeline": {"limit": limit}}}
        left = sync(room.bob, since, wanted)["rooms"]["leave"][room.room_id]
        assert own(left["state"]["events"]) == {"ban"}
    for state in (EVERYTHING, [["m.room.member", "$ME"]], [["m.room.member", "$LAZY"]]):
        client = SlidingClient(room.bob, str(state), lists={"all": a_list([0, 9], state=state)})
        assert own(client.sync()["rooms"][room.room_id]["required_state"]) == {"ban"}


def test_list_filters_use_the_state_at_the_leave(server: TestServer) -> None:
    room = Room(server, be_banned)
    set_state(room.alice, room.room_id, "m.room.encryption", {"algorithm": "m.megolm.v1.aes-sha2"})

    def shown(**filters: Any) -> bool:
        client = SlidingClient(room.bob, str(filters), lists={"a": a_list([0, 9], **filters)})
        return room.room_id in client.sync()["rooms"]

    assert shown(room_name_like="before", is_encrypted=False)
    assert not shown(room_name_like="secret")
    assert not shown(is_encrypted=True)


def test_the_previous_content_of_a_visible_event_is_shown_only_if_visible(
    server: TestServer,
) -> None:
    alice, bob, carol = (server.register(name) for name in ("alice", "bob", "carol"))
    room_id = create(alice, preset="public_chat")
    set_state(alice, room_id, "m.room.history_visibility", {"history_visibility": "joined"})
    set_state(alice, room_id, "m.room.topic", {"topic": "known"})
    join(bob, room_id)
    first = set_state(alice, room_id, "m.room.topic", {"topic": "mentioned"})
    leave(bob, room_id)
    set_state(alice, room_id, "m.room.topic", {"topic": "SECRET"})
    set_state(alice, room_id, "m.room.history_visibility", {"history_visibility": "world_readable"})
    opened = set_state(alice, room_id, "m.room.topic", {"topic": "open"})
    last = set_state(alice, room_id, "m.room.topic", {"topic": "still open"})

    def former(reader: User, event_id: str) -> Any:
        event = ok(reader.get(room_path(room_id, "event", event_id)))
        return event["unsigned"].get("prev_content", {}).get("topic")

    for reader in (bob, carol):
        assert former(reader, opened) is None
        assert former(reader, last) == "open"
    assert former(alice, opened) == "SECRET"
    assert former(bob, first) == "known", "he was in the room then, and knew its state"
    join(carol, room_id)
    assert former(carol, opened) is None, "from before she came"


def test_a_user_who_never_joined_sees_only_their_own_membership(server: TestServer) -> None:
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice, preset="private_chat", name="SECRET")
    since = sync(bob)["next_batch"]
    decline_an_invite(alice, bob, room_id)
    left = sync(bob, since)["rooms"]["leave"][room_id]
    received = [*left["state"]["events"], *left["timeline"]["events"]]
    assert {(event["type"], event.get("state_key")) for event in received} == {
        ("m.room.member", bob.user_id)
    }


def test_a_former_member_gets_the_summary_that_a_non_member_gets(server: TestServer) -> None:
    room = Room(server, decline_an_invite)
    set_state(room.alice, room.room_id, "m.room.join_rules", {"join_rule": "invite"})
    assert room.bob.get(summary_path(room.room_id)).status in (403, 404)
    assert room.bob.get(hierarchy_path(room.room_id)).status in (403, 404)
    at = quote("9999999999999")
    nearest = room.bob.get(
        f"/_matrix/client/v1/rooms/{room.room_id}/timestamp_to_event?dir=b&ts={at}"
    )
    event = ok(room.bob.get(room_path(room.room_id, "event", nearest.json["event_id"])))
    assert event["state_key"] == room.bob.user_id
