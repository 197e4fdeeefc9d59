"""Queues of to-device messages."""

from storage.devices.devices import DeviceRow, DeviceStore
from storage.encryption.to_device import (
    DELETE_CHUNK,
    LOG_RETENTION_MS,
    TRIM_INTERVAL,
    ToDeviceStore,
)
from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from tests.helpers.to_device_log import numbers_in

AWAY, OTHER = ("@bob:example.org", "AWAY"), ("@bob:example.org", "OTHER")
KEPT = 40
LATER = LOG_RETENTION_MS + 1
"""A time at which messages sent at time 0 are no longer in the log, once the job has run."""
OPENING = b'{"n":'


async def put_devices(database: Database) -> None:
    """Create both devices, or create the deleted one again."""

    def put(txn: WriteTransaction) -> None:
        for user_id, device_id in (AWAY, OTHER):
            DeviceStore(database).add_device(txn, DeviceRow(user_id, device_id, None, 0))

    await database.write("put_devices", put)


def send(
    txn: WriteTransaction,
    store: ToDeviceStore,
    device: tuple[str, str],
    numbers: range,
    now: int = 0,
) -> None:
    recipient = store.get_devices(txn, [device[0]])[device[0]][device[1]]
    contents = [b"%d" % number for number in numbers]
    store.add_messages(txn, OPENING, [recipient] * len(contents), contents, now)


async def test_the_queue_of_a_device_that_does_not_come_back_is_bounded(
    database: Database,
) -> None:
    store = ToDeviceStore(database=database, max_queued=KEPT)
    await put_devices(database)

    await database.write("send", send, store, OTHER, range(1))
    sent = 4 * TRIM_INTERVAL
    for first in range(0, sent, 16):
        await database.write("send", send, store, AWAY, range(first, first + 16))
    while await store.sweep(1000, LATER):
        pass
    waiting = numbers_in(await store.get_messages(*AWAY, 0, 10**9, 10**6))
    assert KEPT <= len(waiting) <= KEPT + TRIM_INTERVAL
    assert waiting == list(range(sent - len(waiting), sent)), "the newest messages stay, in order"
    assert len(await store.get_messages(*OTHER, 0, 10**9, 10**6)) == 1, (
        "other devices keep their messages"
    )


async def test_many_messages_are_invisible_at_once_and_deleted_in_small_steps(
    database: Database,
) -> None:
    store = ToDeviceStore(database=database, max_logged=0)
    await put_devices(database)
    number = DELETE_CHUNK + 200

    async def stored() -> int:
        return int(
            (
                await database.read(
                    "count", lambda txn: txn.query("SELECT count(*) FROM to_device_messages")
                )
            )[0][0]
        )

    async def waiting(device: tuple[str, str]) -> list[int]:
        return numbers_in(await store.get_messages(*device, 0, 10**9, 10**6))

    for device in (AWAY, OTHER):
        await database.write("send", send, store, device, range(number))
    await database.write("remove", lambda txn: store.remove_devices(txn, AWAY[0], [AWAY[1]]))
    await database.write(
        "remove", lambda txn: DeviceStore(database).remove_devices(txn, AWAY[0], [AWAY[1]])
    )
    await put_devices(database)
    await store.remove_messages(
        *OTHER, (await store.get_messages(*OTHER, 0, 10**9, 650))[-1].position
    )
    await database.write("send", send, store, AWAY, range(5000, 5003))
    assert await stored() == 2 * number + 3, "nothing is deleted yet"
    assert await waiting(AWAY) == [5000, 5001, 5002], (
        "a new device with the same ID has an empty queue"
    )
    assert await waiting(OTHER) == list(range(650, number))
    steps = 0
    while await store.sweep(100, LATER):
        steps += 1
        assert await waiting(AWAY) == [5000, 5001, 5002]
    assert steps > 10
    assert await stored() == 3 + number - 650
    assert await waiting(OTHER) == list(range(650, number))
