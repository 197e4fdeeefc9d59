"""One-time keys in blocks: given out in order, each once, whatever is uploaded again."""

import pytest

from storage.devices.devices import DeviceRow, DeviceStore
from storage.encryption import one_time_keys
from storage.encryption.device_keys import CLAIM_CHUNK, DeviceKeyStore, KeyCounts, NewKeys
from storage.encryption.one_time_keys import BLOCK_BYTES, BLOCK_KEYS, DIGEST_BYTES, KeyExists
from storage.engine.database import Database, WriteTransaction
from storage.engine.streams import Stage, Topic
from tests.helpers.key_nodes import ALGORITHM, ALICE, content, parse_named

DEVICE = "PHONE"


class Device:
    """A device, and a client that claims its keys."""

    def __init__(self, database: Database, device_id: str = DEVICE) -> None:
        self._database = database
        self._store = DeviceKeyStore(database)
        self._devices = DeviceStore(database)
        self._device_id = device_id
        self.now = 1000

    async def upload(
        self, keys: dict[str, bytes], algorithm: str = ALGORITHM, *, remembered_from: int = 0
    ) -> int:
        """Upload keys. Return the number of keys of the device."""

        def put(txn: WriteTransaction) -> KeyCounts:
            named = {(algorithm, key_id): key for key_id, key in keys.items()}
            self._devices.add_device(txn, DeviceRow(ALICE, self._device_id, None, 0))
            return self._store.upload_keys(
                txn, ALICE, self._device_id, NewKeys(None, named, {}), remembered_from
            )

        counts = await self._database.write("upload", put)
        assert counts == (await self._store.get_counts(ALICE, self._device_id))[0]
        return counts.one_time.get(algorithm, 0)

    async def claim(self, algorithm: str = ALGORITHM) -> tuple[str, bytes] | None:
        requested = (ALICE, self._device_id, algorithm)
        (claimed,) = await self._store.claim_in_chunks([requested], self.now)
        return None if claimed is None else parse_named(claimed)

    async def claim_all(self) -> list[str]:
        """Return the IDs of the remaining keys, in the order in which they are claimed."""
        names = []
        while (claimed := await self.claim()) is not None:
            names.append(claimed[0])
        return names


@pytest.fixture
def device(database: Database) -> Device:
    return Device(database)


def keys(*names: str) -> dict[str, bytes]:
    return {name: content(name) for name in names}


async def test_keys_are_claimed_in_the_order_of_their_upload(device: Device) -> None:
    assert await device.upload(keys("c", "a", "b")) == 3
    assert await device.upload(keys("z")) == 4
    assert await device.upload(keys("y", "x"), "other") == 2
    assert await device.claim() == ("c", content("c"))
    assert await device.upload(keys("d", "e")) == 5
    assert await device.claim("other") == ("y", content("y"))
    assert await device.claim_all() == ["a", "b", "z", "d", "e"]
    assert await device.claim("other") == ("x", content("x"))
    assert await device.claim("other") is None


async def test_keys_of_any_length_and_id_are_returned_unchanged(
    device: Device,
) -> None:
    odd = {
        'q"uo:te\\': b'"a text"',
        "qish": content("o\u2018zbek \U0001f600"),
        " ": b'{"a":[1,{"b":"} ]"}],"signatures":{}}',
        "long" * 60: content("x" * 4000),
        "zz\n": b"{}",
    }
    await device.upload(odd)
    for name, key in odd.items():
        assert await device.claim() == (name, key)
    assert await device.claim() is None


async def test_a_repeated_upload_does_not_bring_claimed_keys_back(device: Device) -> None:
    await device.upload(keys("a", "b", "c"))
    await device.upload(keys("d"))
    assert [await device.claim() for _ in range(2)] == [("a", content("a")), ("b", content("b"))]
    assert await device.upload(keys("a", "b", "c", "d", "e")) == 3, "only one of them is new"
    assert await device.claim_all() == ["c", "d", "e"]
    assert await device.upload(keys("a", "c", "e")) == 0


async def test_digests_of_claimed_keys_are_deleted_after_a_time(
    device: Device, database: Database
) -> None:
    await device.upload(keys("a", "b"))
    device.now = 2000
    assert await device.claim_all() == ["a", "b"]
    assert await device.upload(keys("c"), remembered_from=2000) == 1
    assert await device.upload(keys("a", "c"), remembered_from=2000) == 1, (
        "its digest is still stored"
    )
    assert await device.upload(keys("d"), remembered_from=2001) == 2
    rows = await database.read(
        "count", lambda txn: txn.query("SELECT key_ids FROM one_time_key_blocks ORDER BY block_nid")
    )
    assert [names for (names,) in rows] == ['["c"]', '["d"]']


@pytest.fixture
def few_digests(monkeypatch: pytest.MonkeyPatch) -> int:
    """Store this number of digests, instead of thousands."""
    monkeypatch.setattr(one_time_keys, "MAX_USED_DIGESTS", 20)
    return 20


async def count_stored(database: Database) -> tuple[int, int]:
    """Return the number of blocks, and the bytes of stored digests."""
    sql = (
        "SELECT (SELECT count(*) FROM one_time_key_blocks), (SELECT count(*)"
        " FROM one_time_key_claims),"
        " (SELECT sum(length(digests)) FROM used_one_time_keys)"
    )
    blocks, marks, used = (await database.read("count", lambda txn: txn.query(sql)))[0]
    assert blocks == marks, "each block has a mark"
    return blocks, used or 0


async def test_digests_are_bounded_and_the_oldest_are_deleted_first(
    device: Device, database: Database, few_digests: int
) -> None:
    """Keys of a device are claimed again and again, and it uploads one each time."""
    for number in range(few_digests + 5):
        device.now += 1
        assert await device.upload(keys(f"k{number}")) == 1
        assert await device.claim() == (f"k{number}", content(f"k{number}"))
    await device.upload(keys("last"))
    assert await count_stored(database) == (1, few_digests * (8 + DIGEST_BYTES)), (
        "only digests are left"
    )
    assert await device.upload(keys("k5", f"k{few_digests + 4}")) == 1, "they were claimed"
    assert await device.upload(keys("k4")) == 2, "its digest was deleted"


async def test_digests_are_small_whatever_the_length_of_the_ids(
    device: Device, database: Database, few_digests: int
) -> None:
    first = {f"{number}{'x' * 200}": content("y" * 1000) for number in range(BLOCK_KEYS)}
    await device.upload(first)
    assert await device.claim_all() == list(first)
    assert await device.upload(first) == 0
    assert await device.upload(keys("a")) == 1
    assert await count_stored(database) == (1, few_digests * (8 + DIGEST_BYTES))


async def test_blocks_are_small_whatever_is_uploaded(device: Device, database: Database) -> None:
    """A claim may rewrite the whole block. One long key does not enlarge many short ones."""
    uploaded = keys(*(f"short{number}" for number in range(BLOCK_KEYS + 30)))
    uploaded |= {f"long{number}": content("x" * 4000) for number in range(9)} | keys("a", "b", "c")
    assert await device.upload(uploaded) == len(uploaded)
    sql = "SELECT key_count, length(keys) FROM one_time_key_blocks"
    blocks = await database.read("sizes", lambda txn: txn.query(sql))
    assert sum(number for number, _ in blocks) == len(uploaded)
    assert max(number for number, _ in blocks) <= BLOCK_KEYS
    assert max(size for _, size in blocks) <= BLOCK_BYTES
    assert len(blocks) <= 5
    assert [await device.claim() for _ in uploaded] == list(uploaded.items())


async def test_a_key_longer_than_a_block_gets_its_own_block(device: Device) -> None:
    uploaded = {"a": content("a"), "b": content("x" * BLOCK_BYTES), "c": content("c")}
    await device.upload(uploaded)
    assert [await device.claim() for _ in uploaded] == list(uploaded.items())


async def test_deleting_a_device_deletes_its_keys_and_digests(
    device: Device, database: Database
) -> None:
    await device.upload(keys("a"))
    await device.claim_all()
    await device.upload(keys("b"))
    await database.write(
        "remove", lambda txn: DeviceKeyStore(database).remove_devices(txn, ALICE, [DEVICE])
    )
    assert await count_stored(database) == (0, 0)
    assert await device.upload(keys("a")) == 1, "a new device with the same ID may upload any key"


async def test_a_second_key_with_the_same_id_is_refused_until_the_first_is_claimed(
    device: Device,
) -> None:
    await device.upload(keys("a", "b"))
    with pytest.raises(KeyExists, match=f"{ALGORITHM}:b"):
        await device.upload({"c": content("c"), "b": content("another")})
    assert await device.claim_all() == ["a", "b"], "no key of the upload was stored"
    assert await device.upload({"b": content("another")}) == 1, (
        "a client that started over counts from the start"
    )
    assert await device.claim() == ("b", content("another"))
    assert await device.upload({**keys("b"), "b2": content("b2")}) == 1
    assert await device.claim_all() == ["b2"]


async def test_a_claim_for_many_devices_returns_a_key_of_each(database: Database) -> None:
    store = DeviceKeyStore(database)
    for name in ("A", "B", "C"):
        await Device(database, name).upload(keys(f"{name}1", f"{name}2") if name != "B" else {})
    requests = [(ALICE, name, ALGORITHM) for name in ("A", "B", "C")]
    first, second, third = [await store.claim_in_chunks(requests, 0) for _ in range(3)]
    assert [key and parse_named(key)[0] for key in first] == ["A1", None, "C1"]
    assert [key and parse_named(key)[0] for key in second] == ["A2", None, "C2"]
    assert third == [None] * 3


async def test_other_writes_run_between_the_writes_of_a_large_claim(database: Database) -> None:
    store = DeviceKeyStore(database)
    devices = [f"D{number:03}" for number in range(CLAIM_CHUNK + 20)]

    def put(txn: WriteTransaction) -> None:
        for name in devices:
            DeviceStore(database).add_device(txn, DeviceRow(ALICE, name, None, 0))
            store.upload_keys(
                txn, ALICE, name, NewKeys(None, {(ALGORITHM, name): content(name)}, {}), 0
            )

    await database.write("put", put)
    commits: list[int] = []
    database.streams.subscribe(
        lambda changes: commits.append(len(changes)), Topic.KEY_COUNT, stage=Stage.NOTIFY
    )
    claimed = await store.claim_in_chunks([(ALICE, name, ALGORITHM) for name in devices], 0)
    assert [key and parse_named(key)[0] for key in claimed] == devices
    assert len(commits) == 2
