"""Remote servers to which this server sends: which are unreachable, and what they have missed.

Laws:
- No row is written per event, and a reachable server needs no row. An unreachable server has one
  row in `destination_rooms` for each room in which it missed events, with the position of the first
  one. It also has one row in `destination_users` for each user whose device list changes it missed.
- Up to the position that is stored with the lease `LEASE` (`leases.py`), everything is sent except
  what these two tables and `outgoing_to_device` list.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Final

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction
from storage.events.events import EventFlag

LEASE: Final = "federation"
"""The name of the sender's lease."""
_TO_SEND = int(EventFlag.TO_SEND)


class ActivitySource(IntEnum):
    """The source of a report that an unreachable server responds again. The greater one takes
    precedence."""

    SERVER = 1
    OPERATOR = 2


class DestinationRow(msgspec.Struct, frozen=True):
    """The state of a remote server. Times are milliseconds since 1970."""

    server: str
    failing_since_ts: int | None
    last_attempt_ts: int
    backoff_ms: int
    error: str | None
    retry_after_ts: int = 0
    """Until when its last answer asked us to send nothing; 0: it did not."""


class Backlog(msgspec.Struct, frozen=True):
    """The positions at which a server's backlog begins, by room and by user whose devices
    changed."""

    rooms: dict[int, int] = msgspec.field(default_factory=dict)
    users: dict[str, int] = msgspec.field(default_factory=dict)
    is_complete: bool = False
    """It is the complete backlog, not an addition."""


class EventToSend(msgspec.Struct, frozen=True):
    """An event to send to other servers."""

    position: int
    event_nid: int
    room_nid: int
    sender: str
    is_member: bool


class OwnMembershipChange(msgspec.Struct, frozen=True):
    """A membership event whose sender is its subject."""

    position: int
    event_nid: int
    room_nid: int
    user_id: str


class ReceiptToSend(msgspec.Struct, frozen=True):
    """A public receipt."""

    position: int
    room_nid: int
    user_id: str
    thread_id: str
    event_id: str
    ts: int


class DestinationStore:
    """Reads and writes the tables of outgoing federation."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_destinations(self) -> Mapping[str, DestinationRow]:
        """Return all servers that are unreachable, or once were."""
        return await self._database.read("get_destinations", _select_destinations)

    async def get_backlogs(self) -> Mapping[str, Backlog]:
        """Return the backlogs of all servers that have one."""
        return await self._database.read("get_backlogs", _select_backlogs)

    async def get_events_to_send(self, after: int, upto: int, limit: int) -> Sequence[EventToSend]:
        """Return the events in a range of positions that are to be sent, in order."""
        return await self._database.read_quickly(
            "get_events_to_send", _select_events, after, upto, limit
        )

    async def get_own_membership_changes(
        self, after: int, upto: int, limit: int
    ) -> Sequence[OwnMembershipChange]:
        """Return users who joined, left, or changed their profile by their own event in that range,
        in order; remote users included."""
        return await self._database.read_quickly(
            "get_own_membership_changes", _select_own_changes, after, upto, limit
        )

    async def get_receipts_to_send(
        self, after: int, upto: int, limit: int
    ) -> Sequence[ReceiptToSend]:
        """Return the public receipts in that range, in order."""
        return await self._database.read_quickly(
            "get_receipts_to_send", _select_receipts, after, upto, limit
        )

    async def get_missed_events(
        self, room_nid: int, after: int, upto: int, limit: int
    ) -> Sequence[int]:
        """Return the newest events of a room to send with after < position ≤ upto, in order."""
        return await self._database.read_quickly(
            "get_missed_events", _select_missed, room_nid, after, upto, limit
        )

    async def get_leaves(self, room_nid: int, since: int) -> Sequence[tuple[str, int]]:
        """Return remote users who are not in the room and whose membership changed at or after a
        position: (user ID, position)."""
        return await self._database.read("get_departures", _select_leaves, room_nid, since)

    async def add_failure(self, row: DestinationRow, backlog: Backlog) -> None:
        """Record that a server is unreachable, and its backlog."""
        await self._database.write("add_destination_failure", _add_failure, row, backlog)

    async def get_failing_since(self, server: str) -> int | None:
        """Return when the server ceased to answer; None if it answers, or if it asked us to
        wait."""
        return await self._database.read_quickly("get_failing_since", _select_failing_since, server)

    async def record_activity(
        self, servers: Collection[str], source: ActivitySource = ActivitySource.SERVER
    ) -> None:
        """Record that unreachable servers are back, for a node that does not send."""
        failing = await self._database.read_quickly(
            "get_failing_servers", _select_failing, servers, source
        )
        if failing:
            await self._database.write("record_server_activity", _record_activity, failing, source)

    async def take_activity(self) -> Mapping[str, ActivitySource]:
        """Return and clear the servers that other nodes reported as back, with the source of the
        report."""
        reported = await self._database.read_quickly("get_server_activity", _select_activity)
        if reported:
            await self._database.write("clear_server_activity", _clear_activity, reported)
        return reported

    async def add_backlogs(self, backlogs: Mapping[str, Backlog]) -> None:
        """Add to the backlogs of servers."""
        await self._database.write("add_backlogs", _add_backlogs, backlogs)

    def set_delivered(
        self,
        txn: WriteTransaction,
        server: str,
        rooms: Mapping[int, int | None],
        users: Mapping[str, int | None],
    ) -> None:
        """Record that the server has received rooms and users; None, or the position where the new
        backlog begins."""
        txn.execute_many(
            "DELETE FROM destination_rooms WHERE server = ? AND room_nid = ?",
            [(server, nid) for nid, position in rooms.items() if position is None],
        )
        txn.execute_many(
            "UPDATE destination_rooms SET position = ? WHERE server = ? AND room_nid = ?",
            [(position, server, nid) for nid, position in rooms.items() if position is not None],
        )
        txn.execute_many(
            "DELETE FROM destination_users WHERE server = ? AND user_id = ?",
            [(server, user_id) for user_id, position in users.items() if position is None],
        )
        txn.execute_many(
            "UPDATE destination_users SET stream_id = ? WHERE server = ? AND user_id = ?",
            [
                (position, server, user_id)
                for user_id, position in users.items()
                if position is not None
            ],
        )

    def set_reached(self, txn: WriteTransaction, server: str, now_ms: int) -> None:
        """Record that the server is reachable again."""
        txn.execute(
            "UPDATE destinations SET failing_since_ts = NULL, last_attempt_ts = ?, backoff_ms = 0,"
            " retry_after_ts = 0 WHERE server = ?",
            (now_ms, server),
        )


def _select_destinations(txn: Transaction) -> dict[str, DestinationRow]:
    rows = txn.query(
        "SELECT server, failing_since_ts, last_attempt_ts, backoff_ms, error, retry_after_ts"
        " FROM destinations"
    )
    return {row[0]: DestinationRow(*row) for row in rows}


def _select_failing_since(txn: Transaction, server: str) -> int | None:
    rows = txn.query(
        "SELECT failing_since_ts FROM destinations WHERE server = ? AND retry_after_ts = 0",
        (server,),
    )
    return rows[0][0] if rows else None


def _select_failing(
    txn: Transaction, servers: Collection[str], source: ActivitySource
) -> list[str]:
    rows = txn.query_in(
        "SELECT server FROM destinations"
        " WHERE server IN {keys} AND failing_since_ts IS NOT NULL AND activity_source < ?",
        servers,
        after=(int(source),),
    )
    return [server for (server,) in rows]


def _record_activity(txn: WriteTransaction, servers: Sequence[str], source: ActivitySource) -> None:
    txn.execute_many(
        "UPDATE destinations SET activity_source = ? WHERE server = ? AND activity_source < ?",
        [(int(source), server, int(source)) for server in servers],
    )


def _select_activity(txn: Transaction) -> dict[str, ActivitySource]:
    rows = txn.query("SELECT server, activity_source FROM destinations WHERE activity_source > 0")
    return {server: ActivitySource(source) for server, source in rows}


def _clear_activity(txn: WriteTransaction, reported: Mapping[str, ActivitySource]) -> None:
    txn.execute_many(
        "UPDATE destinations SET activity_source = 0 WHERE server = ? AND activity_source = ?",
        [(server, int(source)) for server, source in reported.items()],
    )


def _select_backlogs(txn: Transaction) -> dict[str, Backlog]:
    backlogs: dict[str, Backlog] = {}
    for server, room_nid, position in txn.query(
        "SELECT server, room_nid, position FROM destination_rooms"
    ):
        backlogs.setdefault(server, Backlog()).rooms[room_nid] = position
    for server, user_id, stream_id in txn.query(
        "SELECT server, user_id, stream_id FROM destination_users"
    ):
        backlogs.setdefault(server, Backlog()).users[user_id] = stream_id
    return backlogs


def _select_events(txn: Transaction, after: int, upto: int, limit: int) -> list[EventToSend]:
    rows = txn.query(
        "SELECT position, event_nid, room_nid, sender, type FROM events"
        " WHERE position > ? AND position <= ?"
        f" AND (flags & {_TO_SEND}) <> 0 ORDER BY position LIMIT ?",
        (after, upto, limit),
    )
    return [
        EventToSend(position, nid, room, sender, type == "m.room.member")
        for position, nid, room, sender, type in rows
    ]


def _select_own_changes(
    txn: Transaction, after: int, upto: int, limit: int
) -> list[OwnMembershipChange]:
    rows = txn.query(
        "SELECT position, event_nid, room_nid, sender FROM events"
        " WHERE position > ? AND position <= ?"
        " AND type = 'm.room.member' AND state_key = sender ORDER BY position LIMIT ?",
        (after, upto, limit),
    )
    return [OwnMembershipChange(*row) for row in rows]


def _select_receipts(txn: Transaction, after: int, upto: int, limit: int) -> list[ReceiptToSend]:
    rows = txn.query(
        "SELECT position, room_nid, user_id, thread_id, event_id, ts FROM receipts"
        " WHERE receipt_type = 'm.read' AND position > ? AND position <= ?"
        " ORDER BY position LIMIT ?",
        (after, upto, limit),
    )
    return [ReceiptToSend(*row) for row in rows]


def _select_missed(txn: Transaction, room_nid: int, after: int, upto: int, limit: int) -> list[int]:
    rows = txn.query(
        "SELECT event_nid FROM events WHERE room_nid = ? AND position > ? AND position <= ?"
        f" AND (flags & {_TO_SEND}) <> 0"
        " ORDER BY position DESC LIMIT ?",
        (room_nid, after, upto, limit),
    )
    return [nid for (nid,) in reversed(rows)]


def _select_leaves(txn: Transaction, room_nid: int, since: int) -> list[tuple[str, int]]:
    # by position, which selects few rows: not by membership, as tens of thousands may have left the
    # room in its lifetime
    rows = txn.query(
        "SELECT user_id, position FROM memberships"
        " WHERE room_nid = ? AND position >= ? AND is_local = 0"
        " AND membership || '' IN ('leave', 'ban')",
        (room_nid, since),
    )
    return [(user_id, position) for user_id, position in rows]


def _add_failure(txn: WriteTransaction, row: DestinationRow, backlog: Backlog) -> None:
    txn.execute(
        "INSERT INTO destinations (server, failing_since_ts, last_attempt_ts, backoff_ms, error,"
        " retry_after_ts) VALUES (?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (server) DO UPDATE"
        " SET failing_since_ts = excluded.failing_since_ts, last_attempt_ts ="
        " excluded.last_attempt_ts,"
        " backoff_ms = excluded.backoff_ms, error = excluded.error,"
        " retry_after_ts = excluded.retry_after_ts",
        (
            row.server,
            row.failing_since_ts,
            row.last_attempt_ts,
            row.backoff_ms,
            row.error,
            row.retry_after_ts,
        ),
    )
    _add_backlogs(txn, {row.server: backlog})


def _add_backlogs(txn: WriteTransaction, backlogs: Mapping[str, Backlog]) -> None:
    rooms: Iterable[tuple[str, int, int]] = (
        (server, nid, position)
        for server, backlog in backlogs.items()
        for nid, position in backlog.rooms.items()
    )
    txn.execute_many(
        "INSERT INTO destination_rooms (server, room_nid, position) VALUES (?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        rooms,
    )
    users: Iterable[tuple[str, str, int]] = (
        (server, user_id, stream_id)
        for server, backlog in backlogs.items()
        for user_id, stream_id in backlog.users.items()
    )
    txn.execute_many(
        "INSERT INTO destination_users (server, user_id, stream_id) VALUES (?, ?, ?)"
        " ON CONFLICT DO NOTHING",
        users,
    )
