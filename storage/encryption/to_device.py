"""Messages to devices: kept in the order of their positions until the device comes back with a
token of after them.

For a device that does not come back, so many are kept; then the oldest go. To refuse new ones
instead would punish the senders, whose request is for other devices as well, and a device that
comes back after so long needs the newest keys most.

They are kept by the number of the device, which no later device of its id has: so entries of the
index are small, and many are together on a page. Those that are sent many at once are in the log
first (`to_device_log`), and after some minutes a job moves those that are still waited for, oldest
first; at each moment a message is in one of both.

Below a device's floor nothing is read any more, in either. A floor is set where the device has what
is in the log, and where many messages are to go at once; a job removes in small steps what is
below, and then the floor. It is never of after all there is, whatever token a client comes with.

Laws:
- Reading sees each message once: of the log what lies there after what is by device was read. Where
  a row has left the log meanwhile, it is read anew.
- What the log has is known up to a head of the sequence: rows are committed in the order of their
  positions, and never come again.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain, takewhile
from operator import attrgetter, itemgetter
from typing import Final

import msgspec

from storage.devices.devices import DEVICES_CHANGED
from storage.encryption import to_device_log
from storage.encryption.to_device_log import OLDEST_ROW, LogIndex, LogRow, Seen, as_event
from storage.engine.database import Database
from storage.engine.streams import Change, Topic
from storage.engine.transaction import POSITION, Transaction, WriteTransaction

MOST_WAITING: Final = 100_000
LOOK_EVERY: Final = 256
REMOVED_AT_ONCE: Final = 500
"""More than these wait for the job."""
FEWEST_LOGGED: Final = 8
"""So many that are sent at once go into the log."""
MOST_LOGGED: Final = 200_000
"""With so many in the log, the next are kept by device at once: where each lies in it is kept in
memory."""
NEVER: Final = 1 << 62
"""After all positions."""
FIRST_NID: Final = -NEVER
"""Before all numbers of devices."""
LOGGED_MS: Final = 5 * 60 * 1000
"""For so long messages are in the log."""
MOVED_AT_ONCE: Final = 4 << 20
"""Bytes in a step of the job: what is there once in the log for many devices is kept for each of
them then."""

_RAISE: Final = (
    "ON CONFLICT (device_nid) DO UPDATE SET position = excluded.position"
    " WHERE to_device_floors.position < excluded.position"
)
_NID: Final = "(SELECT d.device_nid FROM devices AS d WHERE d.user_id = ? AND d.device_id = ?)"
"""The number of a device."""


Recipient = tuple[str, str, int]
"""A device of one of our users: user, device, its number."""


Recipients = Mapping[str, Recipient]
"""The devices of a user, by their ids."""


class KnownDevices(msgspec.Struct, frozen=True, gc=False):
    """Devices of users, as they were known at some moment."""

    users: Mapping[str, Recipients]
    upto: int
    """The position of the last change that is in them, if it was one of devices."""


class DeviceMessage(msgspec.Struct, frozen=True, gc=False):
    """A message that waits for a device."""

    position: int
    content: bytes
    """The event as the device gets it."""


class NewMessages(msgspec.Struct, frozen=True, gc=False):
    """What a change of the topic TO_DEVICE tells: messages that were sent at once, at one position
    after the other."""

    first: int
    opening: bytes
    """How all of them begin."""
    recipients: Sequence[Recipient]
    contents: Sequence[bytes]
    """What follows, without the end: see `as_event`."""

    @property
    def last(self) -> int:
        """The position of the last of them."""
        return self.first + len(self.contents) - 1


class DevicesGone(msgspec.Struct, frozen=True, gc=False):
    """What a change of the topic DEVICES_GONE tells: devices of the user went, and what waited for
    them with them."""

    device_ids: Sequence[str]


class ToDeviceStore:
    """The table of messages to devices."""

    def __init__(
        self,
        database: Database,
        *,
        most_waiting: int = MOST_WAITING,
        most_logged: int = MOST_LOGGED,
    ) -> None:
        """`most_waiting`: for a device, give or take a few hundred and what is in the log."""
        self._database = database
        self._most_waiting = most_waiting
        self._most_logged = most_logged
        self._log = LogIndex()
        self._swept = FIRST_NID
        """The job goes through the floors by the numbers of their devices: up to here it has
        come."""

    async def get_messages(
        self, user_id: str, device_id: str, after: int, upto: int, limit: int
    ) -> Sequence[DeviceMessage]:
        """The oldest messages with after < position ≤ up to."""
        return await self._database.read_quickly(
            "get_to_device", self._select, user_id, device_id, after, upto, limit
        )

    async def remove_messages(self, user_id: str, device_id: str, upto: int) -> None:
        """The device has all up to that position."""
        await self._database.write(
            "remove_to_device", _delete_of, user_id, device_id, upto, self._log.gone_before
        )

    async def remove_few_messages(
        self, user_id: str, device_id: str, first: int, upto: int
    ) -> None:
        """The device has those from one position to another, of which there are no more than
        REMOVED_AT_ONCE, as is known. What is before them may be many, below a floor: it is left to
        the job."""
        gone_before = self._log.gone_before
        await self._database.write(
            "remove_to_device", _delete_range, user_id, device_id, first, upto, gone_before
        )

    def get_recipients(
        self, txn: WriteTransaction, user_ids: Collection[str], known: KnownDevices | None = None
    ) -> Mapping[str, Recipients] | None:
        """The devices of these users; one query.

        `known`: what was known of them before. None where that holds, as no device came or went
        since; no query.
        """
        holds = known is not None and txn.counter(DEVICES_CHANGED) <= known.upto
        return None if holds else self.get_devices(txn, user_ids)

    def get_devices(self, txn: Transaction, user_ids: Collection[str]) -> Mapping[str, Recipients]:
        """The devices of these users; one query."""
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
        """Add messages, each at a position of its own, in their order. Each begins with the
        opening, then comes its content, and then a closing brace."""
        if not contents:
            return
        first = txn.next_position(len(contents))
        new = NewMessages(first, opening, recipients, contents)
        users = tuple(dict.fromkeys(map(_user_id, recipients)))
        txn.announce(Change(first + len(contents) - 1, Topic.TO_DEVICE, user_ids=users, detail=new))
        nids = list(map(_nid, recipients))
        if (
            len(contents) >= FEWEST_LOGGED
            and to_device_log.count_logged(txn) + len(contents) <= self._most_logged
        ):
            to_device_log.append(txn, first, now_ms, opening, nids, contents)
            return
        numbered = enumerate(zip(nids, contents, strict=True), first)
        self._insert(
            txn,
            [(position, nid, as_event(opening, content)) for position, (nid, content) in numbered],
        )

    def _insert(self, txn: WriteTransaction, rows: Sequence[tuple[int, int, bytes]]) -> None:
        """Keep messages by device: position, number of the device, event."""
        txn.insert_rows("to_device_messages", ("position", "device_nid", "content"), rows)
        # to count what waits for every device at every message would cost too much
        for position, device_nid, _ in rows:
            if position % LOOK_EVERY:
                continue
            newest_to_go = txn.query_one(
                "SELECT position FROM to_device_messages WHERE device_nid = ?"
                " ORDER BY position DESC LIMIT 1 OFFSET ?",
                (device_nid, self._most_waiting),
            )
            if newest_to_go is not None:
                _delete(txn, device_nid, newest_to_go[0])

    def remove_devices(
        self, txn: WriteTransaction, user_id: str, device_ids: Sequence[str]
    ) -> None:
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
            txn.announce(
                Change(txn.next_position(), Topic.DEVICES_GONE, user_id=user_id, detail=gone)
            )

    async def count_messages(self) -> int:
        """How many messages wait; looks at all of them."""
        return await self._database.read("count_to_device", _count)

    async def sweep(self, limit: int, now_ms: int) -> int:
        """Remove some of what nobody gets any more, and move some of what has been in the log for
        long; how many."""
        swept, self._swept = await self._database.write(
            "sweep_to_device", _sweep, limit, self._swept, self._log.gone_before
        )
        moved, upto = await self._database.write("move_to_device", self._move, limit, now_ms)
        self._log.forget(upto)
        return max(swept, moved)

    def _select(
        self, txn: Transaction, user_id: str, device_id: str, after: int, upto: int, limit: int
    ) -> list[DeviceMessage]:
        while True:
            found: dict[int, list[tuple[int, bytes]]] = {kind: [] for kind in _KINDS}
            of_device = (user_id, device_id)
            log = (self._log.upto, self._log.gone_before)
            args = (
                *of_device,
                after,
                *of_device,
                upto,
                limit,
                *log,
                *of_device,
                *of_device,
                POSITION,
            )
            for kind, number, value in txn.query(_SELECT, args):
                found[kind].append((number, value))
            if not found[_HEAD]:
                return []  # nothing was written yet
            ((head, _),), ((oldest, _),) = found[_HEAD], found[_OLDEST]
            if not self._log.extend(Seen(head, oldest, found[_LOG])):
                continue
            messages = [DeviceMessage(*each) for each in sorted(found[_KEPT])]
            if not found[_DEVICE]:
                return messages
            ((device_nid, _),) = found[_DEVICE]
            floor = max([after, *[position for position, _ in found[_FLOOR]]])
            places = self._log.find(device_nid, floor, min(upto, head), limit)
            if self._log.has_lost(oldest):
                # another thread has learned meanwhile that rows went, which may have been this
                # device's
                continue
            if not places:
                return messages
            events = to_device_log.select_events(txn, places)
            gone = [place.row for place in places if place.position not in events]
            if gone:
                self._log.forget(max(gone))
                continue
            messages += [DeviceMessage(*event) for event in events.items()]
            return sorted(messages, key=_position)[:limit]

    def _move(self, txn: WriteTransaction, limit: int, now_ms: int) -> tuple[int, int]:
        """Keep by device what has been in the log for long; how many messages left it, and the last
        row."""
        oldest = to_device_log.select_oldest(txn, self._log.gone_before, 1 + limit // FEWEST_LOGGED)
        # what has a time to come is from a clock that was wrong
        old = list(takewhile(lambda row: not now_ms - LOGGED_MS < row.sent_ts <= now_ms, oldest))
        if not old:
            if not oldest:
                to_device_log.note_empty(txn)
            return 0, 0
        left = _few(old, limit)
        waiting = _waiting(txn, chain.from_iterable([row.read() for row in left]))
        if waiting:
            kept = to_device_log.select_waiting(txn, left, waiting)
            self._insert(txn, sorted(kept, key=itemgetter(1, 0)))
        last = left[-1].first
        to_device_log.remove(txn, last, sum([row.number() for row in left]))
        return limit, last


_KEPT, _LOG, _OLDEST, _DEVICE, _FLOOR, _HEAD = _KINDS = range(6)
_SELECT: Final = (
    f"SELECT {_KEPT}, m.position, m.content FROM ("
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
"""All that is known of a device at one moment, and what is new in the log."""
_position: Final = attrgetter("position")
_user_id: Final = itemgetter(0)
_nid: Final = itemgetter(2)


def _few(rows: Iterable[LogRow], limit: int) -> list[LogRow]:
    """The first of these rows: so many messages and no more than `MOVED_AT_ONCE`, but one row at
    least."""
    few: list[LogRow] = []
    count = size = 0
    for row in rows:
        count += row.number()
        size += row.size()
        if few and (count > limit or size > MOVED_AT_ONCE):
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
    return int(row[0]) + len(_waiting(txn, to_device_log.select_devices(txn)))


def _waiting(txn: Transaction, logged: Iterable[tuple[int, int]]) -> set[int]:
    """Of messages in the log (position, number of the device) the positions of those that a device
    still waits for."""
    messages = list(logged)
    nids = {nid for _, nid in messages}
    floors: dict[int, int] = dict(
        txn.query_in(
            "SELECT device_nid, position FROM to_device_floors WHERE device_nid IN {keys}", nids
        )
    )
    above = [(position, nid) for position, nid in messages if position > floors.get(nid, 0)]
    nids = {nid for _, nid in above}
    there = {
        nid
        for (nid,) in txn.query_in(
            "SELECT device_nid FROM devices WHERE device_nid IN {keys}", nids
        )
    }
    return {position for position, nid in above if nid in there}


def _delete_of(
    txn: WriteTransaction, user_id: str, device_id: str, upto: int, gone_before: int
) -> None:
    """Remove what a device has at or below that position, or have it removed."""
    row = txn.query_one(f"SELECT {_NID}", (user_id, device_id))
    if row is not None and row[0] is not None:
        upto = min(
            upto, txn.counter(POSITION)
        )  # a floor of after all there is would hide what comes
        _delete(txn, row[0], upto)
        _set_floor_for_log(txn, user_id, device_id, upto, gone_before)


def _delete(txn: WriteTransaction, device_nid: int, upto: int) -> None:
    further = txn.query_one(
        "SELECT position FROM to_device_messages WHERE device_nid = ? AND position <= ?"
        " ORDER BY position LIMIT 1 OFFSET ?",
        (device_nid, upto, REMOVED_AT_ONCE),
    )
    if further is None:
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
    txn: WriteTransaction, user_id: str, device_id: str, first: int, upto: int, gone_before: int
) -> None:
    upto = min(upto, txn.counter(POSITION))
    txn.execute_later(
        f"DELETE FROM to_device_messages WHERE device_nid = {_NID} AND position >= ?"
        " AND position <= ?",
        (user_id, device_id, first, upto),
    )
    _set_floor_for_log(txn, user_id, device_id, upto, gone_before)


def _set_floor_for_log(
    txn: WriteTransaction, user_id: str, device_id: str, upto: int, gone_before: int
) -> None:
    """The device has all up to that position: where there may be something of it in the log, it is
    not read any more."""
    txn.execute_later(
        "INSERT INTO to_device_floors (device_nid, position) SELECT d.device_nid, ?"
        " FROM devices AS d"
        f" WHERE d.user_id = ? AND d.device_id = ? AND {OLDEST_ROW} <= ? {_RAISE}",
        (upto, user_id, device_id, gone_before, upto),
    )


def _sweep(txn: WriteTransaction, limit: int, swept: int, gone_before: int) -> tuple[int, int]:
    """Remove what is below the next floors after the device of that number, and those floors that
    are not needed any more. Whether anything is left to do, and where to go on.

    There may be very many floors that stay for minutes: a step looks at so many of them.
    """
    (oldest,) = txn.query_one(f"SELECT {OLDEST_ROW}", (gone_before,)) or (None,)
    found = txn.query(
        "SELECT f.device_nid, f.position, EXISTS (SELECT 1 FROM to_device_messages AS m"
        " WHERE m.device_nid = f.device_nid AND m.position <= f.position)"
        " FROM to_device_floors AS f WHERE f.device_nid > ? ORDER BY f.device_nid LIMIT ?",
        (swept, limit),
    )
    floors = [(nid, floor) for nid, floor, _ in found]
    having = [(nid, floor) for nid, floor, has_some in found if has_some]
    below = (
        "SELECT device_nid, position FROM to_device_messages WHERE device_nid = ? AND position <= ?"
    )
    each = limit // max(1, len(having)) + 1
    gone = (
        txn.query_each(f"{below} ORDER BY position LIMIT ?", [(*floor, each) for floor in having])
        if having
        else []
    )
    txn.execute_many(
        "DELETE FROM to_device_messages WHERE device_nid = ? AND position = ?",
        chain.from_iterable(gone),
    )
    left = {nid for (nid, _), rows in zip(having, gone, strict=True) if len(rows) == each}
    done = [
        (nid,)
        for nid, floor in floors
        if nid not in left and floor < (NEVER if oldest is None else oldest)
    ]
    txn.execute_many("DELETE FROM to_device_floors WHERE device_nid = ?", done)
    if left:
        return limit, swept
    if len(floors) == limit:
        return limit, floors[-1][0]
    return (limit if done or having else 0), FIRST_NID
