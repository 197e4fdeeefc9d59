"""Devices of users: display name, time and IP address of the last use. Also the position of each
user's last device list change.

Laws:
- A change of the list (a device added or deleted, a new name, new keys) takes a position
  (`Topic.DEVICE`). Only the position of each user's latest change is stored.
- Other servers are notified of changed keys and deleted devices
  (`storage/devices/device_list_log.py`), but not of display names.
- The time when a device was last seen is written in batches, takes no position, and may be some
  minutes old.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Final

import msgspec

from storage.accounts.audit import AuditRecord, add_records_of_new_addresses
from storage.devices.device_list_log import log_changes
from storage.engine.database import Database
from storage.engine.streams import Change, Topic
from storage.engine.transaction import Transaction, WriteTransaction

DEVICES_CHANGED_COUNTER: Final = "devices_changed"
"""The counter with the position at which a device was last added or deleted. Every write has it in
memory."""

HOUR_MS: Final = 3_600_000


class DeviceRow(msgspec.Struct, frozen=True):
    """One device. Times are milliseconds since 1970."""

    user_id: str
    device_id: str
    display_name: str | None
    created_ts: int
    last_seen_ts: int | None = None
    last_seen_ip: str | None = None
    last_seen_user_agent: str | None = None


class DeviceLastSeen(msgspec.Struct, frozen=True):
    """A request by a device."""

    user_id: str
    device_id: str
    ts: int
    ip: str
    user_agent: str
    audit_kind: str | None = None
    """The kind of audit record to write if this is the first request of the account from this
    address; None for no record."""
    address: str = ""
    """The address range of `ip` that counts as one address."""


_SET_POSITION = (
    "INSERT INTO device_list_positions (user_id, position) VALUES (?, ?)"
    " ON CONFLICT (user_id) DO UPDATE SET position = excluded.position"
)
_COLUMNS = (
    "user_id, device_id, display_name, created_ts, last_seen_ts, last_seen_ip, last_seen_user_agent"
)


class DeviceStore:
    """Stores devices."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get_devices(self, user_ids: Iterable[str]) -> dict[str, list[DeviceRow]]:
        """Return all devices of these users, ordered by device ID, in one query. Users without
        devices are missing."""
        return await self._database.read("get_devices", self.get_devices_in, tuple(user_ids))

    def get_devices_in(
        self, txn: Transaction, user_ids: Iterable[str]
    ) -> dict[str, list[DeviceRow]]:
        """Do `get_devices` in a transaction."""
        devices: dict[str, list[DeviceRow]] = {}
        for row in txn.query_in(
            f"SELECT {_COLUMNS} FROM devices WHERE user_id IN {{keys}} ORDER BY device_id", user_ids
        ):
            devices.setdefault(row[0], []).append(DeviceRow(*row))
        return devices

    async def get_device(self, user_id: str, device_id: str) -> DeviceRow | None:
        """Return one device of one user."""

        def read(txn: Transaction) -> DeviceRow | None:
            sql = f"SELECT {_COLUMNS} FROM devices WHERE user_id = ? AND device_id = ?"
            row = txn.query_one(sql, (user_id, device_id))
            return None if row is None else DeviceRow(*row)

        return await self._database.read_quickly("get_device", read)

    def get_ids_in(self, txn: Transaction, user_id: str, device_ids: Iterable[str]) -> set[str]:
        """Return those of these device IDs that the user has; one query."""
        sql = "SELECT device_id FROM devices WHERE user_id = ? AND device_id IN {keys}"
        return {row[0] for row in txn.query_in(sql, device_ids, before=(user_id,))}

    async def get_changed_device_lists(
        self, user_ids: Iterable[str], since: int, upto: int
    ) -> set[str]:
        """Return those of the users whose device list changed after `since`, up to `upto`; one
        query."""

        def read(txn: Transaction, keys: tuple[str, ...]) -> set[str]:
            sql = (
                "SELECT user_id FROM device_list_positions"
                " WHERE position > ? AND position <= ? AND user_id IN {keys}"
            )
            return {row[0] for row in txn.query_in(sql, keys, before=(since, upto))}

        return await self._database.read("get_changed_device_lists", read, tuple(user_ids))

    async def get_all_changed_device_lists(self, since: int, upto: int) -> set[str]:
        """Return all users whose device list changed after `since`, up to `upto`. For clients that
        were away for long."""

        def read(txn: Transaction) -> set[str]:
            sql = "SELECT user_id FROM device_list_positions WHERE position > ? AND position <= ?"
            return {row[0] for row in txn.query(sql, (since, upto))}

        return await self._database.read("get_all_changed_device_lists", read)

    def add_device(self, txn: WriteTransaction, device: DeviceRow) -> bool:
        """Create a device. Return False if one with that ID exists, which keeps its name."""
        added = txn.execute(
            f"INSERT INTO devices ({_COLUMNS}, last_seen_hour, device_nid)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT DO NOTHING",
            (
                device.user_id,
                device.device_id,
                device.display_name,
                device.created_ts,
                device.last_seen_ts,
                device.last_seen_ip,
                device.last_seen_user_agent,
                None if device.last_seen_ts is None else device.last_seen_ts // HOUR_MS,
                txn.allocate("device"),
            ),
        )
        if added:
            txn.record_position(DEVICES_CHANGED_COUNTER, announce_device_list(txn, device.user_id))
        return bool(added)

    def set_display_name(
        self, txn: WriteTransaction, user_id: str, device_id: str, name: str
    ) -> bool:
        """Rename a device. Return False if it does not exist."""
        sql = "UPDATE devices SET display_name = ? WHERE user_id = ? AND device_id = ?"
        if not txn.execute(sql, (name, user_id, device_id)):
            return False
        announce_device_list(txn, user_id)
        return True

    async def set_last_seen(
        self, sightings: Iterable[DeviceLastSeen], known: Collection[str] = ()
    ) -> None:
        """Record when devices were last seen, as one batch, the latest of a device last. `known`:
        as in `add_records_of_new_addresses`."""

        def write(txn: WriteTransaction, rows: list[tuple[str | int, ...]]) -> None:
            txn.execute_many(
                "UPDATE devices SET last_seen_ts = ?, last_seen_ip = ?, last_seen_user_agent = ?,"
                " last_seen_hour = ?"
                " WHERE user_id = ? AND device_id = ?",
                rows,
            )
            audited = [s for s in batch if s.audit_kind is not None]
            records = [
                AuditRecord(s.user_id, s.ts, s.audit_kind or "", s.address, s.device_id)
                for s in audited
            ]
            add_records_of_new_addresses(txn, records, known)

        batch = list(sightings)
        rows: list[tuple[str | int, ...]] = [
            (s.ts, s.ip, s.user_agent, s.ts // HOUR_MS, s.user_id, s.device_id) for s in batch
        ]
        await self._database.write("set_sightings", write, rows)

    async def delete_addresses(self, before: int, limit: int) -> int:
        """Delete the address and user agent of up to `limit` devices that were last seen before
        this time. Return their number."""
        rows = await self._database.read(
            "get_old_device_addresses", _select_old_addresses, before, limit
        )
        if rows:
            await self._database.write("delete_device_addresses", _delete_addresses, before, rows)
        return len(rows)

    def remove_devices(
        self, txn: WriteTransaction, user_id: str, device_ids: Iterable[str]
    ) -> None:
        """Delete these devices. Their tokens and keys are deleted by other stores in the same
        write."""
        rows = [(user_id, device_id) for device_id in device_ids]
        if rows:
            txn.execute_many("DELETE FROM devices WHERE user_id = ? AND device_id = ?", rows)
            position = announce_device_list(txn, user_id, [device_id for _, device_id in rows])
            txn.record_position(DEVICES_CHANGED_COUNTER, position)


def select_positions(txn: Transaction, user_ids: Iterable[str]) -> dict[str, int]:
    """Return the position of the last change of these users' device lists; users without a change
    are missing. One query."""
    sql = "SELECT user_id, position FROM device_list_positions WHERE user_id IN {keys}"
    return {user_id: position for user_id, position in txn.query_in(sql, user_ids)}


def _select_old_addresses(txn: Transaction, before: int, limit: int) -> list[tuple[str, str]]:
    return txn.query(
        "SELECT user_id, device_id FROM devices WHERE last_seen_hour <= ? AND last_seen_ts < ?"
        " ORDER BY last_seen_hour LIMIT ?",
        (before // HOUR_MS, before, limit),
    )


def _delete_addresses(
    txn: WriteTransaction, before: int, devices: Sequence[tuple[str, str]]
) -> None:
    txn.execute_many(
        "UPDATE devices SET last_seen_ip = NULL, last_seen_user_agent = NULL, last_seen_hour = NULL"
        " WHERE user_id = ? AND device_id = ? AND last_seen_ts < ?",
        [(user_id, device_id, before) for user_id, device_id in devices],
    )


def announce_device_list(
    txn: WriteTransaction, user_id: str, device_ids: Sequence[str | None] = ()
) -> int:
    """Announce a change of the user's devices or keys. Return its position.

    `device_ids`: the devices of a local user whose change is sent to other servers. None stands for
    the cross-signing keys.
    """
    first = txn.next_position(max(1, len(device_ids)))
    if device_ids:
        log_changes(txn, user_id, device_ids, first)
    position = first + max(0, len(device_ids) - 1)
    txn.execute_later(_SET_POSITION, (user_id, position))
    txn.announce(Change(position, Topic.DEVICE, user_id=user_id))
    return position


def announce_remote_lists(txn: WriteTransaction, user_ids: Sequence[str]) -> None:
    """Announce changes of these remote users' devices; two statements, however many users."""
    if user_ids:
        positions = dict(enumerate(user_ids, txn.next_position(len(user_ids))))
        txn.execute_many(
            _SET_POSITION, [(user_id, position) for position, user_id in positions.items()]
        )
        for position, user_id in positions.items():
            txn.announce(Change(position, Topic.DEVICE, user_id=user_id))
