"""Devices, and when the list of them changed."""

from storage.database import Database
from storage.devices import DeviceRow, DeviceSighting, DeviceStore
from storage.streams import Change, Topic

ALICE, BOB = "@alice:example.org", "@bob:example.org"


async def test_changes_of_the_list_have_positions(database: Database) -> None:
    store = DeviceStore(database)
    heard: list[Change] = []
    database.streams.subscribe(heard.extend)
    start = database.streams.current()
    assert await database.write("t", store.add_device, DeviceRow(ALICE, "A", None, 1))
    first = database.streams.current()
    assert not await database.write("t", store.add_device, DeviceRow(ALICE, "A", "other", 2))
    assert database.streams.current() == first
    assert await database.write("t", store.add_device, DeviceRow(BOB, "B", None, 1))
    assert await database.write("t", store.set_display_name, ALICE, "A", "Phone")
    last = database.streams.current()
    assert [(change.topic, change.user_id) for change in heard] == [
        (Topic.DEVICE, ALICE),
        (Topic.DEVICE, BOB),
        (Topic.DEVICE, ALICE),
    ]
    users = [ALICE, BOB, "@carol:example.org"]
    assert await store.get_changed_device_lists(users, start, last) == {ALICE, BOB}
    assert await store.get_changed_device_lists(users, last - 1, last) == {ALICE}
    assert await store.get_changed_device_lists([BOB], last - 1, last) == set()
    assert await store.get_changed_device_lists(users, last, last) == set()


async def test_sightings_change_nothing_else(database: Database) -> None:
    store = DeviceStore(database)
    await database.write("t", store.add_device, DeviceRow(ALICE, "A", "Phone", 1))
    before = database.streams.current()
    await store.set_sightings(
        [DeviceSighting(ALICE, "A", 5, "::1", "agent"), DeviceSighting(BOB, "gone", 5, "::1", "agent")]
    )
    assert database.streams.current() == before
    assert (await store.get_devices([ALICE, BOB])) == {ALICE: [DeviceRow(ALICE, "A", "Phone", 1, 5, "::1", "agent")]}
