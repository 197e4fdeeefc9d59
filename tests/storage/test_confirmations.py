"""When somebody last confirmed who they are."""

from storage.database import Database
from storage.devices import DeviceRow, DeviceStore
from storage.uia import ConfirmationStore

ALICE = "@alice:example.org"


async def test_a_confirmation_is_of_one_device_that_is_there(database: Database) -> None:
    store = ConfirmationStore(database)
    await database.write("t", DeviceStore(database).add_device, DeviceRow(ALICE, "A", None, 1))
    assert await store.get_confirmed(ALICE, "A") is None
    await store.set_confirmed(ALICE, "A", 5)
    await store.set_confirmed(ALICE, "A", 7)
    await store.set_confirmed(ALICE, "GONE", 7)
    assert await store.get_confirmed(ALICE, "A") == 7
    assert await store.get_confirmed(ALICE, "GONE") is None
    await database.write("t", store.remove_devices, ALICE, ["A", "B"])
    assert await store.get_confirmed(ALICE, "A") is None
