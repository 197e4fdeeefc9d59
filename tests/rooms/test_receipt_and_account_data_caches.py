"""Cached receipts and account data equal the stored ones, whatever happens and whenever they are
read."""

from collections.abc import Collection, Iterable, Mapping
from random import Random
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from homeserver.services.account_data import account_data_cache
from homeserver.services.account_data.account_data_cache import AccountDataCache
from homeserver.services.rooms import receipt_cache
from homeserver.services.rooms.receipt_cache import ReceiptCache
from storage.account_data.account_data import AccountDataStore
from storage.encryption.to_device import DevicesDeleted
from storage.engine.database import Database
from storage.engine.streams import Change, Streams, Topic
from storage.engine.transaction import WriteTransaction
from storage.rooms.receipts import UNTHREADED, NewReceipt, ReceiptRow, ReceiptStore

ALICE = "@alice:a.test"


class SlowReceipts(ReceiptStore):
    """Returns when the test lets it."""

    def __init__(self) -> None:
        self.asked: list[Deferred[list[ReceiptRow]]] = []

    async def get_receipts_of_rooms(
        self, room_nids: Collection[int], limit: int
    ) -> dict[int, list[ReceiptRow]]:
        deferred: Deferred[list[ReceiptRow]] = Deferred()
        self.asked.append(deferred)
        return dict.fromkeys(room_nids, await deferred)

    async def get_receipts(
        self, ranges: Mapping[int, tuple[int, int]]
    ) -> Mapping[int, list[ReceiptRow]]:
        deferred: Deferred[list[ReceiptRow]] = Deferred()
        self.asked.append(deferred)
        return dict.fromkeys(ranges, await deferred)


def a_receipt(position: int, user_id: str = ALICE) -> ReceiptRow:
    return ReceiptRow(1, user_id, "m.read", UNTHREADED, f"${position}", position, 0, position)


@pytest.mark.parametrize("seed", range(6))
async def test_cached_receipts_equal_the_stored_ones(
    database: Database, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(receipt_cache, "MAX_CACHED_PER_ROOM", 12)
    chance, store = Random(seed), ReceiptStore(database)
    kept = ReceiptCache(store=store, streams=database.streams, capacity=chance.choice([20, 1000]))
    position = 0
    for number in range(150):
        room_nid, user_id = (
            chance.randrange(1, 6),
            f"@{chance.randrange(1 + 4 * (seed % 2), 9)}:a.test",
        )
        what = chance.randrange(6)
        if what < 3:
            thread_id = chance.choice([UNTHREADED, UNTHREADED, "main", "$root"])
            new = NewReceipt(
                room_nid, f"!{room_nid}", user_id, "m.read", thread_id, f"${number}", number, number
            )
            await store.set_receipts([new])
        elif what == 3 and chance.random() < 0.1:
            position = database.streams.current() + 1
            database.streams.advance_to(position)  # another node has written
        elif what == 4:
            head = database.streams.current()
            ranges = {
                nid: (
                    chance.choice([0, 0, max(0, head - 9)]),
                    chance.choice([head, max(0, head - 4)]),
                )
                for nid in chance.sample(range(1, 6), 3)
            }
            assert dict(await kept.get_receipts(ranges)) == dict(await store.get_receipts(ranges))
        else:
            several = chance.sample(range(1, 6), chance.randrange(1, 5))
            stored = await store.get_receipts_of_rooms(several, 100)
            for nid, found in (await kept.get_room_receipts(several)).items():
                rows = stored.pop(nid)
                assert (None if found is None else list(found)) == (
                    rows if len(rows) <= 12 else None
                )
            assert not stored
        assert len(kept) <= 1000


def test_a_receipt_that_arrives_during_a_read_is_not_lost() -> None:
    streams, store = Streams(10), SlowReceipts()
    kept = ReceiptCache(store=store, streams=streams, capacity=100)
    reading: list[Deferred[Any]] = [
        Deferred.fromCoroutine(kept.get_room_receipts([1])),
        Deferred.fromCoroutine(kept.get_receipts({1: (0, 10)})),
    ]
    streams.publish([Change(11, Topic.RECEIPT, "!r:a.test", ALICE, a_receipt(11))], 11)
    for asked in store.asked[:2]:
        asked.callback([a_receipt(5)])
    assert [each.called for each in reading] == [False, True]
    retried = Deferred.fromCoroutine(kept.get_room_receipts([1]))
    store.asked[2].callback([a_receipt(11)])
    assert reading[0].called
    streams.publish(
        [Change(12, Topic.RECEIPT, "!r:a.test", "@bob:a.test", a_receipt(12, "@bob:a.test"))], 12
    )
    found: list[dict[int, Collection[ReceiptRow] | None]] = []
    Deferred.fromCoroutine(kept.get_room_receipts([1])).addCallback(found.append)
    assert retried.called
    assert list(found[0][1] or ()) == [a_receipt(11), a_receipt(12, "@bob:a.test")]
    assert len(store.asked) == 3


async def test_receipts_added_to_cached_rooms_are_bounded_too(
    sqlite_database: Database,
) -> None:
    store = ReceiptStore(sqlite_database)
    kept = ReceiptCache(store=store, streams=sqlite_database.streams, capacity=100)
    for room_nid in range(1, 50):
        assert await kept.get_room_receipts([room_nid]) == {room_nid: []}
    for room_nid in range(1, 50):
        people = [f"@{number}:a.test" for number in range(30)]
        await store.set_receipts(
            [
                NewReceipt(room_nid, f"!{room_nid}", each, "m.read", UNTHREADED, "$e", 1, 1)
                for each in people
            ]
        )
        assert len(kept) <= 100
    assert (
        list((await kept.get_room_receipts([1]))[1] or ())
        == (await store.get_receipts_of_rooms([1], 100))[1]
    )


@pytest.mark.parametrize("seed", range(6))
async def test_cached_account_data_equal_the_stored_ones(
    database: Database, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(account_data_cache, "MAX_CHANGED_ROOMS", 4)
    chance, store, streams = Random(seed), AccountDataStore(database), database.streams
    kept = AccountDataCache(
        store=store, streams=streams, capacity=chance.choice([40_000, 1_000_000])
    )
    users, rooms = [ALICE, "@bob:a.test"], [f"!{number}:a.test" for number in range(7)]

    async def write(user_id: str, room_id: str | None, content: bytes, *, gone: bool) -> None:
        type_ = f"org.example.{chance.randrange(3)}"
        await database.write(
            "write",
            lambda txn: store.set_entry(txn, user_id, room_id, type_, content, deleted=gone),
        )

    for number in range(200):
        user_id, what = chance.choice(users), chance.randrange(9)
        if what < 4:
            room_id = chance.choice([None, *rooms, *rooms])
            await write(user_id, room_id, b'{"n":%d}' % number, gone=chance.random() < 0.2)
        elif what == 4 and chance.random() < 0.2:
            streams.advance_to(streams.current() + 1)  # another node has written
        elif what == 5 and chance.random() < 0.3:
            has_devices = chance.random() < 0.5

            def erase(
                txn: WriteTransaction, user_id: str = user_id, has_devices: bool = has_devices
            ) -> None:
                store.remove_account_data(txn, user_id)
                if has_devices:
                    txn.announce(
                        Change(
                            txn.next_position(),
                            Topic.DEVICES_DELETED,
                            None,
                            user_id,
                            DevicesDeleted(("D",)),
                        )
                    )

            await database.write("erase", erase)
        elif what == 6:
            assert await kept.of_user(user_id) == await store.get_account_data(user_id)
        else:
            some = chance.sample(rooms, chance.choice([1, 1, 3]))
            found = {
                room_id: dict(data)
                for room_id, data in (await kept.of_rooms(user_id, some)).items()
            }
            assert found == await store.get_rooms_account_data(user_id, some)
        assert kept.weight <= 1_000_000
    for user_id in users:
        await kept.of_user(user_id)
    assert (kept.weight > 0) == (len(kept) > 0)


async def test_account_data_added_to_cached_users_are_bounded_too(
    sqlite_database: Database,
) -> None:
    """Entries may be large, and may be set after all of them were read."""
    store, capacity = AccountDataStore(sqlite_database), 1_000_000
    kept = AccountDataCache(store=store, streams=sqlite_database.streams, capacity=capacity)
    users = [f"@{number}:a.test" for number in range(30)]
    for user_id in users:
        await kept.of_user(user_id)
    assert len(kept) == len(users)
    for number in range(6):
        for user_id in users:
            room_id, content = (
                f"!{number}:a.test",
                b'"%b"' % (b"x" * (30_000 if user_id == users[0] else 9_000)),
            )

            def write(
                txn: WriteTransaction,
                at: tuple[str, str] = (user_id, room_id),
                data: bytes = content,
            ) -> None:
                store.set_entry(txn, *at, "org.example", data)

            await sqlite_database.write("write", write)
            assert await kept.of_rooms(user_id, [room_id]) == {room_id: {"org.example": content}}
            assert kept.weight <= capacity
        if number == 2:
            assert len(kept) == len(users) - 1, "one user has more than a share"
    assert 0 < len(kept) < len(users) - 1


async def test_changed_rooms_count_in_the_size_and_once(sqlite_database: Database) -> None:
    """Clients set the fully-read marker in every room."""
    store = AccountDataStore(sqlite_database)
    kept = AccountDataCache(store=store, streams=sqlite_database.streams, capacity=1_000_000)
    rooms = [f"!{number}:a.test" for number in range(20)]

    async def write() -> None:
        for room_id in rooms:

            def set_entry(txn: WriteTransaction, room_id: str = room_id) -> None:
                store.set_entry(txn, ALICE, room_id, "m.fully_read", b"{}")

            await sqlite_database.write("write", set_entry)

    await write()
    await kept.of_user(ALICE)
    whole = kept.weight
    await write()
    assert kept.weight >= 20 * account_data_cache.ENTRY_BYTES
    slow: list[Deferred[None]] = []
    read = store.get_rooms_account_data

    async def read_slowly(user_id: str, room_ids: Iterable[str]) -> dict[str, dict[str, bytes]]:
        slow.append(Deferred())
        await slow[-1]
        return await read(user_id, room_ids)

    store.get_rooms_account_data = read_slowly  # type: ignore[method-assign]
    both = [Deferred.fromCoroutine(kept.of_rooms(ALICE, rooms)) for _ in range(2)]
    for each in slow:
        each.callback(None)
    assert [each.called for each in both] == [True, True]
    assert kept.weight == whole
