"""Numbered to-device messages in the database."""

from collections.abc import Sequence

import msgspec

from storage.devices.devices import DeviceRow, DeviceStore
from storage.encryption.to_device import (
    DeviceMessage,
    ToDeviceStore,
)
from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction
from tests.helpers.deferreds import run_inline

OPENING = b'{"n":'
FOREVER = 10**9
"""A position after all messages."""


def numbers_in(messages: Sequence[DeviceMessage]) -> list[int]:
    """Return the numbers in the contents of messages."""
    return [msgspec.json.decode(message.content)["n"] for message in messages]


def add_device(database: Database, user_id: str, device_id: str) -> None:
    """Add a device, which receives messages from now on."""
    run_inline(
        database.write(
            "put",
            lambda txn: DeviceStore(database).add_device(
                txn, DeviceRow(user_id, device_id, None, 0)
            ),
        )
    )


def send_numbers(
    database: Database,
    store: ToDeviceStore,
    user_id: str,
    to: Sequence[str],
    numbers: Sequence[int],
    now: int = 0,
) -> list[int]:
    """Send each number to each of the devices in one request. Return the positions."""

    def write(txn: WriteTransaction) -> int:
        there = store.get_devices(txn, [user_id])[user_id]
        recipients = [there[device_id] for device_id in to]
        store.add_messages(txn, OPENING, recipients, [b"%d" % number for number in numbers], now)
        return txn.next_position()

    after = run_inline(database.write("send", write))
    return list(range(after - len(numbers), after))


def count_rows(database: Database) -> dict[str, int]:
    """Return the number of rows of each table of to-device messages."""
    tables = ("to_device_messages", "to_device_log", "to_device_floors")

    def read(txn: Transaction) -> dict[str, int]:
        return {table: txn.query(f"SELECT count(*) FROM {table}")[0][0] for table in tables}

    return run_inline(database.read("count", read))
