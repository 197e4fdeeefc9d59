"""Children of events: pages of them, their aggregations in the parents, duplicate reactions.

spec: client-server-api#forming-relationships-between-events,
client-server-api#aggregations-of-child-events
"""

import json
from typing import Any
from urllib.parse import quote

import pytest
from twisted.internet.defer import Deferred

from federation.protocol.ids import RoomID
from homeserver.services.rooms import relations
from tests.helpers.room_actions import (
    aggregations,
    create,
    edit,
    get_event,
    ignore,
    invite,
    join,
    leave,
    messages,
    ok,
    put_event,
    redact,
    refused,
    relate,
    room_path,
    say,
)
from tests.helpers.server import TestServer, User
from tests.helpers.sync_requests import sync

V1 = "/_matrix/client/v1"


@pytest.fixture
def room(alice: User, bob: User) -> str:
    room = create(alice, preset="private_chat")
    invite(alice, room, bob)
    join(bob, room)
    return room


def reaction(target: str, key: str = "👍") -> dict[str, Any]:
    return {"m.relates_to": {"rel_type": "m.annotation", "event_id": target, "key": key}}


def react(user: User, room: str, target: str, key: str = "👍") -> str:
    return str(ok(put_event(user, room, "m.reaction", reaction(target, key)))["event_id"])


def path(room: str, event: str, *rest: str, **query: object) -> str:
    words = "&".join(f"{name.rstrip('_')}={quote(str(value))}" for name, value in query.items())
    return "/".join([V1, "rooms", quote(room), "relations", quote(event), *rest]) + (
        f"?{words}" if words else ""
    )


def children(user: User, room: str, event: str, *rest: str, **query: object) -> list[str]:
    return [child["event_id"] for child in ok(user.get(path(room, event, *rest, **query)))["chunk"]]


def test_children_come_newest_first_and_by_type(alice: User, bob: User, room: str) -> None:
    parent = say(alice, room, "parent")
    say(alice, room, "no relation")
    first = relate(bob, room, parent, "m.thread")
    second = react(alice, room, parent)
    third = relate(bob, room, parent, "m.thread")
    assert children(bob, room, parent) == [third, second, first]
    assert children(bob, room, parent, dir="f") == [first, second, third]
    assert children(bob, room, parent, "m.thread") == [third, first]
    assert children(bob, room, parent, "m.annotation", "m.reaction") == [second]
    assert children(bob, room, parent, "m.annotation", "m.room.message") == []
    unstable = path(room, parent).replace("/v1/", "/unstable/")
    assert ok(bob.get(unstable)) == ok(bob.get(path(room, parent)))


@pytest.mark.parametrize("direction", ["b", "f"])
def test_the_pages_together_have_all_children(alice: User, room: str, direction: str) -> None:
    parent = say(alice, room, "parent")
    sent = [relate(alice, room, parent, "org.example") for _ in range(5)]
    found: list[str] = []
    page = ok(alice.get(path(room, parent, dir=direction, limit=2)))
    assert "prev_batch" not in page
    found += [event["event_id"] for event in page["chunk"]]
    pages = 1
    while "next_batch" in page:
        token = page["next_batch"]
        page = ok(alice.get(path(room, parent, dir=direction, limit=2, from_=token)))
        assert page["prev_batch"] == token
        found += [event["event_id"] for event in page["chunk"]]
        pages += 1
    assert found == (sent if direction == "f" else sent[::-1])
    assert pages == 3


def test_a_sync_token_can_end_a_page(alice: User, room: str) -> None:
    parent = say(alice, room, "parent")
    relate(alice, room, parent, "org.example")
    since = sync(alice)["next_batch"]
    later = relate(alice, room, parent, "org.example")
    assert children(alice, room, parent, to=since) == [later]
    assert refused(alice.get(path(room, parent, from_="x"))) == (400, "M_INVALID_PARAM")


def test_children_of_children_are_returned_recursively(alice: User, room: str) -> None:
    events: list[str] = [say(alice, room, "parent")]
    for _ in range(5):
        events.append(relate(alice, room, events[-1], "org.example"))
    answer = ok(alice.get(path(room, events[0], recurse="true")))
    assert [event["event_id"] for event in answer["chunk"]] == events[3:0:-1]
    assert answer["recursion_depth"] == 3
    answer = ok(alice.get(path(room, events[0], recurse="false")))
    assert [event["event_id"] for event in answer["chunk"]] == [events[1]]
    assert answer["recursion_depth"] == 1
    assert "recursion_depth" not in ok(alice.get(path(room, events[0])))
    other = relate(alice, room, events[1], "org.example.other")
    assert other not in children(alice, room, events[0], "org.example", recurse="true")


@pytest.mark.parametrize(("most", "depth"), [(6, 3), (5, 2), (3, 1), (1, 1)])
def test_with_very_many_descendants_the_depth_is_reduced(
    alice: User, room: str, monkeypatch: pytest.MonkeyPatch, most: int, depth: int
) -> None:
    """And the answer says so; each page is one of what it tells."""
    monkeypatch.setattr(relations, "MAX_DESCENDANTS", most)
    parent = say(alice, room, "parent")
    replies = [relate(alice, room, parent, "m.thread") for _ in range(2)]
    edits = [relate(alice, room, each, "org.example") for each in replies]
    marks = [relate(alice, room, each, "org.example.x") for each in edits]
    found: list[str] = []
    token: dict[str, str] = {}
    while True:
        answer = ok(alice.get(path(room, parent, recurse="true", limit="2", **token)))
        assert answer["recursion_depth"] == depth
        found += [event["event_id"] for event in answer["chunk"]]
        if "next_batch" not in answer:
            break
        token = {"from_": answer["next_batch"]}
    assert found == [*replies, *edits, *marks][: 2 * depth][::-1]


def test_without_access_to_the_parent_no_children_are_returned(
    server: TestServer, alice: User, room: str
) -> None:
    parent = say(alice, room, "parent")
    relate(alice, room, parent, "org.example")
    eve = server.register("eve")
    assert refused(eve.get(path(room, parent))) == (403, "M_FORBIDDEN")
    assert refused(alice.get(path(room, "$unknown"))) == (404, "M_NOT_FOUND")
    elsewhere = create(alice)
    assert refused(alice.get(path(elsewhere, parent))) == (404, "M_NOT_FOUND")


def test_a_former_member_sees_no_later_children(alice: User, bob: User, room: str) -> None:
    parent = say(alice, room, "parent")
    first = relate(alice, room, parent, "m.thread")
    leave(bob, room)
    second = relate(alice, room, parent, "m.thread")
    assert children(bob, room, parent) == [first]
    assert children(alice, room, parent) == [second, first]
    assert aggregations(bob, room, parent)["m.thread"]["latest_event"]["event_id"] == first


def test_a_child_in_another_room_does_not_count(alice: User, room: str) -> None:
    parent = say(alice, room, "parent")
    edit(alice, create(alice), parent, "from elsewhere")
    assert children(alice, room, parent) == []
    assert aggregations(alice, room, parent) == {}


def test_an_event_has_its_latest_edit(alice: User, bob: User, room: str) -> None:
    parent = say(alice, room, "parent")
    assert aggregations(bob, room, parent) == {}
    edit(alice, room, parent, "first")
    second = edit(alice, room, parent, "second")
    received = aggregations(bob, room, parent)["m.replace"]
    assert received["event_id"] == second
    assert received["content"]["m.new_content"]["body"] == "second"
    assert received["room_id"] == room
    assert received["unsigned"]["membership"] == "join"
    assert get_event(bob, room, parent)["content"]["body"] == "parent"


def test_invalid_edits_are_ignored(alice: User, bob: User, room: str) -> None:
    parent = say(alice, room, "parent")
    edit(bob, room, parent, "by another")
    relate(alice, room, parent, "m.replace", "without new content")
    content = {"m.new_content": {}, "m.relates_to": {"rel_type": "m.replace", "event_id": parent}}
    ok(put_event(alice, room, "org.example.other", content))
    assert aggregations(alice, room, parent) == {}
    valid = edit(alice, room, parent, "valid")
    edit(alice, room, valid, "an edit of an edit")
    assert aggregations(alice, room, parent)["m.replace"]["event_id"] == valid
    assert aggregations(alice, room, valid) == {}


def test_an_encrypted_edit_needs_no_new_content(alice: User, room: str) -> None:
    parent = ok(put_event(alice, room, "m.room.encrypted", {"ciphertext": "x"}))["event_id"]
    relation = {"rel_type": "m.replace", "event_id": parent}
    replacement = ok(
        put_event(alice, room, "m.room.encrypted", {"ciphertext": "y", "m.relates_to": relation})
    )
    assert aggregations(alice, room, parent)["m.replace"]["event_id"] == replacement["event_id"]


def test_redacted_edits_and_edits_of_redacted_events_do_not_apply(alice: User, room: str) -> None:
    parent = say(alice, room, "parent")
    first = edit(alice, room, parent, "first")
    second = edit(alice, room, parent, "second")
    reply = relate(alice, room, parent, "m.reference")
    ok(redact(alice, room, second))
    assert aggregations(alice, room, parent)["m.replace"]["event_id"] == first
    assert second not in children(alice, room, parent)
    ok(redact(alice, room, parent))
    assert aggregations(alice, room, parent) == {"m.reference": {"chunk": [{"event_id": reply}]}}
    ok(redact(alice, room, reply))
    assert aggregations(alice, room, parent) == {}


def test_references_are_listed_oldest_first(alice: User, room: str) -> None:
    parent = say(alice, room, "parent")
    sent = [relate(alice, room, parent, "m.reference") for _ in range(3)]
    assert aggregations(alice, room, parent) == {
        "m.reference": {"chunk": [{"event_id": event} for event in sent]}
    }


def test_state_events_have_no_aggregations(alice: User, room: str) -> None:
    topic = ok(alice.put(room_path(room, "state", "m.room.topic"), {"topic": "tea"}))["event_id"]
    reference = relate(alice, room, topic, "m.reference")
    assert aggregations(alice, room, topic) == {}
    assert children(alice, room, topic) == [reference]


def test_children_by_ignored_users_are_hidden(alice: User, bob: User, room: str) -> None:
    parent = say(alice, room, "parent")
    first = relate(alice, room, parent, "m.thread")
    second = relate(bob, room, parent, "m.thread")
    relate(bob, room, parent, "m.reference")
    ignore(alice, bob)
    assert children(alice, room, parent) == [first]
    received = aggregations(alice, room, parent)
    assert received["m.thread"]["latest_event"]["event_id"] == first
    assert received["m.thread"]["count"] == 1
    assert "m.reference" not in received
    assert aggregations(bob, room, parent)["m.thread"]["latest_event"]["event_id"] == second


def test_messages_context_and_limited_timelines_have_aggregations(
    alice: User, bob: User, room: str
) -> None:
    say(alice, room, "earlier")
    parent = say(alice, room, "parent")
    since = sync(bob)["next_batch"]
    last = edit(alice, room, parent, "edited")

    def received(events: list[Any]) -> Any:
        (event,) = [event for event in events if event["event_id"] == parent]
        return event["unsigned"].get("m.relations", {}).get("m.replace", {}).get("event_id")

    def timeline(**options: Any) -> Any:
        return sync(bob, **options)["rooms"]["join"][room]["timeline"]

    assert received(messages(bob, room)["chunk"]) == last
    assert received(ok(bob.get(room_path(room, "context", last)))["events_before"]) == last
    assert received([ok(bob.get(room_path(room, "context", parent)))["event"]]) == last
    limited = timeline(filter={"room": {"timeline": {"limit": 2}}})
    assert limited["limited"]
    assert received(limited["events"]) == last
    whole = timeline(filter={"room": {"timeline": {"limit": 100}}})
    assert not whole["limited"]
    assert received(whole["events"]) is None
    assert "m.relations" not in json.dumps(timeline(since=since))


def test_a_duplicate_reaction_is_refused(alice: User, bob: User, room: str) -> None:
    parent = say(alice, room, "parent")
    first = ok(put_event(bob, room, "m.reaction", reaction(parent), "txn"))
    assert ok(put_event(bob, room, "m.reaction", reaction(parent), "txn")) == first
    assert refused(put_event(bob, room, "m.reaction", reaction(parent))) == (
        400,
        "M_DUPLICATE_ANNOTATION",
    )
    react(bob, room, parent, "🎉")
    react(alice, room, parent)
    ok(redact(bob, room, first["event_id"]))
    react(bob, room, parent)


@pytest.mark.parametrize("redacted", [False, True])
def test_concurrent_duplicate_reactions_are_refused(
    server: TestServer, alice: User, bob: User, room: str, redacted: bool
) -> None:
    parent = say(alice, room, "parent")
    first = react(bob, room, parent) if redacted else None
    gate: Deferred[None] = Deferred()
    Deferred.fromCoroutine(server.app.room_engine.engine.in_turn(RoomID(room), lambda: gate))
    waiting = []
    if first is not None:  # with it gone, it may be sent again
        waiting.append(bob.start("PUT", room_path(room, "redact", first, "r"), {}))
    for txn in ("one", "two"):
        waiting.append(
            bob.start("PUT", room_path(room, "send", "m.reaction", txn), reaction(parent))
        )
    waiting.append(
        alice.start("PUT", room_path(room, "send", "m.reaction", "one"), reaction(parent))
    )
    gate.callback(None)
    server.clock.advance(0)
    refusals = [each.answer.errcode for each in waiting if each.answer.status != 200]
    assert refusals == ["M_DUPLICATE_ANNOTATION"]


@pytest.mark.parametrize(
    "relation",
    [
        None,
        "m.thread",
        [],
        {},
        {"rel_type": "m.thread"},
        {"event_id": "$x"},
        {"rel_type": 1, "event_id": "$x"},
        {"rel_type": "", "event_id": "$x"},
        {"rel_type": "x" * 256, "event_id": "$x"},
        {"rel_type": "m.thread", "event_id": ["$x"]},
        {"rel_type": "m.thread", "event_id": "x"},
        {"rel_type": "m.annotation", "event_id": "$x", "key": 3},
        {"rel_type": "m.annotation", "event_id": "$x", "key": "x" * 5000},
    ],
)
def test_malformed_relations_are_ignored(alice: User, room: str, relation: Any) -> None:
    ok(put_event(alice, room, "m.room.message", {"body": "x", "m.relates_to": relation}))
    ok(put_event(alice, room, "m.room.message", {"body": "y", "m.relates_to": relation}))
    assert [event["content"]["body"] for event in messages(alice, room, limit=2)["chunk"]] == [
        "y",
        "x",
    ]


def test_messages_can_be_filtered_by_their_relation_types(alice: User, room: str) -> None:
    parent = say(alice, room, "parent")
    reply = relate(alice, room, parent, "m.thread")
    reference = relate(alice, room, parent, "m.reference")

    def found(**wanted: Any) -> list[str]:
        requested = json.dumps({"types": ["m.room.message"], **wanted})
        return [
            event["event_id"]
            for event in messages(alice, room, limit=100, filter=requested)["chunk"]
        ]

    name = "org.matrix.msc3874"
    assert found(**{f"{name}.not_rel_types": ["m.thread"]}) == [reference, parent]
    assert found(**{f"{name}.rel_types": ["m.thread"]}) == [reply]
    assert found(**{f"{name}.rel_types": ["m.thread"], f"{name}.not_rel_types": ["m.thread"]}) == []


def test_messages_can_be_filtered_by_relations_of_their_children(
    alice: User, bob: User, room: str
) -> None:
    parent = say(alice, room, "parent")
    other = say(alice, room, "other")
    relate(alice, room, parent, "m.thread")
    relate(bob, room, other, "m.reference")

    def found(**wanted: Any) -> list[str]:
        return [
            event["event_id"]
            for event in messages(alice, room, limit=100, filter=json.dumps(wanted))["chunk"]
        ]

    assert found(related_by_rel_types=["m.thread"]) == [parent]
    assert found(related_by_senders=[bob.user_id]) == [other]
    assert found(related_by_senders=[bob.user_id], related_by_rel_types=["m.thread"]) == []
    assert found(related_by_senders=[]) == []
    requested = {"room": {"timeline": {"related_by_senders": [bob.user_id], "limit": 100}}}
    events = sync(alice, filter=requested)["rooms"]["join"][room]["timeline"]["events"]
    assert [event["event_id"] for event in events] == [other]
