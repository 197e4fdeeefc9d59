"""Threads with new events in a range of positions: on both databases, compared with a plain
computation."""

from collections.abc import Callable
from random import Random

import pytest

from storage.engine import transaction
from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction
from storage.events.relations import REFERENCE, THREAD, Relation, RelationRow, add_relations
from storage.events.timelines import TimelinePlace
from storage.rooms import thread_updates
from storage.rooms.thread_updates import ThreadUpdateRow, ThreadUpdateStore

PEOPLE = ("@alice:a.test", "@bob:a.test")


Summary = tuple[int, str, int, TimelinePlace, int]


def summarize(row: ThreadUpdateRow) -> Summary:
    return row.room_nid, row.root, row.position, row.newest, row.count


async def test_threads_of_a_range_are_listed_once(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = Random(7)
    said: list[
        tuple[int, int, int, str, str, str]
    ] = []  # room, position and number, depth, sender, root, kind of relation
    for position in range(1, 301):
        room = random.randrange(1, 6)
        kind = random.choice([THREAD, THREAD, REFERENCE])
        said.append(
            (
                room,
                position,
                random.randrange(1, 50),
                random.choice(PEOPLE),
                f"${room}{position % 4}",
                kind,
            )
        )

    def write(txn: WriteTransaction) -> None:
        txn.execute_many(
            "INSERT INTO events (event_nid, event_id, room_nid, position, depth, type, sender,"
            " origin_server_ts, flags, pdu,"
            " thread_root) VALUES (?, ?, ?, ?, ?, 'm', ?, 0, 16, ?, ?)",
            [
                (at, f"${at}", room, at, depth, sender, b"{}", root)
                for room, at, depth, sender, root, _ in said
            ],
        )
        add_relations(
            txn,
            [
                RelationRow(Relation(kind, root), at, f"${at}", room, depth, "m", sender, 0)
                for room, at, depth, sender, root, kind in said
            ],
        )

    await database.write("write", write)
    store = ThreadUpdateStore(database)

    def compute(
        rooms: set[int], after: int, upto: int, last: int, ignored: list[str]
    ) -> list[Summary]:
        found: dict[tuple[int, str], list[tuple[int, TimelinePlace]]] = {}
        for room, at, depth, sender, root, kind in said:
            if room in rooms and after < at <= upto and sender not in ignored and kind == THREAD:
                found.setdefault((room, root), []).append((at, TimelinePlace(depth, at)))
        rows = [
            (
                room,
                root,
                max(at for at, _ in events),
                max(place for _, place in events),
                len(events),
            )
            for (room, root), events in found.items()
        ]
        return sorted((row for row in rows if row[2] <= last), key=lambda row: -row[2])

    for chunk in (1000, 2):  # rooms are read in several queries
        monkeypatch.setattr(transaction, "MAX_CHUNK", chunk)
        for _ in range(30):
            rooms = set(random.sample(range(1, 8), random.randrange(1, 6)))
            after, upto = sorted(random.sample(range(301), 2))
            last, ignored = (
                random.choice([upto, random.randrange(301)]),
                random.choice([[], [], [PEOPLE[0]]]),
            )
            rows = compute(rooms, after, upto, last, ignored)
            page = await store.get_updates(rooms, after, upto, last, 100, ignored)
            assert (list(map(summarize, page.rows)), page.reached) == (rows, None)
            page = await store.get_updates(rooms, after, upto, last, 3, ignored)
            assert list(map(summarize, page.rows)) == rows[:3]
            assert page.reached == (rows[3][2] if len(rows) > 3 else None)
            if chunk == 2:
                continue
            # pages of what was walked over, all of which give each thread once
            limits = "MAX_EVENTS", "FIRST_BATCH", "MIN_EVENTS_PER_ROOM", "MAX_ROOMS_PER_BATCH"
            with monkeypatch.context() as small:
                for name in limits:
                    small.setattr(thread_updates, name, random.randrange(1, 9))
                paged: list[Summary] = []
                end: int | None = last
                while end is not None:
                    page = await store.get_updates(rooms, after, upto, end, 3, ignored)
                    assert all(row.position <= end for row in page.rows)
                    assert page.reached is None or page.reached < end
                    paged += map(summarize, page.rows)
                    end = page.reached
                assert paged == rows


async def test_the_cost_of_a_page_is_bounded(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread has more events than a page reads: the pages still reach the other one."""
    monkeypatch.setattr(thread_updates, "MAX_EVENTS", 100)
    replies = 400

    def write(txn: WriteTransaction) -> None:
        for at in range(1, replies + 1):
            room, root = (1, "$busy") if at > 1 else (2, "$quiet")
            txn.execute(
                "INSERT INTO events (event_nid, event_id, room_nid, position, depth, type, sender,"
                " origin_server_ts, flags, pdu,"
                " thread_root) VALUES (?, ?, ?, ?, ?, 'm', ?, 0, 16, ?, ?)",
                (at, f"${at}", room, at, at, PEOPLE[0], b"{}", root),
            )
            add_relations(
                txn,
                [RelationRow(Relation(THREAD, root), at, f"${at}", room, at, "m", PEOPLE[0], 0)],
            )

    await database.write("write", write)
    queries: list[int] = []

    def count(fn: Callable[..., object]) -> Callable[..., object]:
        def counted(txn: Transaction, *args: object) -> object:
            found = fn(txn, *args)
            queries.append(txn.queries)
            return found

        return counted

    # private: counts the queries of each page, not those of the complete read
    monkeypatch.setattr(thread_updates, "_select", count(thread_updates._select))
    store = ThreadUpdateStore(database)
    page = await store.get_updates({1, 2}, 0, replies, replies, 5, [])
    (busy,) = page.rows
    assert (busy.root, busy.position, busy.newest) == (
        "$busy",
        replies,
        TimelinePlace(replies, replies),
    )
    assert not busy.is_complete
    assert page.reached is not None
    assert 0 < page.reached < replies - 50
    roots: list[str] = []
    end: int | None = page.reached
    while end is not None:
        page = await store.get_updates({1, 2}, 0, replies, end, 5, [])
        roots += [row.root for row in page.rows]
        end = page.reached
    assert roots == ["$quiet"]
    assert 4 <= len(queries) <= 9
    assert max(queries) <= 6


async def test_many_rooms_are_read_from_the_latest_event_on(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page is full though each room has more events than are read for it."""
    monkeypatch.setattr(thread_updates, "MAX_EVENTS", 400)
    monkeypatch.setattr(thread_updates, "MAX_ROOMS_PER_BATCH", 10)
    rooms = 60

    def write(txn: WriteTransaction) -> None:
        for at in range(1, 20 * rooms + 1):
            room = (at - 1) // 20
            txn.execute(
                "INSERT INTO events (event_nid, event_id, room_nid, position, depth, type, sender,"
                " origin_server_ts, flags, pdu,"
                " thread_root) VALUES (?, ?, ?, ?, ?, 'm', ?, 0, 16, ?, '$root')",
                (at, f"${at}", room, at, at, PEOPLE[0], b"{}"),
            )
            relation = Relation(THREAD, f"$root{at}")
            add_relations(txn, [RelationRow(relation, at, f"${at}", room, at, "m", PEOPLE[0], 0)])

    await database.write("write", write)
    newest = 20 * rooms
    page = await ThreadUpdateStore(database).get_updates(range(rooms), 0, newest, newest, 30, [])
    assert [row.position for row in page.rows] == list(range(newest, newest - 30, -1))
    assert page.reached == newest - 30
