"""Copying a database with to-device messages in the log to the other kind of database loses
nothing."""

import pytest
from twisted.internet.defer import Deferred

from storage.encryption.to_device import LOG_RETENTION_MS, ToDeviceStore
from storage.engine.database import PostgresConfig, SQLiteConfig, make_engine
from storage.maintenance.copy import copy_database
from tests.helpers.databases import open_inline
from tests.helpers.deferreds import run_inline
from tests.helpers.to_device_log import FOREVER, add_device, count_rows, numbers_in, send_numbers


@pytest.mark.parametrize("is_back", [False, True])
def test_a_copy_has_the_messages_of_the_log(
    sqlite: SQLiteConfig, postgresql: PostgresConfig, is_back: bool
) -> None:
    configs: list[SQLiteConfig | PostgresConfig] = [sqlite, postgresql]
    if is_back:
        configs.reverse()
    database, user = open_inline(configs[0]), "@bob:example.org"
    store = ToDeviceStore(database=database)
    for device in ("D0", "D1"):
        add_device(database, user, device)
    for first in range(0, 100, 20):
        send_numbers(database, store, user, ["D0", "D1"] * 10, range(first, first + 20))
    send_numbers(database, store, user, ["D0"], [100])
    run_inline(
        store.remove_messages(
            user, "D1", run_inline(store.get_messages(user, "D1", 0, FOREVER, 30))[-1].position
        )
    )
    expected = {
        device: run_inline(store.get_messages(user, device, 0, FOREVER, 1000))
        for device in ("D0", "D1")
    }
    assert [len(messages) for messages in expected.values()] == [51, 20]
    Deferred.fromCoroutine(database.close())
    copy_database(make_engine(configs[0]), make_engine(configs[1]), lambda _: None)
    database = open_inline(configs[1])
    store = ToDeviceStore(database=database)
    for device, messages in expected.items():
        assert run_inline(store.get_messages(user, device, 0, FOREVER, 1000)) == messages
    send_numbers(database, store, user, ["D0", "D1"] * 10, range(200, 220))
    while run_inline(store.sweep(50, LOG_RETENTION_MS)):
        pass
    assert count_rows(database) == {
        "to_device_messages": 91,
        "to_device_log": 0,
        "to_device_floors": 0,
    }
    for device, at in (("D0", 0), ("D1", 1)):
        found = numbers_in(run_inline(store.get_messages(user, device, 0, FOREVER, 1000)))
        assert found == [*numbers_in(expected[device]), *range(200 + at, 220, 2)]
    Deferred.fromCoroutine(database.close())
