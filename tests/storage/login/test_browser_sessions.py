"""Browser sessions: removal returns their users and expiry times."""

from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.login.browser_sessions import BrowserSessionStore

ALICE, BOB = "@alice:example.org", "@bob:example.org"


async def test_removed_sessions_are_returned_with_their_users(database: Database) -> None:
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


async def test_expired_sessions_are_removed_in_batches(database: Database) -> None:
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
