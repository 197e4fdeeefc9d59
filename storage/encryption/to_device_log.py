"""Messages to devices that were sent many at once, as they lie in the log: a row for each few of
them.

A row for each message, with an entry of the index of all devices, costs thrice as much to write as
the message itself, and most messages are fetched within seconds. So those of a large request are
written as they come, some 16 KiB to a row. Which devices have something there is learned by reading
what rows tell of their devices, once; a job moves what nobody has fetched for minutes to where each
device finds its own.
"""

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Sequence
from itertools import islice
from threading import Lock
from typing import Final, NamedTuple

from storage.engine.transaction import Transaction, WriteTransaction

ROW_BYTES: Final = 16 << 10
"""Of contents after which a further row begins: who wants one message reads no more than that of
others."""
ROW_MESSAGES: Final = 128
ROW_WHOLE_BYTES: Final = 1 << 20
"""Of what its messages have each by itself, after which a further row begins: a row leaves the log
as a whole."""
LOGGED: Final = "to_device_logged"
MOVED: Final = "to_device_moved"
"""Counters of the messages that came into the log, and of those that left it."""
OLDEST_ROW: Final = "(SELECT min(first_position) FROM to_device_log WHERE first_position >= ?)"
"""Its argument is `LogIndex.gone_before`: to find the first of what is left, PostgreSQL would look
at all that has left the log and is not cleared away yet, as while a backup is made."""

_SIZE: Final = 16
"""Bytes that tell of a message: the number of its device, where its content begins, how long it
is."""
_NUMBER: Final = struct.Struct("<I")
_COLUMNS: Final = ("first_position", "sent_ts", "devices", "opening", "contents")


class Place(NamedTuple):
    """Where a message lies in the log."""

    position: int
    row: int
    """The position of the first message of its row."""
    start: int
    """Of its content among those of the row, in bytes from 0."""
    length: int


class LogRow(NamedTuple):
    """Messages that were sent at once, in order, without their contents."""

    first: int
    sent_ts: int
    devices: bytes

    def number(self) -> int:
        """How many messages there are."""
        return len(self.devices) // _SIZE

    def size(self) -> int:
        """Bytes of their contents, each by itself."""
        count = self.number()
        return sum(struct.unpack_from(f"<{count}I", self.devices, 12 * count))

    def read(self) -> list[tuple[int, int]]:
        """Of each message the position and the number of its device."""
        return list(enumerate(_read_devices(self.devices), self.first))


class Seen(NamedTuple):
    """What there was of the log at one moment."""

    head: int
    """Of the one sequence."""
    oldest: int | None
    """The first row; None: the log was empty."""
    rows: Sequence[tuple[int, bytes]]
    """All that begin after a position that was `LogIndex.upto`, with their devices."""


def as_event(opening: bytes, content: bytes) -> bytes:
    """The event as the device gets it."""
    return b"%b%b}" % (opening, content)


def count_logged(txn: WriteTransaction) -> int:
    """How many messages are in the log."""
    return txn.counter(LOGGED) - txn.counter(MOVED)


def append(
    txn: WriteTransaction,
    first: int,
    sent_ts: int,
    opening: bytes,
    nids: Sequence[int],
    contents: Sequence[bytes],
) -> None:
    """Add messages to devices of these numbers, the first of them at that position."""
    count = len(contents)
    alike = contents[0]
    if (
        count <= ROW_MESSAGES
        and len(alike) * count <= ROW_WHOLE_BYTES
        and contents.count(alike) == count
    ):
        devices = struct.pack(f"<{count}q{4 * count}x", *nids) + _NUMBER.pack(len(alike)) * count
        txn.insert_rows("to_device_log", _COLUMNS, ((first, sent_ts, devices, opening, alike),))
        txn.allocate(LOGGED, count)
        return
    rows: list[tuple[int, int, bytes, bytes, bytes]] = []
    begin = 0
    while begin < count:
        kept: list[bytes] = []
        starts: list[int] = []
        size = start = whole = 0
        before: bytes | None = None
        for content in islice(contents, begin, begin + ROW_MESSAGES):
            whole += len(content)
            if whole > ROW_WHOLE_BYTES and starts:
                break
            if content is not before:
                start = size
                size += len(content)
                if size > ROW_BYTES and kept:
                    break
                kept.append(content)
                before = content
            starts.append(start)
        end = begin + len(starts)
        numbers = (*nids[begin:end], *starts, *map(len, contents[begin:end]))
        devices = struct.pack(f"<{len(starts)}q{2 * len(starts)}I", *numbers)
        rows.append((first + begin, sent_ts, devices, opening, b"".join(kept)))
        begin = end
    txn.insert_rows("to_device_log", _COLUMNS, rows)
    txn.allocate(LOGGED, count)


def select_oldest(txn: Transaction, gone_before: int, number: int) -> list[LogRow]:
    """The oldest rows; those before that position are known to have left the log."""
    sql = (
        "SELECT first_position, sent_ts, devices FROM to_device_log WHERE first_position >= ?"
        " ORDER BY first_position LIMIT ?"
    )
    return [LogRow(*row) for row in txn.query(sql, (gone_before, number))]


def select_devices(txn: Transaction) -> list[tuple[int, int]]:
    """Of every message in the log its position and the number of its device."""
    found: list[tuple[int, int]] = []
    for first, devices in txn.query("SELECT first_position, devices FROM to_device_log"):
        found += enumerate(_read_devices(devices), first)
    return found


def select_waiting(
    txn: Transaction, rows: Sequence[LogRow], waiting: Collection[int]
) -> list[tuple[int, int, bytes]]:
    """The messages at these positions, which lie in these rows: position, number of the device,
    event. Rows are read whole, once each."""
    wanted = [(row, [(at, nid) for at, nid in row.read() if at in waiting]) for row in rows]
    wanted = [(row, messages) for row, messages in wanted if messages]
    found = {
        first: (opening, contents)
        for first, opening, contents in txn.query_in(
            "SELECT first_position, opening, contents FROM to_device_log"
            " WHERE first_position IN {keys}",
            [row.first for row, _ in wanted],
        )
    }
    events: list[tuple[int, int, bytes]] = []
    for row, messages in wanted:
        opening, contents = found[row.first]
        for position, nid in messages:
            start, length = _read_span(row.devices, position - row.first)
            events.append((position, nid, as_event(opening, contents[start : start + length])))
    return events


def remove(txn: WriteTransaction, upto: int, messages: int) -> None:
    """The oldest rows leave the log, up to that one; there are so many messages in them."""
    txn.execute_later("DELETE FROM to_device_log WHERE first_position <= ?", (upto,))
    txn.allocate(MOVED, messages)


def note_empty(txn: WriteTransaction) -> None:
    """The log is empty: a write that failed may have counted what it did not do."""
    difference = count_logged(txn)
    txn.allocate(MOVED if difference > 0 else LOGGED, abs(difference))


def select_events(txn: Transaction, places: Sequence[Place]) -> dict[int, bytes]:
    """The events that lie there, by position; those are missing whose row is no longer in the
    log."""
    sql = (
        "SELECT p.position, l.opening, substr(l.contents, CAST(p.start + 1 AS INTEGER),"
        " CAST(p.length AS INTEGER))"
        " FROM places AS p JOIN to_device_log AS l ON l.first_position = p.first_position"
    )
    rows = txn.query_with("places", ("position", "first_position", "start", "length"), places, sql)
    return {position: as_event(opening, content) for position, opening, content in rows}


class LogIndex:
    """Where in the log each device has something, of all rows that were read. For several threads,
    each of which may have seen the log at another moment."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._upto = 0
        self._gone_before = 0
        """Rows that begin before that position have left the log, as far as is known."""
        self._rows: list[int] = []
        self._devices: list[bytes] = []
        self._by_nid: dict[int, list[int]] = {}
        """Positions of messages, by the number of their device."""

    @property
    def upto(self) -> int:
        """All rows that begin at or below that position are known, but for those that have left the
        log."""
        return self._upto

    @property
    def gone_before(self) -> int:
        """All rows that begin before that position have left the log."""
        return self._gone_before

    def extend(self, seen: Seen) -> bool:
        """Take in what the log had at some moment. False if it is known to have lost rows since
        then, so that what a reader saw beside it has to be looked at anew."""
        with self._lock:
            if seen.oldest is not None and seen.oldest < self._gone_before:
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

    def find(self, nid: int, after: int, upto: int, limit: int) -> list[Place]:
        """The oldest messages to the device with after < position ≤ up to."""
        with self._lock:
            positions = self._by_nid.get(nid)
            if positions is None:
                return []
            begin, end = bisect_right(positions, after), bisect_right(positions, upto)
            return [
                self._place(position) for position in positions[begin : min(end, begin + limit)]
            ]

    def has_lost(self, oldest: int | None) -> bool:
        """Whether rows are known to have left the log that was seen to begin there."""
        return oldest is not None and oldest < self._gone_before

    def forget(self, upto: int) -> None:
        """The rows up to that one have left the log."""
        with self._lock:
            self._drop_before(upto + 1)

    def _place(self, position: int) -> Place:
        at = bisect_right(self._rows, position) - 1
        row = self._rows[at]
        start, length = _read_span(self._devices[at], position - row)
        return Place(position, row, start, length)

    def _drop_before(self, first: int) -> None:
        self._gone_before = max(self._gone_before, first)
        gone = bisect_left(self._rows, first)
        if not gone:
            return
        for row, devices in zip(self._rows[:gone], self._devices[:gone], strict=True):
            nids = _read_devices(devices)
            for nid in set(nids):
                positions = self._by_nid[nid]
                keep = bisect_left(positions, row + len(nids))
                if keep == len(positions):
                    del self._by_nid[nid]
                else:
                    del positions[:keep]
        del self._rows[:gone], self._devices[:gone]


def _read_devices(devices: bytes) -> tuple[int, ...]:
    """The numbers of the devices, one for each message of a row."""
    count = len(devices) // _SIZE
    return struct.unpack_from(f"<{count}q", devices)


def _read_span(devices: bytes, index: int) -> tuple[int, int]:
    """Where the content of a message is among those of its row: start and length."""
    count = len(devices) // _SIZE
    (start,) = _NUMBER.unpack_from(devices, 8 * count + 4 * index)
    (length,) = _NUMBER.unpack_from(devices, 12 * count + 4 * index)
    return start, length
