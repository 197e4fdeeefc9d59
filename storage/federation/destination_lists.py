"""Lists the remote servers and the state of sending to them, page by page, for administrators."""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction
from storage.federation.destinations import LEASE

Order = Literal["destination", "retry_last_ts", "retry_interval", "failure_ts", "delivered_upto"]

_STATES: Final = (
    "SELECT server, CASE WHEN retry_after_ts = 0 THEN failing_since_ts END, CASE"
    " WHEN failing_since_ts IS NULL THEN 0 ELSE last_attempt_ts END,"
    " CASE WHEN failing_since_ts IS NULL THEN 0"
    " WHEN retry_after_ts > last_attempt_ts + backoff_ms THEN retry_after_ts - last_attempt_ts"
    " ELSE backoff_ms END,"
    " CASE WHEN failing_since_ts IS NULL THEN NULL ELSE error END, retry_after_ts FROM destinations"
)
"""The first columns of a `DestinationSummary`."""


class DestinationSummary(msgspec.Struct, frozen=True):
    """The state of a remote server. Times are milliseconds since 1970."""

    server: str
    failing_since_ts: int | None = None
    """None: the last attempt succeeded."""
    last_attempt_ts: int = 0
    """The last attempt; 0 while the server is reachable, and so the next two."""
    backoff_ms: int = 0
    """The pause before the next attempt."""
    error: str | None = None
    """The error of the last attempt; None while the server is reachable."""
    retry_after_ts: int = 0
    """Until when its last answer asked us to send nothing; 0: it did not."""
    rooms_missed: int = 0
    """Rooms with pending events."""
    device_lists_missed: int = 0
    messages_to_devices: int = 0
    """Pending to-device messages."""
    delivered_upto: int = 0
    """The server has received every event for it up to this position."""


class DestinationRoom(msgspec.Struct, frozen=True):
    """A room that a server is in, or whose events it has missed."""

    room_id: str
    position: int
    """The position of the first missed event, else of the server's first join."""
    is_behind: bool


class DestinationListStore:
    """Reads the tables of outgoing federation and the table of the servers in rooms."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_page(
        self, term: str, order: Order, backwards: bool, offset: int, limit: int
    ) -> tuple[Sequence[DestinationSummary], int]:
        """Return a page of the servers that share rooms with us, or have something pending, with
        `term` in their name; and their number."""
        return await self._database.read(
            "get_destination_page", _select_page, term, order, backwards, offset, limit
        )

    async def get_one(self, server: str) -> DestinationSummary | None:
        """Return the state of one server."""
        return await self._database.read("get_destination", _select_one, server)

    async def get_rooms(
        self, server: str, backwards: bool, offset: int, limit: int
    ) -> tuple[Sequence[DestinationRoom], int]:
        """Return a page of the server's rooms, by room ID; and their number."""
        return await self._database.read(
            "get_destination_rooms", _select_rooms, server, backwards, offset, limit
        )


def _select_all(txn: Transaction) -> dict[str, DestinationSummary]:
    """Return all servers with the columns of `destinations`."""
    found = {row[0]: DestinationSummary(*row) for row in txn.query(_STATES)}
    names = txn.query(
        "SELECT server FROM room_servers UNION SELECT server FROM partial_servers"
        " UNION SELECT server FROM destination_rooms"
        " UNION SELECT server FROM destination_users UNION SELECT server FROM outgoing_to_device"
    )
    for (server,) in names:
        found.setdefault(server, DestinationSummary(server))
    first_missed: dict[str, int] = dict(
        txn.query("SELECT server, MIN(position) FROM destination_rooms GROUP BY server")
    )
    return _with_delivered(txn, found, first_missed)


def _select_page(
    txn: Transaction, term: str, order: Order, backwards: bool, offset: int, limit: int
) -> tuple[list[DestinationSummary], int]:
    keys = {
        "destination": lambda row: (row.server,),
        "retry_last_ts": lambda row: (row.last_attempt_ts, row.server),
        "retry_interval": lambda row: (row.backoff_ms, row.server),
        "failure_ts": lambda row: (row.failing_since_ts or 0, row.server),
        "delivered_upto": lambda row: (row.delivered_upto, row.server),
    }
    matching = [row for server, row in _select_all(txn).items() if term in server]
    page = sorted(matching, key=keys[order], reverse=backwards)[offset : offset + limit]
    return _with_counts(txn, page), len(matching)


def _select_one(txn: Transaction, server: str) -> DestinationSummary | None:
    row = txn.query_one(f"{_STATES} WHERE server = ?", (server,))
    if row is None:
        row = txn.query_one(
            "SELECT server FROM room_servers WHERE server = ? UNION ALL SELECT server"
            " FROM partial_servers WHERE server = ?"
            " UNION ALL SELECT server FROM destination_rooms WHERE server = ?"
            " UNION ALL SELECT server FROM destination_users WHERE server = ?"
            " UNION ALL SELECT server FROM outgoing_to_device WHERE server = ? LIMIT 1",
            (server,) * 5,
        )
    if row is None:
        return None
    first_missed: dict[str, int] = dict(
        txn.query(
            "SELECT server, MIN(position) FROM destination_rooms WHERE server = ? GROUP BY server",
            (server,),
        )
    )
    return _with_counts(
        txn, list(_with_delivered(txn, {server: DestinationSummary(*row)}, first_missed).values())
    )[0]


def _with_delivered(
    txn: Transaction, rows: Mapping[str, DestinationSummary], first_missed: Mapping[str, int]
) -> dict[str, DestinationSummary]:
    """Fill in `delivered_upto`. `first_missed`: the position of the first event that a server has
    missed, if any."""
    lease = txn.query_one("SELECT position FROM leases WHERE name = ?", (LEASE,))
    sent_upto = 0 if lease is None else int(lease[0])
    return {
        server: msgspec.structs.replace(
            row,
            delivered_upto=min(sent_upto, first_missed[server] - 1)
            if server in first_missed
            else sent_upto,
        )
        for server, row in rows.items()
    }


def _with_counts(txn: Transaction, rows: Sequence[DestinationSummary]) -> list[DestinationSummary]:
    rooms, users, messages = (
        _count(txn, table, [row.server for row in rows])
        for table in ("destination_rooms", "destination_users", "outgoing_to_device")
    )
    return [
        msgspec.structs.replace(
            row,
            rooms_missed=rooms.get(row.server, 0),
            device_lists_missed=users.get(row.server, 0),
            messages_to_devices=messages.get(row.server, 0),
        )
        for row in rows
    ]


def _count(txn: Transaction, table: str, servers: Sequence[str]) -> dict[str, int]:
    sql = f"SELECT server, count(*) FROM {table} WHERE server IN {{keys}} GROUP BY server"
    return {server: count for server, count in txn.query_in(sql, servers)}


def _select_rooms(
    txn: Transaction, server: str, backwards: bool, offset: int, limit: int
) -> tuple[list[DestinationRoom], int]:
    missed: dict[int, int] = dict(
        txn.query("SELECT room_nid, position FROM destination_rooms WHERE server = ?", (server,))
    )
    since: dict[int, int] = dict(
        txn.query(
            "SELECT p.room_nid, r.position FROM partial_servers AS p"
            " JOIN partial_rooms AS r ON r.room_nid = p.room_nid"
            " WHERE p.server = ? UNION ALL SELECT room_nid, joined_position FROM room_servers"
            " WHERE server = ?",
            (server, server),
        )
    )
    ids = txn.query_in(
        "SELECT room_nid, room_id FROM rooms WHERE room_nid IN {keys}", {*missed, *since}
    )
    rooms = [
        DestinationRoom(room_id, missed[nid] if nid in missed else since[nid], nid in missed)
        for nid, room_id in ids
    ]
    rooms.sort(key=lambda room: room.room_id, reverse=backwards)
    return rooms[offset : offset + limit], len(rooms)
