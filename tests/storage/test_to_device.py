"""Messages that wait for devices."""

from storage.database import Database
from storage.to_device import LOOK_EVERY, ToDeviceStore
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
    waiting = [int(message.content) for message in await store.get_messages(*AWAY, 0, 10**9, None)]
    assert KEPT <= len(waiting) <= KEPT + LOOK_EVERY
    assert waiting == list(range(sent - len(waiting), sent)), "the newest stay, in order"
    assert len(await store.get_messages(*OTHER, 0, 10**9, None)) == 1, "other devices have theirs"
