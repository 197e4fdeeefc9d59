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


async def test_addresses_of_devices_that_are_not_used_are_forgotten(database: Database) -> None:
    store = DeviceStore(database)
    for name in ("A", "B", "C"):
        await database.write("t", store.add_device, DeviceRow(ALICE, name, "Phone", 1))
    await store.set_sightings(
        [DeviceSighting(ALICE, "A", 5, "::1", "agent"), DeviceSighting(ALICE, "B", 7, "::2", "other agent")]
    )
    assert await store.forget_addresses(5, 10) == 0
    assert await store.forget_addresses(6, 10) == 1
    assert await store.forget_addresses(6, 10) == 0, "what is done is not found again"
    assert (await store.get_devices([ALICE]))[ALICE] == [
        DeviceRow(ALICE, "A", "Phone", 1, 5, None, None),
        DeviceRow(ALICE, "B", "Phone", 1, 7, "::2", "other agent"),
        DeviceRow(ALICE, "C", "Phone", 1),
    ]
    await store.set_sightings(
        [DeviceSighting(ALICE, "A", 5, "::4", "agent"), DeviceSighting(ALICE, "A", 6, "::3", "agent")]
    )
    assert await store.forget_addresses(8, 1) == 1
    assert await store.forget_addresses(8, 1) == 1
    assert await store.forget_addresses(8, 1) == 0
