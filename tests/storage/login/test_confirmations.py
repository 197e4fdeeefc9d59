"""The last confirmation per device."""

from storage.accounts.accounts import AccountRow, AccountStore
from storage.devices.devices import DeviceRow, DeviceStore
from storage.engine.database import Database
from storage.login.uia import ConfirmationStore

ALICE = "@alice:example.org"


async def test_a_confirmation_belongs_to_an_existing_device(database: Database) -> None:
    store, accounts = ConfirmationStore(database), AccountStore(database)
    await database.write("t", accounts.add_account, AccountRow(ALICE, None, 1))
    await database.write("t", DeviceStore(database).add_device, DeviceRow(ALICE, "A", None, 1))
    assert await store.get_confirmed(ALICE, "A") is None
    await store.set_confirmed(ALICE, "A", 5, 0)
    await store.set_confirmed(ALICE, "A", 7, 0)
    await store.set_confirmed(ALICE, "GONE", 7, 0)
    assert await store.get_confirmed(ALICE, "A") == 7
    assert await store.get_confirmed(ALICE, "GONE") is None
    await database.write("t", store.remove_devices, ALICE, ["A", "B"])
    assert await store.get_confirmed(ALICE, "A") is None


async def test_a_confirmation_belongs_to_one_credential_epoch(database: Database) -> None:
    store, accounts = ConfirmationStore(database), AccountStore(database)
    await database.write("t", accounts.add_account, AccountRow(ALICE, None, 1))
    await database.write("t", DeviceStore(database).add_device, DeviceRow(ALICE, "A", None, 1))
    await store.set_confirmed(ALICE, "A", 5, 0)
    await database.write("t", accounts.advance_epoch, ALICE)
    await database.write("t", store.remove_user, ALICE)
    await store.set_confirmed(ALICE, "A", 6, 0)
    assert await store.get_confirmed(ALICE, "A") is None
    await store.set_confirmed(ALICE, "A", 7, 1)
    assert await store.get_confirmed(ALICE, "A") == 7
