"""Pages of an event's children: their contents, and their cost in a room with many other
threads."""

import pytest

from storage.engine.database import Database
from storage.events.relations import (
    Relation,
    RelationFilter,
    RelationRow,
    RelationStore,
    add_relations,
)
from storage.events.timelines import START, Direction, TimelinePlace
from tests.helpers.query_plans import record_plans

END = TimelinePlace(2**53, 2**53)
EVERYTHING = RelationFilter()
WANTED = [
    RelationFilter(rel_type, type_, levels)
    for rel_type in (None, "m.thread")
    for type_ in (None, "m.room.message")
    for levels in (1, 3)
]


def child(nid: int, target: str, rel_type: str, type_: str = "m.room.message") -> RelationRow:
    return RelationRow(
        Relation(rel_type, target), nid, f"${nid}", 1, nid, type_, "@a:example.org", nid
    )


@pytest.mark.parametrize("wanted", WANTED, ids=str)
async def test_children_are_found_by_their_parent(
    database: Database, monkeypatch: pytest.MonkeyPatch, wanted: RelationFilter
) -> None:
    """The query does not search all thread events of the room once per child."""
    rows = [child(nid, f"$0{nid % 50 or ''}", "m.thread") for nid in range(1, 2001)]
    await database.write("add", add_relations, rows)
    await database.write("analyze", lambda txn: txn.execute("ANALYZE relations"))
    plans = record_plans(database, monkeypatch)
    page = await RelationStore(database).get_page(
        1, "$0", wanted, END, None, Direction.BACKWARDS, 3
    )
    assert page == [(TimelinePlace(nid, nid), nid) for nid in (2000, 1950, 1900)]
    assert await RelationStore(database).find_levels(1, "$0", wanted, 2000) == wanted.levels
    assert plans
    assert not [plan for plan in plans if "relations_by_thread" in plan]


async def test_pages_are_read_forwards_and_backwards(database: Database) -> None:
    rows = [
        child(1, "$0", "m.thread"),
        child(2, "$0", "m.annotation", "m.reaction"),
        child(3, "$1", "m.replace"),
        child(4, "$3", "m.annotation", "m.reaction"),
        child(5, "$4", "m.reference"),
        child(6, "$0", "m.thread"),
    ]
    await database.write("add", add_relations, rows)
    store = RelationStore(database)

    async def page(
        wanted: RelationFilter,
        start: TimelinePlace,
        end: TimelinePlace | None,
        direction: Direction,
        limit: int = 9,
    ) -> list[int]:
        return [
            nid for _, nid in await store.get_page(1, "$0", wanted, start, end, direction, limit)
        ]

    assert await page(EVERYTHING, START, None, Direction.FORWARDS) == [1, 2, 6]
    assert await page(EVERYTHING, END, None, Direction.BACKWARDS, 2) == [6, 2]
    assert await page(EVERYTHING, TimelinePlace(2, 2), None, Direction.BACKWARDS) == [2, 1]
    assert await page(EVERYTHING, END, TimelinePlace(1, 1), Direction.BACKWARDS) == [6, 2]
    assert await page(EVERYTHING, START, TimelinePlace(2, 2), Direction.FORWARDS) == [1, 2]
    assert await page(RelationFilter("m.thread"), START, None, Direction.FORWARDS) == [1, 6]
    assert await page(RelationFilter(None, "m.reaction"), START, None, Direction.FORWARDS) == [2]
    assert await page(RelationFilter(levels=2), START, None, Direction.FORWARDS) == [1, 2, 3, 6]
    assert await page(RelationFilter(levels=3), START, None, Direction.FORWARDS) == [1, 2, 3, 4, 6]
    assert await page(RelationFilter("m.thread", levels=3), END, None, Direction.BACKWARDS) == [
        6,
        1,
    ]
    assert [
        nid
        for _, nid in await store.get_page(2, "$0", EVERYTHING, START, None, Direction.FORWARDS, 9)
    ] == []


async def test_the_depth_of_descendants_is_limited_by_their_number(database: Database) -> None:
    rows = [child(1, "$0", "m.thread"), child(2, "$0", "m.reference")]
    rows += [child(nid, "$1", "m.replace") for nid in range(10, 15)]
    rows += [child(nid, "$10", "m.annotation") for nid in range(20, 30)]
    await database.write("add", add_relations, rows)
    store = RelationStore(database)

    async def levels(most: int, wanted: RelationFilter) -> int:
        return await store.find_levels(1, "$0", wanted, most)

    deep = RelationFilter(levels=3)
    assert [await levels(most, deep) for most in (1, 2, 6, 7, 16, 17)] == [1, 1, 1, 2, 2, 3]
    assert await levels(17, RelationFilter(levels=2)) == 2
    assert await levels(1, RelationFilter("m.thread", levels=3)) == 3
    assert await store.find_levels(2, "$0", deep, 0) == 3, "children in another room do not count"
