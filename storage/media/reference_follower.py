"""How far the events have been looked at for the files that they refer to, and the next step.

Profiles and account data that were there before references were kept come first; then all events,
by their numbers.
"""

from typing import Final

import msgspec

from storage.cluster.job_progress import put_note, select_note
from storage.engine.transaction import Transaction, WriteTransaction
from storage.media.references import Setting, put_batch, put_setting, select_batch

NOTE: Final = "follow_media"
AT_ONCE: Final = 200
"""Events that are looked at in one write."""


class Progress(msgspec.Struct, frozen=True):
    """How far it is."""

    profile: tuple[str, str] | None = ("", "")
    """The last field of a profile that was looked at; None: all were."""
    account_data: tuple[str, str, str] | None = ("", "", "")
    upto: int = 0
    """The number of the last event that was looked at."""

    @property
    def has_settings(self) -> bool:
        """Whether all profiles and account data were looked at."""
        return self.profile is None and self.account_data is None


def select_progress(txn: Transaction) -> Progress:
    """How far it is."""
    note = select_note(txn, NOTE)
    return Progress() if note is None else msgspec.json.decode(note, type=Progress)


def put_settings(txn: WriteTransaction, limit: int) -> int:
    """Look at the next profiles, or account data; how many, 0 when all were looked at."""
    progress = select_progress(txn)
    if progress.profile is not None:
        rows = txn.query(
            "SELECT user_id, field, value FROM profiles WHERE (user_id, field) > (?, ?) ORDER BY user_id, field LIMIT ?",
            (*progress.profile, limit),
        )
        for user_id, field, value in rows:
            put_setting(txn, user_id, Setting.PROFILE, field, bytes(value))
        last = (rows[-1][0], rows[-1][1]) if len(rows) == limit else None
        _put(txn, msgspec.structs.replace(progress, profile=last))
        return max(1, len(rows))
    if progress.account_data is not None:
        entries = txn.query(
            "SELECT user_id, room_id, type, content FROM account_data WHERE (user_id, room_id, type) > (?, ?, ?)"
            " ORDER BY user_id, room_id, type LIMIT ?",
            (*progress.account_data, limit),
        )
        for user_id, room_id, type, content in entries:
            put_setting(txn, user_id, Setting.ACCOUNT_DATA, f"{room_id} {type}", bytes(content))
        end = entries[-1][:3] if len(entries) == limit else None
        _put(txn, msgspec.structs.replace(progress, account_data=end))
        return max(1, len(entries))
    return 0


def put_events(txn: WriteTransaction, after: int, upto: int) -> None:
    """Write what the events after one number, up to another, refer to; nobody was found to be
    referred to before the first."""
    put_batch(txn, select_batch(txn, after, upto - after, upto))
    note_events(txn, upto)


def note_events(txn: WriteTransaction, upto: int) -> None:
    """All events up to this number have been looked at."""
    progress = select_progress(txn)
    if progress.upto < upto:
        _put(txn, msgspec.structs.replace(progress, upto=upto))


def catch_up(txn: WriteTransaction, at_most: int) -> bool:
    """Look at the events that are left, at most so many, and fewer where they refer to much;
    whether none is left, and so every reference is known."""
    progress = select_progress(txn)
    upto = progress.upto
    for left in range(at_most, 0, -AT_ONCE):
        batch = select_batch(txn, upto, min(AT_ONCE, left))
        put_batch(txn, batch)
        upto = batch.upto
        is_last = batch.count < min(AT_ONCE, left) and not batch.is_cut
        if is_last or batch.is_cut:
            break
    note_events(txn, upto)
    return progress.has_settings and is_last


def _put(txn: WriteTransaction, progress: Progress) -> None:
    put_note(txn, NOTE, msgspec.json.encode(progress).decode())
