"""One-time keys in blocks: given out in order, each once, whatever is uploaded again, and from whatever version they come."""

import shutil
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from storage.database import Database, PostgresConfig, SQLiteConfig, WriteTransaction, make_engine
from storage.device_keys import DeviceKeyStore, KeyCounts, KeyWish, NewKeys
from storage.devices import DeviceRow, DeviceStore
from storage.engine import Engine
from storage.migrate import SCHEMA, migrate
from storage.one_time_keys import DIGEST_BYTES, MOST_REMEMBERED, KeyExists
from tests.helpers.databases import PostgresTemplates, open_inline

ALICE, DEVICE, ALGORITHM = "@alice:example.org", "PHONE", "signed_curve25519"
BEFORE_BLOCKS = 58
"""The last schema that had a row for each key."""


def content(text: str) -> bytes:
    return b'{"key":"%b"}' % text.encode()


class Device:
    """A device, and who claims its keys."""

    def __init__(self, database: Database, device_id: str = DEVICE) -> None:
        self._database = database
        self._store = DeviceKeyStore(database)
        self._devices = DeviceStore(database)
        self._device_id = device_id
        self.now = 1000

    async def upload(self, keys: dict[str, bytes], algorithm: str = ALGORITHM, *, remembered_from: int = 0) -> int:
        """How many it has then."""

        def put(txn: WriteTransaction) -> KeyCounts:
            named = {(algorithm, key_id): key for key_id, key in keys.items()}
            self._devices.add_device(txn, DeviceRow(ALICE, self._device_id, None, 0))
            return self._store.put_keys(txn, ALICE, self._device_id, NewKeys(None, named, {}), remembered_from)

        counts = await self._database.write("upload", put)
        assert counts == (await self._store.get_counts(ALICE, self._device_id))[0]
        return counts.one_time.get(algorithm, 0)

    async def claim(self, algorithm: str = ALGORITHM) -> tuple[str, bytes] | None:
        wish = KeyWish(ALICE, self._device_id, algorithm)
        claimed = (await self._store.do_claim([wish], self.now)).get(wish)
        return None if claimed is None else (claimed.key_id, claimed.content)

    async def claim_all(self) -> list[str]:
        """The ids of the keys that are left, in the order in which they are given out."""
        names = []
        while (claimed := await self.claim()) is not None:
            names.append(claimed[0])
        return names


@pytest.fixture
def device(database: Database) -> Device:
    return Device(database)


def keys(*names: str) -> dict[str, bytes]:
    return {name: content(name) for name in names}


async def test_keys_are_given_out_in_the_order_in_which_they_came(device: Device) -> None:
    assert await device.upload(keys("c", "a", "b")) == 3
    assert await device.upload(keys("z")) == 4
    assert await device.upload(keys("y", "x"), "other") == 2
    assert await device.claim() == ("c", content("c"))
    assert await device.upload(keys("d", "e")) == 5
    assert await device.claim("other") == ("y", content("y"))
    assert await device.claim_all() == ["a", "b", "z", "d", "e"]
    assert await device.claim("other") == ("x", content("x"))
    assert await device.claim("other") is None


async def test_keys_of_all_lengths_and_with_odd_names_come_back_as_they_were(device: Device) -> None:
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


async def test_an_upload_that_is_repeated_brings_nothing_back(device: Device) -> None:
    await device.upload(keys("a", "b", "c"))
    await device.upload(keys("d"))
    assert [await device.claim() for _ in range(2)] == [("a", content("a")), ("b", content("b"))]
    assert await device.upload(keys("a", "b", "c", "d", "e")) == 3, "only one of them is new"
    assert await device.claim_all() == ["c", "d", "e"]
    assert await device.upload(keys("a", "c", "e")) == 0


async def test_what_was_given_out_is_forgotten_after_a_time(device: Device, database: Database) -> None:
    await device.upload(keys("a", "b"))
    device.now = 2000
    assert await device.claim_all() == ["a", "b"]
    assert await device.upload(keys("c"), remembered_from=2000) == 1
    assert await device.upload(keys("a", "c"), remembered_from=2000) == 1, "it is still known"
    assert await device.upload(keys("d"), remembered_from=2001) == 2
    rows = await database.read(
        "count", lambda txn: txn.query("SELECT names FROM one_time_key_blocks ORDER BY block_nid")
    )
    assert [names for (names,) in rows] == ['["c"]', '["d"]']


async def test_what_is_remembered_is_bounded_and_the_oldest_goes_first(device: Device, database: Database) -> None:
    """A device of which a key is claimed again and again, and that uploads one each time."""
    for number in range(MOST_REMEMBERED + 5):
        device.now += 1
        assert await device.upload(keys(f"k{number}")) == 1
        assert await device.claim() == (f"k{number}", content(f"k{number}"))
    await device.upload(keys("last"))
    rows = await database.read("count", lambda txn: txn.query("SELECT count(*) FROM one_time_key_blocks"))
    assert rows == [(MOST_REMEMBERED + 1,)]
    assert await device.upload(keys("k5", f"k{MOST_REMEMBERED + 4}")) == 1, "they were given out"
    assert await device.upload(keys("k4")) == 2, "it was forgotten"


async def test_two_keys_of_one_name_are_refused_until_the_first_was_given_out(device: Device) -> None:
    await device.upload(keys("a", "b"))
    with pytest.raises(KeyExists, match=f"{ALGORITHM}:b"):
        await device.upload({"c": content("c"), "b": content("another")})
    assert await device.claim_all() == ["a", "b"], "nothing of the upload was taken"
    assert await device.upload({"b": content("another")}) == 1, "a client that began anew counts from the start"
    assert await device.claim() == ("b", content("another"))
    assert await device.upload({**keys("b"), "b2": content("b2")}) == 1
    assert await device.claim_all() == ["b2"]


async def test_a_claim_of_many_gives_to_each_device_what_it_has(database: Database) -> None:
    store = DeviceKeyStore(database)
    for name in ("A", "B", "C"):
        await Device(database, name).upload(keys(f"{name}1", f"{name}2") if name != "B" else {})
    wishes = [KeyWish(ALICE, name, ALGORITHM) for name in ("A", "B", "C")]
    first, second, third = [await store.do_claim(wishes, 0) for _ in range(3)]
    assert [key.key_id for key in first.values()] == ["A1", "C1"]
    assert [key.key_id for key in second.values()] == ["A2", "C2"]
    assert third == {}


@pytest.fixture(params=["sqlite", "postgres"])
def older(
    request: pytest.FixtureRequest, tmp_path: Path, postgres_templates: PostgresTemplates
) -> Iterator[SQLiteConfig | PostgresConfig]:
    """A database from before there were blocks."""
    schema = tmp_path / "older"
    schema.mkdir()
    for path in SCHEMA.glob("*.sql"):
        if int(path.name[:4]) <= BEFORE_BLOCKS:
            shutil.copy(path, schema)
    if request.param == "sqlite":
        sqlite = SQLiteConfig(str(tmp_path / "homeserver.db"), synchronous="OFF")
        migrate(make_engine(sqlite), schema)
        yield sqlite
        return
    postgres = postgres_templates.create(empty=True)
    migrate(make_engine(postgres), schema)
    yield postgres
    postgres_templates.drop(postgres)


def put_rows(engine: Engine) -> None:
    connection = engine.connect_writer()
    connection.begin_write()
    odd = 'o"d\u2018d'
    for nid, name in enumerate(["a", odd, "c"], 5):
        connection.execute(
            "INSERT INTO one_time_keys (user_id, device_id, algorithm, key_nid, key_id, content)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (ALICE, DEVICE, ALGORITHM, nid, name, content(name.replace('"', ""))),
        )
    for number in range(2):
        connection.execute(
            "INSERT INTO claimed_one_time_keys (user_id, device_id, algorithm, key_id, digest, claimed_ts)"
            " VALUES (?, ?, ?, 'used', ?, ?)",
            (ALICE, DEVICE, ALGORITHM, sha256(content(f"used{number}")).digest()[:DIGEST_BYTES], 1000 + number),
        )
    connection.commit({"one_time_key": 7})
    connection.close()


async def test_keys_of_an_older_database_are_given_out_and_remembered(older: SQLiteConfig | PostgresConfig) -> None:
    engine = make_engine(older)
    put_rows(engine)
    migrate(engine)
    database = open_inline(older)
    device = Device(database)
    odd = 'o"d\u2018d'
    kept = {"a": content("a"), odd: content("od\u2018d"), "c": content("c")}
    assert await device.upload({"used": content("used0")}) == 3, "it was given out before"
    assert await device.upload({"used": content("used1"), **kept, "d": content("d")}) == 4
    assert [await device.claim() for _ in range(3)] == list(kept.items())
    assert await device.claim_all() == ["d"]
    assert await device.upload({"used": content("used0"), **kept}) == 0
    assert await device.upload({"used": content("another"), "e": content("e")}, remembered_from=1001) == 2
    assert await device.claim_all() == ["used", "e"]
    assert await device.upload({"used": content("used0"), "f": content("f")}, remembered_from=1001) == 2, "forgotten"
    await database.close()
