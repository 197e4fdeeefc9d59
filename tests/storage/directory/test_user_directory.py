"""The user directory, on both databases."""

from collections.abc import Sequence

import pytest
from msgspec.structs import replace

from storage.accounts.accounts import AccountRow, AccountStore
from storage.directory.user_directory import (
    DirectoryUser,
    RemoteProfile,
    UserDirectoryQuery,
    UserDirectoryStore,
)
from storage.directory.user_directory_queue import queue_directory_updates
from storage.engine.database import Database, Transaction, WriteTransaction
from storage.profiles.profiles import ProfileStore
from storage.rooms.memberships import MembershipRow, put_memberships

ME, ALI, VALI, FAR = "@me:a.test", "@ali:a.test", "@vali:a.test", "@ali:far.test"
QUERY = UserDirectoryQuery(
    ME, [("ali",)], None, locals_only=False, include_all_local=True, include_locked=False
)


@pytest.fixture
def store(database: Database) -> UserDirectoryStore:
    return UserDirectoryStore(database)


async def put(database: Database, store: UserDirectoryStore, user_id: str, *keys: str) -> None:
    row = DirectoryUser(user_id, user_id.endswith(":a.test"), None, None, "")
    await database.write("put", store.put_users, {user_id: 0}, [(row, [*keys, user_id])])


async def join(database: Database, room: int, *users: str, rule: str = "invite") -> None:
    def write(txn: WriteTransaction) -> None:
        txn.execute("INSERT INTO room_summaries (room_nid, join_rule) VALUES (?, ?)", (room, rule))
        for user in users:
            row = MembershipRow(
                room, user, "join", 1, user, room, user.endswith(":a.test"), "Ali", None, False
            )
            put_memberships(txn, [row])

    await database.write("join", write)


async def register(database: Database, *users: str) -> None:
    def write(txn: WriteTransaction) -> None:
        for user in users:
            AccountStore(database).add_account(txn, AccountRow(user, None, 0))

    await database.write("register", write)


async def ids(store: UserDirectoryStore, query: UserDirectoryQuery) -> list[tuple[str, bool]]:
    return sorted((found.row.user_id, found.shares_room) for found in await store.get_users(query))


async def test_users_are_found_by_words_and_visibility(
    database: Database, store: UserDirectoryStore
) -> None:
    await register(database, ME, ALI, VALI)
    for user, keys in (
        (ME, ("ali",)),
        (ALI, ("ali", "aliyev")),
        (VALI, ("vali", "aliyev")),
        (FAR, ("alibek",)),
    ):
        await put(database, store, user, *keys)
    everyone = [(ALI, False), (VALI, False)]
    assert await ids(store, QUERY) == everyone
    assert await ids(store, replace(QUERY, include_all_local=False)) == []
    await join(database, 1, ME, FAR)
    await join(database, 2, ALI, rule="public")
    assert await ids(store, QUERY) == [(ALI, False), (FAR, True), (VALI, False)]
    assert await ids(store, replace(QUERY, include_all_local=False)) == [(ALI, False), (FAR, True)]
    assert await ids(store, replace(QUERY, locals_only=True)) == everyone
    assert await ids(store, replace(QUERY, words=[("aliyev",), ("vali",)])) == [(VALI, False)]
    assert await ids(store, replace(QUERY, words=[("vali", "alib")])) == [
        (FAR, True),
        (VALI, False),
    ]
    assert await ids(store, replace(QUERY, words=[("x",)], id_prefix="@ali:")) == [
        (ALI, False),
        (FAR, True),
    ]
    assert await ids(store, replace(QUERY, words=[])) == []
    await database.write(
        "lock", lambda txn: AccountStore(database).set_flags(txn, ALI, locked=True)
    )
    assert await ids(store, QUERY) == [(FAR, True), (VALI, False)]
    assert (ALI, False) in await ids(store, replace(QUERY, include_locked=True))
    await database.write(
        "end", lambda txn: AccountStore(database).set_deactivated(txn, VALI, 1, erase=False)
    )
    assert await ids(store, QUERY) == [(FAR, True)]


async def test_changed_users_are_queued_and_processed(
    database: Database, store: UserDirectoryStore
) -> None:
    async def notes() -> dict[str, int]:
        return await database.read("notes", store.select_changes, 10)

    await register(database, ALI)
    before = await notes()
    assert before.keys() == {ALI}
    await database.write(
        "name",
        lambda txn: ProfileStore(database).set_field(
            txn, ALI, "displayname", b'"Ali"', propagate=False
        ),
    )
    assert (await notes())[ALI] > before[ALI]
    await database.write("put", store.put_users, before, [])
    assert (await notes()).keys() == {ALI}, "the user has changed since they were read"
    await database.write("put", store.put_users, await notes(), [])
    assert await notes() == {}
    await put(database, store, VALI, "vali")
    await database.write("note", queue_directory_updates, [(FAR, 7), (FAR, 8)])
    await database.write("everyone", store.queue_all_users)
    assert await notes() == {VALI: 0, FAR: 8}


async def test_names_of_remote_users_come_from_rooms(
    database: Database, store: UserDirectoryStore
) -> None:
    await join(database, 1, FAR, rule="public")
    await join(database, 2, FAR)

    def read(txn: Transaction) -> Sequence[RemoteProfile]:
        return store.select_remote_names(txn, [FAR, "@nobody:far.test"])[FAR]

    names = sorted(await database.read("names", read), key=lambda each: each.position)
    assert names == [RemoteProfile("Ali", None, 1, True), RemoteProfile("Ali", None, 2, False)]
