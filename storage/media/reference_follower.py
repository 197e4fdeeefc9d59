"""Reads events for their references to files (`references.py`), step by step, for a job.

The job reads events in the order of `event_nid`. It does not read profiles and account data: the
write that changes them also writes their references.
"""

from typing import Final

import msgspec

from storage.cluster.job_progress import select_job_progress, set_job_progress
from storage.engine.transaction import Transaction, WriteTransaction
from storage.media.references import put_batch, select_batch

PROGRESS_KEY: Final = "follow_media"
EVENTS_PER_WRITE: Final = 200
"""Events that are read in one write."""


class FollowerProgress(msgspec.Struct, frozen=True):
    """The progress of the job."""

    upto: int = 0
    """The number of the last event that was read."""


def select_progress(txn: Transaction) -> FollowerProgress:
    """Return the progress."""
    stored = select_job_progress(txn, PROGRESS_KEY)
    return (
        FollowerProgress() if stored is None else msgspec.json.decode(stored, type=FollowerProgress)
    )


def put_events(txn: WriteTransaction, after: int, upto: int) -> None:
    """Write the references of the events with numbers above `after`, up to `upto`. Unread events
    before them have none."""
    put_batch(txn, select_batch(txn, after, upto - after, upto))
    set_progress(txn, upto)


def set_progress(txn: WriteTransaction, upto: int) -> None:
    """Record that all events up to this number have been read."""
    progress = select_progress(txn)
    if progress.upto < upto:
        _put(txn, msgspec.structs.replace(progress, upto=upto))


def catch_up(txn: WriteTransaction, max_events: int) -> bool:
    """Read at most `max_events` remaining events, fewer if they have many references. Return
    whether none is left, so that every reference is known."""
    progress = select_progress(txn)
    upto = progress.upto
    for remaining in range(max_events, 0, -EVENTS_PER_WRITE):
        batch = select_batch(txn, upto, min(EVENTS_PER_WRITE, remaining))
        put_batch(txn, batch)
        upto = batch.upto
        is_last = batch.count < min(EVENTS_PER_WRITE, remaining) and not batch.is_truncated
        if is_last or batch.is_truncated:
            break
    set_progress(txn, upto)
    return is_last


def _put(txn: WriteTransaction, progress: FollowerProgress) -> None:
    set_job_progress(txn, PROGRESS_KEY, msgspec.json.encode(progress).decode())
