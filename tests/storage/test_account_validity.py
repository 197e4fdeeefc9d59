"""Expiry times of accounts, the e-mails about them, and renewal links."""

from storage.accounts.accounts import AccountRow, AccountStore
from storage.accounts.validity import (
    EMAIL_SENT,
    NO_ADDRESS,
    AccountValidityStore,
    ExpiringAccountRow,
)
from storage.engine.database import Database
from storage.threepids.threepids import ThreepidRow, ThreepidStore

ALICE, BOB, GUEST, GONE, BRIDGED = (
    f"@{name}:example.org" for name in ("alice", "bob", "1", "gone", "irc_bob")
)


async def make_store(database: Database) -> AccountValidityStore:
    accounts = AccountStore(database)
    for row in (
        AccountRow(ALICE, None, 1),
        AccountRow(BOB, None, 2),
        AccountRow(GUEST, None, 3, is_guest=True),
        AccountRow(GONE, None, 4, deactivated_ts=5),
        AccountRow(BRIDGED, None, 6, appservice_id="irc"),
    ):
        assert await database.write("t", accounts.add_account, row)
    return AccountValidityStore(database=database, accounts=accounts)


async def test_only_accounts_of_people_get_an_expiry_time(database: Database) -> None:
    store = await make_store(database)
    assert await database.read("t", store.get_without_expiry, 10) == [(ALICE, 1), (BOB, 2)]
    assert await database.read("t", store.get_without_expiry, 1) == [(ALICE, 1)]
    before = database.streams.current()
    await database.write("t", store.set_expiry, ALICE, 100)
    assert await database.read("t", store.get_without_expiry, 10) == [(BOB, 2)]
    assert await AccountStore(database).get_changed_accounts(
        before, database.streams.current()
    ) == {ALICE}
    assert (await AccountStore(database).get_accounts([ALICE]))[ALICE].expires_ts == 100


async def test_an_expired_account_is_marked_once(database: Database) -> None:
    store = await make_store(database)
    for user_id, end in ((ALICE, 100), (BOB, 90), (GONE, 80)):
        await database.write("t", store.set_expiry, user_id, end)
    assert await database.write("t", store.mark_expired, 89, 10) == 0
    assert await database.write("t", store.mark_expired, 100, 1) == 1
    before = database.streams.current()
    assert await database.write("t", store.mark_expired, 100, 10) == 1
    assert await AccountStore(database).get_changed_accounts(
        before, database.streams.current()
    ) == {ALICE}
    assert await database.write("t", store.mark_expired, 100, 10) == 0
    await database.write("t", store.set_expiry, ALICE, 100)  # a new expiry time removes the mark
    assert await database.write("t", store.mark_expired, 100, 10) == 1
    assert await database.write("t", store.unmark_expired, 1) == 1
    assert await database.write("t", store.unmark_expired, 10) == 1
    assert await database.write("t", store.unmark_expired, 10) == 0


async def test_an_email_about_an_expiry_is_recorded_once(database: Database) -> None:
    store = await make_store(database)
    await database.write("t", store.set_expiry, ALICE, 100)
    await database.write("t", store.set_expiry, BOB, 90, sends_email=False)
    assert await store.get_accounts_to_email(99, 10) == []
    [row] = await store.get_accounts_to_email(100, 10)
    assert row == ExpiringAccountRow(ALICE, 100)
    assert not await database.write(
        "t", store.set_email_state, ExpiringAccountRow(ALICE, 99), EMAIL_SENT
    )
    assert await database.write("t", store.set_email_state, row, EMAIL_SENT)
    assert not await database.write("t", store.set_email_state, row, EMAIL_SENT)
    assert await store.get_accounts_to_email(100, 10) == []
    await database.write("t", store.set_expiry, ALICE, 200)
    assert await store.get_accounts_to_email(200, 10) == [ExpiringAccountRow(ALICE, 200)]


async def test_an_address_added_later_gets_the_email(database: Database) -> None:
    store, threepids = await make_store(database), ThreepidStore(database)
    await database.write("t", store.set_expiry, ALICE, 100)
    await database.write("t", store.set_email_state, ExpiringAccountRow(ALICE, 100), NO_ADDRESS)
    address = ThreepidRow("email", "alice@example.org", ALICE, 1, 1)
    assert await database.write("t", threepids.add_threepid, address)
    assert await store.get_accounts_to_email(100, 10) == [ExpiringAccountRow(ALICE, 100)]
    await database.write("t", store.set_email_state, ExpiringAccountRow(ALICE, 100), EMAIL_SENT)
    assert await database.write("t", threepids.add_threepid, address)
    assert await database.write(
        "t", threepids.add_threepid, ThreepidRow("email", "a@example.org", ALICE, 1, 1)
    )
    assert await store.get_accounts_to_email(100, 10) == []


async def test_a_link_works_once_and_for_active_accounts(database: Database) -> None:
    store = await make_store(database)
    await database.write("t", store.set_link, ALICE, b"first")
    await database.write("t", store.set_link, ALICE, b"second")
    assert await store.get_link(b"first") is None
    assert await database.write("t", store.set_link_used, b"second", 7)
    assert not await database.write("t", store.set_link_used, b"second", 8)
    found = await store.get_link(b"second")
    assert found is not None
    assert (found.user_id, found.used_ts, found.expires_ts) == (ALICE, 7, None)
    await database.write("t", store.set_link, GONE, b"third")
    assert await store.get_link(b"third") is None
    await database.write("t", store.remove_user, ALICE)
    assert await store.get_link(b"second") is None
