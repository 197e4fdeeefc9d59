"""What a database needs that was restored from a backup: others know what came after the backup,
and it does not.

Laws:
- No position is given out a second time: of what comes from now on everybody hears who was told of
  positions that are gone.
- No one-time key is given out again: of those that are there some were, and nobody could read what
  is sent with them. Devices are told that they have one left, and publish new ones; until then
  fallback keys are given out, which they replace then.
- Lists of devices that may have changed are looked at anew: those that are kept of other servers'
  users, ours by other servers, and all of them by clients.
- Connections of sliding sync begin anew: the numbers of their states would be given out again. So
  would those of backups of room keys, by which clients know with which key they encrypt, and of
  filters: the next of each user is far beyond. So is the next pusher: a link in a letter of before
  ends no letters but those.
- Backups of room keys keep their numbers, though keys are missing in them: a client for which the
  number changes reads nothing more from its backup until its owner enters the recovery key
  (docs/adr/0038).

For a database that no server has open.
"""

from typing import Final

import msgspec

from storage.encryption.one_time_keys import empty_blocks
from storage.engine.transaction import Transaction, WriteTransaction

LEAP: Final = 1_000_000_000
"""Positions, more than are taken between a backup and the end of what it is of: a hundred a second
for four months."""
NUMBERS: Final = 1000
"""Of backups, and of filters, more than somebody uses in that time."""
PUSHERS: Final = 1_000_000
"""Numbers of pushers, more than are set in that time."""


class Settled(msgspec.Struct, frozen=True):
    """What is to be done again."""

    devices: int
    """Of so many devices the one-time keys are gone."""
    lists: int
    """Of so many users of other servers the devices are asked for."""
    users: int
    """Of so many users of ours other servers ask for the devices."""


def find_sqlite_damage(txn: Transaction) -> str | None:
    """What is wrong with the file, in a line of SQLite's; None: nothing. Reads all of it.

    A log that was left beside the file that is gone (after a kill, or a power failure) is taken for
    one of the file that was put there, and its pages lie among those of the backup. spec:
    https://www.sqlite.org/howtocorrupt.html (1.4)
    """
    ((found,),) = txn.query("PRAGMA quick_check(1)")
    return None if found == "ok" else str(found).splitlines()[-1]


def settle_restored(txn: WriteTransaction) -> Settled:
    """Make a restored database fit for use; a fixed number of statements."""
    before = txn.next_position(LEAP + 1) + LEAP
    position = txn.next_position()
    txn.allocate("pusher", PUSHERS)
    ((devices,),) = txn.query(
        "SELECT count(*) FROM (SELECT DISTINCT user_id, device_id FROM one_time_key_blocks) AS d"
    )
    empty_blocks(txn)
    txn.execute("UPDATE fallback_keys SET used = 1")
    txn.execute("DELETE FROM sliding_connections")
    lists = txn.execute("UPDATE remote_device_lists SET is_stale = 1")
    # a change that follows upon one of which nobody has heard makes other servers ask for the whole
    # list
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
        (NUMBERS, b"{}"),
    )
    # one for each user that nobody has uploaded, as it has no digest
    txn.execute(
        "INSERT INTO filters (user_id, filter_id, definition, digest, touched_ts, is_used)"
        " SELECT u.user_id, ? + coalesce((SELECT max(f.filter_id) FROM filters AS f"
        " WHERE f.user_id = u.user_id), 0), '{}', ?, 0, 0"
        " FROM (SELECT DISTINCT user_id FROM devices) AS u WHERE true"
        " ON CONFLICT (user_id, digest) DO UPDATE SET filter_id = excluded.filter_id",
        (NUMBERS, b""),
    )
    return Settled(devices, lists, users)
