"""Message search: results, access, order and response.

spec: client-server-api#server-side-search
"""

from pathlib import Path
from typing import Any

import pytest

from homeserver.services.search import search as search_module
from homeserver.services.search.request import MAX_TERM
from storage.engine.database import Database, SQLiteConfig
from tests.conftest import run_coroutine
from tests.helpers.databases import QueryCounter, open_inline
from tests.helpers.event_search import all_pages, ask, begin_jobs, found, ids, search, settle
from tests.helpers.room_actions import (
    V3,
    create,
    edit,
    invite,
    join,
    leave,
    membership,
    ok,
    put_event,
    redact,
    refused,
    say,
    set_state,
)
from tests.helpers.server import TestServer, User


@pytest.fixture
def alice(server: TestServer) -> User:
    begin_jobs(server)
    return server.register("alice")


def later(server: TestServer, user: User, room: str, text: str) -> str:
    """Send a message with a timestamp of its own."""
    server.clock.advance(1)
    return say(user, room, text)


def test_a_result_has_the_event_and_its_rank(server: TestServer, alice: User) -> None:
    room = create(alice)
    event = say(alice, room, "Yangi kitoblar keldi")
    settle(server)
    answer = search(alice, "китоб")
    assert answer["count"] == 1
    assert answer["highlights"] == ["kitoblar", "китоб"]
    assert "next_batch" not in answer
    assert "groups" not in answer
    assert "state" not in answer
    (result,) = answer["results"]
    assert 0 < result["rank"] <= 1
    assert result.keys() == {"rank", "result"}
    assert result["result"]["event_id"] == event
    assert result["result"]["room_id"] == room
    assert result["result"]["unsigned"]["membership"] == "join"


def test_all_keys_are_searched_or_those_that_are_named(server: TestServer, alice: User) -> None:
    room = create(alice, name="Kutubxona")
    topic = set_state(
        alice,
        room,
        "m.room.topic",
        {
            "topic": "kutubxona haqida",
            "m.topic": {
                "m.text": [{"mimetype": "text/html", "body": "<b>rasm</b>"}, {"body": "devor"}]
            },
        },
    )
    body = say(alice, room, "kutubxona ochiq")
    settle(server)
    name = search(alice, "kutubxona", keys=["content.name"])["results"][0]["result"]
    assert name["type"] == "m.room.name"
    assert set(found(alice, "kutubxona")) == {name["event_id"], topic, body}
    assert found(alice, "kutubxona", keys=["content.topic"]) == [topic]
    assert set(found(alice, "kutubxona", keys=["content.topic", "content.body"])) == {topic, body}
    assert found(alice, "devor") == [topic]
    assert found(alice, "rasm") == []


def test_only_searchable_event_types_are_searched(server: TestServer, alice: User) -> None:
    room = create(alice)
    put_event(alice, room, "org.example.note", {"body": "salom"})
    set_state(alice, room, "m.room.topic", {"topic": "salom"}, "other")
    put_event(alice, room, "m.room.message", {"msgtype": "m.text", "body": {"salom": "salom"}})
    put_event(alice, room, "m.room.message", {"msgtype": "m.text", "formatted_body": "salom"})
    settle(server)
    assert found(alice, "salom") == []


def test_results_are_ordered_by_time_or_rank(server: TestServer, alice: User) -> None:
    room = create(alice)
    best = later(server, alice, room, "kitob kitob")
    worst = later(server, alice, room, "kitoblarimiz va boshqa narsalar haqida uzun gap")
    good = later(server, alice, room, "kitob haqida gap")
    settle(server)
    assert ids(search(alice, "kitob", order_by="recent")) == [good, worst, best]
    assert ids(search(alice, "kitob", order_by="rank")) == [best, good, worst]
    assert ids(search(alice, "kitob")) == [best, good, worst]
    ranks = {
        result["result"]["event_id"]: result["rank"] for result in search(alice, "kitob")["results"]
    }
    assert list(ranks.values()) == sorted(ranks.values(), reverse=True)
    recent = search(alice, "kitob", order_by="recent")["results"]
    assert {result["result"]["event_id"]: result["rank"] for result in recent} == ranks


@pytest.mark.parametrize("order", ["rank", "recent"])
def test_pages_have_all_results_once(
    server: TestServer, alice: User, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_module, "MAX_HITS", 5)
    monkeypatch.setattr(search_module, "CHUNK", 2)
    room = create(alice)
    said = [
        later(server, alice, room, f"gap {number} {'gap ' * (number % 3)}") for number in range(13)
    ]
    settle(server)
    pages = all_pages(alice, "gap", order_by=order, filter={"limit": 2})
    assert sorted(event for page in pages for event in page) == sorted(said)
    if order == "recent":
        assert [event for page in pages for event in page] == said[::-1]


def test_new_messages_do_not_disturb_pages(server: TestServer, alice: User) -> None:
    room = create(alice)
    said = [later(server, alice, room, "gap") for _ in range(4)]
    settle(server)
    first = search(alice, "gap", order_by="recent", filter={"limit": 2})
    later(server, alice, room, "gap")
    settle(server)
    second = search(alice, "gap", first["next_batch"], order_by="recent", filter={"limit": 2})
    assert ids(first) + ids(second) == said[::-1]
    assert "next_batch" not in second


def test_results_can_be_filtered(server: TestServer, alice: User, bob: User) -> None:
    room, other = create(alice, preset="public_chat"), create(alice)
    join(bob, room)
    one, two = later(server, alice, room, "gap"), later(server, bob, room, "gap")
    three = later(server, alice, other, "gap")
    server.clock.advance(1)
    picture = {"msgtype": "m.image", "body": "gap.png", "url": "mxc://example.org/x"}
    four = ok(put_event(alice, other, "m.room.message", picture))["event_id"]
    thread = {"rel_type": "m.thread", "event_id": one}
    put_event(
        bob, room, "m.room.message", {"msgtype": "m.text", "body": "reply", "m.relates_to": thread}
    )
    settle(server)
    assert found(alice, "gap") == [four, three, two, one]
    assert found(alice, "gap", filter={"rooms": [room]}) == [two, one]
    assert found(alice, "gap", filter={"rooms": [room, "!unknown"]}) == [two, one]
    assert found(alice, "gap", filter={"rooms": []}) == []
    assert found(alice, "gap", filter={"not_rooms": [room]}) == [four, three]
    assert found(alice, "gap", filter={"senders": [bob.user_id]}) == [two]
    assert found(alice, "gap", filter={"not_senders": [alice.user_id]}) == [two]
    assert found(alice, "gap", filter={"types": ["m.room.*"]}) == [four, three, two, one]
    assert found(alice, "gap", filter={"types": ["m.room.name"]}) == []
    assert found(alice, "gap", filter={"not_types": ["m.room.message"]}) == []
    assert found(alice, "gap", filter={"contains_url": True}) == [four]
    assert found(alice, "gap", filter={"contains_url": False}) == [three, two, one]
    assert found(alice, "gap", filter={"related_by_rel_types": ["m.thread"]}) == [one]
    assert found(alice, "gap", filter={"related_by_senders": [bob.user_id]}) == [one]
    assert len(found(alice, "gap", filter={"limit": 1})) == 1


def test_the_context_of_a_result(server: TestServer, alice: User) -> None:
    room = create(alice)
    said = [say(alice, room, text) for text in ("one", "two", "needle", "four", "five")]
    ok(alice.put(f"{V3}/profile/{alice.user_id}/displayname", {"displayname": "Alisa"}))
    settle(server)
    context = {"before_limit": 1, "after_limit": 2, "include_profile": True}
    (result,) = search(alice, "needle", event_context=context)["results"]
    around = result["context"]
    assert [event["event_id"] for event in around["events_before"]] == [said[1]]
    assert [event["event_id"] for event in around["events_after"]] == said[3:]
    assert around["profile_info"] == {alice.user_id: {"displayname": "alice"}}
    path = f"{V3}/rooms/{room}/messages"
    earlier = ok(alice.get(f"{path}?dir=b&limit=1&from={around['start']}"))["chunk"]
    assert [event["event_id"] for event in earlier] == [said[0]]
    following = ok(alice.get(f"{path}?dir=f&limit=1&from={around['end']}"))["chunk"]
    assert [event["type"] for event in following] == ["m.room.member"]
    (plain,) = search(alice, "needle", event_context={})["results"]
    assert "profile_info" not in plain["context"]
    assert len(plain["context"]["events_before"]) == 5


def test_state_is_included_on_request(server: TestServer, alice: User) -> None:
    room = create(alice, name="Xona")
    say(alice, room, "gap")
    settle(server)
    state = search(alice, "gap", include_state=True)["state"]
    assert {event["type"] for event in state[room]} >= {
        "m.room.create",
        "m.room.name",
        "m.room.member",
    }


def test_results_are_grouped_by_room_and_sender(server: TestServer, alice: User, bob: User) -> None:
    rooms = [create(alice, preset="public_chat") for _ in range(2)]
    for room in rooms:
        join(bob, room)
    said: dict[tuple[str, str], list[str]] = {}
    for _ in range(2):
        for room in rooms:
            for user in (alice, bob):
                said.setdefault((room, user.user_id), []).insert(
                    0, later(server, user, room, "gap")
                )
    settle(server)
    groupings: Any = {"group_by": [{"key": "room_id"}, {"key": "sender"}]}
    answer = search(alice, "gap", order_by="recent", groupings=groupings, filter={"limit": 4})
    groups = answer["groups"]
    assert groups["room_id"].keys() == set(rooms)
    assert [groups["room_id"][room]["order"] for room in reversed(rooms)] == [1, 2]
    assert groups["sender"][bob.user_id]["results"] == [
        said[room, bob.user_id][0] for room in reversed(rooms)
    ]
    for key, value, expected in (
        ("room_id", rooms[0], [said[rooms[0], bob.user_id][1], said[rooms[0], alice.user_id][1]]),
        ("sender", bob.user_id, [said[room, bob.user_id][1] for room in reversed(rooms)]),
    ):
        token = groups[key][value]["next_batch"]
        rest = search(
            alice, "gap", token, order_by="recent", groupings=groupings, filter={"limit": 4}
        )
        assert ids(rest) == expected
        assert "next_batch" not in rest
        assert "next_batch" not in rest["groups"][key][value]
    assert "next_batch" in answer


def test_complete_groups_have_no_next_batch(server: TestServer, alice: User) -> None:
    room, other = create(alice), create(alice)
    later(server, alice, room, "gap")
    later(server, alice, room, "gap")
    later(server, alice, other, "gap")
    settle(server)
    groupings = {"group_by": [{"key": "room_id"}]}
    groups = search(alice, "gap", order_by="recent", groupings=groupings, filter={"limit": 2})[
        "groups"
    ]["room_id"]
    assert "next_batch" not in groups[other]
    assert "next_batch" in groups[room]


def test_users_outside_the_room_find_nothing(server: TestServer, alice: User, bob: User) -> None:
    room = create(alice)
    say(alice, room, "sir")
    invite(alice, room, bob)
    settle(server)
    answer = search(bob, "sir")
    assert (answer["results"], answer["count"]) == ([], 0)


@pytest.mark.parametrize(
    ("visibility", "finds"),
    [("joined", [2]), ("invited", [1, 2]), ("shared", [0, 1, 2]), ("world_readable", [0, 1, 2])],
)
def test_history_is_found_as_far_as_it_is_visible(
    server: TestServer, alice: User, bob: User, visibility: str, finds: list[int]
) -> None:
    room = create(alice)
    set_state(alice, room, "m.room.history_visibility", {"history_visibility": visibility})
    said = [later(server, alice, room, "gap")]
    invite(alice, room, bob)
    said.append(later(server, alice, room, "gap"))
    join(bob, room)
    said.append(later(server, alice, room, "gap"))
    leave(bob, room)
    later(server, alice, room, "gap")
    settle(server)
    answer = search(bob, "gap", order_by="recent")
    assert ids(answer) == [said[index] for index in reversed(finds)]
    assert answer["count"] == len(finds)
    assert "next_batch" not in answer


def test_a_user_who_forgot_a_room_finds_nothing_in_it(
    server: TestServer, alice: User, bob: User
) -> None:
    room = create(alice, preset="public_chat")
    join(bob, room)
    said = say(alice, room, "gap")
    leave(bob, room)
    settle(server)
    assert found(bob, "gap") == [said]
    ok(membership(bob, room, "forget"))
    assert found(bob, "gap") == []


def test_an_invited_user_finds_nothing(server: TestServer, alice: User, bob: User) -> None:
    room = create(alice)
    set_state(alice, room, "m.room.history_visibility", {"history_visibility": "world_readable"})
    say(alice, room, "gap")
    invite(alice, room, bob)
    leave(bob, room)
    settle(server)
    assert found(bob, "gap") == []


def test_messages_of_ignored_users_are_not_found(
    server: TestServer, alice: User, bob: User
) -> None:
    room = create(alice, preset="public_chat")
    join(bob, room)
    say(bob, room, "gap")
    settle(server)
    path = f"{V3}/user/{alice.user_id}/account_data/m.ignored_user_list"
    ok(alice.put(path, {"ignored_users": {bob.user_id: {}}}))
    assert found(alice, "gap") == []


def test_redacted_events_disappear_at_once(server: TestServer, alice: User) -> None:
    room = create(alice)
    said, other = later(server, alice, room, "sir"), later(server, alice, room, "sir")
    settle(server)
    ok(redact(alice, room, said))
    assert found(alice, "sir") == [other]
    settle(server)
    assert found(alice, "sir") == [other]


def test_the_latest_edit_is_found_and_earlier_texts_are_not(
    server: TestServer, alice: User, bob: User
) -> None:
    room = create(alice, preset="public_chat")
    join(bob, room)
    said = later(server, alice, room, "birinchi")
    first = edit(alice, room, said, "ikkinchi")
    settle(server)
    assert found(alice, "birinchi") == []
    assert found(alice, "ikkinchi") == [said]
    result = search(alice, "ikkinchi")["results"][0]["result"]
    assert result["unsigned"]["m.relations"]["m.replace"]["event_id"] == first
    second = edit(alice, room, said, "uchinchi")
    edit(bob, room, said, "begona")  # bob may not edit it
    settle(server)
    assert [found(alice, word) for word in ("birinchi", "ikkinchi", "uchinchi", "begona")] == [
        [],
        [],
        [said],
        [],
    ]
    ok(redact(alice, room, second))
    settle(server)
    assert [found(alice, word) for word in ("birinchi", "ikkinchi", "uchinchi")] == [[], [said], []]
    ok(redact(alice, room, first))
    settle(server)
    assert [found(alice, word) for word in ("birinchi", "ikkinchi")] == [[said], []]


def test_an_edit_made_after_leaving_is_not_found(
    server: TestServer, alice: User, bob: User
) -> None:
    room = create(alice, preset="public_chat")
    join(bob, room)
    said = later(server, alice, room, "birinchi")
    leave(bob, room)
    edit(alice, room, said, "ikkinchi")
    settle(server)
    answer = search(bob, "ikkinchi")
    assert (answer["results"], answer["count"]) == ([], 0)


def test_an_edit_of_a_redacted_event_is_not_found(server: TestServer, alice: User) -> None:
    room = create(alice)
    said = later(server, alice, room, "birinchi")
    edit(alice, room, said, "ikkinchi")
    settle(server)
    ok(redact(alice, room, said))
    assert found(alice, "ikkinchi") == []
    settle(server)
    assert found(alice, "ikkinchi") == []


def test_messages_of_encrypted_rooms_are_not_searched(server: TestServer, alice: User) -> None:
    room = create(alice)
    say(alice, room, "gap")
    settle(server)
    assert len(found(alice, "gap")) == 1
    set_state(alice, room, "m.room.encryption", {"algorithm": "m.megolm.v1.aes-sha2"})
    assert found(alice, "gap") == []
    say(alice, room, "gap")
    settle(server)
    assert found(alice, "gap") == []


def test_a_room_is_searched_with_its_predecessors(
    server: TestServer, alice: User, bob: User
) -> None:
    oldest = create(alice)
    old = create(alice, preset="public_chat", creation_content={"predecessor": {"room_id": oldest}})
    new = create(
        alice,
        preset="public_chat",
        creation_content={"predecessor": {"room_id": old, "event_id": "$tombstone"}},
    )
    own = create(bob, preset="public_chat", creation_content={"predecessor": {"room_id": oldest}})
    said = [later(server, alice, room, "gap") for room in (oldest, old, new)]
    join(bob, new)
    join(bob, old)
    settle(server)
    assert found(alice, "gap", filter={"rooms": [new]}) == said[::-1]
    assert found(alice, "gap", filter={"rooms": [old]}) == said[1::-1]
    assert found(alice, "gap", filter={"rooms": [new], "not_rooms": [old]}) == [said[2], said[0]]
    assert found(bob, "gap", filter={"rooms": [new]}) == said[:0:-1]
    assert found(bob, "gap", filter={"rooms": [own]}) == []


def test_a_user_in_many_rooms_can_search(server: TestServer, alice: User, bob: User) -> None:
    """In more rooms than an index query names."""
    rooms = [create(alice) for _ in range(66)]
    said = [later(server, alice, room, "gap") for room in rooms[::20]]
    later(server, bob, create(bob), "gap")
    settle(server)
    assert found(alice, "gap", filter={"limit": 100}) == said[::-1]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({}, (400, "M_BAD_JSON")),
        ({"search_categories": {"room_events": {}}}, (400, "M_BAD_JSON")),
        ({"search_categories": {"room_events": {"search_term": 7}}}, (400, "M_BAD_JSON")),
        (
            {"search_categories": {"room_events": {"search_term": "a", "order_by": "age"}}},
            (400, "M_BAD_JSON"),
        ),
        (
            {"search_categories": {"room_events": {"search_term": "a", "keys": ["content.url"]}}},
            (400, "M_BAD_JSON"),
        ),
        (
            {
                "search_categories": {
                    "room_events": {"search_term": "a", "groupings": {"group_by": [{"key": "x"}]}}
                }
            },
            (400, "M_BAD_JSON"),
        ),
        (
            {"search_categories": {"room_events": {"search_term": "a", "filter": {"limit": -1}}}},
            (400, "M_BAD_JSON"),
        ),
        (
            {"search_categories": {"room_events": {"search_term": "a" * (MAX_TERM + 1)}}},
            (400, "M_INVALID_PARAM"),
        ),
        ({"search_categories": {"room_events": {"search_term": "a " * 40}}}, (200, "")),
        (
            {"search_categories": {"room_events": {"search_term": " ".join(map(str, range(40)))}}},
            (400, "M_INVALID_PARAM"),
        ),
    ],
)
def test_invalid_requests_are_refused(alice: User, body: object, error: tuple[int, str]) -> None:
    answer = alice.post(f"{V3}/search", body)
    assert (answer.status, answer.json.get("errcode", "")) == error


@pytest.mark.parametrize(
    "token", ["", "x", "'", "ä", "kA", "lQEBAQHAoA", "A" * 3000, "lf_____________________w"]
)
def test_made_up_tokens_are_refused(alice: User, token: str) -> None:
    assert refused(ask(alice, "gap", token)) == (400, "M_INVALID_PARAM")


@pytest.mark.parametrize(
    "term",
    [
        "",
        "  ",
        "!!!",
        '"',
        "' OR 1=1 --",
        'a" OR "b',
        "NEAR(a b)",
        "*",
        "a*",
        "-a",
        "\x00",
        "(",
        "😀",
    ],
)
def test_odd_terms_are_harmless(server: TestServer, alice: User, term: str) -> None:
    say(alice, create(alice), "salom")
    settle(server)
    answer = search(alice, term)
    assert (answer["results"], answer["count"], answer.get("next_batch")) == ([], 0, None)


def test_an_empty_request_has_no_results(alice: User) -> None:
    assert ok(alice.post(f"{V3}/search", {"search_categories": {}})) == {"search_categories": {}}
    assert ok(alice.post("/_matrix/client/r0/search", {"search_categories": {}})) == {
        "search_categories": {}
    }


def test_search_needs_an_account(server: TestServer) -> None:
    assert refused(server.post(f"{V3}/search", {"search_categories": {}})) == (
        401,
        "M_MISSING_TOKEN",
    )
    guest = ok(server.post(f"{V3}/register?kind=guest", {}))["access_token"]
    answer = server.client.request(
        "POST", f"{V3}/search", token=guest, json={"search_categories": {}}
    )
    assert refused(answer) == (403, "M_GUEST_ACCESS_FORBIDDEN")


def test_searches_are_rate_limited(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database, "rc_search: {per_second: 1, burst_count: 2}\n")
    alice = server.register("alice")
    assert [ask(alice, "gap").status for _ in range(3)] == [200, 200, 429]


def test_a_search_makes_a_fixed_number_of_queries(tmp_path: Path, sqlite: SQLiteConfig) -> None:
    counter = QueryCounter()
    database = open_inline(sqlite, counter)
    server = TestServer(tmp_path, database)
    begin_jobs(server)
    alice, bob = server.register("alice"), server.register("bob")
    room = create(alice, preset="public_chat")
    join(bob, room)
    costs = []
    for _ in range(3):
        for _ in range(10):
            later(server, alice, room, "gap")
        settle(server)
        counter.clear()
        search(bob, "gap", event_context={"include_profile": True}, filter={"limit": 50})
        assert counter.reads["search_texts"] == 1
        costs.append(counter.reads.total())
    assert costs[2] <= costs[1] <= costs[0] <= 8
    run_coroutine(database.close(), None)
