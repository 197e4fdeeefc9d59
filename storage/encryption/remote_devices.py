"""Devices of other servers' users, as these told us: kept for those whom somebody asked for, and
with whom we share a room.

Laws:
- A list is complete as of its number, or stale: then some change was missed, and it has to be
  fetched again.
- What changes is announced to our users, as changes of their own devices are; other servers are
  told nothing.
- Whether a change follows upon what is kept, and whether one came while a list was on its way, is
  decided in the write: other processes take in changes too.
- Who comes to share a room with us finds their list stale in the write that lets them in.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence, Set

import msgspec

from storage.devices.devices import announce_device_list, announce_remote_lists, select_positions
from storage.encryption.cross_signing import CrossSigningKey, put_cross_signing_keys
from storage.encryption.device_keys import DeviceKeysRow
from storage.engine.database import Database
from storage.engine.transaction import Transaction, WriteTransaction
from storage.rooms.memberships import select_users_with_ours


class TrackedList(msgspec.Struct, frozen=True):
    """What is known of a list of devices."""

    user_id: str
    stream_id: int
    """The last change of it that is in what we have."""
    is_stale: bool


class DeviceChange(msgspec.Struct, frozen=True):
    """What another server says of a device of one of its users."""

    user_id: str
    device_id: str
    stream_id: int
    prev_ids: Sequence[int] | None
    """The changes before it; None: that was not said in a way that can be understood."""
    device: DeviceKeysRow | None
    """As it is now; None where it is gone."""
    is_clear: bool
    """Whether it is said what became of the device."""


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

    async def get_position(self, user_id: str) -> int:
        """Where something that was heard of the user's devices was announced last; 0: never."""
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
        asked_at: int,
    ) -> None:
        """Keep a whole list in the place of what was kept. `asked_at`: the position
        (`get_position`) when it was asked for; where there is a later one, something changed while
        the list was on its way, and it is stale."""
        await self._database.write(
            "set_remote_list", _set_list, user_id, stream_id, devices, cross_signing, asked_at
        )

    async def take_change(self, change: DeviceChange, most: int, most_bytes: int) -> bool:
        """Take in a change of a device. Where it does not follow upon what is kept, and is not
        known either, the list is stale; whether it is.

        A device is not kept where there are `most` already, or all would have more than so many
        bytes of keys.
        """
        return await self._database.write(
            "take_remote_change", _take_change, change, most, most_bytes
        )

    async def set_cross_signing(self, user_id: str, keys: Sequence[CrossSigningKey]) -> None:
        """A user has these keys of cross-signing now; they are kept where the list is."""
        await self._database.write("set_remote_cross_signing", _set_cross_signing, user_id, keys)

    async def remove_unshared(self, user_ids: Collection[str]) -> None:
        """Keep nothing any longer of those of these users with whom no room is shared."""
        await self._database.write("remove_remote_lists", _remove_unshared, user_ids)

    async def get_known(self, after: str, limit: int) -> Sequence[str]:
        """Users, our own among them, of whose devices something is kept; the first ones after a
        user, in order."""
        return await self._database.read("get_known_device_lists", _select_known, after, limit)


def _select_lists(txn: Transaction, user_ids: list[str]) -> dict[str, TrackedList]:
    rows = txn.query_in(
        "SELECT user_id, stream_id, is_stale FROM remote_device_lists WHERE user_id IN {keys}",
        user_ids,
    )
    return {row[0]: TrackedList(row[0], row[1], bool(row[2])) for row in rows}


def select_remote_devices(
    txn: Transaction, user_ids: Iterable[str]
) -> dict[str, list[DeviceKeysRow]]:
    """The devices that are kept of these users; one query."""
    rows = txn.query_in(
        "SELECT user_id, device_id, keys, display_name FROM remote_devices WHERE user_id IN {keys}"
        " ORDER BY device_id",
        user_ids,
    )
    found: dict[str, list[DeviceKeysRow]] = {}
    for row in rows:
        found.setdefault(row[0], []).append(DeviceKeysRow(*row))
    return found


def note_newly_shared(
    txn: WriteTransaction, room_nid: int, came: Set[str], *, is_entered: bool
) -> None:
    """Mark as stale the lists of those who share a room with us since this write, and no other one:
    until now we were told nothing of them. `came`: other servers' users who came into the room;
    `is_entered`: the first of ours has.

    It costs a query as long as no list is kept of any of them.
    """
    tracked = set(_select_lists(txn, sorted(came))) if came else set[str]()
    if is_entered:
        rows = txn.query(
            "SELECT l.user_id FROM memberships AS m"
            " JOIN remote_device_lists AS l ON l.user_id = m.user_id"
            " WHERE m.room_nid = ? AND m.membership = 'join'",
            (room_nid,),
        )
        tracked.update(user_id for (user_id,) in rows)
    if tracked:
        newly = tracked - select_users_with_ours(txn, sorted(tracked), besides=room_nid)
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
    """Also where they are so already: a list of these that is on its way may be of before."""
    sql = "UPDATE remote_device_lists SET is_stale = 1 WHERE user_id = ?"
    txn.execute_many(sql, [(user_id,) for user_id in user_ids])
    announce_remote_lists(txn, user_ids)


def _set_list(
    txn: WriteTransaction,
    user_id: str,
    stream_id: int,
    devices: Sequence[DeviceKeysRow],
    cross_signing: Sequence[CrossSigningKey],
    asked_at: int,
) -> None:
    is_overtaken = select_positions(txn, [user_id]).get(user_id, 0) != asked_at
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
        (user_id, stream_id, int(is_overtaken)),
    )
    if was_tracked and (keys_changed or before != {row.device_id: row for row in devices}):
        announce_device_list(txn, user_id)


def _take_change(txn: WriteTransaction, change: DeviceChange, most: int, most_bytes: int) -> bool:
    user_id, device_id, device = change.user_id, change.device_id, change.device
    tracked = _select_lists(txn, [user_id]).get(user_id)
    if tracked is None:
        announce_device_list(txn, user_id)
        return False
    if tracked.is_stale or not change.is_clear or not _follows(change, tracked):
        is_old = not tracked.is_stale and change.stream_id <= tracked.stream_id
        if is_old and (
            not change.is_clear
            or _select_device(txn, user_id, device_id) == (device and device.keys)
        ):
            return False  # heard of before
        _mark_stale(txn, [user_id])
        return True
    if device is not None and _has_room(txn, device, most, most_bytes):
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


def _has_room(txn: Transaction, device: DeviceKeysRow, most: int, most_bytes: int) -> bool:
    """Whether the device can be kept beside the others of its user, of which nothing is read but
    how much they are."""
    sql = (
        "SELECT count(*), coalesce(sum(length(keys)), 0) FROM remote_devices"
        " WHERE user_id = ? AND device_id <> ?"
    )
    ((number, size),) = txn.query(sql, (device.user_id, device.device_id))
    return int(number) < most and int(size) + len(device.keys) <= most_bytes


def _follows(change: DeviceChange, tracked: TrackedList) -> bool:
    """Whether nothing lies between the change and what is kept."""
    if change.prev_ids is None or change.stream_id <= tracked.stream_id:
        return False
    return max(change.prev_ids) <= tracked.stream_id if change.prev_ids else tracked.stream_id == 0


def _set_cross_signing(
    txn: WriteTransaction, user_id: str, keys: Sequence[CrossSigningKey]
) -> None:
    if not _select_lists(txn, [user_id]) or put_cross_signing_keys(txn, user_id, (), keys):
        announce_device_list(txn, user_id)


def _remove_unshared(txn: WriteTransaction, user_ids: Collection[str]) -> None:
    unshared = sorted(set(user_ids) - select_users_with_ours(txn, sorted(user_ids)))
    for table in (
        "remote_devices",
        "remote_device_lists",
        "cross_signing_keys",
        "device_list_positions",
    ):
        txn.execute_many(
            f"DELETE FROM {table} WHERE user_id = ?", [(user_id,) for user_id in unshared]
        )
