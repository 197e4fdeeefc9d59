"""Repairs a database that was restored from a backup. Such a database lacks the changes after the
backup, which clients and other servers have already seen.

Laws:
- No position is used a second time. Clients whose tokens have later positions than the backup
  receive all new changes.
- No one-time key is given out again. Some of the stored keys were claimed after the backup, and
  messages encrypted with them would be unreadable. The server reports one remaining key to each
  device, so the devices upload new ones. Until then the server gives out fallback keys. They are
  marked as used, so the devices replace them too.
- Device lists that may have changed are fetched again: lists of remote users by us, lists of local
  users by other servers, and all of them by clients.
- Sliding sync connections are deleted, so clients start new ones. Otherwise a `pos` from before the
  restore could match another state.
- New key backups, filters and pushers get far higher numbers, so that no number is used a second
  time. For example, an unsubscribe link in an old e-mail must not match a new pusher.
- Existing key backups keep their version, although they may lack keys. If the version changed, a
  client would read nothing from the backup until the user enters the recovery key (docs/adr/0034).

No node may have the database open during the repair.
"""

from typing import Final

import msgspec

from storage.encryption.fallback_keys import mark_all_fallback_keys_used
from storage.encryption.one_time_keys import replace_by_placeholders
from storage.engine.transaction import Transaction, WriteTransaction

SKIPPED_POSITIONS: Final = 1_000_000_000
"""Positions to skip: more than are taken between a backup and the failure, a hundred a second for
four months."""
SKIPPED_IDS: Final = 1000
"""Versions of key backups and IDs of filters to skip, more than a user takes in that time."""
SKIPPED_PUSHERS: Final = 1_000_000
"""Numbers of pushers to skip, more than are created in that time."""


class RestoreRepair(msgspec.Struct, frozen=True):
    """The numbers of devices and users whose keys or device lists are renewed."""

    devices: int
    """Devices whose one-time keys were removed."""
    stale_lists: int
    """Remote users whose devices are fetched again."""
    users: int
    """Local users whose devices other servers fetch again."""


def find_sqlite_damage(txn: Transaction) -> str | None:
    """Return the damage of an SQLite file in one line of SQLite's text, or None. Reads the whole
    file.

    If the write-ahead log of the previous file is still there (after a kill or a power failure),
    SQLite applies it to the restored file, and mixes their pages. spec:
    https://www.sqlite.org/howtocorrupt.html (1.4)
    """
    ((found,),) = txn.query("PRAGMA quick_check(1)")
    return None if found == "ok" else str(found).splitlines()[-1]


def repair_after_restore(txn: WriteTransaction) -> RestoreRepair:
    """Repair a restored database, with a fixed number of statements."""
    before = txn.next_position(SKIPPED_POSITIONS + 1) + SKIPPED_POSITIONS
    position = txn.next_position()
    txn.allocate("pusher", SKIPPED_PUSHERS)
    ((devices,),) = txn.query(
        "SELECT count(*) FROM (SELECT DISTINCT user_id, device_id FROM one_time_key_blocks) AS d"
    )
    replace_by_placeholders(txn)
    mark_all_fallback_keys_used(txn)
    txn.execute("DELETE FROM sliding_sync_connections")
    lists = txn.execute("UPDATE remote_device_lists SET is_stale = 1")
    # a change that follows an unknown one makes other servers fetch the whole list
    users = txn.execute(
        "INSERT INTO device_list_log (user_id, stream_id, prev_id, device_id)"
        " SELECT user_id, ?, ?, min(device_id) FROM devices GROUP BY user_id",
        (position, before),
    )
    txn.execute("UPDATE device_list_positions SET position = ?", (position,))
    txn.execute(
        "INSERT INTO key_backups (user_id, version, algorithm, auth_data, etag, key_count, deleted)"
        " SELECT u.user_id, ? + coalesce((SELECT max(b.version) FROM key_backups AS b"
        " WHERE b.user_id = u.user_id), 0), '', ?, 0, 0, 1"
        " FROM (SELECT DISTINCT user_id FROM devices) AS u",
        (SKIPPED_IDS, b"{}"),
    )
    # a placeholder for each user; no uploaded filter has an empty digest
    txn.execute(
        "INSERT INTO filters (user_id, filter_id, definition, digest, last_used_ts, is_used)"
        " SELECT u.user_id, ? + coalesce((SELECT max(f.filter_id) FROM filters AS f"
        " WHERE f.user_id = u.user_id), 0), '{}', ?, 0, 0"
        " FROM (SELECT DISTINCT user_id FROM devices) AS u WHERE true"
        " ON CONFLICT (user_id, digest) DO UPDATE SET filter_id = excluded.filter_id",
        (SKIPPED_IDS, b""),
    )
    return RestoreRepair(devices, lists, users)
