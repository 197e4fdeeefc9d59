"""The message index follows all changes: also existing messages, after a stop, and next to another
node."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from homeserver.services.search import indexing
from homeserver.services.text.search_terms import format_words, matches, parse_terms
from homeserver.services.text.text_folding import TextFolding
from storage.engine.database import (
    Database,
    DatabaseUnavailable,
    SQLiteConfig,
    Transaction,
    WriteTransaction,
)
from storage.search.search import select_batch, select_texts
from tests.conftest import run_coroutine
from tests.helpers.databases import QueryCounter, copy_sqlite, open_inline
from tests.helpers.event_search import all_pages, ask, begin_jobs, found, settle
from tests.helpers.room_actions import (
    create,
    is_shown,
    ok,
    put_event,
    redact,
    refused,
    room_path,
    say,
)
from tests.helpers.rooms import BOB, RoomParts
from tests.helpers.server import TestServer, User, move_user


def test_existing_messages_are_indexed(server: TestServer) -> None:
    alice = server.register("alice")
    room = create(alice)
    said = [say(alice, room, f"gap {number}") for number in range(450)]
    assert found(alice, "gap") == []
    begin_jobs(server)
    settle(server)
    assert sum(map(len, all_pages(alice, "gap", filter={"limit": 100}))) == len(said)


def test_indexing_continues_where_it_stopped(
    tmp_path: Path, sqlite_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "BATCH", 3)
    server = TestServer(tmp_path, sqlite_database)
    alice = server.register("alice")
    room = create(alice)
    for _ in range(20):
        say(alice, room, "gap")
    step = server.app.search.indexing.do_step
    run_coroutine(_some(step, 9), None)
    first = len(found(alice, "gap", filter={"limit": 100}))
    assert 0 < first < 20
    restarted = TestServer(tmp_path, sqlite_database, seed=2)
    run_coroutine(_some(restarted.app.search.indexing.do_step, 9), None)
    second = len(found(alice, "gap", filter={"limit": 100}))
    assert first < second <= first + 9
    run_coroutine(_some(restarted.app.search.indexing.do_step, 1000), None)
    run_coroutine(_some(step, 1000), None)
    assert len(found(alice, "gap", filter={"limit": 100})) == 20


async def _some(step: Callable[[int], Awaitable[int]], limit: int) -> None:
    await step(limit)


def test_a_failed_write_is_retried(server: TestServer, monkeypatch: pytest.MonkeyPatch) -> None:
    begin_jobs(server)
    alice = server.register("alice")
    said = say(alice, create(alice), "gap")
    set_texts = server.app.search.store.set_texts

    def fail(txn: WriteTransaction, *rest: object) -> None:
        set_texts(txn, *rest)  # type: ignore[arg-type]
        raise DatabaseUnavailable("no room")

    with monkeypatch.context() as patch:
        patch.setattr(server.app.search.store, "set_texts", fail)
        settle(server)
    assert found(alice, "gap") == []
    settle(server)
    assert found(alice, "gap") == [said]


def test_a_change_of_languages_rebuilds_the_index(
    tmp_path: Path, sqlite_database: Database
) -> None:
    def start(languages: str, seed: int) -> TestServer:
        server = TestServer(
            tmp_path, sqlite_database, f"search_languages: [{languages}]\n", seed=seed
        )
        begin_jobs(server)
        settle(server)
        return server

    server = start("en", 1)
    alice = server.register("alice")
    said = say(alice, create(alice), "Китоблар")
    settle(server)
    assert (found(alice, "китоб"), found(alice, "kitob")) == ([said], [])
    moved = move_user(start("uz, en", 2), alice)
    assert (found(moved, "китоб"), found(moved, "kitob")) == ([said], [said])


def test_disabling_search_deletes_the_index(tmp_path: Path, sqlite_database: Database) -> None:
    def start(enabled: str, seed: int, alice: User | None = None) -> User:
        server = TestServer(tmp_path, sqlite_database, f"enable_search: {enabled}\n", seed=seed)
        begin_jobs(server)
        settle(server)
        if alice is None:
            return server.register("alice")
        return move_user(server, alice)

    def texts(txn: Transaction) -> int:
        return len(txn.query("SELECT event_nid FROM searchable_events"))

    alice = start("true", 1)
    room = create(alice)
    said = say(alice, room, "gap")
    settle(alice.server)
    assert found(alice, "gap") == [said]
    off = start("false", 2, alice)
    assert refused(ask(off, "gap")) == (400, "M_UNKNOWN")
    say(off, room, "gap")
    settle(off.server)
    counts: list[int] = []

    async def count() -> None:
        counts.append(await sqlite_database.read("texts", texts))

    run_coroutine(count(), None)
    assert counts == [0]
    assert len(found(start("true", 3, alice), "gap")) == 2


def test_an_idle_server_makes_no_query(tmp_path: Path, sqlite: SQLiteConfig) -> None:
    counter = QueryCounter()
    database = open_inline(sqlite, counter)
    server = TestServer(tmp_path, database)
    begin_jobs(server)
    alice = server.register("alice")
    say(alice, create(alice), "gap")
    settle(server)
    counter.clear()
    settle(server)
    assert counter.reads["get_events_to_index"] == counter.writes["add_to_search_index"] == 0
    run_coroutine(database.close(), None)


async def test_outliers_that_get_a_position_later_are_indexed(database: Database) -> None:
    """They were skipped as outliers; a queued row brings the job back to them."""
    types = {"m.room.message"}
    home = RoomParts(database)
    room_id = await home.create()
    await home.member(room_id, BOB, "join")
    said = await home.send(room_id, BOB, "gap")

    def batch(txn: Transaction, after: int) -> tuple[int, frozenset[int], list[int]]:
        found = select_batch(txn, after, 100, types)
        return (
            found.upto,
            found.touched,
            [text.event.event_nid for text in select_texts(txn, found.touched, types)],
        )

    upto, touched, shown = await database.read("batch", batch, 0)
    assert (touched, shown) == (frozenset({said.nid}), [said.nid])
    assert await database.read("batch", batch, upto) == (upto, frozenset[int](), [])

    def make_outlier(txn: WriteTransaction, flags: int) -> None:
        txn.execute("UPDATE events SET flags = ? WHERE event_nid = ?", (flags, said.nid))

    await database.write("make_outlier", make_outlier, 1)
    assert (await database.read("batch", batch, 0))[2] == []

    def place(txn: WriteTransaction) -> None:
        make_outlier(txn, said.flags)
        txn.execute("INSERT INTO search_queue (event_nid) VALUES (?)", (said.nid,))

    await database.write("place", place)
    assert await database.read("batch", batch, upto) == (upto, frozenset({said.nid}), [said.nid])


WORDS = ("kitob", "китоб", "kitoblar", "yoʻq", "йўқ", "ёлка")
QUERIES = ("kitob", "китоблар", "yo'q", "елка", '"kitob yoʻq"')
VISIBILITIES = ("joined", "invited", "shared", "world_readable")
ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(
            ["say"] * 6
            + ["edit", "redact"] * 2
            + ["join", "leave"] * 3
            + ["invite", "visibility", "settle"]
        ),
        st.integers(0, 1),
        st.integers(0, 5),
        st.integers(0, 5),
    ),
    min_size=4,
    max_size=25,
)


@given(actions=ACTIONS)
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)
def test_search_results_match_a_scan_of_all_messages(
    tmp_path: Path, sqlite_template: Path, actions: list[tuple[str, int, int, int]]
) -> None:
    """The law of search: it finds all messages that the user sees when requesting them by ID, whose
    latest text contains the terms, and that came before the user left."""
    database = open_inline(copy_sqlite(sqlite_template, tmp_path))
    server = TestServer(
        tmp_path, database, "rc_search: {per_second: 100000, burst_count: 100000}\n"
    )
    begin_jobs(server)
    people = [server.register("alice"), server.register("bob")]
    alice, bob = people
    room = create(alice, preset="public_chat")
    said: list[str] = []
    texts: dict[
        str, list[tuple[str, str]]
    ] = {}  # by message: the events with its text, and the text
    last_stay: dict[str, int] = {}  # the last message before a user left
    gone: set[str] = set()
    for action, who, one, two in actions:
        user = people[who]
        server.clock.advance(1)
        text = f"{WORDS[one]} {WORDS[two]}"
        if action == "say":
            content = {"msgtype": "m.text", "body": text}
            answer = put_event(user, room, "m.room.message", content)
            if answer.status == 200:
                said.append(answer.json["event_id"])
                texts[said[-1]] = [(said[-1], text)]
        elif action == "edit" and said:
            target = said[one % len(said)]
            relation = {"rel_type": "m.replace", "event_id": target}
            new = {"msgtype": "m.text", "body": text}
            edited = {**new, "body": f"* {text}", "m.new_content": new, "m.relates_to": relation}
            answer = put_event(user, room, "m.room.message", edited)
            if (
                answer.status == 200
                and target not in gone
                and _sender(alice, room, target) == user.user_id
            ):
                texts[target].append((answer.json["event_id"], text))
        elif action == "redact" and said:
            target = said[one % len(said)]
            event = texts[target][two % len(texts[target])][0] if texts[target] else target
            if redact(alice, room, event).status == 200:
                texts[target] = [each for each in texts[target] if each[0] != event]
                if event == target:
                    gone.add(target)
        elif action in ("join", "leave", "invite"):
            target_user = {"user_id": bob.user_id} if action == "invite" else {}
            actor = alice if action == "invite" else bob
            was_in = bob.user_id in ok(alice.get(room_path(room, "joined_members")))["joined"]
            answer = actor.post(room_path(room, action), target_user)
            if action == "leave" and answer.status == 200 and was_in:
                last_stay[bob.user_id] = len(said)
            elif action == "join" and answer.status == 200:
                last_stay[bob.user_id] = -1
        elif action == "visibility":
            path = room_path(room, "state", "m.room.history_visibility", "")
            ok(alice.put(path, {"history_visibility": VISIBILITIES[one % 4]}))
        elif action == "settle":
            settle(server)
    settle(server)
    folding = TextFolding(("uz", "kaa", "ru", "en"))
    for user in people:
        stay = -1 if user is alice else last_stay.get(user.user_id, 0)
        reachable = said if stay == -1 else said[:stay]
        for query in QUERIES:
            terms = parse_terms(folding, query)
            expected = [
                event
                for event in reachable
                if event not in gone
                and matches(terms, format_words(folding.lines(texts[event][-1][1])))
                and is_shown(user, room, event)
                and is_shown(user, room, texts[event][-1][0])
            ]
            assert found(user, query, filter={"limit": 100}) == expected[::-1], (
                user.user_id,
                query,
            )
    run_coroutine(database.close(), None)


def _sender(user: User, room: str, event: str) -> str:
    return str(ok(user.get(room_path(room, "event", event)))["sender"])
