"""The user directory: results, access and order, and updates.

spec: client-server-api#user-directory
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from federation.protocol.ids import RoomID
from homeserver.services.text.text_folding import TextFolding
from storage.directory.user_directory_queue import queue_directory_updates
from storage.engine.database import Database, DatabaseUnavailable, SQLiteConfig, WriteTransaction
from storage.rooms.memberships import MembershipRow, put_memberships
from tests.conftest import run_coroutine
from tests.helpers.databases import QueryCounter, copy_sqlite, open_inline
from tests.helpers.event_search import begin_jobs, settle
from tests.helpers.logins import password_auth
from tests.helpers.room_actions import (
    V3,
    create,
    invite,
    join,
    leave,
    ok,
    put_state,
    refused,
    room_path,
    set_state,
)
from tests.helpers.server import TestServer, User, move_user

Start = Callable[..., TestServer]


@pytest.fixture
def start(tmp_path: Path, sqlite_database: Database) -> Start:
    """A server with some options; the next one is the same server after a restart."""
    seeds = iter(range(1, 100))

    def start(**options: str) -> TestServer:
        section = ", ".join(f"{name}: {value}" for name, value in options.items())
        config = (
            f"user_directory: {{{section}}}\nrc_user_directory:"
            f" {{per_second: 1000, burst_count: 1000}}\n"
        )
        server = TestServer(tmp_path, sqlite_database, config, seed=next(seeds))
        begin_jobs(server)
        return server

    return start


def ask(user: User, term: str, **more: Any) -> Any:
    return ok(user.post(f"{V3}/user_directory/search", {"search_term": term, **more}))


def finds(user: User, term: str, **more: Any) -> list[str]:
    """Return the localparts of found local users, and the IDs of remote users."""
    ids = [str(found["user_id"]) for found in ask(user, term, **more)["results"]]
    return [
        found[1:].removesuffix(":example.org") if found.endswith(":example.org") else found
        for found in ids
    ]


def call(user: User, name: str) -> None:
    """Change a user's display name."""
    ok(user.put(f"{V3}/profile/{user.user_id}/displayname", {"displayname": name}))


def people(server: TestServer, *names: str) -> list[User]:
    """Some users in one room, which the first one created."""
    users = [server.register(name) for name in names]
    room = create(users[0], preset="private_chat")
    for user in users[1:]:
        invite(users[0], room, user)
        join(user, room)
    return users


def come_from_afar(
    server: TestServer, room: str, user_id: str, name: str | None, membership: str = "join"
) -> None:
    """Let a remote user join a room with a name."""

    async def write() -> None:
        row = await server.app.rooms.store.get_room(room)
        assert row is not None

        def put(txn: WriteTransaction) -> None:
            position = txn.next_position()
            nid = row.room_nid
            put_memberships(
                txn,
                [
                    MembershipRow(
                        nid, user_id, membership, 1, user_id, position, False, name, None, False
                    )
                ],
            )
            queue_directory_updates(txn, [(user_id, position)])

        await server.app.database.write("come_from_afar", put)

    run_coroutine(write(), None)


def test_users_are_found_by_name_and_by_id(start: Start) -> None:
    server = start()
    alice, bob, _ = people(server, "alice", "bob.karimov", "carol")
    call(bob, "Бобур Каримов")
    ok(bob.put(f"{V3}/profile/{bob.user_id}/avatar_url", {"avatar_url": "mxc://example.org/bob"}))
    settle(server)
    bob_as_shown = {
        "user_id": bob.user_id,
        "display_name": "Бобур Каримов",
        "avatar_url": "mxc://example.org/bob",
    }
    assert ask(alice, "bobur") == {"results": [bob_as_shown], "limited": False}
    for term in (
        "Bobur Karimov",
        "karimov bob",
        "каримов",
        "KAR",
        "b",
        "bob.kar",
        "@bob",
        "@bob.karimov:example.org",
        "bob.karimov:exam",
        "  bobur  ",
    ):
        assert finds(alice, term) == ["bob.karimov"], term
    for term in ("obur", "bobur dave", "example", ":", "@", "@alice:example.org", "org", ""):
        assert "bob.karimov" not in finds(alice, term) or term == "@", term


def test_diacritics_scripts_and_apostrophes_are_ignored(start: Start) -> None:
    server = start()
    alice, *others = people(server, "alice", "u1", "u2", "u3", "u4")
    for user, name in zip(
        others, ("Oʻtkir Gʻaniyev", "Zoë Ångström", "東京 太郎", "Ёлкин"), strict=True
    ):
        call(user, name)
    settle(server)
    for term, name in (
        ("o'tkir", "u1"),
        ("ўткир ғаниев", "u1"),
        ("otkir", "u1"),
        ("zoe angstrom", "u2"),
        ("東京", "u3"),
        ("京", "u3"),
        ("елкин", "u4"),
        ("yolkin", "u4"),
    ):
        assert finds(alice, term) == [name], term


def test_only_users_in_shared_or_public_rooms_are_found(start: Start) -> None:
    server = start()
    alice, _near = people(server, "alice", "user.near")
    far, public, readable, gone, invited = (
        server.register(f"user.{name}") for name in ("far", "public", "readable", "gone", "invited")
    )
    create(far)
    create(public, preset="public_chat")
    room = create(readable, preset="private_chat")
    set_state(readable, room, "m.room.history_visibility", {"history_visibility": "world_readable"})
    left = create(alice, preset="private_chat")
    for user in (gone, invited):
        invite(alice, left, user)
    join(gone, left)
    leave(gone, left)
    settle(server)
    assert set(finds(alice, "user")) == {"user.near", "user.public", "user.readable"}
    join_rules = {"join_rule": "invite"}
    ok(put_state(readable, room, "m.room.history_visibility", {"history_visibility": "shared"}))
    assert set(finds(alice, "user")) == {"user.near", "user.public"}
    ok(put_state(readable, room, "m.room.join_rules", {"join_rule": "public"}))
    assert set(finds(alice, "user")) == {"user.near", "user.public", "user.readable"}
    ok(put_state(readable, room, "m.room.join_rules", join_rules))
    join(invited, left)
    assert set(finds(alice, "user")) == {"user.near", "user.public", "user.invited"}


def test_all_local_users_are_found_if_configured(start: Start) -> None:
    server = start(search_all_users="true")
    alice, _far = server.register("alice"), server.register("farida")
    ok(server.post(f"{V3}/register?kind=guest", {}))
    settle(server)
    assert finds(alice, "far") == ["farida"]
    guests = [found for term in "0123456789" for found in finds(alice, term)]
    assert guests == []


def test_the_best_matches_come_first(start: Start) -> None:
    server = start(search_all_users="true")
    alice, shares, whole, exact = people(server, "alice", "sharer", "wholly", "exactly")
    names = {"far.exact": "Ali", "stranger": "Alisher"}
    far = {name: server.register(name) for name in names}
    call(shares, "Alisher Navoiy")
    call(whole, "Ali Qushchi")
    call(exact, "Ali")
    for name, user in far.items():
        call(user, names[name])
    named = server.register("ali")
    call(named, "Someone")
    settle(server)
    assert finds(alice, "ali") == ["exactly", "far.exact", "ali", "wholly", "sharer", "stranger"]
    assert finds(alice, "ali", limit=2) == ["exactly", "far.exact"]
    assert ask(alice, "ali", limit=2)["limited"] is True
    assert ask(alice, "ali", limit=6)["limited"] is False
    assert len(finds(alice, "ali", limit=0)) == 1


def test_the_caller_is_not_found(start: Start) -> None:
    server = start(search_all_users="true")
    alice, bob = people(server, "alice", "bob")
    settle(server)
    assert finds(alice, "alice") == []
    assert finds(bob, "alice") == ["alice"]


def test_the_directory_follows_changes(start: Start) -> None:
    server = start()
    alice, bob = people(server, "alice", "bob")
    settle(server)
    call(bob, "Bahodir")
    settle(server)
    assert finds(alice, "bahodir") == finds(alice, "bob") == ["bob"]
    call(bob, "Sardor")
    settle(server)
    assert finds(alice, "bahodir") == []
    assert finds(alice, "sardor") == ["bob"]
    ok(bob.delete(f"{V3}/profile/{bob.user_id}/displayname"))
    settle(server)
    assert finds(alice, "sardor") == []
    assert ask(alice, "bob")["results"] == [{"user_id": bob.user_id}]


def test_names_in_rooms_are_not_revealed(start: Start) -> None:
    server = start()
    alice, bob = people(server, "alice", "bob")
    room = create(bob, preset="public_chat")
    content = {"membership": "join", "displayname": "Maxfiy"}
    ok(put_state(bob, room, "m.room.member", content, bob.user_id))
    settle(server)
    assert finds(alice, "maxfiy") == []
    assert ask(alice, "bob")["results"][0]["display_name"] == "bob"


def test_deactivated_and_locked_accounts_are_not_found(start: Start) -> None:
    server = start()
    alice, bob, carol = people(server, "alice", "bob", "bobir")
    settle(server)
    assert set(finds(alice, "bob")) == {"bob", "bobir"}
    accounts = server.app.accounts.stores.accounts
    database = server.app.database

    async def lock() -> None:
        await database.write(
            "lock", lambda txn: accounts.set_flags(txn, carol.user_id, locked=True)
        )

    run_coroutine(lock(), None)
    assert finds(alice, "bob") == ["bob"]
    shows = start(show_locked_users="true")
    moved = move_user(shows, alice)
    assert set(finds(moved, "bob")) == {"bob", "bobir"}
    auth = password_auth("bob")
    bob.server = shows
    session = bob.post(f"{V3}/account/deactivate", {}).json["session"]
    ok(bob.post(f"{V3}/account/deactivate", {"auth": {**auth, "session": session}}))
    assert finds(moved, "bob") == ["bobir"]


def test_remote_users_in_shared_rooms_are_found(start: Start) -> None:
    server = start()
    alice = server.register("alice")
    private, other, public = create(alice), create(alice), create(alice, preset="public_chat")
    come_from_afar(server, private, "@one:far.test", "Farrux")
    come_from_afar(server, other, "@one:far.test", "Farrux")
    come_from_afar(server, private, "@two:far.test", "Farida")
    come_from_afar(server, other, "@two:far.test", "Taxallus")
    come_from_afar(server, public, "@three:far.test", "Faryod")
    come_from_afar(server, private, "@three:far.test", "Sirli")
    settle(server)
    assert finds(alice, "farrux") == ["@one:far.test"]
    assert finds(alice, "farida") == finds(alice, "taxallus") == []
    assert finds(alice, "two") == finds(alice, "@two:far") == ["@two:far.test"]
    assert finds(alice, "faryod") == ["@three:far.test"]
    assert finds(alice, "sirli") == []
    come_from_afar(server, private, "@four:far.test", "Uzun " * 10_000)
    settle(server)
    assert len(ask(alice, "uzun")["results"][0]["display_name"]) == 256
    come_from_afar(server, private, "@one:far.test", "Farrux", "leave")
    come_from_afar(server, other, "@one:far.test", "Farrux", "leave")
    settle(server)
    assert finds(alice, "farrux") == []


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, ["@ali:a.test", "alisher"]),
        ({"prefer_local_users": "true"}, ["alisher", "@ali:a.test"]),
        ({"exclude_remote_users": "true"}, ["alisher"]),
        ({"enabled": "false"}, []),
    ],
)
def test_the_options_of_the_directory_take_effect(
    start: Start, options: dict[str, str], found: list[str]
) -> None:
    server = start(**options)
    alice, bob = people(server, "alice", "alisher")
    call(bob, "")
    come_from_afar(server, create(alice), "@ali:a.test", "Aliya")
    settle(server)
    assert finds(alice, "ali") == found


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({}, (400, "M_BAD_JSON")),
        ({"search_term": None}, (400, "M_BAD_JSON")),
        ({"search_term": "a", "limit": -1}, (400, "M_BAD_JSON")),
        ({"search_term": "a", "limit": "10"}, (400, "M_BAD_JSON")),
        ({"search_term": "a" * 301}, (400, "M_INVALID_PARAM")),
    ],
)
def test_invalid_requests_are_refused(start: Start, body: object, error: tuple[int, str]) -> None:
    assert refused(start().register("alice").post(f"{V3}/user_directory/search", body)) == error


@pytest.mark.parametrize(
    "term",
    [
        "%",
        "_",
        "'",
        '"',
        "*",
        "\\",
        "\x00",
        "😀",
        "@",
        ":",
        "a b c d e f g h i j k l m",
        "\U0010ffff",
    ],
)
def test_odd_terms_are_harmless(start: Start, term: str) -> None:
    server = start()
    alice, _ = people(server, "alice", "zafar")
    settle(server)
    assert finds(alice, term) == ([] if term != "@" else ["zafar"])


def test_searches_are_rate_limited(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(
        tmp_path, sqlite_database, "rc_user_directory: {per_second: 1, burst_count: 2}\n"
    )
    alice = server.register("alice")
    answers = [
        alice.post(f"{V3}/user_directory/search", {"search_term": "a"}).status for _ in range(3)
    ]
    assert answers == [200, 200, 429]
    assert refused(server.post(f"{V3}/user_directory/search", {"search_term": "a"})) == (
        401,
        "M_MISSING_TOKEN",
    )


def test_a_search_makes_a_fixed_number_of_queries(tmp_path: Path, sqlite: SQLiteConfig) -> None:
    counter = QueryCounter()
    database = open_inline(sqlite, counter)
    server = TestServer(tmp_path, database)
    begin_jobs(server)
    alice, *_ = people(server, "alice", *(f"user{number}" for number in range(20)))
    settle(server)
    for term in ("u", "user user", "user1"):
        counter.clear()
        finds(alice, term, limit=50)
        assert counter.queries == {"search_users": 2}
    counter.clear()
    settle(server)
    assert counter.reads["get_user_directory_changes"] == 0
    run_coroutine(database.close(), None)


def test_a_failed_write_is_retried(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    server = start()
    alice, _ = people(server, "alice", "bob")
    put_users = server.app.search.people.put_users

    def fail(txn: WriteTransaction, *rest: Any) -> None:
        put_users(txn, *rest)
        raise DatabaseUnavailable("no room")

    with monkeypatch.context() as patch:
        patch.setattr(server.app.search.people, "put_users", fail)
        settle(server)
    assert finds(alice, "bob") == []
    for _ in range(20):
        server.clock.advance(1)
    assert finds(alice, "bob") == ["bob"]


def test_a_room_id_is_not_a_user(start: Start) -> None:
    server = start()
    alice = server.register("alice")
    assert finds(alice, str(RoomID(create(alice)))) == []


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["create", "join", "leave", "invite", "rule", "name", "settle"] + ["join", "name"] * 2
        ),
        st.integers(0, 3),
        st.integers(0, 3),
        st.integers(0, 4),
    ),
    min_size=3,
    max_size=20,
)
NAMES = ("Ali Valiyev", "Али Валиев", "Oʻtkir Ali", "Ўткир", "")
TERMS = ("ali", "валиев", "o'tkir ali", "person", "valiyev ali", "@person1")


@given(actions=ACTIONS)
@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_results_match_a_scan_of_all_users(
    tmp_path: Path, sqlite_template: Path, actions: list[tuple[str, int, int, int]]
) -> None:
    """The law of the directory: it finds all users with such words in their names who share a room
    with the caller, or are in a public room."""
    database = open_inline(copy_sqlite(sqlite_template, tmp_path))
    server = TestServer(
        tmp_path, database, "rc_user_directory: {per_second: 100000, burst_count: 100000}\n"
    )
    begin_jobs(server)
    people = [server.register(f"person{number}") for number in range(4)]
    names = {user.user_id: user.user_id[1:].partition(":")[0] for user in people}
    rooms: list[str] = []
    members: dict[str, set[str]] = {}
    public: set[str] = set()
    for action, one, two, number in actions:
        user, room = people[one], rooms[two % len(rooms)] if rooms else ""
        if action == "create":
            rooms.append(create(user, preset="public_chat" if number % 2 else "private_chat"))
            members[rooms[-1]] = {user.user_id}
            if number % 2:
                public.add(rooms[-1])
        elif action == "name":
            call(user, NAMES[number])
            names[user.user_id] = NAMES[number]
        elif action == "settle":
            settle(server)
        elif action == "rule" and room:
            rule = ("public", "invite")[number % 2]
            if put_state(user, room, "m.room.join_rules", {"join_rule": rule}).status == 200:
                public.discard(room)
                public.update([room] if rule == "public" else [])
        elif action == "invite" and room:
            user.post(room_path(room, "invite"), {"user_id": people[number % 4].user_id})
        elif (
            action in ("join", "leave")
            and room
            and user.post(room_path(room, action)).status == 200
        ):
            members[room] = (
                members[room] | {user.user_id}
                if action == "join"
                else members[room] - {user.user_id}
            )
    settle(server)
    folding = TextFolding(("uz", "kaa", "ru", "en"))
    for asking in people:
        for term in TERMS:
            expected = {
                user.user_id
                for user in people
                if user is not asking
                and any(
                    user.user_id in inside and (asking.user_id in inside or room in public)
                    for room, inside in members.items()
                )
                and _begins(folding, term, names[user.user_id], user.user_id)
            }
            found = ask(asking, term, limit=50)
            assert {each["user_id"] for each in found["results"]} == expected, (
                asking.user_id,
                term,
            )
            assert {each.get("display_name", "") for each in found["results"]} == {
                names[each] for each in expected
            }
    run_coroutine(database.close(), None)


def _begins(folding: TextFolding, term: str, name: str, user_id: str) -> bool:
    """Whether each word of the term is the prefix of a word of the name or ID, in any spelling."""
    if term.startswith("@"):
        return user_id.startswith(term)
    has = folding.keys(name) + folding.keys(user_id[1:].partition(":")[0])
    return all(
        any(mine.startswith(key) for mine in has for key in folding.keys(word))
        for word in term.split()
    )
