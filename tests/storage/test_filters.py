"""Filters by number, and by what they say; those that are kept."""

from random import Random

import pytest

from storage import filters
from storage.database import Database
from storage.filters import FilterStore

ALICE = "@alice:example.org"


async def test_the_same_filter_has_the_same_number_however_large_it_is(database: Database) -> None:
    store, random = FilterStore(database), Random(1)
    large = [f'{{"x":"{random.randbytes(20_000).hex()}"}}' for _ in range(2)]
    numbers = [await store.add_filter(ALICE, definition, 1) for definition in ("{}", *large, *large)]
    assert numbers == [0, 1, 2, 1, 2]
    assert [await store.get_filter_id(ALICE, definition) for definition in (*large, "other")] == [(1, 1), (2, 1), None]
    assert await store.get_filter(ALICE, 2) == (large[1], 1)
    assert await store.add_filter("@bob:example.org", large[1], 1) == 0


async def test_those_go_that_were_not_used_for_longest(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "MOST_FILTERS", 3)
    monkeypatch.setattr(filters, "LARGEST_FILTERS", 100)
    store = FilterStore(database)

    async def kept() -> list[int]:
        return [number for number in range(9) if await store.get_filter(ALICE, number) is not None]

    for day, definition in enumerate(("a", "b", "c", "a")):
        await store.add_filter(ALICE, definition, day)
    await store.note_used(ALICE, 1, 9)
    await store.note_used(ALICE, 1, 2)  # by a node that was late
    assert (await store.get_filter(ALICE, 1), await kept()) == (("b", 9), [0, 1, 2])
    assert await store.add_filter(ALICE, "d", 9) == 3
    assert await kept() == [0, 1, 3]
    assert await store.add_filter(ALICE, "x" * 99, 9) == 4
    assert await kept() == [3, 4]
    assert await store.add_filter(ALICE, "c", 9) == 5  # no number comes again
    assert await store.add_filter("@bob:example.org", "c", 9) == 0
