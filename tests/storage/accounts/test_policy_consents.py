"""Consents to policies, and accounts that await approval."""

from storage.accounts.accounts import AccountRow, AccountStore
from storage.accounts.policy_consents import ConsentRow, PolicyConsentStore
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction


async def test_consents_are_stored_by_version_and_counted_for_active_users(
    database: Database,
) -> None:
    store, accounts = PolicyConsentStore(database), AccountStore(database)

    def write(txn: WriteTransaction) -> None:
        for name in ("@a:x", "@b:x", "@c:x"):
            accounts.add_account(txn, AccountRow(name, None, 1))
        accounts.add_account(txn, AccountRow("@g:x", None, 1, is_guest=True))
        accounts.add_account(txn, AccountRow("@z:x", None, 1, deactivated_ts=2))
        store.add_consents(txn, "@a:x", {"terms": "1", "privacy": "2"}, 10)
        store.add_consents(txn, "@a:x", {"terms": "1"}, 20)  # the first time counts
        store.add_consents(txn, "@a:x", {"terms": "2"}, 30)
        store.add_consents(txn, "@b:x", {"terms": "1"}, 40)
        store.add_consents(txn, "@g:x", {"terms": "1"}, 50)
        store.add_consents(txn, "@z:x", {"terms": "1"}, 60)

    await database.write("test", write)
    found = await store.get_consents(["@a:x", "@c:x"])
    assert set(found) == {"@a:x"}
    assert sorted(found["@a:x"], key=lambda row: (row.ts, row.policy_id)) == [
        ConsentRow("privacy", "2", 10),
        ConsentRow("terms", "1", 10),
        ConsentRow("terms", "2", 30),
    ]
    assert await store.get_users("terms", "1", agreed=True, after="", limit=10) == [
        ("@a:x", 10),
        ("@b:x", 40),
    ]
    assert await store.get_users("terms", "1", agreed=True, after="@a:x", limit=10) == [
        ("@b:x", 40)
    ]
    assert await store.get_users("terms", "2", agreed=False, after="", limit=1) == [("@b:x", None)]
    assert await store.count_users({"terms": "1", "privacy": "3"}) == {"terms": 2, "privacy": 0}


async def test_accounts_awaiting_approval_are_listed_oldest_first(database: Database) -> None:
    accounts = AccountStore(database)

    def write(txn: WriteTransaction) -> list[bool]:
        accounts.add_account(
            txn, AccountRow("@a:x", None, 1, approval_pending_ts=5, approval_languages="uz")
        )
        accounts.add_account(txn, AccountRow("@b:x", None, 1, approval_pending_ts=4))
        accounts.add_account(txn, AccountRow("@c:x", None, 1))
        accounts.add_account(
            txn, AccountRow("@z:x", None, 1, approval_pending_ts=9, deactivated_ts=2)
        )
        return [
            accounts.has_awaiting(txn, 3, "@a:x"),
            accounts.has_awaiting(txn, 4, "@a:x"),
            accounts.has_awaiting(txn, 4, "@b:x"),
        ]

    assert await database.write("test", write) == [True, False, True]
    assert await accounts.get_awaiting(10) == [("@b:x", 4), ("@a:x", 5)]
    assert await accounts.get_awaiting(1) == [("@b:x", 4)]
    row = (await accounts.get_accounts(["@a:x"]))["@a:x"]
    assert (row.approval_pending_ts, row.approval_languages) == (5, "uz")

    def change(txn: WriteTransaction) -> list[bool]:
        return [
            accounts.set_awaiting(txn, "@a:x", None),
            accounts.set_awaiting(txn, "@a:x", None),
            accounts.set_awaiting(txn, "@c:x", 7),
            accounts.set_awaiting(txn, "@c:x", 8),
        ]

    assert await database.write("test", change) == [True, False, True, False]
    assert await accounts.get_awaiting(10) == [("@b:x", 4), ("@c:x", 7)]
