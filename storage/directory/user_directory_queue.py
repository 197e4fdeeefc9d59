"""The queue of users whose user directory entry is out of date.

The transaction that changes a user's data adds the user to the queue, so that no change is lost. A
new account, the upgrade of a guest account and a profile change add a user. A membership change
adds a remote user, whose name and avatar are only known from rooms.
"""

from collections.abc import Iterable

from storage.engine.transaction import WriteTransaction


def queue_directory_updates(txn: WriteTransaction, changes: Iterable[tuple[str, int]]) -> None:
    """Queue users, with the positions of their changes."""
    txn.execute_many(
        "INSERT INTO user_directory_queue (user_id, position) VALUES (?, ?)"
        " ON CONFLICT (user_id) DO UPDATE SET position = excluded.position",
        changes,
    )
