"""Stored verdicts of policy servers."""

from storage.engine.database import Database
from storage.federation.policy_server_verdicts import MAX_AGE_MS, PolicyVerdictStore

KEY, OTHER_KEY = b"k" * 32, b"o" * 32


async def test_verdicts_are_stored_by_room_and_key(database: Database) -> None:
    store = PolicyVerdictStore(database=database)
    await store.add_verdicts(1, KEY, {"$good": True, "$bad": False}, 1000)
    await store.add_verdicts(1, OTHER_KEY, {"$good": False}, 1000)
    names = ["$good", "$bad", "$unknown"]
    assert await store.get_verdicts(1, KEY, names) == {"$good": True, "$bad": False}
    assert await store.get_verdicts(1, OTHER_KEY, names) == {"$good": False}
    assert await store.get_verdicts(2, KEY, names) == {}
    await store.add_verdicts(1, KEY, {"$bad": True}, 1001)
    assert await store.get_verdicts(1, KEY, names) == {"$good": True, "$bad": True}


async def test_the_number_and_age_of_verdicts_are_limited(database: Database) -> None:
    store = PolicyVerdictStore(database=database, max_per_room=3)
    for number in range(5):
        await store.add_verdicts(1, KEY, {f"${number}": True}, 1000 + number)
    await store.add_verdicts(2, KEY, {"$elsewhere": True}, 1005)
    assert set(await store.get_verdicts(1, KEY, [f"${number}" for number in range(5)])) == {
        "$2",
        "$3",
        "$4",
    }

    await store.add_verdicts(3, KEY, {"$later": True}, 1005 + MAX_AGE_MS)

    assert await store.get_verdicts(1, KEY, ["$4"]) == {}
    assert await store.get_verdicts(2, KEY, ["$elsewhere"]) == {"$elsewhere": True}
