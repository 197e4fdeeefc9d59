"""Devices of other servers' users, as these told us: kept for those whom somebody asked for, and with whom we share a room.

Laws:
- A list is complete as of its number, or stale: then some change was missed, and it has to be fetched again.
- What changes is announced to our users, as changes of their own devices are; other servers are told nothing.
"""

from collections.abc import Iterable, Mapping, Sequence

import msgspec

from storage.cross_signing import CrossSigningKey, put_cross_signing_keys
from storage.database import Database
from storage.device_keys import DeviceKeysRow
from storage.devices import announce_device_list
from storage.transaction import Transaction, WriteTransaction


class TrackedList(msgspec.Struct, frozen=True):
    """What is known of a list of devices."""

    user_id: str
    stream_id: int
    """The last change of it that is in what we have."""
    is_stale: bool


class RemoteDeviceStore:
    """The tables of remote devices."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_lists(self, user_ids: Iterable[str]) -> Mapping[str, TrackedList]:
        """Those of the users whose devices are kept here; one query."""
        return await self._database.read_quickly("get_remote_lists", _select_lists, list(user_ids))

    async def get_stale(self, after: str, limit: int) -> Sequence[str]:
        """Users with stale lists, in order, after a user."""
        return await self._database.read("get_stale_lists", _select_stale, after, limit)

    async def set_stale(self, user_ids: Sequence[str]) -> None:
        """Something was missed of these, as far as their lists are kept. Everyone concerned is told to ask again."""
        await self._database.write("set_lists_stale", _set_stale, user_ids)

    async def set_list(
        self,
        user_id: str,
        stream_id: int,
        devices: Sequence[DeviceKeysRow],
        cross_signing: Sequence[CrossSigningKey],
        *,
        is_stale: bool,
    ) -> None:
        """Keep a whole list in the place of what was kept. `is_stale`: something changed while it was on its way."""
        await self._database.write(
            "set_remote_list", _set_list, TrackedList(user_id, stream_id, is_stale), devices, cross_signing
        )

    async def set_device(self, user_id: str, device_id: str, stream_id: int, device: DeviceKeysRow | None) -> None:
        """One device is another one now, or (None) gone: the change with this number, which follows what is kept."""
        await self._database.write("set_remote_device", _set_device, user_id, device_id, stream_id, device)

    async def set_cross_signing(self, user_id: str, keys: Sequence[CrossSigningKey]) -> None:
        """A user has these keys of cross-signing now."""
        await self._database.write("set_remote_cross_signing", _set_cross_signing, user_id, keys)

    async def announce(self, user_id: str) -> None:
        """Something of a user whose devices are not kept has changed."""
        await self._database.write("announce_remote_list", announce_device_list, user_id)

    async def remove_lists(self, user_ids: Sequence[str]) -> None:
        """Keep these users' devices no longer."""
        await self._database.write("remove_remote_lists", _remove_lists, user_ids)

    async def get_users_in(self, room_nid: int) -> Sequence[str]:
        """The members of a room whose devices are kept."""
        return await self._database.read("get_remote_lists_in", _select_in, room_nid)


def _select_lists(txn: Transaction, user_ids: list[str]) -> dict[str, TrackedList]:
    rows = txn.query_in(
        "SELECT user_id, stream_id, is_stale FROM remote_device_lists WHERE user_id IN {keys}", user_ids
    )
    return {row[0]: TrackedList(row[0], row[1], bool(row[2])) for row in rows}


def select_remote_devices(txn: Transaction, user_ids: Iterable[str]) -> dict[str, list[DeviceKeysRow]]:
    """The devices that are kept of these users; one query."""
    rows = txn.query_in(
        "SELECT user_id, device_id, keys, display_name FROM remote_devices WHERE user_id IN {keys} ORDER BY device_id",
        user_ids,
    )
    found: dict[str, list[DeviceKeysRow]] = {}
    for row in rows:
        found.setdefault(row[0], []).append(DeviceKeysRow(*row))
    return found


def _select_in(txn: Transaction, room_nid: int) -> list[str]:
    rows = txn.query(
        "SELECT l.user_id FROM memberships AS m JOIN remote_device_lists AS l ON l.user_id = m.user_id"
        " WHERE m.room_nid = ? AND m.membership = 'join'",
        (room_nid,),
    )
    return [user_id for (user_id,) in rows]


def _select_stale(txn: Transaction, after: str, limit: int) -> list[str]:
    sql = "SELECT user_id FROM remote_device_lists WHERE is_stale = 1 AND user_id > ? ORDER BY user_id LIMIT ?"
    return [user_id for (user_id,) in txn.query(sql, (after, limit))]


def _set_stale(txn: WriteTransaction, user_ids: Sequence[str]) -> None:
    for user_id in user_ids:
        sql = "UPDATE remote_device_lists SET is_stale = 1 WHERE user_id = ? AND is_stale = 0"
        if txn.execute(sql, (user_id,)):
            announce_device_list(txn, user_id)


def _set_list(
    txn: WriteTransaction,
    tracked: TrackedList,
    devices: Sequence[DeviceKeysRow],
    cross_signing: Sequence[CrossSigningKey],
) -> None:
    user_id = tracked.user_id
    before = {row.device_id: row for row in select_remote_devices(txn, [user_id]).get(user_id, ())}
    was_tracked = bool(_select_lists(txn, [user_id]))
    txn.execute("DELETE FROM remote_devices WHERE user_id = ?", (user_id,))
    txn.execute_many(
        "INSERT INTO remote_devices (user_id, device_id, keys, display_name) VALUES (?, ?, ?, ?)",
        [(user_id, row.device_id, row.keys, row.display_name) for row in devices],
    )
    keys_changed = put_cross_signing_keys(txn, user_id, ("master", "self_signing"), cross_signing)
    txn.execute(
        "INSERT INTO remote_device_lists (user_id, stream_id, is_stale) VALUES (?, ?, ?)"
        " ON CONFLICT (user_id) DO UPDATE SET stream_id = excluded.stream_id, is_stale = excluded.is_stale",
        (user_id, tracked.stream_id, int(tracked.is_stale)),
    )
    if was_tracked and (keys_changed or before != {row.device_id: row for row in devices}):
        announce_device_list(txn, user_id)


def _set_device(
    txn: WriteTransaction, user_id: str, device_id: str, stream_id: int, device: DeviceKeysRow | None
) -> None:
    if device is None:
        txn.execute("DELETE FROM remote_devices WHERE user_id = ? AND device_id = ?", (user_id, device_id))
    else:
        txn.execute(
            "INSERT INTO remote_devices (user_id, device_id, keys, display_name) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (user_id, device_id) DO UPDATE SET keys = excluded.keys, display_name = excluded.display_name",
            (user_id, device_id, device.keys, device.display_name),
        )
    txn.execute("UPDATE remote_device_lists SET stream_id = ? WHERE user_id = ?", (stream_id, user_id))
    announce_device_list(txn, user_id)


def _set_cross_signing(txn: WriteTransaction, user_id: str, keys: Sequence[CrossSigningKey]) -> None:
    if put_cross_signing_keys(txn, user_id, (), keys):
        announce_device_list(txn, user_id)


def _remove_lists(txn: WriteTransaction, user_ids: Sequence[str]) -> None:
    for table in ("remote_devices", "remote_device_lists", "cross_signing_keys"):
        txn.execute_many(f"DELETE FROM {table} WHERE user_id = ?", [(user_id,) for user_id in user_ids])
