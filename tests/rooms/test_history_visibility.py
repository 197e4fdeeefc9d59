"""Every way to read a room shows the same: what the history visibility lets its reader see, and
nothing else.

A room's life in steps; bob reads it twice, while he is in it and after he has left. What he may see
is one table; how it is read is another.

spec: client-server-api#room-history-visibility
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.helpers.event_search import begin_jobs, search, settle
from tests.helpers.room_actions import (
    create,
    invite,
    join,
    leave,
    messages,
    ok,
    put_event,
    room_path,
    say,
    set_state,
)
from tests.helpers.server import TestServer, User
from tests.helpers.sliding_client import SlidingClient, a_list
from tests.helpers.sync_requests import sync

BEFORE, INVITED, JOINED, GONE, BACK = "before", "invited", "joined", "gone", "back"

IN_THE_ROOM = {
    "world_readable": {BEFORE, INVITED, JOINED},
    "shared": {BEFORE, INVITED, JOINED},
    "invited": {INVITED, JOINED},
    "joined": {JOINED},
}
"""The messages that bob may see while he is in the room for the first time."""
LEFT = {
    "world_readable": {BEFORE, INVITED, JOINED, GONE},
    "shared": {BEFORE, INVITED, JOINED},
    "invited": {INVITED, JOINED},
    "joined": {JOINED},
}
"""After he has left."""
RETURNED = {
    "world_readable": {BEFORE, INVITED, JOINED, GONE, BACK},
    "shared": {BEFORE, INVITED, JOINED, GONE, BACK},
    "invited": {INVITED, JOINED, BACK},
    "joined": {JOINED, BACK},
}


@dataclass
class Life:
    """A room, what alice said in it at each step, and what belongs to that."""

    server: TestServer
    alice: User
    bob: User
    room_id: str
    root: str = ""
    """An event that bob always sees, to which the others relate."""
    since: str = ""
    said: dict[str, str] = field(default_factory=dict)
    roots: dict[str, str] = field(default_factory=dict)
    children: dict[str, str] = field(default_factory=dict)
    times: dict[str, int] = field(default_factory=dict)

    def step(self, name: str) -> None:
        """Something is said, a thread is begun, something refers to the event that bob sees."""
        self.server.clock.advance(3600)
        self.said[name] = say(self.alice, self.room_id, f"word {name}")
        self.times[name] = int(self.server.clock.seconds() * 1000)
        self.server.clock.advance(3600)
        self.roots[name] = say(self.alice, self.room_id, f"root {name}")
        self.relate("m.thread", self.roots[name], f"reply {name}")
        self.children[name] = self.relate("m.reference", self.root, f"child {name}")

    def relate(self, rel_type: str, target: str, text: str) -> str:
        relation = {"rel_type": rel_type, "event_id": target}
        content = {"msgtype": "m.text", "body": text, "m.relates_to": relation}
        return str(ok(put_event(self.alice, self.room_id, "m.room.message", content))["event_id"])

    def path(self, *rest: str, **query: object) -> str:
        return room_path(self.room_id, *rest, **query)


def live(server: TestServer, visibility: str) -> Life:
    """Up to bob's joining."""
    begin_jobs(server)
    alice, bob = server.register("alice"), server.register("bob")
    room_id = create(alice, preset="public_chat")
    set_state(alice, room_id, "m.room.history_visibility", {"history_visibility": "world_readable"})
    life = Life(server, alice, bob, room_id, say(alice, room_id, "hello"))
    set_state(alice, room_id, "m.room.history_visibility", {"history_visibility": visibility})
    life.step(BEFORE)
    invite(alice, room_id, bob)
    life.step(INVITED)
    join(bob, room_id)
    life.since = sync(bob)["next_batch"]
    life.step(JOINED)
    settle(server)
    return life


def in_events(life: Life, events: list[dict[str, Any]]) -> set[str]:
    """The steps of which something that was said is among the events."""
    ids = {event["event_id"] for event in events}
    return {name for name, event_id in life.said.items() if event_id in ids}


def by_messages_back(life: Life) -> set[str]:
    return in_events(life, messages(life.bob, life.room_id, "b", limit=1000)["chunk"])


def by_messages_forth(life: Life) -> set[str]:
    return in_events(life, messages(life.bob, life.room_id, "f", limit=1000)["chunk"])


def by_event(life: Life) -> set[str]:
    return found(life, lambda event_id: life.bob.get(life.path("event", event_id)).status)


def by_event_of_any_room(life: Life) -> set[str]:
    return found(
        life, lambda event_id: life.bob.get(f"/_matrix/client/v3/events/{event_id}").status
    )


def by_context(life: Life) -> set[str]:
    return found(
        life, lambda event_id: life.bob.get(life.path("context", event_id, limit=0)).status
    )


def by_surroundings(life: Life) -> set[str]:
    context = ok(life.bob.get(life.path("context", life.said[JOINED], limit=1000)))
    return in_events(life, [*context["events_before"], context["event"], *context["events_after"]])


def by_relations_of(life: Life) -> set[str]:
    def ask(event_id: str) -> int:
        return life.bob.get(f"/_matrix/client/v1/rooms/{life.room_id}/relations/{event_id}").status

    return found(life, ask)


def by_children(life: Life) -> set[str]:
    chunk = ok(
        life.bob.get(f"/_matrix/client/v1/rooms/{life.room_id}/relations/{life.root}?limit=100")
    )["chunk"]
    ids = {event["event_id"] for event in chunk}
    return {name for name, event_id in life.children.items() if event_id in ids}


def by_bundle(life: Life) -> set[str]:
    event = ok(life.bob.get(life.path("event", life.root)))
    named = {each["event_id"] for each in event["unsigned"]["m.relations"]["m.reference"]["chunk"]}
    return {name for name, event_id in life.children.items() if event_id in named}


def by_threads(life: Life) -> set[str]:
    chunk = ok(life.bob.get(f"/_matrix/client/v1/rooms/{life.room_id}/threads?limit=100"))["chunk"]
    ids = {event["event_id"] for event in chunk}
    return {name for name, event_id in life.roots.items() if event_id in ids}


def by_thread_subscription(life: Life) -> set[str]:
    def ask(event_id: str) -> int:
        path = f"/_matrix/client/v1/rooms/{life.room_id}/thread/{event_id}/subscription"
        return life.bob.put(path, {}).status

    return found(life, ask)


def by_search(life: Life) -> set[str]:
    results = search(life.bob, "word", filter={"rooms": [life.room_id], "limit": 100})["results"]
    return in_events(life, [each["result"] for each in results])


def by_search_context(life: Life) -> set[str]:
    around = {"before_limit": 100, "after_limit": 100}
    found: set[str] = set()
    for result in search(life.bob, "word", event_context=around)["results"]:
        context = result["context"]
        found |= in_events(
            life, [*context["events_before"], result["result"], *context["events_after"]]
        )
    return found


def by_time(life: Life) -> set[str]:
    found = set()
    for name, ts in life.times.items():
        answer = life.bob.get(
            f"/_matrix/client/v1/rooms/{life.room_id}/timestamp_to_event?ts={ts}&dir=f"
        )
        if answer.status == 200 and answer.json["event_id"] == life.said[name]:
            found.add(name)
    return found


def by_room_initial_sync(life: Life) -> set[str]:
    return in_events(
        life, ok(life.bob.get(life.path("initialSync", limit=100)))["messages"]["chunk"]
    )


def by_initial_sync(life: Life) -> set[str]:
    rooms = ok(life.bob.get("/_matrix/client/v3/initialSync?archived=true&limit=100"))["rooms"]
    (room,) = [room for room in rooms if room["room_id"] == life.room_id]
    return in_events(life, room["messages"]["chunk"])


WAYS: tuple[Callable[[Life], set[str]], ...] = (
    by_messages_back,
    by_messages_forth,
    by_event,
    by_event_of_any_room,
    by_context,
    by_surroundings,
    by_relations_of,
    by_children,
    by_bundle,
    by_threads,
    by_thread_subscription,
    by_search,
    by_search_context,
    by_time,
    by_room_initial_sync,
    by_initial_sync,
)
"""Ways to read a room without being in it."""


def by_sync(life: Life) -> set[str]:
    answer = sync(life.bob, filter={"room": {"include_leave": True, "timeline": {"limit": 1000}}})[
        "rooms"
    ]
    room = {**answer.get("join", {}), **answer.get("leave", {})}[life.room_id]
    return in_events(life, room["timeline"]["events"])


def by_sliding_sync(life: Life) -> set[str]:
    answer = SlidingClient(life.bob, lists={"all": a_list([0, 9], limit=1000)}).sync()
    return in_events(life, answer["rooms"][life.room_id]["timeline"])


OF_ONES_OWN: tuple[Callable[[Life], set[str]], ...] = (by_sync, by_sliding_sync)
"""Ways to read a room as its member."""


def found(life: Life, ask: Callable[[str], int]) -> set[str]:
    statuses = {name: ask(event_id) for name, event_id in life.said.items()}
    assert set(statuses.values()) <= {200, 404}
    return {name for name, status in statuses.items() if status == 200}


def seen_by(life: Life, *ways: Callable[[Life], set[str]]) -> dict[str, set[str]]:
    return {way.__name__: way(life) for way in ways}


@pytest.mark.parametrize("visibility", IN_THE_ROOM)
def test_every_endpoint_shows_the_same_events(server: TestServer, visibility: str) -> None:
    life = live(server, visibility)
    ways = (*WAYS, *OF_ONES_OWN)
    assert seen_by(life, *ways) == {way.__name__: IN_THE_ROOM[visibility] for way in ways}

    leave(life.bob, life.room_id)
    life.step(GONE)
    settle(server)
    expected = {way.__name__: LEFT[visibility] for way in WAYS}
    expected["by_search"] = LEFT[visibility] - {GONE}  # the search goes as far as the leaving
    assert seen_by(life, *WAYS) == expected
    (room,) = sync(life.bob, life.since, {"room": {"timeline": {"limit": 1000}}})["rooms"][
        "leave"
    ].values()
    assert in_events(life, room["timeline"]["events"]) == {JOINED}
    assert by_sync(life) == LEFT[visibility] - {GONE}

    join(life.bob, life.room_id)
    life.step(BACK)
    settle(server)
    assert seen_by(life, *ways) == {way.__name__: RETURNED[visibility] for way in ways}
