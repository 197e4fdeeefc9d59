"""Changes of profiles, including removed fields."""

from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.profiles.profiles import MAX_REMOVALS, ProfileStore

ALICE = "@alice:example.org"


async def test_changes_are_returned_by_position(database: Database) -> None:
    store = ProfileStore(database)
    first = await database.write("t", store.set_field, ALICE, "m.tz", b'"UTC"', propagate=False)
    second = await database.write("t", store.set_field, ALICE, "m.x", b"1", propagate=False)
    assert await store.get_changes(0, second, 10) == {ALICE: {"m.tz": b'"UTC"', "m.x": b"1"}}
    assert await store.get_changes(first, second, 10) == {ALICE: {"m.x": b"1"}}
    assert await store.get_changes(0, second, 2) is not None
    assert await store.get_changes(0, second, 1) is None
    third = await database.write("t", store.remove_field, ALICE, "m.tz", propagate=False)
    assert third is not None
    assert await store.get_changes(second, third, 10) == {ALICE: {"m.tz": None}}
    fourth = await database.write("t", store.set_field, ALICE, "m.tz", b"null", propagate=False)
    assert await store.get_changes(second, fourth, 10) == {ALICE: {"m.tz": b"null"}}


async def test_removals_are_bounded(database: Database) -> None:
    store = ProfileStore(database)
    for number in range(MAX_REMOVALS + 5):
        await database.write("t", store.set_field, ALICE, f"m.f{number}", b"1", propagate=False)
        await database.write("t", store.remove_field, ALICE, f"m.f{number}", propagate=False)
    changes = await store.get_changes(0, database.streams.current(), 2 * MAX_REMOVALS)
    assert changes is not None
    assert set(changes[ALICE]) == {f"m.f{number}" for number in range(5, MAX_REMOVALS + 5)}


async def test_only_the_owner_sees_shadow_fields(database: Database) -> None:
    store = ProfileStore(database)

    def shown(txn: WriteTransaction) -> None:
        store.set_field(txn, ALICE, "displayname", b'"Alice"', propagate=False)
        store.set_field(txn, ALICE, "m.tz", b'"UTC"', propagate=False)

    await database.write("t", shown)
    before = database.streams.current()
    for value in (b'"spam"', b'"more"'):
        await database.write("t", store.set_shadow_field, ALICE, "displayname", value)
    await database.write("t", store.set_shadow_field, ALICE, "m.tz", None)
    await database.write("t", store.set_shadow_field, ALICE, "org.example", b"1")
    assert await store.get_as_owner(ALICE) == {"displayname": b'"more"', "org.example": b"1"}
    assert await store.get_profiles([ALICE]) == {
        ALICE: {"displayname": b'"Alice"', "m.tz": b'"UTC"'}
    }
    assert database.streams.current() == before
    await database.write("t", store.remove_shadow_fields, ALICE)
    assert await store.get_as_owner(ALICE) == {"displayname": b'"Alice"', "m.tz": b'"UTC"'}
    await database.write("t", store.set_shadow_field, ALICE, "displayname", b'"spam"')
    await database.write("t", store.remove_profile, ALICE)
    assert await store.get_as_owner(ALICE) == {}
