"""Storage of outgoing federation, on both databases."""

from collections.abc import Sequence

import pytest

from storage.cluster.leases import LeaseStore
from storage.devices.device_list_log import MAX_LOGGED, DeviceListLog
from storage.devices.devices import DeviceRow, DeviceStore
from storage.encryption.cross_signing import CrossSigningKey, CrossSigningStore
from storage.encryption.device_keys import DeviceKeysRow, DeviceKeyStore
from storage.encryption.outgoing_to_device import TRIM_INTERVAL, OutgoingToDeviceStore
from storage.encryption.published_keys import PublishedKeyStore
from storage.encryption.remote_devices import DeviceListUpdate, RemoteDeviceStore
from storage.engine.database import Database
from storage.engine.streams import Change, Stage, Topic
from storage.engine.transaction import WriteTransaction
from storage.federation.destination_cleanup import CleanupAges, DestinationCleanupStore
from storage.federation.destination_lists import (
    DestinationListStore,
    DestinationRoom,
    DestinationSummary,
)
from storage.federation.destinations import (
    LEASE,
    ActivitySource,
    Backlog,
    DestinationRow,
    DestinationStore,
)
from storage.persist.state_effects import StateEffect, apply_effects
from storage.rooms.memberships import NewMembership
from storage.rooms.partial_rooms import add_partial_join
from storage.rooms.receipts import NewReceipt, ReceiptStore
from storage.rooms.room_servers import RoomServer, RoomServerStore, count_servers
from storage.rooms.rooms import get_or_add_room
from tests.helpers.query_plans import record_plans

PEER, OTHER = "peer.example", "other.example"
LIST_BYTES = 1 << 20
ALICE, BOB = "@alice:example.org", "@bob:peer.example"
ROOM_NID = 7


def changed(
    device_id: str, stream_id: int, prev_ids: Sequence[int] | None, keys: bytes = b"{}"
) -> DeviceListUpdate:
    """A device list update for a device of Bob."""
    device = DeviceKeysRow(BOB, device_id, keys, None)
    return DeviceListUpdate(BOB, device_id, stream_id, prev_ids, device, is_understood=True)


async def test_a_backlog_is_stored_until_it_is_delivered(database: Database) -> None:
    store = DestinationStore(database)
    row = DestinationRow(PEER, 10, 20, 5000, "down")
    await store.add_failure(row, Backlog({1: 100, 2: 200}, {ALICE: 150}))
    assert [await store.get_failing_since(server) for server in (PEER, OTHER)] == [10, None]
    await store.add_backlogs({PEER: Backlog({1: 300, 3: 300}), OTHER: Backlog({1: 300})})
    assert await store.get_destinations() == {PEER: row}
    assert (await store.get_backlogs())[PEER] == Backlog({1: 100, 2: 200, 3: 300}, {ALICE: 150})

    def record_delivery(txn: WriteTransaction) -> None:
        store.set_delivered(txn, PEER, {1: None, 2: 400}, {ALICE: None})
        store.set_reached(txn, PEER, 30)

    await database.write("test", record_delivery)

    assert await store.get_backlogs() == {PEER: Backlog({2: 400, 3: 300}), OTHER: Backlog({1: 300})}
    assert (await store.get_destinations())[PEER] == DestinationRow(PEER, None, 30, 0, "down")
    assert await store.get_failing_since(PEER) is None


async def test_the_states_of_servers_are_listed_page_by_page(database: Database) -> None:
    store, lists, waiting = (
        DestinationStore(database),
        DestinationListStore(database),
        OutgoingToDeviceStore(database=database),
    )
    room = (await database.write("test", get_or_add_room, "!room:example.org", "11", 1)).room_nid
    away, third = "away.example", "third.example"
    await database.write("test", count_servers, room, {PEER: 1, OTHER: 1}, {PEER: 10, OTHER: 20})
    await store.add_failure(
        DestinationRow(away, 10, 20, 5000, "down"), Backlog({room: 100, 99: 100}, {ALICE: 150})
    )
    await store.add_failure(DestinationRow(PEER, 15, 25, 6000, "slow"), Backlog())
    await database.write("test", store.set_reached, PEER, 30)
    await database.write("test", waiting.add_messages, {third: b"x"})
    lease = LeaseStore(database=database, name=LEASE)
    await lease.take("me", 0, 1, force=True)
    await lease.renew("me", 1, 300)

    first = DestinationSummary(
        away, 10, 20, 5000, "down", rooms_missed=2, device_lists_missed=1, delivered_upto=99
    )
    every = [
        first,
        DestinationSummary(OTHER, delivered_upto=300),
        DestinationSummary(PEER, delivered_upto=300),
        DestinationSummary(third, messages_to_devices=1, delivered_upto=300),
    ]
    assert await lists.get_page("", "destination", False, 0, 10) == (every, 4)
    assert await lists.get_page("", "destination", True, 1, 2) == ([every[2], every[1]], 4)
    for order in ("retry_last_ts", "retry_interval", "failure_ts"):
        assert await lists.get_page("", order, True, 0, 1) == ([first], 4)
    assert await lists.get_page("", "delivered_upto", False, 0, 1) == ([first], 4)
    assert await lists.get_page("e", "failure_ts", True, 9, 1) == ([], 4)
    assert await lists.get_page("way", "destination", False, 0, 10) == ([first], 1)
    assert await lists.get_one(away) == first
    for summary in every[1:]:
        assert await lists.get_one(summary.server) == summary
    assert await lists.get_one("nobody.example") is None
    assert await lists.get_rooms(away, False, 0, 10) == (
        [DestinationRoom("!room:example.org", 100, True)],
        1,
    )
    assert await lists.get_rooms(OTHER, False, 0, 10) == (
        [DestinationRoom("!room:example.org", 20, False)],
        1,
    )


async def test_servers_of_a_room_with_partial_state_are_listed_too(database: Database) -> None:
    lists = DestinationListStore(database)
    room = (await database.write("test", get_or_add_room, "!room:example.org", "11", 1)).room_nid
    await database.write("test", add_partial_join, room, 5, 30, PEER, [PEER, OTHER])

    assert await lists.get_page("", "destination", False, 0, 10) == (
        [DestinationSummary(OTHER), DestinationSummary(PEER)],
        2,
    )
    assert await lists.get_one(OTHER) == DestinationSummary(OTHER)
    assert await lists.get_rooms(OTHER, False, 0, 10) == (
        [DestinationRoom("!room:example.org", 30, False)],
        1,
    )


async def test_activity_of_an_unreachable_server_is_reported_once(
    database: Database,
) -> None:
    store = DestinationStore(database)
    await store.add_failure(DestinationRow(PEER, 10, 20, 5000, "down"), Backlog())
    await store.record_activity([PEER, OTHER])
    assert await store.take_activity() == {PEER: ActivitySource.SERVER}
    assert await store.take_activity() == {}
    await store.record_activity([PEER], ActivitySource.OPERATOR)
    await store.record_activity([PEER])
    assert await store.take_activity() == {PEER: ActivitySource.OPERATOR}
    await database.write("test", store.set_reached, PEER, 30)
    await store.record_activity([PEER])
    assert await store.take_activity() == {}


async def test_a_server_that_asked_us_to_wait_is_not_failing(database: Database) -> None:
    store, lists = DestinationStore(database), DestinationListStore(database)
    for retry_after_ts, backoff_ms in ((600_020, 600_000), (1000, 5000)):
        row = DestinationRow(PEER, 10, 20, 5000, "busy", retry_after_ts)
        await store.add_failure(row, Backlog({ROOM_NID: 5}))
        assert await store.get_destinations() == {PEER: row}
        assert await store.get_failing_since(PEER) is None
        assert (await lists.get_one(PEER)) == DestinationSummary(
            PEER, None, 20, backoff_ms, "busy", retry_after_ts, rooms_missed=1
        )
    await database.write("test", store.set_reached, PEER, 30)
    assert (await store.get_destinations())[PEER].retry_after_ts == 0


async def test_a_server_is_in_a_room_while_one_of_its_users_is(database: Database) -> None:
    store = RoomServerStore(database)

    async def count(changes: dict[str, int], position: int) -> None:
        await database.write(
            "test", count_servers, ROOM_NID, changes, dict.fromkeys(changes, position)
        )

    await count({PEER: 2, OTHER: 1}, 10)
    await count({PEER: -1, OTHER: -1}, 20)
    assert await store.get_servers([ROOM_NID, 8]) == {ROOM_NID: [RoomServer(PEER, 10)]}
    await count({PEER: -1, OTHER: 1}, 30)
    assert await store.get_servers([ROOM_NID]) == {ROOM_NID: [RoomServer(OTHER, 30)]}


async def test_messages_wait_for_their_server_in_order(database: Database) -> None:
    store = OutgoingToDeviceStore(database=database)
    received: list[Change] = []
    database.streams.subscribe(received.extend, stage=Stage.NOTIFY)
    before = database.streams.current()
    for number in range(3):
        await database.write("test", store.add_messages, {PEER: b"%d" % number, OTHER: b"x"})

    assert [change.topic for change in received] == [Topic.OUTGOING_TO_DEVICE] * 3
    assert await store.get_servers(before, database.streams.current()) == {PEER, OTHER}
    assert await store.count_messages() == {PEER: 3, OTHER: 3}
    first, second, third = await store.get_messages(PEER, 10)
    assert (first.content, second.content, third.content) == (b"0", b"1", b"2")
    await database.write("test", store.remove_messages, PEER, second.position)
    assert await store.get_messages(PEER, 10) == [third]


async def test_the_newest_messages_for_an_unreachable_server_stay(
    database: Database,
) -> None:
    store = OutgoingToDeviceStore(database=database, max_queued=10)
    for number in range(600):
        await database.write("test", store.add_messages, {PEER: b"%d" % number})

    waiting = await store.get_messages(PEER, 1000)
    assert 10 <= len(waiting) <= 266
    assert waiting[-1].content == b"599"


async def test_expired_messages_and_unneeded_destinations_are_deleted(
    database: Database,
) -> None:
    store, waiting, forgotten = (
        DestinationStore(database),
        OutgoingToDeviceStore(database=database),
        DestinationCleanupStore(database),
    )
    ages = CleanupAges(dead_since=100, unshared_since=200, tried_before=300)
    await database.write("test", count_servers, ROOM_NID, {PEER: 1, OTHER: 1}, {PEER: 1, OTHER: 1})
    pending = Backlog({ROOM_NID: 5}, {ALICE: 5})
    for server, since, backlog in (
        (PEER, 50, pending),
        (OTHER, 150, pending),
        ("dead.example", 50, pending),
        ("gone.example", 150, Backlog()),
        ("behind.example", 150, pending),
        ("away.example", 250, Backlog()),
    ):
        await store.add_failure(DestinationRow(server, since, 260, 5000, "down"), backlog)
        for _ in range(2):
            await database.write("test", waiting.add_messages, {server: b"x"})

    assert await forgotten.remove_unneeded(ages, 10) == [], "something is pending for each"
    assert [await forgotten.remove_expired(ages, 3) for _ in range(4)] == [3, 3, 2, 0]
    assert await waiting.count_messages() == {OTHER: 2, "away.example": 2}
    assert await forgotten.remove_unneeded(CleanupAges(100, 200, tried_before=260), 10) == [], (
        "tried too recently"
    )
    assert set(await forgotten.remove_unneeded(ages, 10)) == {"dead.example", "gone.example"}
    assert set(await store.get_destinations()) == {PEER, OTHER, "behind.example", "away.example"}
    assert set(await store.get_backlogs()) == {PEER, OTHER, "behind.example"}


async def test_a_received_message_id_is_new_once(database: Database) -> None:
    store = OutgoingToDeviceStore(database=database)
    assert await database.write("test", store.add_received, PEER, BOB, "m1", 1000)
    assert not await database.write("test", store.add_received, PEER, BOB, "m1", 2000)
    assert await database.write("test", store.add_received, PEER, BOB, "m2", 2000)
    assert await store.delete_received(2000, 10) == 1
    assert await database.write("test", store.add_received, PEER, BOB, "m1", 3000)


async def test_recorded_message_ids_per_server_are_bounded(database: Database) -> None:
    store = OutgoingToDeviceStore(database=database, max_received=300)

    def note(txn: WriteTransaction) -> None:
        store.add_received(txn, "quiet.example", "@carol:quiet.example", "m", 0)
        for number in range(3000):
            store.add_received(txn, PEER, f"@x{number}:{PEER}", "m", number)

    await database.write("test", note)
    rows = await database.read(
        "test",
        lambda txn: txn.query(
            "SELECT origin, count(*), max(received_ts) FROM received_to_device GROUP BY origin"
        ),
    )
    counts = {origin: (count, latest) for origin, count, latest in rows}
    assert counts["quiet.example"] == (1, 0)
    assert 300 <= counts[PEER][0] <= 300 + TRIM_INTERVAL
    assert counts[PEER][1] == 2999


async def test_device_changes_name_the_previous_one(database: Database) -> None:
    devices, keys, log = DeviceStore(database), DeviceKeyStore(database), DeviceListLog(database)
    before = database.streams.current()

    def publish(txn: WriteTransaction) -> None:
        devices.add_device(txn, DeviceRow(ALICE, "A", None, 1))
        devices.add_device(txn, DeviceRow(ALICE, "B", None, 1))
        keys.set_device_keys(txn, ALICE, "A", b"{}")
        keys.set_device_keys(txn, ALICE, "B", b"{}")
        CrossSigningStore(database).set_keys(
            txn, {}, [CrossSigningKey(ALICE, "master", "K", b"{}")]
        )
        devices.set_display_name(txn, ALICE, "A", "Phone")
        devices.remove_devices(txn, ALICE, ["A", "B"])

    await database.write("test", publish)

    changes = await log.get_changes(ALICE, 0)
    assert [change.device_id for change in changes] == ["A", "B", None, "A", "B"]
    of_devices = [change for change in changes if change.device_id is not None]
    assert [change.prev_id for change in of_devices] == [
        0,
        *(change.stream_id for change in of_devices[:-1]),
    ]
    assert await log.get_stream_id(ALICE) == of_devices[-1].stream_id
    assert await log.get_changed_users(before, database.streams.current()) == {
        ALICE: changes[0].stream_id
    }


async def test_the_latest_device_changes_stay(database: Database) -> None:
    keys, log = DeviceKeyStore(database), DeviceListLog(database)
    for number in range(MAX_LOGGED + 20):
        await database.write("test", keys.set_device_keys, ALICE, "A", b"%d" % number)

    changes = await log.get_changes(ALICE, 0)
    assert len(changes) == MAX_LOGGED
    assert changes[0].prev_id > 0, "a server that lacks that change sees the gap"


async def test_remote_device_lists_are_stored_and_their_changes_announced(
    database: Database,
) -> None:
    store, log = RemoteDeviceStore(database), DeviceListLog(database)
    received: list[Change] = []
    database.streams.subscribe(received.extend, stage=Stage.NOTIFY)
    device = DeviceKeysRow(BOB, "B1", b"{}", "Phone")
    await store.set_list(BOB, 5, [device], [CrossSigningKey(BOB, "master", "K", b"{}")], 0)
    assert received == [], "they were unknown before"
    published = PublishedKeyStore(database)
    assert (await published.get_published([ALICE], [BOB])).devices == {BOB: [device]}

    assert not await store.apply_update(changed("B2", 6, [5]), 10, LIST_BYTES)
    assert not await store.apply_update(
        DeviceListUpdate(BOB, "B1", 7, [6], None, True), 10, LIST_BYTES
    )
    assert [row.device_id for row in (await published.get_published([], [BOB])).devices[BOB]] == [
        "B2"
    ]
    assert (await store.get_lists([BOB]))[BOB].stream_id == 7
    assert await store.apply_update(changed("B3", 9, [8]), 10, LIST_BYTES)
    assert await store.get_stale("", 10) == [BOB]
    assert [(change.topic, change.user_id) for change in received] == [(Topic.DEVICE, BOB)] * 3
    assert await log.get_changes(BOB, 0) == [], "no update is sent for remote users"

    await store.remove_unshared([BOB])
    assert await store.get_lists([BOB]) == {}
    assert (await published.get_published([], [BOB])).cross_signing == {}


@pytest.mark.parametrize(
    ("change", "is_stale", "is_told"),
    [
        (changed("B1", 6, [5], b'{"n":1}'), False, True),
        (changed("B1", 6, [3, 5], b'{"n":1}'), False, True),
        (changed("B1", 7, [6], b'{"n":1}'), True, True),
        (changed("B1", 6, [], b'{"n":1}'), True, True),
        (changed("B1", 6, None, b'{"n":1}'), True, True),
        (DeviceListUpdate(BOB, "B1", 6, [5], None, is_understood=False), True, True),
        (changed("B1", 5, [4]), False, False),
        (DeviceListUpdate(BOB, "GONE", 4, [3], None, is_understood=True), False, False),
        (DeviceListUpdate(BOB, "B1", 4, [3], None, is_understood=False), False, False),
        (changed("B1", 4, [3], b'{"n":1}'), True, True),
        (DeviceListUpdate(BOB, "B1", 4, [3], None, is_understood=True), True, True),
    ],
)
async def test_a_device_change_applies_is_known_or_makes_the_list_stale(
    database: Database, change: DeviceListUpdate, is_stale: bool, is_told: bool
) -> None:
    store = RemoteDeviceStore(database)
    await store.set_list(BOB, 5, [DeviceKeysRow(BOB, "B1", b"{}", None)], [], 0)
    received: list[Change] = []
    database.streams.subscribe(received.extend, stage=Stage.NOTIFY)

    assert await store.apply_update(change, 10, LIST_BYTES) == is_stale

    assert (await store.get_lists([BOB]))[BOB].is_stale == is_stale
    assert [each.user_id for each in received] == [BOB] * is_told


async def test_the_list_of_a_user_who_starts_to_share_a_room_is_stale(database: Database) -> None:
    carol, many = "@carol:peer.example", [f"@person{number}:peer.example" for number in range(300)]
    store = RemoteDeviceStore(database)

    async def join(room_nid: int, *user_ids: str, leaving: bool = False) -> int:
        """Return the number of queries. `leaving`: they leave before, in the same write."""

        def write(txn: WriteTransaction) -> int:
            before = txn.queries
            steps = ("leave", "join") if leaving else ("join",)
            members = [
                NewMembership(each, step, each, each == ALICE, None, None)
                for step in steps
                for each in user_ids
            ]
            first = txn.allocate("event", len(members))
            position = txn.next_position(len(members))
            effects = [
                (first + n, position + n, StateEffect(member)) for n, member in enumerate(members)
            ]
            apply_effects(txn, room_nid, effects)
            return txn.queries - before

        return await database.write("join", write)

    async def take_stale() -> set[str]:
        """Return the users with stale lists, and mark these as fresh."""
        stale = await store.get_stale("", 1000)
        for user_id in stale:
            await store.set_list(user_id, 5, [], [], await store.get_position(user_id))
        return set(stale)

    for user_id in (BOB, carol, *many):
        await store.set_list(user_id, 5, [], [], 0)
    await join(1, ALICE, carol)
    assert await take_stale() == {carol}
    await join(2, BOB, carol)
    await take_stale()
    few = await join(2, ALICE)
    assert await take_stale() == {BOB}, "the other user shared a room already"
    await join(2, BOB)
    assert await take_stale() == set(), "a profile change is not a join"
    await join(2, BOB, leaving=True)
    assert await take_stale() == {BOB}
    await join(3, *many)
    await take_stale()
    assert await join(3, ALICE) == few
    assert await take_stale() == set(many)


async def test_a_fetched_list_that_a_change_overtook_is_stale(database: Database) -> None:
    store = RemoteDeviceStore(database)
    asked_at = await store.get_position(BOB)
    assert not await store.apply_update(changed("B1", 6, [5]), 10, LIST_BYTES)

    await store.set_list(BOB, 5, [], [], asked_at)
    assert (await store.get_lists([BOB]))[BOB].is_stale
    await store.set_list(BOB, 6, [], [], await store.get_position(BOB))
    assert not (await store.get_lists([BOB]))[BOB].is_stale


async def test_a_device_list_is_bounded(database: Database) -> None:
    store, published = RemoteDeviceStore(database), PublishedKeyStore(database)
    await store.set_list(BOB, 5, [], [], 0)

    for number in range(5):
        assert not await store.apply_update(
            changed(f"B{number}", 6 + number, [5 + number]), 3, LIST_BYTES
        )
    assert not await store.apply_update(changed("B1", 20, [10], b'{"n":1}'), 3, LIST_BYTES)

    rows = (await published.get_published([], [BOB])).devices[BOB]
    assert [(row.device_id, row.keys) for row in rows] == [
        ("B0", b"{}"),
        ("B1", b'{"n":1}'),
        ("B2", b"{}"),
    ]
    assert (await store.get_lists([BOB]))[BOB].stream_id == 20

    assert not await store.apply_update(changed("B1", 21, [20], b'{"n":1000}'), 3, 10)
    rows = (await published.get_published([], [BOB])).devices[BOB]
    assert [row.device_id for row in rows] == ["B0", "B2"], (
        "what does not fit is not what it was before"
    )


@pytest.mark.parametrize("kind", ["m.read", "m.read.private"])
async def test_public_receipts_are_found_by_position(database: Database, kind: str) -> None:
    before = database.streams.current()
    new = NewReceipt(ROOM_NID, "!r", ALICE, kind, "", "$e", 5, 1000)
    await ReceiptStore(database).set_receipts([new, new])

    found = await DestinationStore(database).get_receipts_to_send(
        before, database.streams.current(), 10
    )
    assert [(receipt.user_id, receipt.event_id) for receipt in found] == (
        [(ALICE, "$e")] if kind == "m.read" else []
    )


async def test_own_membership_changes_are_found_without_scanning_events(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = record_plans(database, monkeypatch)
    assert list(await DestinationStore(database).get_own_membership_changes(10, 20, 100)) == []
    assert [plan for plan in plans if "events_own_memberships" in plan], plans


async def test_recent_departures_are_found_without_reading_all_of_them(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    departed = [
        (ROOM_NID, f"@{number}:{PEER}", "leave", number, "", number, 0) for number in range(1000)
    ]
    others = [(number, BOB, "join", number, "", number, 0) for number in range(1000, 9000)]

    def write(txn: WriteTransaction) -> None:
        txn.execute_many(
            "INSERT INTO memberships (room_nid, user_id, membership, event_nid, sender,"
            " position, is_local)"
            " VALUES (?, ?, ?, ?, ?, ?, ?)",
            departed + others,
        )
        txn.execute("ANALYZE memberships")

    await database.write("put", write)
    plans = record_plans(database, monkeypatch)
    found = await DestinationStore(database).get_leaves(ROOM_NID, 998)
    assert sorted(found) == [(f"@{number}:{PEER}", number) for number in (998, 999)]
    assert [plan for plan in plans if "memberships_by_position" in plan], plans
