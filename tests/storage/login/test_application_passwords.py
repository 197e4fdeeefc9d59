"""Application passwords and their sessions."""

from storage.devices.devices import DeviceLastSeen, DeviceRow, DeviceStore
from storage.engine.database import Database
from storage.login.application_passwords import ApplicationPasswordRow, ApplicationPasswordStore

ALICE, BOB = "@alice:example.org", "@bob:example.org"


def row(
    password_id: str, name: str, user_id: str = ALICE, expires_ts: int | None = None
) -> ApplicationPasswordRow:
    return ApplicationPasswordRow(
        password_id, user_id, name, f"hash of {password_id}", 1, expires_ts
    )


async def test_names_are_unique_per_user(database: Database) -> None:
    store = ApplicationPasswordStore(database)
    assert await database.write("t", store.add_password, row("a", "Bot"))
    assert not await database.write("t", store.add_password, row("b", "Bot"))
    assert await database.write("t", store.add_password, row("c", "Bot", BOB))
    assert await database.read("t", store.count_passwords, ALICE) == 1
    assert await store.get_password("a") == row("a", "Bot")
    assert await store.get_password("b") is None
    assert [each.password_id for each in await store.get_passwords(BOB)] == ["c"]


async def test_requests_of_its_sessions_count_as_use(database: Database) -> None:
    store, devices = ApplicationPasswordStore(database), DeviceStore(database)
    await database.write("t", store.add_password, row("a", "Bot"))
    await database.write("t", store.add_password, row("b", "Old app"))
    await database.write("t", devices.add_device, DeviceRow(ALICE, "BOT", None, 5))
    assert await database.write("t", store.set_used, ALICE, "BOT", "a", 5)
    assert not await database.write("t", store.set_used, BOB, "BOT", "a", 6)
    assert [each.used_ts for each in await store.get_passwords(ALICE)] == [5, None]
    await devices.set_last_seen([DeviceLastSeen(ALICE, "BOT", 9, "::1", "agent")])
    assert [each.used_ts for each in await store.get_passwords(ALICE)] == [9, None]

    # another password signs in on the device
    assert await database.write("t", store.set_used, ALICE, "BOT", "b", 10)
    assert await database.write("t", store.remove_password, ALICE, "a") == ("Bot", [])
    assert await database.write("t", store.remove_password, BOB, "b") is None
    assert await database.write("t", store.remove_password, ALICE, "b") == ("Old app", ["BOT"])


async def test_expired_passwords_are_found_in_order(database: Database) -> None:
    store = ApplicationPasswordStore(database)
    for password_id, end in (("a", 30), ("b", None), ("c", 10), ("d", 20)):
        await database.write("t", store.add_password, row(password_id, password_id, expires_ts=end))
    assert await database.read("t", store.get_expired, 20, 10) == [(ALICE, "c"), (ALICE, "d")]
    assert await database.read("t", store.get_expired, 99, 1) == [(ALICE, "c")]
    await database.write("t", store.remove_user, ALICE)
    assert await store.get_passwords(ALICE) == []
