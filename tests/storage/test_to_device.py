"""Messages that wait for devices."""

from storage.database import Database
from storage.to_device import LOOK_EVERY, REMOVED_AT_ONCE, ToDeviceStore
from storage.transaction import WriteTransaction

AWAY, OTHER = ("@bob:example.org", "AWAY"), ("@bob:example.org", "OTHER")
KEPT = 40


async def test_what_waits_for_a_device_that_does_not_come_back_is_bounded(database: Database) -> None:
    store = ToDeviceStore(database, most_waiting=KEPT)

    def send(txn: WriteTransaction, device: tuple[str, str], numbers: range) -> None:
        store.add_messages(txn, {device: [b"%d" % number for number in numbers]})

    await database.write("send", send, OTHER, range(1))
    sent = 4 * LOOK_EVERY
    for first in range(0, sent, 16):
        await database.write("send", send, AWAY, range(first, first + 16))
    waiting = [int(message.content) for message in await store.get_messages(*AWAY, 0, 10**9, 10**6)]
    assert KEPT <= len(waiting) <= KEPT + LOOK_EVERY
    assert waiting == list(range(sent - len(waiting), sent)), "the newest stay, in order"
    assert len(await store.get_messages(*OTHER, 0, 10**9, 10**6)) == 1, "other devices have theirs"


async def test_many_messages_are_gone_at_once_and_removed_in_small_steps(database: Database) -> None:
    store = ToDeviceStore(database)
    number = REMOVED_AT_ONCE + 200

    def send(txn: WriteTransaction, device: tuple[str, str], numbers: range) -> None:
        store.add_messages(txn, {device: [b"%d" % number for number in numbers]})

    async def stored() -> int:
        return int(
            (await database.read("count", lambda txn: txn.query("SELECT count(*) FROM to_device_messages")))[0][0]
        )

    async def waiting(device: tuple[str, str]) -> list[int]:
        return [int(message.content) for message in await store.get_messages(*device, 0, 10**9, 10**6)]

    for device in (AWAY, OTHER):
        await database.write("send", send, device, range(number))
    await database.write("remove", lambda txn: store.remove_devices(txn, AWAY[0], [AWAY[1]]))
    await store.remove_messages(*OTHER, (await store.get_messages(*OTHER, 0, 10**9, 650))[-1].position)
    await database.write("send", send, AWAY, range(5000, 5003))
    assert await stored() == 2 * number + 3, "nothing was removed yet"
    assert await waiting(AWAY) == [5000, 5001, 5002], "a device of the old name begins anew"
    assert await waiting(OTHER) == list(range(650, number))
    steps = 0
    while await store.sweep(100):
        steps += 1
        assert await waiting(AWAY) == [5000, 5001, 5002]
    assert steps > 10
    assert await stored() == 3 + number - 650
    assert await waiting(OTHER) == list(range(650, number))
