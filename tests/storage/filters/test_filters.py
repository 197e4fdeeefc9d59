"""Filters by ID and by content, and their limits."""

from random import Random

import pytest

from storage.engine.database import Database
from storage.filters import filters
from storage.filters.filters import FilterStore

ALICE = "@alice:example.org"


async def test_the_same_filter_gets_the_same_id_whatever_its_size(database: Database) -> None:
    store, random = FilterStore(database), Random(1)
    large = [f'{{"x":"{random.randbytes(20_000).hex()}"}}' for _ in range(2)]
    numbers = [
        await store.add_filter(ALICE, definition, 1) for definition in ("{}", *large, *large)
    ]
    assert numbers == [0, 1, 2, 1, 2]
    assert [await store.get_filter_id(ALICE, definition) for definition in (*large, "other")] == [
        (1, 1),
        (2, 1),
        None,
    ]
    assert await store.get_filter(ALICE, 2) == (large[1], 0)
    assert await store.add_filter("@bob:example.org", large[1], 1) == 0


async def test_the_least_recently_used_filters_are_deleted(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filters, "MAX_FILTERS", 3)
    monkeypatch.setattr(filters, "MAX_CHARACTERS", 100)
    store = FilterStore(database)

    for ts, definition in enumerate(("a", "b", "c", "a")):
        await store.add_filter(ALICE, definition, ts)
        assert (await store.get_filter(ALICE, ts % 3)) == (definition, 0)
    for number, ts in enumerate((3, 9, 4)):
        await store.record_use(ALICE, number, ts)
    await store.record_use(ALICE, 1, 2)  # by a node whose write was late
    assert (await store.get_filter(ALICE, 1), await kept(store)) == (("b", 9), [0, 1, 2])
    assert await store.add_filter(ALICE, "d", 9) == 3
    assert await kept(store) == [1, 2, 3]
    assert await store.add_filter(ALICE, "x" * 99, 9) == 4
    assert await kept(store) == [3, 4]
    assert await store.add_filter(ALICE, "c", 9) == 5  # no ID is reused
    assert await store.add_filter("@bob:example.org", "c", 9) == 0


async def test_unused_filters_are_deleted_before_used_ones(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filters, "MAX_FILTERS", 6)
    monkeypatch.setattr(filters, "PROTECTED_UNUSED", 2)
    store = FilterStore(database)
    for number in range(2):
        await store.add_filter(ALICE, f"used{number}", 1)
        await store.record_use(ALICE, number, 1)
    for number in range(2, 30):
        assert await store.add_filter(ALICE, f"{number}", number) == number
    assert await kept(store) == [0, 1, 26, 27, 28, 29]
    await store.add_filter(ALICE, "26", 50)  # which is about to be used
    for number in range(26, 30):
        await store.record_use(ALICE, number, 100 + number)
    assert await store.add_filter(ALICE, "30", 200) == 30
    assert await store.add_filter(ALICE, "31", 200) == 31
    assert await kept(store) == [
        26,
        27,
        28,
        29,
        30,
        31,
    ]  # two new filters do not replace each other
    assert await store.add_filter(ALICE, "32", 200) == 32
    assert await kept(store) == [26, 27, 28, 29, 31, 32]


async def kept(store: FilterStore) -> list[int]:
    return [number for number in range(40) if await store.get_filter(ALICE, number) is not None]
