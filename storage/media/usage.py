"""Disk usage of files by user, by room, by server, and in total, for administrators.

The query for a single room reads only the files of that room. All other queries read the rows of
all files.
"""

from collections.abc import Sequence

import msgspec

from storage.engine.database import Database
from storage.engine.transaction import Transaction
from storage.media.references import ReferenceRole


class MediaAmount(msgspec.Struct, frozen=True):
    """A number of files, and their bytes."""

    count: int
    size: int


class UserUsage(msgspec.Struct, frozen=True):
    """The uploads of a user."""

    user_id: str
    display_name: str | None
    amount: MediaAmount


class ServerUsage(msgspec.Struct, frozen=True):
    """All files. Bytes that several files share are counted for each file, except in `contents`."""

    own: MediaAmount
    copies: MediaAmount
    contents: MediaAmount
    """The stored contents: equal bytes count once."""
    objects: MediaAmount
    """The part of the contents that is in the object store."""
    quarantined: int
    rooms: Sequence[tuple[str, MediaAmount]]
    """The rooms whose events refer to most bytes, largest first."""
    servers: Sequence[tuple[str, MediaAmount]]
    """The remote servers with the largest copies, largest first."""


class RoomUsage(msgspec.Struct, frozen=True):
    """Files in the events of a room, without avatars of its members."""

    own: MediaAmount
    copies: MediaAmount


class MediaUsageStore:
    """Computes disk usage. `own`: this server's name."""

    def __init__(self, *, database: Database, own: str) -> None:
        self._database = database
        self._own = own

    async def get_of_users(self, from_ms: int, until_ms: int | None) -> Sequence[UserUsage]:
        """Return the uploads of each user in a range of time. Users without files are missing, and
        so are pictures of URL previews."""
        return await self._database.read(
            "get_media_usage_of_users", _select_users, from_ms, until_ms
        )

    async def get_of_server(self, rooms: int, servers: int) -> ServerUsage:
        """Return the total usage, with the `rooms` largest rooms and the `servers` largest remote
        servers."""
        return await self._database.read(
            "get_media_usage", _select_server, self._own, rooms, servers
        )

    async def get_of_room(self, room_id: str) -> RoomUsage | None:
        """Return the usage of a room; None for an unknown room."""
        return await self._database.read(
            "get_media_usage_of_room", _select_room, self._own, room_id
        )


def _select_users(txn: Transaction, from_ms: int, until_ms: int | None) -> Sequence[UserUsage]:
    rows = txn.query(
        "SELECT u.user_id, p.value, u.files, u.bytes"
        " FROM (SELECT user_id, COUNT(*) AS files, SUM(size) AS bytes FROM media"
        " WHERE hash IS NOT NULL AND user_id <> '' AND created_ts >= ? AND created_ts <= ?"
        " GROUP BY user_id) AS u"
        " LEFT JOIN profiles AS p ON p.user_id = u.user_id AND p.field = 'displayname'"
        " ORDER BY u.user_id",
        (from_ms, 2**62 if until_ms is None else until_ms),
    )
    return [
        UserUsage(user_id, _name(value), MediaAmount(int(count), int(size)))
        for user_id, value, count, size in rows
    ]


def _select_server(txn: Transaction, own: str, rooms: int, servers: int) -> ServerUsage:
    both = " UNION ALL ".join(
        f"SELECT hash, size, quarantined FROM {table} WHERE hash IS NOT NULL"
        for table in ("media", "remote_media")
    )
    sizes = " UNION ALL ".join(
        "SELECT k.media_nid, m.size FROM tracked_media AS k"
        f" JOIN {table} AS m ON m.media_id = k.media_id AND {where}"
        for table, where in (("media", "k.origin = ?"), ("remote_media", "k.origin = m.origin"))
    )
    largest_rooms = txn.query(
        "SELECT r.room_id, COUNT(*), SUM(s.size) FROM"
        " (SELECT DISTINCT room_nid, media_nid FROM media_event_references"
        f" WHERE role <> {int(ReferenceRole.MEMBER)}) AS e"
        f" JOIN ({sizes}) AS s ON s.media_nid = e.media_nid"
        " JOIN rooms AS r ON r.room_nid = e.room_nid"
        " GROUP BY r.room_id ORDER BY 3 DESC, r.room_id LIMIT ?",
        (own, rooms),
    )
    quarantined = txn.query_one(f"SELECT COUNT(*) FROM ({both}) AS b WHERE quarantined = 1")
    return ServerUsage(
        _amount(txn, "SELECT COUNT(*), SUM(size) FROM media WHERE hash IS NOT NULL"),
        _amount(txn, "SELECT COUNT(*), SUM(size) FROM remote_media"),
        _amount(
            txn,
            f"SELECT COUNT(*), SUM(size) FROM (SELECT hash, MAX(size) AS size FROM ({both}) AS b"
            " GROUP BY hash) AS c",
        ),
        _amount(txn, "SELECT COUNT(*), SUM(size) FROM media_objects WHERE state = 'stored'"),
        int(quarantined[0]) if quarantined is not None else 0,
        [(room_id, MediaAmount(int(count), int(size))) for room_id, count, size in largest_rooms],
        [
            (origin, MediaAmount(int(count), int(size)))
            for origin, count, size in txn.query(
                "SELECT origin, COUNT(*), SUM(size) FROM remote_media GROUP BY origin"
                " ORDER BY 3 DESC, origin LIMIT ?",
                (servers,),
            )
        ],
    )


def _select_room(txn: Transaction, own: str, room_id: str) -> RoomUsage | None:
    room = txn.query_one("SELECT room_nid FROM rooms WHERE room_id = ?", (room_id,))
    if room is None:
        return None
    shown = (
        "SELECT COUNT(*), SUM(m.size) FROM tracked_media AS k"
        " JOIN {table} AS m ON m.media_id = k.media_id AND {where} WHERE k.media_nid IN"
        " (SELECT media_nid FROM media_event_references"
        f" WHERE room_nid = ? AND role <> {int(ReferenceRole.MEMBER)})"
    )
    return RoomUsage(
        _amount(txn, shown.format(table="media", where="k.origin = ?"), (own, room[0])),
        _amount(txn, shown.format(table="remote_media", where="k.origin = m.origin"), (room[0],)),
    )


def _amount(txn: Transaction, sql: str, args: Sequence[str | int] = ()) -> MediaAmount:
    row = txn.query_one(sql, args)
    return MediaAmount(0, 0) if row is None else MediaAmount(int(row[0]), int(row[1] or 0))


def _name(value: bytes | None) -> str | None:
    name = None if value is None else msgspec.json.decode(bytes(value))
    return name if isinstance(name, str) else None
