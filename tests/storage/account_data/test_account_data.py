"""Account data by position, for incremental readers."""

import pytest

from storage.account_data import account_data
from storage.account_data.account_data import AccountDataStore, AccountDataUsage
from storage.engine.database import Database, PostgresConfig, SQLiteConfig
from storage.engine.streams import Change, Stage, Topic
from tests.helpers.databases import QueryCounter, open_inline

ALICE = "@alice:example.org"
ROOM = "!room:example.org"


async def test_incremental_readers_see_each_change_once(database: Database) -> None:
    store = AccountDataStore(database)
    changes_seen: list[Change] = []
    database.streams.subscribe(changes_seen.extend, stage=Stage.NOTIFY)
    start = database.streams.current()
    first = await database.write("t", store.set_entry, ALICE, None, "m.direct", b'{"a":1}')
    second = await database.write("t", store.set_entry, ALICE, ROOM, "m.tag", b'{"tags":{}}')
    await database.write("t", store.set_entry, "@bob:example.org", None, "m.direct", b"{}")
    assert [(change.topic, change.room_id, change.user_id) for change in changes_seen] == [
        (Topic.ACCOUNT_DATA, None, ALICE),
        (Topic.ACCOUNT_DATA, ROOM, ALICE),
        (Topic.ACCOUNT_DATA, None, "@bob:example.org"),
    ]

    both = await store.get_account_data_since(ALICE, start, second)
    assert (both.global_data, both.rooms) == (
        {"m.direct": b'{"a":1}'},
        {ROOM: {"m.tag": b'{"tags":{}}'}},
    )
    later = await store.get_account_data_since(ALICE, first, second)
    assert (later.global_data, later.rooms) == ({}, {ROOM: {"m.tag": b'{"tags":{}}'}})
    assert (
        await store.get_account_data_since(ALICE, second, database.streams.current())
    ).rooms == {}

    # A second change is returned at the later position only.
    third = await database.write("t", store.set_entry, ALICE, None, "m.direct", b'{"a":2}')
    assert (await store.get_account_data_since(ALICE, start, second)).global_data == {}
    assert (await store.get_account_data_since(ALICE, second, third)).global_data == {
        "m.direct": b'{"a":2}'
    }


async def test_only_incremental_readers_see_a_deleted_entry(database: Database) -> None:
    store = AccountDataStore(database)
    position = await database.write("t", store.set_entry, ALICE, ROOM, "x", b'{"a":1}')
    assert await database.write("t", store.remove_entry, ALICE, ROOM, "y") is None
    removed = await database.write("t", store.remove_entry, ALICE, ROOM, "x")
    assert removed is not None
    assert (await store.get_account_data_since(ALICE, position, removed)).rooms == {
        ROOM: {"x": b"{}"}
    }
    assert (await store.get_account_data(ALICE)).rooms == {}
    assert await store.get_entry(ALICE, ROOM, "x") is None


async def test_reading_costs_one_query(database_config: SQLiteConfig | PostgresConfig) -> None:
    counter = QueryCounter()
    database = open_inline(database_config, counter)
    store = AccountDataStore(database)
    for number in range(30):
        await database.write("t", store.set_entry, ALICE, f"!r{number}:example.org", "m.tag", b"{}")
    counter.clear()
    assert len((await store.get_account_data(ALICE)).rooms) == 30
    assert (
        len((await store.get_account_data_since(ALICE, 0, database.streams.current())).rooms) == 30
    )
    assert counter.queries.total() == 2
    await database.close()


async def test_the_usage_of_a_user_is_counted(database: Database) -> None:
    store = AccountDataStore(database)

    async def sums(user_id: str = ALICE) -> tuple[int, int]:
        found = await database.read("t", store.get_usage, user_id)
        return found.entries, found.size

    assert await sums() == (0, 0)
    await database.write("t", store.set_entry, ALICE, None, "x", b'{"a":1}')
    await database.write("t", store.set_entry, ALICE, ROOM, "x", b'{"a":12}')
    await database.write("t", store.set_entry, "@bob:example.org", ROOM, "x", b"{}")
    assert await sums() == (2, 15)
    growth = [
        await database.read("t", store.get_larger_usage, ALICE, ROOM, type_, content)
        for type_, content in (("x", b'{"a":123}'), ("x", b'{"a":45}'), ("x", b"{}"), ("y", b"{}"))
    ]
    assert growth == [AccountDataUsage(2, 16), None, None, AccountDataUsage(3, 17)]
    await database.write("t", store.set_entry, ALICE, ROOM, "x", b'{"a":123}')
    await database.write("t", store.remove_entry, ALICE, None, "x")
    assert await sums() == (1, 9)
    assert await database.read(
        "t", store.get_larger_usage, ALICE, None, "x", b"{}"
    ) == AccountDataUsage(2, 11)
    await database.write("t", store.set_entry, ALICE, None, "x", b'{"a":1}')
    assert await database.read("t", store.get_usage, ALICE) == AccountDataUsage(2, 16)
    await database.write("t", store.remove_account_data, ALICE)
    assert (await sums(), await sums("@bob:example.org")) == ((0, 0), (1, 2))


async def test_deleted_entries_are_stored_up_to_a_limit(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(account_data, "MAX_DELETED", 2)
    store = AccountDataStore(database)
    start = database.streams.current()

    async def received() -> dict[str, bytes]:
        return (
            await store.get_account_data_since(ALICE, start, database.streams.current())
        ).global_data

    for type_ in "abcd":
        await database.write("t", store.set_entry, ALICE, None, type_, b'{"a":1}')
    for type_ in "bac":
        await database.write("t", store.remove_entry, ALICE, None, type_)
    assert await received() == {"d": b'{"a":1}', "a": b"{}", "c": b"{}"}
    assert await database.read("t", store.get_usage, ALICE) == AccountDataUsage(1, 7, 2)
    await database.write("t", store.set_entry, ALICE, None, "a", b"{}", deleted=True)
    assert list(await received()) == ["d", "c", "a"]
    await database.write("t", store.set_entry, ALICE, None, "c", b'{"a":1}')
    assert await database.read("t", store.get_usage, ALICE) == AccountDataUsage(2, 14, 1)
