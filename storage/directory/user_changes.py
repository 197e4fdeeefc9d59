"""Notes that the user directory does not have the latest of somebody: left in the write that
changes it, so that none is lost.

A new account and a change of a profile leave one, and so does a membership of a user of another
server, of whom rooms are all that is known here.
"""

from collections.abc import Iterable

from storage.engine.transaction import WriteTransaction


def note_directory_changes(txn: WriteTransaction, changes: Iterable[tuple[str, int]]) -> None:
    """Users, and the positions of what changed."""
    txn.execute_many(
        "INSERT INTO directory_changes (user_id, position) VALUES (?, ?)"
        " ON CONFLICT (user_id) DO UPDATE SET position = excluded.position",
        changes,
    )
