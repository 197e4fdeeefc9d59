"""The table of accounts."""

from msgspec.structs import replace

from storage.accounts.accounts import AccountRow, AccountState, AccountStore, select_account_state
from storage.engine.database import Database

ALICE = AccountRow("@alice:example.org", "hash", 1)


async def test_a_user_id_is_used_once(database: Database) -> None:
    store = AccountStore(database)
    assert await database.write("t", store.add_account, ALICE)
    assert not await database.write("t", store.add_account, replace(ALICE, password_hash="other"))
    assert await store.get_accounts(["@alice:example.org", "@bob:example.org"]) == {
        ALICE.user_id: ALICE
    }


async def test_a_hash_is_replaced_only_if_it_is_the_current_one(database: Database) -> None:
    store = AccountStore(database)
    await database.write("t", store.add_account, ALICE)
    assert not await database.write("t", store.set_password_hash, ALICE.user_id, "new", "outdated")
    assert await database.write("t", store.set_password_hash, ALICE.user_id, "new", "hash")
    assert (await store.get_accounts([ALICE.user_id]))[ALICE.user_id].password_hash == "new"


async def test_a_new_password_increments_the_epoch_and_a_new_hash_of_the_same_does_not(
    database: Database,
) -> None:
    store = AccountStore(database)
    await database.write("t", store.add_account, ALICE)
    await database.write("t", store.set_password_hash, ALICE.user_id, "anew", "hash")
    assert await database.read("t", select_account_state, ALICE.user_id) == AccountState(
        0, locked=False, deactivated=False
    )
    await database.write("t", store.set_password_hash, ALICE.user_id, "other")
    await database.write("t", store.advance_epoch, ALICE.user_id)
    await database.write("t", lambda txn: store.set_flags(txn, ALICE.user_id, locked=True))
    assert await database.read("t", select_account_state, ALICE.user_id) == AccountState(
        2, locked=True, deactivated=False
    )
    assert (await store.get_accounts([ALICE.user_id]))[ALICE.user_id].epoch == 2
    await database.write("t", lambda txn: store.set_deactivated(txn, ALICE.user_id, 1, erase=False))
    state = await database.read("t", select_account_state, ALICE.user_id)
    assert state is not None
    assert state.deactivated
    assert await database.read("t", select_account_state, "@nobody:example.org") is None


async def test_flags_are_set_separately_and_advance_the_stream(database: Database) -> None:
    store = AccountStore(database)
    await database.write("t", store.add_account, ALICE)
    since = database.streams.current()

    await database.write("t", lambda txn: store.set_flags(txn, ALICE.user_id, locked=True))
    await database.write("t", lambda txn: store.set_flags(txn, ALICE.user_id, is_admin=True))
    row = (await store.get_accounts([ALICE.user_id]))[ALICE.user_id]
    assert row == replace(ALICE, locked=True, is_admin=True)
    assert await store.get_changed_accounts(since, database.streams.current()) == {ALICE.user_id}
    assert (
        await store.get_changed_accounts(database.streams.current(), database.streams.current() + 9)
        == set()
    )
