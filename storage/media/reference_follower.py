"""Progress of the job that reads events for the files that they refer to, and its next step.

Events are read by their numbers. Profiles and account data are not read here: whatever writes them
also writes their references.
"""

from typing import Final

import msgspec

from storage.cluster.job_progress import put_note, select_note
from storage.engine.transaction import Transaction, WriteTransaction
from storage.media.references import put_batch, select_batch

NOTE: Final = "follow_media"
AT_ONCE: Final = 200
"""Events that are looked at in one write."""


class Progress(msgspec.Struct, frozen=True):
    """The progress of the job."""

    upto: int = 0
    """The number of the last event that was looked at."""


def select_progress(txn: Transaction) -> Progress:
    """How far it is."""
    note = select_note(txn, NOTE)
    return Progress() if note is None else msgspec.json.decode(note, type=Progress)


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
    return is_last


def _put(txn: WriteTransaction, progress: Progress) -> None:
    put_note(txn, NOTE, msgspec.json.encode(progress).decode())
