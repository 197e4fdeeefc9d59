"""Messages to devices: kept in the order of their positions until the device comes back with a token of after them.

For a device that does not come back, so many are kept; then the oldest go. To refuse new ones instead would punish the
senders, whose request is for other devices as well, and a device that comes back after so long needs the newest keys most.

Where many are to go at once, a floor is set below which nothing is read any more, and a job removes them in small steps.

They are kept by the number of the device, which no later device of its id has: so entries of the index are small, and many are
together on a page.
"""

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from storage.database import Database
from storage.sent_transactions import AlreadySent, SentTransaction, select_response
from storage.streams import Change, Topic
from storage.transaction import Transaction, WriteTransaction

MOST_WAITING: Final = 100_000
LOOK_EVERY: Final = 256
REMOVED_AT_ONCE: Final = 500
"""More than these wait for the job."""

_WAS_SENT: Final = (None, None, None)
"""Stands among recipients where the request was carried out before."""
_NID: Final = "(SELECT d.device_nid FROM devices AS d WHERE d.user_id = ? AND d.device_id = ?)"
"""The number of a device."""


class DeviceMessage(msgspec.Struct, frozen=True, gc=False):
    """A message that waits for a device."""

    position: int
    content: bytes
    """The event as the device gets it."""


class NewMessage(DeviceMessage, frozen=True, gc=False):
    """One that was sent just now."""

    user_id: str
    device_id: str


class NewMessages(msgspec.Struct, frozen=True, gc=False):
    """What a change of the topic TO_DEVICE tells: messages that were sent at once, in order."""

    messages: Sequence[NewMessage]


class DevicesGone(msgspec.Struct, frozen=True, gc=False):
    """What a change of the topic DEVICES_GONE tells: devices of the user went, and what waited for them with them."""

    device_ids: Sequence[str]


Recipient = tuple[str, str, int]
"""A device of one of our users: user, device, its number."""


class ToDeviceStore:
    """The table of messages to devices."""

    def __init__(self, database: Database, *, most_waiting: int = MOST_WAITING) -> None:
        """`most_waiting`: for a device, give or take a few hundred."""
        self._database = database
        self._most_waiting = most_waiting

    async def get_messages(
        self, user_id: str, device_id: str, after: int, upto: int, limit: int
    ) -> Sequence[DeviceMessage]:
        """The oldest messages with after < position ≤ up to."""
        return await self._database.read_quickly("get_to_device", _select, user_id, device_id, after, upto, limit)

    async def remove_messages(self, user_id: str, device_id: str, upto: int) -> None:
        """The device has all up to that position."""
        await self._database.write("remove_to_device", _delete_of, user_id, device_id, upto)

    async def remove_few_messages(self, user_id: str, device_id: str, first: int, upto: int) -> None:
        """The device has those from one position to another, of which there are no more than REMOVED_AT_ONCE, as is known. What is
        before them may be many, below a floor: it is left to the job."""
        await self._database.write("remove_to_device", _delete_range, user_id, device_id, first, upto)

    def get_recipients(self, txn: Transaction, user_ids: Iterable[str], sent: SentTransaction) -> list[Recipient]:
        """The devices of these users, for a request that was not carried out before; one query. Raises AlreadySent."""
        users = tuple(user_ids)
        if not users:
            rows = txn.query("SELECT NULL, NULL, NULL FROM sent_transactions WHERE request = ?", (sent.compute_key(),))
        else:
            rows = txn.query_in(
                "SELECT user_id, device_id, device_nid FROM devices WHERE user_id IN {keys}"
                " UNION ALL SELECT NULL, NULL, NULL FROM sent_transactions WHERE request = ?",
                users,
                after=(sent.compute_key(),),
            )
        if _WAS_SENT in rows:
            response = select_response(txn, sent)
            assert response is not None
            raise AlreadySent(sent, response)
        return rows

    def get_devices(self, txn: Transaction, user_ids: Iterable[str]) -> list[Recipient]:
        """The devices of these users; one query."""
        sql = "SELECT user_id, device_id, device_nid FROM devices WHERE user_id IN {keys}"
        return txn.query_in(sql, user_ids)

    def add_messages(self, txn: WriteTransaction, messages: Sequence[tuple[Recipient, bytes]]) -> None:
        """Add messages, each at a position of its own, in their order."""
        if not messages:
            return
        first = txn.next_position(len(messages))
        numbered = list(enumerate(messages, first))
        new = [NewMessage(position, content, to[0], to[1]) for position, (to, content) in numbered]
        users = tuple(dict.fromkeys([message.user_id for message in new]))
        txn.announce(Change(new[-1].position, Topic.TO_DEVICE, user_ids=users, detail=NewMessages(new)))
        rows = [(position, to[2], content) for position, (to, content) in numbered]
        txn.insert_rows("to_device_messages", ("position", "device_nid", "content"), rows)
        # to count what waits for every device at every message would cost too much
        for _, device_nid, _ in rows[-first % LOOK_EVERY :: LOOK_EVERY]:
            newest_to_go = txn.query_one(
                "SELECT position FROM to_device_messages WHERE device_nid = ? ORDER BY position DESC LIMIT 1 OFFSET ?",
                (device_nid, self._most_waiting),
            )
            if newest_to_go is not None:
                _delete(txn, device_nid, newest_to_go[0])

    def remove_devices(self, txn: WriteTransaction, user_id: str, device_ids: Sequence[str]) -> None:
        """Remove what waits for devices that go: a later one of the same id gets none of it."""
        for device_id in device_ids:
            newest = txn.query_one(
                f"SELECT device_nid, position FROM to_device_messages WHERE device_nid = {_NID}"
                " ORDER BY position DESC LIMIT 1",
                (user_id, device_id),
            )
            if newest is not None:
                _delete(txn, *newest)
        if device_ids:
            gone = DevicesGone(tuple(device_ids))
            txn.announce(Change(txn.next_position(), Topic.DEVICES_GONE, user_id=user_id, detail=gone))

    async def count_messages(self) -> int:
        """How many messages wait; looks at all of them."""
        return await self._database.read("count_to_device", _count)

    async def sweep(self, limit: int) -> int:
        """Remove some of what nobody gets any more; how many."""
        return await self._database.write("sweep_to_device", _sweep, limit)


def _count(txn: Transaction) -> int:
    row = txn.query_one("SELECT COUNT(*) FROM to_device_messages")
    assert row is not None
    return int(row[0])


def _select(txn: Transaction, user_id: str, device_id: str, after: int, upto: int, limit: int) -> list[DeviceMessage]:
    sql = (
        f"SELECT position, content FROM to_device_messages WHERE device_nid = {_NID} AND position > ?"
        f" AND position > coalesce((SELECT f.position FROM to_device_floors AS f WHERE f.device_nid = {_NID}), 0)"
        " AND position <= ? ORDER BY position LIMIT ?"
    )
    args = (user_id, device_id, after, user_id, device_id, upto, limit)
    return [DeviceMessage(*row) for row in txn.query(sql, args)]


def _delete_of(txn: WriteTransaction, user_id: str, device_id: str, upto: int) -> None:
    """Remove what a device has at or below that position, or have it removed."""
    row = txn.query_one(f"SELECT {_NID}", (user_id, device_id))
    if row is not None and row[0] is not None:
        _delete(txn, row[0], upto)


def _delete(txn: WriteTransaction, device_nid: int, upto: int) -> None:
    further = txn.query_one(
        "SELECT position FROM to_device_messages WHERE device_nid = ? AND position <= ?"
        " ORDER BY position LIMIT 1 OFFSET ?",
        (device_nid, upto, REMOVED_AT_ONCE),
    )
    if further is None:
        txn.execute_later("DELETE FROM to_device_messages WHERE device_nid = ? AND position <= ?", (device_nid, upto))
        return
    txn.execute(
        "INSERT INTO to_device_floors (device_nid, position) VALUES (?, ?) ON CONFLICT (device_nid)"
        " DO UPDATE SET position = excluded.position WHERE to_device_floors.position < excluded.position",
        (device_nid, upto),
    )


def _delete_range(txn: WriteTransaction, user_id: str, device_id: str, first: int, upto: int) -> None:
    txn.execute_later(
        f"DELETE FROM to_device_messages WHERE device_nid = {_NID} AND position >= ? AND position <= ?",
        (user_id, device_id, first, upto),
    )


def _sweep(txn: WriteTransaction, limit: int) -> int:
    floor = txn.query_one("SELECT device_nid, position FROM to_device_floors LIMIT 1")
    if floor is None:
        return 0
    gone = txn.query(
        "SELECT device_nid, position FROM to_device_messages WHERE device_nid = ? AND position <= ?"
        " ORDER BY position LIMIT ?",
        (*floor, limit),
    )
    txn.execute_many("DELETE FROM to_device_messages WHERE device_nid = ? AND position = ?", gone)
    if len(gone) < limit:
        txn.execute("DELETE FROM to_device_floors WHERE device_nid = ?", floor[:1])
    return limit  # whether there are further floors is seen by the next step
