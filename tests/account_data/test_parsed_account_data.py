"""The cache of parsed account data: correct and bounded."""

from federation.protocol.ids import UserID
from homeserver.services.account_data.parsed_account_data import (
    BYTES_PER_USER,
    ParsedAccountDataCache,
)
from storage.account_data.account_data import AccountDataStore
from storage.engine.database import Database

ALICE, BOB, CAROL = (UserID(f"@{name}:example.org") for name in ("alice", "bob", "carol"))


async def test_fewer_users_with_much_data_are_cached(sqlite_database: Database) -> None:
    store, parsed = AccountDataStore(sqlite_database), list[str]()

    def parse(contents: object, user_id: UserID) -> int:
        parsed.append(user_id)
        return len(str(contents))

    data = ParsedAccountDataCache(
        account_data=store, streams=sqlite_database.streams, types=["x"], parse=parse, capacity=3
    )

    async def read(*user_ids: UserID) -> list[str]:
        parsed.clear()
        for user_id in user_ids:
            await data.of_user(user_id)
        return list(parsed)

    async def put(user_id: UserID, size: int) -> None:
        content = b'{"a":"' + b"x" * size + b'"}'
        await sqlite_database.write("t", store.set_entry, user_id, None, "x", content)

    assert await read(ALICE, BOB, CAROL, ALICE, BOB, CAROL) == [ALICE, BOB, CAROL]
    await put(ALICE, 2 * BYTES_PER_USER)
    assert await read(ALICE, BOB, ALICE) == [ALICE]
    await put(BOB, 2 * BYTES_PER_USER)
    assert await read(BOB, CAROL, ALICE, CAROL, BOB) == [BOB, CAROL, ALICE, BOB]
    await put(BOB, 10)
    assert await read(BOB, CAROL, ALICE, BOB, CAROL, ALICE) == [BOB, ALICE]


async def test_added_data_is_cached_unless_it_changed_meanwhile(
    sqlite_database: Database,
) -> None:
    store = AccountDataStore(sqlite_database)
    data = ParsedAccountDataCache(
        account_data=store,
        streams=sqlite_database.streams,
        types=["x"],
        parse=lambda contents, _: contents.get("x"),
        capacity=3,
    )
    await sqlite_database.write("t", store.set_entry, ALICE, None, "x", b"{}")
    version_before = data.version
    read = (await store.get_account_data(ALICE)).global_data
    await sqlite_database.write("t", store.set_entry, ALICE, None, "x", b'{"a":1}')
    assert data.add(ALICE, read, version_before) == b"{}"
    assert data.get_cached(ALICE) is None
    assert await data.of_user(ALICE) == b'{"a":1}'
    version_before = data.version
    assert data.add(BOB, {"y": b"{}"}, version_before) is None
    assert (
        data.add(CAROL, {"x": b'{"c":1}'}, version_before) == data.get_cached(CAROL) == b'{"c":1}'
    )
