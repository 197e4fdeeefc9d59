"""To-device messages that many threads read while messages are sent, acknowledged and moved: each
reader sees one moment."""

import sys
import threading
import time
from collections.abc import Iterator
from random import Random
from uuid import uuid4

import pytest

from storage.encryption.to_device import LOG_RETENTION_MS, MAX_LOGGED, ToDeviceStore
from storage.engine.database import Database, PostgresConfig, SQLiteConfig, make_engine
from storage.engine.transaction import Transaction
from tests.helpers.databases import open_inline
from tests.helpers.deferreds import run_inline
from tests.helpers.to_device_log import add_device, numbers_in, send_numbers

DEVICES = [f"D{number}" for number in range(6)]
READERS = 4
SECONDS = 2.0


@pytest.fixture
def often() -> Iterator[None]:
    """Let threads switch as often as possible."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


class Expectation:
    """The messages that a reader has to find, at least and at most."""

    def __init__(self) -> None:
        self.sent: dict[str, list[tuple[int, int]]] = {device: [] for device in DEVICES}
        """Position and number of the messages that were certainly sent."""
        self.acknowledging = dict.fromkeys(DEVICES, 0)
        """The acknowledged position before the write."""
        self.acknowledged = dict.fromkeys(DEVICES, 0)
        """The acknowledged position after the write."""


class Reader(threading.Thread):
    """A reader with its own connections and a shared index."""

    def __init__(
        self,
        config: SQLiteConfig | PostgresConfig,
        store: ToDeviceStore,
        user: str,
        law: Expectation,
        seed: int,
    ) -> None:
        super().__init__(daemon=True)
        self.reads = 0
        self.trouble: BaseException | None = None
        self.over = False
        self._connection = make_engine(config).connect_reader()
        self._store, self._user, self._law, self._random = store, user, law, Random(seed)

    def run(self) -> None:
        try:
            while not self.over:
                self._read()
                self.reads += 1
        except BaseException as error:
            self.trouble = error
        finally:
            self._connection.close()

    def _read(self) -> None:
        law, device = self._law, self._random.choice(DEVICES)
        acknowledged = law.acknowledged[device]
        sent = list(law.sent[device])
        upto = sent[-1][0] if sent else 0
        limit = self._random.choice([1, 3, 100, 10**6])
        # private: each thread reads with a connection of its own
        found = self._store._select(
            Transaction(self._connection), self._user, device, 0, upto, limit
        )
        acknowledging = law.acknowledging[device]
        got = [
            (message.position, number)
            for message, number in zip(found, numbers_in(found), strict=True)
        ]
        most = [each for each in sent if each[0] > acknowledged]
        least = [each for each in sent if each[0] > acknowledging]
        assert got in [most[at : at + limit] for at in range(len(most) - len(least) + 1)], (
            device,
            got,
            most,
            least,
        )


@pytest.mark.usefixtures("often")
@pytest.mark.parametrize("most_logged", [MAX_LOGGED, 60])
def test_every_thread_sees_each_message_once(
    database_config: SQLiteConfig | PostgresConfig, most_logged: int
) -> None:
    database: Database = open_inline(database_config)
    user, random, law = f"@{uuid4().hex}:example.org", Random(3), Expectation()
    stores = [ToDeviceStore(database=database, max_logged=most_logged) for _ in range(2)]
    for device in DEVICES:
        add_device(database, user, device)
    readers = [
        Reader(database_config, stores[number % 2], user, law, number) for number in range(READERS)
    ]
    for reader in readers:
        reader.start()
    number, now, ends = 0, 0, time.monotonic() + SECONDS
    while time.monotonic() < ends and not any(reader.trouble for reader in readers):
        store = random.choice(stores)
        match random.randrange(8):
            case 0 | 1 | 2:
                to = [random.choice(DEVICES) for _ in range(random.choice([1, 3, 9, 30]))]
                positions = send_numbers(
                    database, store, user, to, range(number, number + len(to)), now
                )
                new: dict[str, list[tuple[int, int]]] = {}
                for device, position, each in zip(
                    to, positions, range(number, number + len(to)), strict=True
                ):
                    new.setdefault(device, []).append((position, each))
                for device, each_new in new.items():
                    law.sent[device] += each_new
                number += len(to)
            case 3 | 4:
                device = random.choice(DEVICES)
                waiting = [each for each in law.sent[device] if each[0] > law.acknowledged[device]]
                if waiting:
                    upto = random.choice(waiting)[0]
                    law.acknowledging[device] = upto
                    if random.random() < 0.5:
                        run_inline(store.remove_messages(user, device, upto))
                    else:
                        run_inline(store.remove_message_range(user, device, waiting[0][0], upto))
                    law.acknowledged[device] = upto
            case _:
                now += LOG_RETENTION_MS // 8
                run_inline(store.sweep(random.choice([1, 8, 50]), now))
    for reader in readers:
        reader.over = True
    for reader in readers:
        reader.join(30)
        assert reader.trouble is None, reader.trouble
        assert reader.reads > 20
