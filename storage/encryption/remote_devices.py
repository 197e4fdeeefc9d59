"""A cache of the device lists of remote users who share a room with local users. A list is cached
when it is first requested.

Laws:
- A device list is either current up to its stream ID, or stale: changes were or may have been
  missed. A stale list has to be fetched again. Devices above a limit are left out.
- A change is announced to local users, like a change of local devices. It is not sent to other
  servers.
- The write that stores a change checks that the change follows the stored list. The write that
  stores a fetched list checks that no change arrived since the request. Checks before the write
  are not enough, because other nodes receive changes too.
- The transaction with which a user begins to share a room with us marks the user's list as stale,
  because we received no changes before.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence, Set

import msgspec

from storage.devices.devices import announce_device_list, announce_remote_lists, select_positions
from storage.encryption.cross_signing import CrossSigningKey, put_cross_signing_keys
from storage.encryption.device_keys import DeviceKeysRow
from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction
from storage.rooms.memberships import select_users_sharing_rooms


class CachedDeviceList(msgspec.Struct, frozen=True):
    """The state of a cached device list."""

    user_id: str
    stream_id: int
    """The last change that the cached list includes."""
    is_stale: bool


class DeviceListUpdate(msgspec.Struct, frozen=True):
    """A device list update from another server."""

    user_id: str
    device_id: str
    stream_id: int
    prev_ids: Sequence[int] | None
    """The preceding changes; None if the update did not state them in a valid form."""
    device: DeviceKeysRow | None
    """The device after the change; None if it was deleted."""
    is_understood: bool
    """Whether the update says what happened to the device."""


class RemoteDeviceStore:
    """Stores devices of remote users."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_lists(self, user_ids: Iterable[str]) -> Mapping[str, CachedDeviceList]:
        """Return the cached device lists of these users; one query."""
        return await self._database.read_quickly("get_remote_lists", _select_lists, list(user_ids))

    async def get_stale(self, after: str, limit: int) -> Sequence[str]:
        """Return users with stale lists, in order, after a user."""
        return await self._database.read("get_stale_lists", _select_stale, after, limit)

    async def get_position(self, user_id: str) -> int:
        """Return the position of the last announced change of the user's devices; 0 if none."""
        found = await self._database.read_quickly(
            "get_remote_position", select_positions, [user_id]
        )
        return found.get(user_id, 0)

    async def set_list(
        self,
        user_id: str,
        stream_id: int,
        devices: Sequence[DeviceKeysRow],
        cross_signing: Sequence[CrossSigningKey],
        requested_at: int,
    ) -> None:
        """Replace a cached list by a complete one. `requested_at` is the position (`get_position`)
        at the time of the request. If there is a later one, something changed meanwhile, and the
        list is stale."""
        await self._database.write(
            "set_remote_list",
            _replace_list,
            user_id,
            stream_id,
            devices,
            cross_signing,
            requested_at,
        )

    async def apply_update(
        self, change: DeviceListUpdate, max_devices: int, max_bytes: int
    ) -> bool:
        """Apply a change of a device. If it neither follows the stored list nor is known already,
        the list becomes stale. Return whether it did.

        A device is not stored if the user already has `max_devices` devices, or if all would exceed
        `max_bytes` bytes of keys.
        """
        return await self._database.write(
            "apply_remote_device_update", _take_change, change, max_devices, max_bytes
        )

    async def set_cross_signing(self, user_id: str, keys: Sequence[CrossSigningKey]) -> None:
        """Set the cross-signing keys of a user, if their device list is cached."""
        await self._database.write("set_remote_cross_signing", _set_cross_signing, user_id, keys)

    async def remove_unshared(self, user_ids: Collection[str]) -> None:
        """Delete the data of those of these users who share no room with us."""
        await self._database.write("remove_remote_lists", _remove_unshared, user_ids)

    async def get_users(self, after: str, limit: int) -> Sequence[str]:
        """Return users with stored device data, local ones included, in order, after a user."""
        return await self._database.read("get_known_device_lists", _select_known, after, limit)


def _select_lists(txn: Transaction, user_ids: list[str]) -> dict[str, CachedDeviceList]:
    rows = txn.query_in(
        "SELECT user_id, stream_id, is_stale FROM remote_device_lists WHERE user_id IN {keys}",
        user_ids,
    )
    return {row[0]: CachedDeviceList(row[0], row[1], bool(row[2])) for row in rows}


def select_remote_devices(
    txn: Transaction, user_ids: Iterable[str]
) -> dict[str, list[DeviceKeysRow]]:
    """Return the cached devices of these users; one query."""
    rows = txn.query_in(
        "SELECT user_id, device_id, keys, display_name FROM remote_devices WHERE user_id IN {keys}"
        " ORDER BY device_id",
        user_ids,
    )
    found: dict[str, list[DeviceKeysRow]] = {}
    for row in rows:
        found.setdefault(row[0], []).append(DeviceKeysRow(*row))
    return found


def mark_newly_shared(
    txn: WriteTransaction, room_nid: int, arrived: Set[str], *, is_first_local: bool
) -> None:
    """Mark the lists of users who share a room with us since this write as stale: we received no
    updates about them before. `arrived`: remote users who joined the room; `is_first_local`: the
    first local user joined it.

    Costs one query if no list of any of them is cached.
    """
    tracked = set(_select_lists(txn, sorted(arrived))) if arrived else set[str]()
    if is_first_local:
        rows = txn.query(
            "SELECT l.user_id FROM memberships AS m"
            " JOIN remote_device_lists AS l ON l.user_id = m.user_id"
            " WHERE m.room_nid = ? AND m.membership = 'join'",
            (room_nid,),
        )
        tracked.update(user_id for (user_id,) in rows)
    if tracked:
        newly = tracked - select_users_sharing_rooms(txn, sorted(tracked), except_room_nid=room_nid)
        _mark_stale(txn, sorted(newly))


def _select_known(txn: Transaction, after: str, limit: int) -> list[str]:
    found: set[str] = set()
    for table in ("remote_device_lists", "device_list_positions"):
        sql = f"SELECT user_id FROM {table} WHERE user_id > ? ORDER BY user_id LIMIT ?"
        found.update(user_id for (user_id,) in txn.query(sql, (after, limit)))
    return sorted(found)[:limit]


def _select_stale(txn: Transaction, after: str, limit: int) -> list[str]:
    sql = (
        "SELECT user_id FROM remote_device_lists WHERE is_stale = 1 AND user_id > ?"
        " ORDER BY user_id LIMIT ?"
    )
    return [user_id for (user_id,) in txn.query(sql, (after, limit))]


def _mark_stale(txn: WriteTransaction, user_ids: Sequence[str]) -> None:
    """Mark lists as stale, even those that are: a list that is being fetched may be older."""
    sql = "UPDATE remote_device_lists SET is_stale = 1 WHERE user_id = ?"
    txn.execute_many(sql, [(user_id,) for user_id in user_ids])
    announce_remote_lists(txn, user_ids)


def _replace_list(
    txn: WriteTransaction,
    user_id: str,
    stream_id: int,
    devices: Sequence[DeviceKeysRow],
    cross_signing: Sequence[CrossSigningKey],
    requested_at: int,
) -> None:
    has_changed = select_positions(txn, [user_id]).get(user_id, 0) != requested_at
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
        " ON CONFLICT (user_id) DO UPDATE SET stream_id = excluded.stream_id,"
        " is_stale = excluded.is_stale",
        (user_id, stream_id, int(has_changed)),
    )
    if was_tracked and (keys_changed or before != {row.device_id: row for row in devices}):
        announce_device_list(txn, user_id)


def _take_change(
    txn: WriteTransaction, change: DeviceListUpdate, max_devices: int, max_bytes: int
) -> bool:
    user_id, device_id, device = change.user_id, change.device_id, change.device
    tracked = _select_lists(txn, [user_id]).get(user_id)
    if tracked is None:
        announce_device_list(txn, user_id)
        return False
    if tracked.is_stale or not change.is_understood or not _follows(change, tracked):
        is_old = not tracked.is_stale and change.stream_id <= tracked.stream_id
        if is_old and (
            not change.is_understood
            or _select_device(txn, user_id, device_id) == (device and device.keys)
        ):
            return False  # already applied
        _mark_stale(txn, [user_id])
        return True
    if device is not None and _fits(txn, device, max_devices, max_bytes):
        txn.execute(
            "INSERT INTO remote_devices (user_id, device_id, keys, display_name)"
            " VALUES (?, ?, ?, ?)"
            " ON CONFLICT (user_id, device_id) DO UPDATE SET keys = excluded.keys,"
            " display_name = excluded.display_name",
            (user_id, device_id, device.keys, device.display_name),
        )
    else:
        txn.execute(
            "DELETE FROM remote_devices WHERE user_id = ? AND device_id = ?", (user_id, device_id)
        )
    txn.execute(
        "UPDATE remote_device_lists SET stream_id = ? WHERE user_id = ?",
        (change.stream_id, user_id),
    )
    announce_device_list(txn, user_id)
    return False


def _select_device(txn: Transaction, user_id: str, device_id: str) -> bytes | None:
    row = txn.query_one(
        "SELECT keys FROM remote_devices WHERE user_id = ? AND device_id = ?", (user_id, device_id)
    )
    return None if row is None else bytes(row[0])


def _fits(txn: Transaction, device: DeviceKeysRow, max_devices: int, max_bytes: int) -> bool:
    """Return whether the device can be stored beside the user's other devices. Reads only their
    number and size."""
    sql = (
        "SELECT count(*), coalesce(sum(length(keys)), 0) FROM remote_devices"
        " WHERE user_id = ? AND device_id <> ?"
    )
    ((number, size),) = txn.query(sql, (device.user_id, device.device_id))
    return int(number) < max_devices and int(size) + len(device.keys) <= max_bytes


def _follows(change: DeviceListUpdate, tracked: CachedDeviceList) -> bool:
    """Return whether the change follows the stored list without a gap."""
    if change.prev_ids is None or change.stream_id <= tracked.stream_id:
        return False
    return max(change.prev_ids) <= tracked.stream_id if change.prev_ids else tracked.stream_id == 0


def _set_cross_signing(
    txn: WriteTransaction, user_id: str, keys: Sequence[CrossSigningKey]
) -> None:
    if not _select_lists(txn, [user_id]) or put_cross_signing_keys(txn, user_id, (), keys):
        announce_device_list(txn, user_id)


def _remove_unshared(txn: WriteTransaction, user_ids: Collection[str]) -> None:
    unshared = sorted(set(user_ids) - select_users_sharing_rooms(txn, sorted(user_ids)))
    for table in (
        "remote_devices",
        "remote_device_lists",
        "cross_signing_keys",
        "device_list_positions",
    ):
        txn.execute_many(
            f"DELETE FROM {table} WHERE user_id = ?", [(user_id,) for user_id in unshared]
        )
