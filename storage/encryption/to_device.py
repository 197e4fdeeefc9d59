"""The queue of to-device messages. A message is stored until the device syncs with a later token.

The queue of a device that never syncs is bounded: the oldest messages are dropped. If new messages
were refused instead, senders would be harmed, because their requests include other devices. A
device that returns after a long time needs the newest keys most.

The table `to_device_messages` is indexed by `device_nid`, an internal number of the device, so
index entries are small and many share a page. A later device with the same ID has another number,
so it never gets messages of the earlier one. Messages that are sent in bulk are first stored in the
log (`to_device_log`). After some minutes a job moves the undelivered ones from the log to the
table, oldest first. A message is always either in the log or in the table, never in both.

A device may have a *floor*: a position up to which neither the queue nor the log is read. A floor
is set when the device has received messages that are in the log, and when many messages are to be
deleted. A job deletes the messages below a floor in small steps, and then the floor. If a client
sends a sync token with a future position, the floor is set to the latest position instead.
Otherwise the floor would hide later messages.

Laws:
- A read returns each message once, in order of position, whether it is in the log or in the
  table. If a row leaves the log during the read, the read runs again.
- After a read, `ToDeviceLogIndex` contains all messages in the log up to the latest position at
  the time of the read. Later commits add no messages below it, because rows are committed in order
  of position, and a position is never reused.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain, takewhile
from operator import attrgetter, itemgetter
from typing import Final

import msgspec

from storage.devices.devices import DEVICES_CHANGED_COUNTER
from storage.encryption import to_device_log
from storage.encryption.to_device_log import (
    OLDEST_ROW,
    ToDeviceLogIndex,
    ToDeviceLogRow,
    ToDeviceLogSnapshot,
    make_event,
)
from storage.engine.database import Database
from storage.engine.streams import Change, Topic
from storage.engine.transaction import POSITION, Transaction, WriteTransaction

MAX_QUEUED: Final = 100_000
TRIM_INTERVAL: Final = 256
DELETE_CHUNK: Final = 500
"""The most messages that a request deletes. The job deletes the rest."""
MIN_LOGGED: Final = 8
"""The fewest messages in one request that go into the log."""
MAX_LOGGED: Final = 200_000
"""The most messages in the log; further ones go into the table at once. The position of each logged
message is kept in memory."""
AFTER_ALL_POSITIONS: Final = 1 << 62
"""Above all positions."""
BEFORE_ALL_NIDS: Final = -AFTER_ALL_POSITIONS
"""Below all device numbers."""
LOG_RETENTION_MS: Final = 5 * 60 * 1000
"""How long messages stay in the log, in milliseconds."""
MOVE_CHUNK_BYTES: Final = 4 << 20
"""The most bytes that the job moves in one step. One content in the log, shared by many devices, is
then stored once for each."""

_RAISE: Final = (
    "ON CONFLICT (device_nid) DO UPDATE SET position = excluded.position"
    " WHERE to_device_floors.position < excluded.position"
)
_NID: Final = "(SELECT d.device_nid FROM devices AS d WHERE d.user_id = ? AND d.device_id = ?)"
"""Selects the number of a device."""


Recipient = tuple[str, str, int]
"""A device of a local user: user ID, device ID, device number."""


Recipients = Mapping[str, Recipient]
"""The devices of a user, by device ID."""


class DeviceSnapshot(msgspec.Struct, frozen=True, gc=False):
    """Devices of users at one moment."""

    users: Mapping[str, Recipients]
    upto: int
    """The position of the last change of devices that is included."""


class DeviceMessage(msgspec.Struct, frozen=True, gc=False):
    """A queued message for a device."""

    position: int
    content: bytes
    """The event as the device receives it."""


class ToDeviceAdded(msgspec.Struct, frozen=True, gc=False):
    """The detail of a change of the topic TO_DEVICE: messages that were sent in one request, at
    consecutive positions."""

    first: int
    prefix: bytes
    """The JSON that all of them begin with."""
    recipients: Sequence[Recipient]
    contents: Sequence[bytes]
    """The JSON after the common beginning, without the closing brace. See `make_event`."""

    @property
    def last(self) -> int:
        """The position of the last message."""
        return self.first + len(self.contents) - 1


class DevicesDeleted(msgspec.Struct, frozen=True, gc=False):
    """The detail of a change of the topic DEVICES_DELETED: devices of the user were deleted with
    their queued messages."""

    device_ids: Sequence[str]


class ToDeviceStore:
    """Stores to-device messages."""

    def __init__(
        self,
        *,
        database: Database,
        max_queued: int = MAX_QUEUED,
        max_logged: int = MAX_LOGGED,
    ) -> None:
        """`max_queued`: the most messages for a device, give or take a few hundred and those in
        the log."""
        self._database = database
        self._max_queued = max_queued
        self._max_logged = max_logged
        self._log = ToDeviceLogIndex()
        self._swept_upto = BEFORE_ALL_NIDS
        """The device number up to which the job has processed the floors."""

    async def get_messages(
        self, user_id: str, device_id: str, after: int, upto: int, limit: int
    ) -> Sequence[DeviceMessage]:
        """Return the oldest messages with after < position ≤ upto."""
        return await self._database.read_quickly(
            "get_to_device", self._select, user_id, device_id, after, upto, limit
        )

    async def remove_messages(self, user_id: str, device_id: str, upto: int) -> None:
        """Delete the messages of a device up to a position: it has received them."""
        await self._database.write(
            "remove_to_device", _delete_upto, user_id, device_id, upto, self._log.removed_before
        )

    async def remove_message_range(
        self, user_id: str, device_id: str, first: int, upto: int
    ) -> None:
        """Delete the messages of a device in a range of positions. The range is known to have at
        most `DELETE_CHUNK` messages. Earlier ones, which may be many below a floor, are left to
        the job."""
        removed_before = self._log.removed_before
        await self._database.write(
            "remove_to_device", _delete_range, user_id, device_id, first, upto, removed_before
        )

    def get_recipients(
        self, txn: WriteTransaction, user_ids: Collection[str], known: DeviceSnapshot | None = None
    ) -> Mapping[str, Recipients] | None:
        """Return the devices of these users; one query.

        `known`: an earlier result for these users. Return None if it is still current, because no
        device was added or deleted since; no query.
        """
        is_current = known is not None and txn.counter(DEVICES_CHANGED_COUNTER) <= known.upto
        return None if is_current else self.get_devices(txn, user_ids)

    def get_devices(self, txn: Transaction, user_ids: Collection[str]) -> Mapping[str, Recipients]:
        """Return the devices of these users; one query."""
        sql = "SELECT user_id, device_id, device_nid FROM devices WHERE user_id IN {keys}"
        return _by_user(user_ids, txn.query_in(sql, user_ids))

    def add_messages(
        self,
        txn: WriteTransaction,
        opening: bytes,
        recipients: Sequence[Recipient],
        contents: Sequence[bytes],
        now_ms: int,
    ) -> None:
        """Add messages at consecutive positions. Each event is the opening, its content, and a
        closing brace."""
        if not contents:
            return
        first = txn.next_position(len(contents))
        new = ToDeviceAdded(first, opening, recipients, contents)
        users = tuple(dict.fromkeys(map(_user_id, recipients)))
        txn.announce(Change(first + len(contents) - 1, Topic.TO_DEVICE, user_ids=users, detail=new))
        nids = list(map(_nid, recipients))
        if (
            len(contents) >= MIN_LOGGED
            and to_device_log.count_logged(txn) + len(contents) <= self._max_logged
        ):
            to_device_log.append(txn, first, now_ms, opening, nids, contents)
            return
        numbered = enumerate(zip(nids, contents, strict=True), first)
        self._insert(
            txn,
            [
                (position, nid, make_event(opening, content))
                for position, (nid, content) in numbered
            ],
        )

    def _insert(self, txn: WriteTransaction, rows: Sequence[tuple[int, int, bytes]]) -> None:
        """Store messages in the table. Each has a position, a device number and the event."""
        txn.insert_rows("to_device_messages", ("position", "device_nid", "content"), rows)
        # counting the queue at every message would cost too much
        for position, device_nid, _ in rows:
            if position % TRIM_INTERVAL:
                continue
            newest_excess = txn.query_one(
                "SELECT position FROM to_device_messages WHERE device_nid = ?"
                " ORDER BY position DESC LIMIT 1 OFFSET ?",
                (device_nid, self._max_queued),
            )
            if newest_excess is not None:
                _delete(txn, device_nid, newest_excess[0])

    def remove_devices(
        self, txn: WriteTransaction, user_id: str, device_ids: Sequence[str]
    ) -> None:
        """Delete the queued messages of deleted devices, so that a later device with the same ID
        gets none of them."""
        for device_id in device_ids:
            newest = txn.query_one(
                f"SELECT device_nid, position FROM to_device_messages WHERE device_nid = {_NID}"
                " ORDER BY position DESC LIMIT 1",
                (user_id, device_id),
            )
            if newest is not None:
                _delete(txn, *newest)
        if device_ids:
            deleted = DevicesDeleted(tuple(device_ids))
            txn.announce(
                Change(txn.next_position(), Topic.DEVICES_DELETED, user_id=user_id, detail=deleted)
            )

    async def count_messages(self) -> int:
        """Return the number of queued messages. Reads all of them."""
        return await self._database.read("count_to_device", _count)

    async def sweep(self, limit: int, now_ms: int) -> int:
        """Delete some messages that are below a floor, and move some old messages out of the log.
        Return how many."""
        count, self._swept_upto = await self._database.write(
            "sweep_to_device", _sweep, limit, self._swept_upto, self._log.removed_before
        )
        moved, upto = await self._database.write("move_to_device", self._move, limit, now_ms)
        self._log.evict(upto)
        return max(count, moved)

    def _select(
        self, txn: Transaction, user_id: str, device_id: str, after: int, upto: int, limit: int
    ) -> list[DeviceMessage]:
        while True:
            found: dict[int, list[tuple[int, bytes]]] = {kind: [] for kind in _KINDS}
            device = (user_id, device_id)
            log = (self._log.upto, self._log.removed_before)
            args = (
                *device,
                after,
                *device,
                upto,
                limit,
                *log,
                *device,
                *device,
                POSITION,
            )
            for kind, number, value in txn.query(_SELECT, args):
                found[kind].append((number, value))
            if not found[_HEAD]:
                return []  # the database is new
            ((head, _),), ((oldest, _),) = found[_HEAD], found[_OLDEST]
            if not self._log.extend(ToDeviceLogSnapshot(head, oldest, found[_LOG])):
                continue
            messages = [DeviceMessage(*each) for each in sorted(found[_STORED])]
            if not found[_DEVICE]:
                return messages
            ((device_nid, _),) = found[_DEVICE]
            floor = max([after, *[position for position, _ in found[_FLOOR]]])
            entries = self._log.find(device_nid, floor, min(upto, head), limit)
            if self._log.is_stale(oldest):
                # another thread has just learned that rows left the log; they may be this device's
                continue
            if not entries:
                return messages
            events = to_device_log.select_events(txn, entries)
            moved = [entry.row for entry in entries if entry.position not in events]
            if moved:
                self._log.evict(max(moved))
                continue
            messages += [DeviceMessage(*event) for event in events.items()]
            return sorted(messages, key=_position)[:limit]

    def _move(self, txn: WriteTransaction, limit: int, now_ms: int) -> tuple[int, int]:
        """Move old messages from the log to the table. Return the number of messages that left the
        log, and its last moved row."""
        oldest = to_device_log.select_oldest(txn, self._log.removed_before, 1 + limit // MIN_LOGGED)
        # a time in the future comes from a wrong clock
        old = list(
            takewhile(lambda row: not now_ms - LOG_RETENTION_MS < row.sent_ts <= now_ms, oldest)
        )
        if not old:
            if not oldest:
                to_device_log.reset_counters(txn)
            return 0, 0
        left = _take_rows(old, limit)
        positions = _find_undelivered(
            txn, chain.from_iterable([row.list_recipients() for row in left])
        )
        if positions:
            undelivered = to_device_log.select_undelivered(txn, left, positions)
            self._insert(txn, sorted(undelivered, key=itemgetter(1, 0)))
        last = left[-1].first
        to_device_log.remove(txn, last, sum([row.count_messages() for row in left]))
        return limit, last


_STORED, _LOG, _OLDEST, _DEVICE, _FLOOR, _HEAD = _KINDS = range(6)
_SELECT: Final = (
    f"SELECT {_STORED}, m.position, m.content FROM ("
    f"SELECT position, content FROM to_device_messages WHERE device_nid = {_NID} AND position > ?"
    " AND position > coalesce((SELECT f.position FROM to_device_floors AS f"
    f" WHERE f.device_nid = {_NID}), 0)"
    " AND position <= ? ORDER BY position LIMIT ?) AS m"
    f" UNION ALL SELECT {_LOG}, first_position, devices FROM to_device_log WHERE first_position > ?"
    f" UNION ALL SELECT {_OLDEST}, {OLDEST_ROW}, NULL"
    f" UNION ALL SELECT {_DEVICE}, device_nid, NULL FROM devices"
    " WHERE user_id = ? AND device_id = ?"
    f" UNION ALL SELECT {_FLOOR}, position, NULL FROM to_device_floors WHERE device_nid = {_NID}"
    f" UNION ALL SELECT {_HEAD}, value, NULL FROM counters WHERE name = ?"
)
"""Reads the messages and the floor of a device at one moment, and new rows of the log."""
_position: Final = attrgetter("position")
_user_id: Final = itemgetter(0)
_nid: Final = itemgetter(2)


def _take_rows(rows: Iterable[ToDeviceLogRow], limit: int) -> list[ToDeviceLogRow]:
    """Return the first rows that have up to `limit` messages and `MOVE_CHUNK_BYTES` bytes, but at
    least one row."""
    few: list[ToDeviceLogRow] = []
    count = size = 0
    for row in rows:
        count += row.count_messages()
        size += row.count_bytes()
        if few and (count > limit or size > MOVE_CHUNK_BYTES):
            break
        few.append(row)
    return few


def _by_user(user_ids: Iterable[str], rows: Iterable[Recipient]) -> dict[str, dict[str, Recipient]]:
    users: dict[str, dict[str, Recipient]] = {user_id: {} for user_id in user_ids}
    for recipient in rows:
        users[recipient[0]][recipient[1]] = recipient
    return users


def _count(txn: Transaction) -> int:
    row = txn.query_one("SELECT COUNT(*) FROM to_device_messages")
    assert row is not None
    return int(row[0]) + len(_find_undelivered(txn, to_device_log.select_devices(txn)))


def _find_undelivered(txn: Transaction, logged: Iterable[tuple[int, int]]) -> set[int]:
    """Return the positions of those logged messages (position, device number) that are not yet
    delivered."""
    messages = list(logged)
    nids = {nid for _, nid in messages}
    floors: dict[int, int] = dict(
        txn.query_in(
            "SELECT device_nid, position FROM to_device_floors WHERE device_nid IN {keys}", nids
        )
    )
    above = [(position, nid) for position, nid in messages if position > floors.get(nid, 0)]
    nids = {nid for _, nid in above}
    existing = {
        nid
        for (nid,) in txn.query_in(
            "SELECT device_nid FROM devices WHERE device_nid IN {keys}", nids
        )
    }
    return {position for position, nid in above if nid in existing}


def _delete_upto(
    txn: WriteTransaction, user_id: str, device_id: str, upto: int, removed_before: int
) -> None:
    """Delete the messages of a device at or below a position, at once or by the job."""
    row = txn.query_one(f"SELECT {_NID}", (user_id, device_id))
    if row is not None and row[0] is not None:
        upto = min(upto, txn.counter(POSITION))  # a floor above the head would hide future messages
        _delete(txn, row[0], upto)
        _set_floor_for_log(txn, user_id, device_id, upto, removed_before)


def _delete(txn: WriteTransaction, device_nid: int, upto: int) -> None:
    remainder = txn.query_one(
        "SELECT position FROM to_device_messages WHERE device_nid = ? AND position <= ?"
        " ORDER BY position LIMIT 1 OFFSET ?",
        (device_nid, upto, DELETE_CHUNK),
    )
    if remainder is None:
        txn.execute_later(
            "DELETE FROM to_device_messages WHERE device_nid = ? AND position <= ?",
            (device_nid, upto),
        )
        return
    txn.execute(
        f"INSERT INTO to_device_floors (device_nid, position) VALUES (?, ?) {_RAISE}",
        (device_nid, upto),
    )


def _delete_range(
    txn: WriteTransaction, user_id: str, device_id: str, first: int, upto: int, removed_before: int
) -> None:
    upto = min(upto, txn.counter(POSITION))
    txn.execute_later(
        f"DELETE FROM to_device_messages WHERE device_nid = {_NID} AND position >= ?"
        " AND position <= ?",
        (user_id, device_id, first, upto),
    )
    _set_floor_for_log(txn, user_id, device_id, upto, removed_before)


def _set_floor_for_log(
    txn: WriteTransaction, user_id: str, device_id: str, upto: int, removed_before: int
) -> None:
    """Set the floor of a device that has received everything up to a position, if the log may
    contain messages for it."""
    txn.execute_later(
        "INSERT INTO to_device_floors (device_nid, position) SELECT d.device_nid, ?"
        " FROM devices AS d"
        f" WHERE d.user_id = ? AND d.device_id = ? AND {OLDEST_ROW} <= ? {_RAISE}",
        (upto, user_id, device_id, removed_before, upto),
    )


def _sweep(
    txn: WriteTransaction, limit: int, swept_upto: int, removed_before: int
) -> tuple[int, int]:
    """Delete messages below the floors of the next devices, and floors that are not needed any
    more. Return how much was done, and the device number from which to continue.

    There may be very many floors that stay for minutes, so a step looks at a limited number.
    """
    (oldest,) = txn.query_one(f"SELECT {OLDEST_ROW}", (removed_before,)) or (None,)
    found = txn.query(
        "SELECT f.device_nid, f.position, EXISTS (SELECT 1 FROM to_device_messages AS m"
        " WHERE m.device_nid = f.device_nid AND m.position <= f.position)"
        " FROM to_device_floors AS f WHERE f.device_nid > ? ORDER BY f.device_nid LIMIT ?",
        (swept_upto, limit),
    )
    floors = [(nid, floor) for nid, floor, _ in found]
    nonempty = [(nid, floor) for nid, floor, is_nonempty in found if is_nonempty]
    below = (
        "SELECT device_nid, position FROM to_device_messages WHERE device_nid = ? AND position <= ?"
    )
    each = limit // max(1, len(nonempty)) + 1
    deleted = (
        txn.query_each(f"{below} ORDER BY position LIMIT ?", [(*floor, each) for floor in nonempty])
        if nonempty
        else []
    )
    txn.execute_many(
        "DELETE FROM to_device_messages WHERE device_nid = ? AND position = ?",
        chain.from_iterable(deleted),
    )
    left = {nid for (nid, _), rows in zip(nonempty, deleted, strict=True) if len(rows) == each}
    done = [
        (nid,)
        for nid, floor in floors
        if nid not in left and floor < (AFTER_ALL_POSITIONS if oldest is None else oldest)
    ]
    txn.execute_many("DELETE FROM to_device_floors WHERE device_nid = ?", done)
    if left:
        return limit, swept_upto
    if len(floors) == limit:
        return limit, floors[-1][0]
    return (limit if done or nonempty else 0), BEFORE_ALL_NIDS
