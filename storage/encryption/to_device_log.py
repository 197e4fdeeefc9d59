"""The log of to-device messages that were sent in bulk. One row holds many messages.

A row for each message, with an entry in the index of devices, costs three times as much to write as
the message alone, and most messages are fetched within seconds. So the messages of a large request
are written in order, about 16 KiB to a row. `ToDeviceLogIndex` reads the recipients of each row
once, and thereby finds the messages of each device. A job moves messages that are not fetched for
minutes into the table that is indexed by device.
"""

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from itertools import islice
from threading import Lock
from typing import Final, NamedTuple

from storage.engine.transaction import Transaction, WriteTransaction

ROW_BYTES: Final = 16 << 10
"""Bytes of contents after which a new row begins. Reading one message reads at most this much of
others."""
ROW_MESSAGES: Final = 128
ROW_EXPANDED_BYTES: Final = 1 << 20
"""Bytes of contents, counted for each message separately, after which a new row begins. A row
leaves the log in one step."""
LOGGED_COUNTER: Final = "to_device_logged"
MOVED_COUNTER: Final = "to_device_moved"
"""Counters of the messages that entered the log and of those that left it."""
OLDEST_ROW: Final = "(SELECT min(first_position) FROM to_device_log WHERE first_position >= ?)"
"""Selects the first row. The argument is `ToDeviceLogIndex.removed_before`: without it, PostgreSQL
would scan all deleted rows that are not vacuumed yet, as during a backup."""

_SIZE: Final = 16
"""Bytes that describe a message: the device number, the start of its content, its length."""
_NUMBER: Final = struct.Struct("<I")
_COLUMNS: Final = ("first_position", "sent_ts", "devices", "prefix", "contents")


class ToDeviceLogEntry(NamedTuple):
    """The location of a message in the log."""

    position: int
    row: int
    """The position of the first message of the row."""
    start: int
    """Offset of the content in the row's contents, in bytes."""
    length: int


class ToDeviceLogRow(NamedTuple):
    """A row of the log: messages that were sent in one request, in order, without their
    contents."""

    first: int
    sent_ts: int
    devices: bytes

    def count_messages(self) -> int:
        """Return the number of messages."""
        return len(self.devices) // _SIZE

    def count_bytes(self) -> int:
        """Return the bytes of the contents, counted for each message separately."""
        count = self.count_messages()
        return sum(struct.unpack_from(f"<{count}I", self.devices, 12 * count))

    def list_recipients(self) -> list[tuple[int, int]]:
        """Return the position and the device number of each message."""
        return list(enumerate(_read_devices(self.devices), self.first))


class ToDeviceLogSnapshot(NamedTuple):
    """The log at one moment."""

    head: int
    """The head of the stream."""
    oldest: int | None
    """The first row; None if the log was empty."""
    rows: Sequence[tuple[int, bytes]]
    """All rows after `ToDeviceLogIndex.upto`, with their device data."""


def make_event(opening: bytes, content: bytes) -> bytes:
    """Return the event as the device receives it."""
    return b"%b%b}" % (opening, content)


def count_logged(txn: WriteTransaction) -> int:
    """Return the number of messages in the log."""
    return txn.counter(LOGGED_COUNTER) - txn.counter(MOVED_COUNTER)


def append(
    txn: WriteTransaction,
    first: int,
    sent_ts: int,
    opening: bytes,
    nids: Sequence[int],
    contents: Sequence[bytes],
) -> None:
    """Add messages to the devices with these numbers. `first` is the position of the first
    message."""
    count = len(contents)
    shared = contents[0]
    if (
        count <= ROW_MESSAGES
        and len(shared) * count <= ROW_EXPANDED_BYTES
        and contents.count(shared) == count
    ):
        devices = struct.pack(f"<{count}q{4 * count}x", *nids) + _NUMBER.pack(len(shared)) * count
        txn.insert_rows("to_device_log", _COLUMNS, ((first, sent_ts, devices, opening, shared),))
        txn.allocate(LOGGED_COUNTER, count)
        return
    rows: list[tuple[int, int, bytes, bytes, bytes]] = []
    begin = 0
    while begin < count:
        distinct: list[bytes] = []
        starts: list[int] = []
        size = start = expanded = 0
        before: bytes | None = None
        for content in islice(contents, begin, begin + ROW_MESSAGES):
            expanded += len(content)
            if expanded > ROW_EXPANDED_BYTES and starts:
                break
            if content is not before:
                start = size
                size += len(content)
                if size > ROW_BYTES and distinct:
                    break
                distinct.append(content)
                before = content
            starts.append(start)
        end = begin + len(starts)
        numbers = (*nids[begin:end], *starts, *map(len, contents[begin:end]))
        devices = struct.pack(f"<{len(starts)}q{2 * len(starts)}I", *numbers)
        rows.append((first + begin, sent_ts, devices, opening, b"".join(distinct)))
        begin = end
    txn.insert_rows("to_device_log", _COLUMNS, rows)
    txn.allocate(LOGGED_COUNTER, count)


def select_oldest(txn: Transaction, removed_before: int, number: int) -> list[ToDeviceLogRow]:
    """Return the oldest rows. Rows before `removed_before` are known to have left the log."""
    sql = (
        "SELECT first_position, sent_ts, devices FROM to_device_log WHERE first_position >= ?"
        " ORDER BY first_position LIMIT ?"
    )
    return [ToDeviceLogRow(*row) for row in txn.query(sql, (removed_before, number))]


def select_devices(txn: Transaction) -> list[tuple[int, int]]:
    """Return the position and the device number of every message in the log."""
    found: list[tuple[int, int]] = []
    for first, devices in txn.query("SELECT first_position, devices FROM to_device_log"):
        found += enumerate(_read_devices(devices), first)
    return found


def select_undelivered(
    txn: Transaction, rows: Sequence[ToDeviceLogRow], positions: Collection[int]
) -> list[tuple[int, int, bytes]]:
    """Return the messages at these positions, which are in these rows: position, device number,
    event. Each row is read once, completely."""
    wanted = [
        (row, [(at, nid) for at, nid in row.list_recipients() if at in positions]) for row in rows
    ]
    wanted = [(row, messages) for row, messages in wanted if messages]
    found = {
        first: (opening, contents)
        for first, opening, contents in txn.query_in(
            "SELECT first_position, prefix, contents FROM to_device_log"
            " WHERE first_position IN {keys}",
            [row.first for row, _ in wanted],
        )
    }
    events: list[tuple[int, int, bytes]] = []
    for row, messages in wanted:
        opening, contents = found[row.first]
        for position, nid in messages:
            start, length = _read_span(row.devices, position - row.first)
            events.append((position, nid, make_event(opening, contents[start : start + length])))
    return events


def remove(txn: WriteTransaction, upto: int, messages: int) -> None:
    """Delete the oldest rows up to this one. `messages` is the number of messages in them."""
    txn.execute_later("DELETE FROM to_device_log WHERE first_position <= ?", (upto,))
    txn.allocate(MOVED_COUNTER, messages)


def reset_counters(txn: WriteTransaction) -> None:
    """Make the counters agree that the log is empty. A failed write may have counted messages that
    it did not add."""
    difference = count_logged(txn)
    txn.allocate(MOVED_COUNTER if difference > 0 else LOGGED_COUNTER, abs(difference))


def select_events(txn: Transaction, entries: Sequence[ToDeviceLogEntry]) -> dict[int, bytes]:
    """Return the events of these entries, by position. Events whose row has left the log are
    missing."""
    sql = (
        "SELECT p.position, l.prefix, substr(l.contents, CAST(p.start + 1 AS INTEGER),"
        " CAST(p.length AS INTEGER))"
        " FROM places AS p JOIN to_device_log AS l ON l.first_position = p.first_position"
    )
    rows = txn.query_with("places", ("position", "first_position", "start", "length"), entries, sql)
    return {position: make_event(opening, content) for position, opening, content in rows}


class ToDeviceLogIndex:
    """An in-memory index: the messages of each device in all rows read so far. Used by several
    threads, each of which may have seen the log at a different moment."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._upto = 0
        self._removed_before = 0
        """All rows before this position are known to have left the log."""
        self._rows: list[int] = []
        self._devices: list[bytes] = []
        self._by_nid: dict[int, list[int]] = {}
        """Positions of messages by device number."""

    @property
    def upto(self) -> int:
        """All rows up to this position are in the index, except those that have left the log."""
        return self._upto

    @property
    def removed_before(self) -> int:
        """All rows before this position have left the log."""
        return self._removed_before

    def extend(self, seen: ToDeviceLogSnapshot) -> bool:
        """Add the rows of a snapshot. Return False if rows are known to have left the log since
        then. The reader then has to read again."""
        with self._lock:
            if seen.oldest is not None and seen.oldest < self._removed_before:
                return False
            self._drop_before(seen.head + 1 if seen.oldest is None else seen.oldest)
            for row, devices in sorted(seen.rows):
                if row > self._upto:
                    self._rows.append(row)
                    self._devices.append(devices)
                    for position, nid in enumerate(_read_devices(devices), row):
                        self._by_nid.setdefault(nid, []).append(position)
            self._upto = max(self._upto, seen.head)
        return True

    def find(self, nid: int, after: int, upto: int, limit: int) -> list[ToDeviceLogEntry]:
        """Return the oldest messages of the device with after < position ≤ upto."""
        with self._lock:
            positions = self._by_nid.get(nid)
            if positions is None:
                return []
            begin, end = bisect_right(positions, after), bisect_right(positions, upto)
            return [
                self._entry_at(position) for position in positions[begin : min(end, begin + limit)]
            ]

    def is_stale(self, oldest: int | None) -> bool:
        """Return whether rows are known to have left the log since a snapshot that began with this
        row."""
        return oldest is not None and oldest < self._removed_before

    def evict(self, upto: int) -> None:
        """Drop the rows up to this one: they have left the log."""
        with self._lock:
            self._drop_before(upto + 1)

    def _entry_at(self, position: int) -> ToDeviceLogEntry:
        at = bisect_right(self._rows, position) - 1
        row = self._rows[at]
        start, length = _read_span(self._devices[at], position - row)
        return ToDeviceLogEntry(position, row, start, length)

    def _drop_before(self, first: int) -> None:
        self._removed_before = max(self._removed_before, first)
        count = bisect_left(self._rows, first)
        if not count:
            return
        for row, devices in zip(self._rows[:count], self._devices[:count], strict=True):
            nids = _read_devices(devices)
            for nid in set(nids):
                positions = self._by_nid[nid]
                keep = bisect_left(positions, row + len(nids))
                if keep == len(positions):
                    del self._by_nid[nid]
                else:
                    del positions[:keep]
        del self._rows[:count], self._devices[:count]


def _read_devices(devices: bytes) -> tuple[int, ...]:
    """Return the device number of each message of a row."""
    count = len(devices) // _SIZE
    return struct.unpack_from(f"<{count}q", devices)


def _read_span(devices: bytes, index: int) -> tuple[int, int]:
    """Return the start and the length of a message's content in its row."""
    count = len(devices) // _SIZE
    (start,) = _NUMBER.unpack_from(devices, 8 * count + 4 * index)
    (length,) = _NUMBER.unpack_from(devices, 12 * count + 4 * index)
    return start, length
