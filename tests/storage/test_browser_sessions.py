"""Browsers in which somebody is signed in: whose they were is told when they end."""

from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.login.browser_sessions import BrowserSessionStore

ALICE, BOB = "@alice:example.org", "@bob:example.org"


async def test_who_was_signed_in_is_told_when_it_ends(database: Database) -> None:
    store = BrowserSessionStore(database)

    def write(txn: WriteTransaction) -> None:
        for number, (user_id, ends) in enumerate([(ALICE, 100), (BOB, 200), (ALICE, 300)]):
            store.add_browser_session(txn, bytes([number]), user_id, 0, ends)

    await database.write("add", write)
    assert await database.write("end", store.remove_browser_session, b"\x02") == (ALICE, 300)
    assert await database.write("end", store.remove_browser_session, b"\x02") is None
    assert await database.write("old", store.remove_old, 99, 10) == []
    assert sorted(await database.write("old", store.remove_old, 200, 10)) == [
        (ALICE, 100),
        (BOB, 200),
    ]
    assert await database.write("old", store.remove_old, 1000, 10) == []


async def test_old_ones_go_a_few_at_a_time(database: Database) -> None:
    store = BrowserSessionStore(database)

    def write(txn: WriteTransaction) -> None:
        for number in range(5):
            store.add_browser_session(txn, bytes([number]), ALICE, 0, number)

    await database.write("add", write)
    assert [len(await database.write("old", store.remove_old, 10, 2)) for _ in range(4)] == [
        2,
        2,
        1,
        0,
    ]
