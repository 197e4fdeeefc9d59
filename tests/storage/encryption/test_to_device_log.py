"""To-device messages that were sent in bulk: in the log, out of it, and at every moment in
between."""

import os
import signal
import sqlite3
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, TypeVar, cast
from uuid import uuid4

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.internet import reactor as installed_reactor
from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred, gatherResults

from storage.devices.devices import DeviceRow, DeviceStore
from storage.encryption import to_device_log
from storage.encryption.to_device import (
    LOG_RETENTION_MS,
    MIN_LOGGED,
    MOVE_CHUNK_BYTES,
    DeviceMessage,
    DeviceSnapshot,
    Recipients,
    ToDeviceStore,
    _sweep,  # private: SQLite counts the steps of one connection
)
from storage.encryption.to_device_log import (
    ROW_BYTES,
    ROW_MESSAGES,
    ToDeviceLogIndex,
    ToDeviceLogSnapshot,
)
from storage.engine.database import Database, PostgresConfig, SQLiteConfig, open_database
from storage.engine.sqlite import SQLiteConnection, SQLiteEngine
from storage.engine.transaction import Transaction, WriteTransaction
from tests.helpers.databases import open_inline
from tests.helpers.deferreds import run_inline
from tests.helpers.programs import piped_program
from tests.helpers.to_device_log import (
    FOREVER,
    OPENING,
    add_device,
    count_rows,
    numbers_in,
    send_numbers,
)

T = TypeVar("T")
DEVICES = ["D0", "D1", "D2"]
KILLS = 8
SENT_AT_A_RACE = 40


STEPS = st.one_of(
    st.tuples(
        st.just("many"), st.lists(st.sampled_from(range(3)), min_size=MIN_LOGGED, max_size=20)
    ),
    st.tuples(
        st.just("few"), st.lists(st.sampled_from(range(3)), min_size=1, max_size=MIN_LOGGED - 1)
    ),
    st.tuples(
        st.just("equal"), st.lists(st.sampled_from(range(3)), min_size=MIN_LOGGED, max_size=20)
    ),
    st.tuples(st.just("read"), st.sampled_from(range(3)), st.integers(1, 12)),
    st.tuples(st.just("acknowledge"), st.sampled_from(range(3)), st.integers(1, 12), st.booleans()),
    st.tuples(st.just("again"), st.sampled_from(range(3))),
    st.tuples(st.just("sweep"), st.integers(1, 20), st.booleans()),
    st.tuples(st.just("other"), st.booleans()),
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(STEPS, max_size=25))
def test_queues_hold_what_was_sent_and_not_acknowledged(
    database: Database, steps: list[tuple[Any, ...]]
) -> None:
    """Compares with a list for each device, whatever two nodes send, read, acknowledge and move,
    and even if they restart."""
    user = f"@{uuid4().hex}:example.org"
    stores = [ToDeviceStore(database=database), ToDeviceStore(database=database)]
    waiting: dict[str, list[tuple[int, int]]] = {device: [] for device in DEVICES}
    for device in DEVICES:
        add_device(database, user, device)
    number, here, now = 0, 0, 0

    def read(device: str, limit: int) -> list[DeviceMessage]:
        found = run_inline(stores[here].get_messages(user, device, 0, FOREVER, limit))
        assert [(m.position, n) for m, n in zip(found, numbers_in(found), strict=True)] == waiting[
            device
        ][:limit]
        return list(found)

    for kind, *args in steps:
        match kind:
            case "many" | "few" | "equal":
                to = [DEVICES[at] for at in args[0]]
                numbers = (
                    [number] * len(to) if kind == "equal" else list(range(number, number + len(to)))
                )
                number += len(to)
                positions = send_numbers(database, stores[here], user, to, numbers, now)
                for device, position, sent in zip(to, positions, numbers, strict=True):
                    waiting[device].append((position, sent))
            case "read":
                found = read(DEVICES[args[0]], args[1])
                if len(found) > 1:
                    later = run_inline(
                        stores[here].get_messages(
                            user, DEVICES[args[0]], found[0].position, FOREVER, 100
                        )
                    )
                    assert [m.position for m in later] == [
                        position for position, _ in waiting[DEVICES[args[0]]][1:]
                    ]
                    upto = found[-1].position - 1
                    assert (
                        run_inline(stores[here].get_messages(user, DEVICES[args[0]], 0, upto, 100))
                        == found[:-1]
                    )
            case "acknowledge":
                device = DEVICES[args[0]]
                found = read(device, args[1])
                if found and args[2]:
                    run_inline(stores[here].remove_messages(user, device, found[-1].position))
                elif found:
                    run_inline(
                        stores[here].remove_message_range(
                            user, device, found[0].position, found[-1].position
                        )
                    )
                del waiting[device][: len(found)]
            case "again":
                device = DEVICES[args[0]]

                def remove(
                    txn: WriteTransaction, device: str = device, store: ToDeviceStore = stores[here]
                ) -> None:
                    store.remove_devices(txn, user, [device])
                    DeviceStore(database).remove_devices(txn, user, [device])

                run_inline(database.write("remove", remove))
                add_device(database, user, device)
                waiting[device].clear()
            case "sweep":
                now += LOG_RETENTION_MS if args[1] else LOG_RETENTION_MS // 3
                run_inline(stores[here].sweep(args[0], now))
            case _:
                here = 1 - here
                if args[0]:
                    stores[here] = ToDeviceStore(database=database)
    for device in DEVICES:
        read(device, 1000)
    assert run_inline(stores[0].count_messages()) == sum(map(len, waiting.values()))
    for device in DEVICES:
        run_inline(stores[0].remove_messages(user, device, FOREVER))
    while run_inline(stores[1].sweep(50, now + LOG_RETENTION_MS + 1)):
        for device in DEVICES:
            assert run_inline(stores[0].get_messages(user, device, 0, FOREVER, 1)) == []
    assert count_rows(database) == {
        "to_device_messages": 0,
        "to_device_log": 0,
        "to_device_floors": 0,
    }


async def test_many_messages_share_few_rows_and_are_read_separately(database: Database) -> None:
    """Rows have about 16 KiB, whatever the lengths. A content that goes to all devices is stored
    once."""
    user, store = "@bob:example.org", ToDeviceStore(database=database)
    add_device(database, user, "D0")
    lengths = [3, ROW_BYTES + 5, 2, 700, ROW_BYTES - 1000, 900, 100, *[60] * 300]
    contents = [b'"%b"' % (b"x" * length) for length in lengths]
    equal = b'"%b"' % (b"y" * 5000)

    def write(txn: WriteTransaction) -> None:
        recipient = store.get_devices(txn, [user])[user]["D0"]
        store.add_messages(txn, OPENING, [recipient] * len(contents), contents, 0)
        store.add_messages(txn, OPENING, [recipient] * 300, [equal] * 300, 0)

    await database.write("send", write)
    found = await store.get_messages(user, "D0", 0, FOREVER, 1000)
    assert [message.content for message in found] == [
        OPENING + each + b"}" for each in contents + [equal] * 300
    ]
    sizes = await database.read(
        "sizes",
        lambda txn: txn.query("SELECT length(contents) FROM to_device_log ORDER BY first_position"),
    )
    assert max(size for (size,) in sizes) == ROW_BYTES + 7, "the message that is longer than a row"
    assert [size for (size,) in sizes][-3:] == [len(equal)] * 3, f"{ROW_MESSAGES} in a row at most"


async def test_messages_that_exceed_the_log_are_stored_by_device(database: Database) -> None:
    user, store = "@bob:example.org", ToDeviceStore(database=database, max_logged=30)
    add_device(database, user, "D0")
    for first in range(0, 40, 10):
        send_numbers(database, store, user, ["D0"] * 10, range(first, first + 10))
    assert count_rows(database)["to_device_messages"] == 10
    assert numbers_in(await store.get_messages(user, "D0", 0, FOREVER, 100)) == list(range(40))
    while await store.sweep(10, LOG_RETENTION_MS):
        pass
    assert count_rows(database) == {
        "to_device_messages": 40,
        "to_device_log": 0,
        "to_device_floors": 0,
    }
    send_numbers(database, store, user, ["D0"] * 10, range(40, 50))
    assert count_rows(database)["to_device_log"] == 1, "the log has space again"
    assert numbers_in(await store.get_messages(user, "D0", 0, FOREVER, 100)) == list(range(50))


async def test_a_message_that_leaves_the_log_during_a_read_is_still_returned(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another node moves it after a reader has read the messages stored by device, and before the
    reader reads the log."""
    user, store, other = (
        "@bob:example.org",
        ToDeviceStore(database=database),
        ToDeviceStore(database=database),
    )
    add_device(database, user, "D0")
    for first in range(0, 30, 10):
        send_numbers(database, store, user, ["D0"] * 10, range(first, first + 10))
    select_events = to_device_log.select_events
    moved: list[int] = []

    def move_first(
        txn: Transaction, places: Sequence[to_device_log.ToDeviceLogEntry]
    ) -> dict[int, bytes]:
        # the reader has to read again
        monkeypatch.setattr(to_device_log, "select_events", select_events)
        moved.append(run_inline(other.sweep(8, LOG_RETENTION_MS)))
        return select_events(txn, places)

    monkeypatch.setattr(to_device_log, "select_events", move_first)
    assert numbers_in(await store.get_messages(user, "D0", 0, FOREVER, 25)) == list(range(25))
    assert moved == [8]
    assert numbers_in(await store.get_messages(user, "D0", 0, FOREVER, 100)) == list(range(30))


async def test_a_device_snapshot_is_valid_until_a_device_is_added_or_deleted(
    database: Database,
) -> None:
    user, store, devices = (
        "@bob:example.org",
        ToDeviceStore(database=database),
        DeviceStore(database),
    )
    add_device(database, user, "D0")
    users = run_inline(database.write("find", lambda txn: store.get_devices(txn, [user])))

    def find(
        known: DeviceSnapshot | None, user_ids: Sequence[str] = (user,)
    ) -> Mapping[str, Recipients] | None:
        return run_inline(
            database.write("find", lambda txn: store.get_recipients(txn, user_ids, known))
        )

    known = DeviceSnapshot(users, database.streams.current())
    assert find(known) is None
    assert find(None) == users
    add_device(database, user, "D0")
    assert find(known) is None, "it was in the log"
    add_device(database, user, "D1")
    assert (find(known) or {})[user].keys() == {"D0", "D1"}
    later = DeviceSnapshot(users, database.streams.current())
    run_inline(database.write("remove", lambda txn: devices.remove_devices(txn, user, ["D0"])))
    assert (find(later) or {})[user].keys() == {"D1"}
    assert find(DeviceSnapshot({}, 0), ()) == {}


def test_a_reader_with_a_stale_log_snapshot_reads_again() -> None:
    """Threads arrive with snapshots in any order. None may miss messages that another thread knows
    to have left the log."""
    index = ToDeviceLogIndex()
    rows = [
        (first, (7).to_bytes(8, "little") + bytes(4) + (1).to_bytes(4, "little"))
        for first in (10, 20, 30)
    ]
    assert index.extend(ToDeviceLogSnapshot(25, 10, rows[:2]))
    assert [place.row for place in index.find(7, 0, 25, 10)] == [10, 20]
    assert index.extend(ToDeviceLogSnapshot(40, 20, rows[2:])), "the first has left the log"
    assert [place.row for place in index.find(7, 0, 40, 10)] == [20, 30]
    assert not index.extend(ToDeviceLogSnapshot(26, 10, [])), (
        "the first is no longer in the log, and was not in the table yet"
    )
    assert index.is_stale(10)
    assert not index.is_stale(20)
    assert index.extend(ToDeviceLogSnapshot(35, 20, rows[2:])), "a known row is indexed once"
    assert [place.row for place in index.find(7, 0, 40, 10)] == [20, 30]
    assert index.extend(ToDeviceLogSnapshot(50, None, []))
    assert index.find(7, 0, 50, 10) == []
    assert index.extend(ToDeviceLogSnapshot(45, None, [])), "an empty log cannot be stale"


@pytest.mark.reactor(120)
async def test_readers_on_two_nodes_miss_nothing_while_messages_are_sent_and_moved(
    threaded_database: Database, database_config: SQLiteConfig | PostgresConfig
) -> None:
    """Threads see the log at many moments, and learn from each other. Each result has all messages
    up to its end, once."""
    second = open_database(database_config, cast(ReactorBase, installed_reactor))
    nodes = [
        (database, ToDeviceStore(database=database)) for database in (threaded_database, second)
    ]
    user = "@bob:example.org"

    def put(txn: WriteTransaction) -> None:
        for device in DEVICES:
            DeviceStore(second).add_device(txn, DeviceRow(user, device, None, 0))

    await second.write("put", put)
    sent = answers = 0

    async def send_many() -> None:
        nonlocal sent
        database, store = nodes[0]
        for _ in range(SENT_AT_A_RACE):

            def write(txn: WriteTransaction, begin: int = sent) -> None:
                there = store.get_devices(txn, [user])[user]
                recipients = [there[DEVICES[0]], there[DEVICES[1]]] * 10
                contents = [b"%d" % number for number in range(begin, begin + 10) for _ in range(2)]
                store.add_messages(txn, OPENING, recipients, contents, 0)

            await database.write("send", write)
            sent += 10

    async def move(node: int) -> None:
        while sent < SENT_AT_A_RACE * 10:
            await nodes[node][1].sweep(8, LOG_RETENTION_MS)

    async def read(node: int, device: str) -> None:
        nonlocal answers
        database, store = nodes[node]
        while sent < SENT_AT_A_RACE * 10:
            least = sent
            upto = await database.catch_up()
            found = numbers_in(await store.get_messages(user, device, 0, upto, FOREVER))
            assert found == list(range(len(found)))
            assert len(found) >= least
            answers += 1

    readers = [read(node, device) for node in (0, 1) for device in DEVICES[:2] for _ in range(3)]
    work = [send_many(), move(0), move(1), *readers]
    await gatherResults([Deferred.fromCoroutine(each) for each in work], consumeErrors=True)
    assert answers > SENT_AT_A_RACE
    await second.close()


def test_a_crash_while_messages_are_moved_loses_and_duplicates_nothing(
    database_config: SQLiteConfig | PostgresConfig,
) -> None:
    database = open_inline(database_config)
    user, store, random = "@bob:example.org", ToDeviceStore(database=database), Random(7)
    for device in DEVICES:
        add_device(database, user, device)
    sent: dict[str, list[int]] = {device: [] for device in DEVICES}
    number = 0
    kind = "sqlite" if isinstance(database_config, SQLiteConfig) else "postgres"
    config = msgspec.json.encode(database_config).decode()
    were_apart = 0

    def send_some() -> None:
        nonlocal number
        for _ in range(40):
            to = [random.choice(DEVICES) for _ in range(10)]
            for device in to:
                sent[device].append(number)
                number += 1
            send_numbers(database, store, user, to, range(number - 10, number))

    def move(steps: int, end_at: int, then: float) -> int:
        orders.write(f"{steps} {end_at} {then}\n")
        orders.flush()
        return int(output.readline())

    reading, writing = os.pipe()
    with (
        os.fdopen(writing, "w") as orders,
        os.fdopen(reading, "rb") as taken,
        piped_program("tests.helpers.to_device_move_process", kind, config, input=taken) as (
            _,
            output,
        ),
    ):
        send_some()
        calls = move(1, 0, 0)
        for _ in range(KILLS):
            send_some()
            status = move(40, random.randrange(1, 20 * calls), random.uniform(1e-6, 1e-3))
            assert os.WTERMSIG(status) == signal.SIGALRM
            rows = count_rows(database)
            were_apart += bool(rows["to_device_log"] and rows["to_device_messages"])
            for reader in (store, ToDeviceStore(database=database)):
                for device in DEVICES:
                    assert (
                        numbers_in(run_inline(reader.get_messages(user, device, 0, FOREVER, 10**5)))
                        == sent[device]
                    )
    assert were_apart > KILLS // 4, "the job ended after some messages were moved"
    Deferred.fromCoroutine(database.close())


async def test_a_step_of_the_job_moves_a_bounded_number_of_bytes(database: Database) -> None:
    """A content for very many devices is stored once in the log, and once for each device after it
    has been moved."""
    user, store, number = "@bob:example.org", ToDeviceStore(database=database), 2000
    add_device(database, user, "D0")

    def write(txn: WriteTransaction) -> None:
        recipient = store.get_devices(txn, [user])[user]["D0"]
        store.add_messages(
            txn, OPENING, [recipient] * number, [b'"%b"' % (b"x" * 30_000)] * number, 0
        )

    await database.write("send", write)
    before = 0
    while await store.sweep(5000, LOG_RETENTION_MS):
        kept = count_rows(database)["to_device_messages"]
        assert kept * 30_000 <= before * 30_000 + MOVE_CHUNK_BYTES
        before = kept
    assert count_rows(database) == {
        "to_device_messages": number,
        "to_device_log": 0,
        "to_device_floors": 0,
    }


async def test_a_step_of_the_job_looks_at_a_bounded_number_of_floors(database: Database) -> None:
    """Active devices have floors as long as the log has messages. These floors stay, and messages
    below other floors are deleted."""
    user, store = "@bob:example.org", ToDeviceStore(database=database)
    add_device(database, user, "D0")
    send_numbers(database, store, user, ["D0"] * 10, range(10))
    floors = 20_000

    def write(txn: WriteTransaction) -> None:
        position = txn.next_position(10)
        rows = [(nid, position + 5) for nid in range(1000, 1000 + floors)]
        txn.insert_rows("to_device_floors", ("device_nid", "position"), rows)
        messages = [(position + at, 1000 + floors - 1, b"{}") for at in range(10)]
        txn.insert_rows("to_device_messages", ("position", "device_nid", "content"), messages)

    await database.write("floors", write)
    if isinstance(database.engine, SQLiteEngine):
        connection = sqlite3.connect(database.engine.path, isolation_level=None)
        steps = 0

        def count() -> int:
            nonlocal steps
            steps += 1
            return 0

        connection.set_progress_handler(count, 100)
        connection.execute("BEGIN")
        _sweep(
            WriteTransaction(connection=SQLiteConnection(connection=connection), counters={}),
            50,
            -(1 << 62),
            0,
        )
        connection.execute("ROLLBACK")
        connection.close()
        assert steps < 100, "fifty times some hundred statements would be too many"
    sweeps = 0
    while await store.sweep(2000, 0):
        sweeps += 1
    assert sweeps < 14
    assert count_rows(database) == {
        "to_device_messages": 4,
        "to_device_log": 1,
        "to_device_floors": floors,
    }
    # floors that were checked before the log was empty are deleted the next time
    for _ in range(2):
        while await store.sweep(2000, LOG_RETENTION_MS):
            pass
    assert count_rows(database) == {
        "to_device_messages": 14,
        "to_device_log": 0,
        "to_device_floors": 0,
    }
