"""Devices, and positions of changes of the device list."""

import pytest

from storage.devices.devices import HOUR_MS, DeviceLastSeen, DeviceRow, DeviceStore
from storage.engine.database import Database
from storage.engine.streams import Change, Stage, Topic
from storage.engine.transaction import WriteTransaction
from tests.helpers.query_plans import record_plans

ALICE, BOB = "@alice:example.org", "@bob:example.org"


async def test_changes_of_the_device_list_have_positions(database: Database) -> None:
    store = DeviceStore(database)
    received: list[Change] = []
    database.streams.subscribe(received.extend, stage=Stage.NOTIFY)
    start = database.streams.current()
    assert await database.write("t", store.add_device, DeviceRow(ALICE, "A", None, 1))
    first = database.streams.current()
    assert not await database.write("t", store.add_device, DeviceRow(ALICE, "A", "other", 2))
    assert database.streams.current() == first
    assert await database.write("t", store.add_device, DeviceRow(BOB, "B", None, 1))
    assert await database.write("t", store.set_display_name, ALICE, "A", "Phone")
    last = database.streams.current()
    assert [(change.topic, change.user_id) for change in received] == [
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
    await store.set_last_seen(
        [
            DeviceLastSeen(ALICE, "A", 5, "::1", "agent"),
            DeviceLastSeen(BOB, "gone", 5, "::1", "agent"),
        ]
    )
    assert database.streams.current() == before
    assert (await store.get_devices([ALICE, BOB])) == {
        ALICE: [DeviceRow(ALICE, "A", "Phone", 1, 5, "::1", "agent")]
    }


async def test_addresses_of_unused_devices_are_deleted(database: Database) -> None:
    store = DeviceStore(database)
    for name in ("A", "B", "C"):
        await database.write("t", store.add_device, DeviceRow(ALICE, name, "Phone", 1))
    await store.set_last_seen(
        [
            DeviceLastSeen(ALICE, "A", 5, "::1", "agent"),
            DeviceLastSeen(ALICE, "B", 7, "::2", "other agent"),
        ]
    )
    assert await store.delete_addresses(5, 10) == 0
    assert await store.delete_addresses(6, 10) == 1
    assert await store.delete_addresses(6, 10) == 0, "processed devices are not found again"
    assert (await store.get_devices([ALICE]))[ALICE] == [
        DeviceRow(ALICE, "A", "Phone", 1, 5, None, None),
        DeviceRow(ALICE, "B", "Phone", 1, 7, "::2", "other agent"),
        DeviceRow(ALICE, "C", "Phone", 1),
    ]
    await store.set_last_seen(
        [
            DeviceLastSeen(ALICE, "A", 5, "::4", "agent"),
            DeviceLastSeen(ALICE, "A", 6, "::3", "agent"),
        ]
    )
    assert await store.delete_addresses(8, 1) == 1
    assert await store.delete_addresses(8, 1) == 1
    assert await store.delete_addresses(8, 1) == 0


async def test_addresses_are_deleted_to_the_millisecond_and_oldest_first(
    database: Database,
) -> None:
    store = DeviceStore(database)
    times = [HOUR_MS - 1, HOUR_MS, HOUR_MS + 1, 3 * HOUR_MS]
    for name, ts in zip("ABCD", times, strict=True):
        device = (
            DeviceRow(ALICE, name, "Phone", 1, ts, "::1", "agent")
            if name == "B"
            else DeviceRow(ALICE, name, None, 1)
        )
        await database.write("t", store.add_device, device)
    sightings = [
        DeviceLastSeen(ALICE, name, ts, "::1", "agent")
        for name, ts in zip("ABCD", times, strict=True)
    ]
    await store.set_last_seen([sightings[3], sightings[2], sightings[0]])

    async def left() -> str:
        return "".join(
            row.device_id for row in (await store.get_devices([ALICE]))[ALICE] if row.last_seen_ip
        )

    assert await store.delete_addresses(HOUR_MS - 1, 10) == 0
    assert await store.delete_addresses(HOUR_MS + 1, 1) == 1
    assert await left() == "BCD"
    assert await store.delete_addresses(HOUR_MS + 1, 10) == 1
    assert await left() == "CD"
    await store.set_last_seen([DeviceLastSeen(ALICE, "C", 3 * HOUR_MS, "::1", "agent")])
    assert await store.delete_addresses(3 * HOUR_MS, 10) == 0
    assert await store.delete_addresses(4 * HOUR_MS, 10) == 2
    assert await left() == ""


async def test_the_cost_of_finding_old_addresses_depends_on_their_number(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many devices are in use."""

    def fill(txn: WriteTransaction) -> None:
        txn.execute_many(
            "INSERT INTO devices (user_id, device_id, created_ts, device_nid,"
            " last_seen_ts, last_seen_ip, last_seen_hour)"
            " VALUES (?, ?, 1, ?, ?, '::1', ?)",
            [(ALICE, f"D{number}", -number, number * HOUR_MS, number) for number in range(3000)],
        )

    await database.write("fill", fill)
    plans = record_plans(database, monkeypatch)
    await DeviceStore(database).delete_addresses(1, 5000)
    assert any("devices_by_hour" in plan for plan in plans)
