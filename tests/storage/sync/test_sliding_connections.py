"""Stored states of sliding sync connections."""

from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.rooms.recency import RoomRecencyStore
from storage.sync.sliding_connections import (
    MAX_CONNECTION_STATES,
    MAX_DEVICE_CONNECTIONS,
    SlidingConnectionKey,
    SlidingConnectionStore,
)

KEY = SlidingConnectionKey("@alice:example.org", "D", "rooms")


async def test_states_before_the_one_of_the_client_are_deleted(database: Database) -> None:
    store = SlidingConnectionStore(database)
    first = await store.add_state(KEY, None, b"1", 1000)
    second = await store.add_state(KEY, first, b"2", 2000)
    row = await store.get_state(KEY, first)
    assert row is not None
    assert (row.used_ts, row.state) == (1000, b"1")
    third = await store.add_state(KEY, second, b"3", 3000)
    assert await store.get_state(KEY, first) is None
    assert await store.get_state(KEY, second) is not None
    assert await store.get_state(KEY, third) is not None
    assert (
        await store.get_state(SlidingConnectionKey(KEY.user_id, "other", KEY.conn_id), third)
        is None
    )
    fresh = await store.add_state(KEY, None, b"4", 4000)
    assert fresh > third
    assert (
        await store.get_state(KEY, third) is not None
    )  # the client may not have started over after all
    await store.add_state(KEY, fresh, b"5", 5000)
    assert await store.get_state(KEY, third) is None


async def test_a_late_response_does_not_delete_newer_states(database: Database) -> None:
    store = SlidingConnectionStore(database)
    first = await store.add_state(KEY, None, b"1", 1000)
    second = await store.add_state(KEY, first, b"2", 2000)
    third = await store.add_state(KEY, second, b"3", 3000)
    late = [
        await store.add_state(KEY, first, b"late", 4000),
        await store.add_state(KEY, None, b"late", 4000),
    ]
    assert await store.get_state(KEY, second) is not None
    assert await store.get_state(KEY, third) is not None
    await store.add_state(KEY, late[1], b"4", 5000)
    assert [await store.get_state(KEY, nid) for nid in (second, third, late[0])] == [None] * 3


async def test_the_states_of_a_connection_are_bounded(database: Database) -> None:
    store = SlidingConnectionStore(database)
    first = await store.add_state(KEY, None, b"1", 1000)
    later = [
        await store.add_state(KEY, first, b"2", 2000) for _ in range(MAX_CONNECTION_STATES + 5)
    ]
    kept = [nid for nid in later if await store.get_state(KEY, nid) is not None]
    assert await store.get_state(KEY, first) is not None
    assert kept == later[1 - MAX_CONNECTION_STATES :]
    began = [await store.add_state(KEY, None, b"3", 3000) for _ in range(MAX_CONNECTION_STATES + 5)]
    kept = [nid for nid in [first, *later, *began] if await store.get_state(KEY, nid) is not None]
    assert len(kept) <= MAX_CONNECTION_STATES
    assert began[-1] in kept


async def test_unused_and_excess_connections_are_deleted(database: Database) -> None:
    store = SlidingConnectionStore(database)
    old = await store.add_state(KEY, None, b"1", 1000)
    used = SlidingConnectionKey("@bob:example.org", "D", "")
    kept = await store.add_state(used, None, b"2", 1000)
    await store.set_used(used, 5000)
    numbers = []
    for number in range(MAX_DEVICE_CONNECTIONS + 1):
        key = SlidingConnectionKey("@carol:example.org", "D", str(number))
        numbers.append((key, await store.add_state(key, None, b"", 6000 + number)))
    other = await store.add_state(
        SlidingConnectionKey("@dora:example.org", "D", ""), None, b"3", 1000
    )
    assert await store.remove_unused(2000, 1) == 1
    assert await store.remove_unused(2000, 5) == 1
    assert await store.remove_unused(2000, 5) == 0
    assert await store.get_state(SlidingConnectionKey("@dora:example.org", "D", ""), other) is None
    assert await store.get_state(KEY, old) is None
    assert await store.get_state(used, kept) is not None
    (dropped_key, dropped), *rest = numbers
    assert await store.get_state(dropped_key, dropped) is None
    assert all([await store.get_state(key, number) for key, number in rest])


async def test_connections_are_deleted_with_their_devices(database: Database) -> None:
    store = SlidingConnectionStore(database)
    gone = await store.add_state(KEY, None, b"1", 1000)
    other = SlidingConnectionKey(KEY.user_id, "E", KEY.conn_id)
    stays = await store.add_state(other, None, b"1", 1000)

    def write(txn: WriteTransaction) -> None:
        store.remove_devices(txn, KEY.user_id, ["D"])

    await database.write("remove_devices", write)
    assert await store.get_state(KEY, gone) is None
    assert await store.get_state(other, stays) is not None


async def test_unknown_rooms_have_no_newest_event(database: Database) -> None:
    store = RoomRecencyStore(database)
    assert await store.get_latest_positions([1, 2]) == {}
    assert await store.get_latest_of_types([1], {"m.room.message"}) == {}
