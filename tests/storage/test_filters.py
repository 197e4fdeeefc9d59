"""Filters by number, and by what they say."""

from random import Random

from storage.database import Database
from storage.filters import FilterStore

ALICE = "@alice:example.org"


async def test_the_same_filter_has_the_same_number_however_large_it_is(database: Database) -> None:
    store, random = FilterStore(database), Random(1)
    large = [f'{{"x":"{random.randbytes(20_000).hex()}"}}' for _ in range(2)]
    numbers = [await database.write("t", store.add_filter, ALICE, definition) for definition in ("{}", *large, *large)]
    assert numbers == [0, 1, 2, 1, 2]
    assert [await store.get_filter_id(ALICE, definition) for definition in (*large, "other")] == [1, 2, None]
    assert await store.get_filter(ALICE, 2) == large[1]
    assert await database.write("t", store.add_filter, "@bob:example.org", large[1]) == 0
    assert await database.read("t", store.get_sums, ALICE) == (3, 2 + sum(map(len, large)))
    assert await database.read("t", store.get_sums, "@carol:example.org") == (0, 0)
