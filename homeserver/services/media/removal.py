"""Deletes media: files to which nothing refers any more, files that nobody has fetched for long,
old files, and files that a user or an administrator deletes.

Laws:
- An unreferenced file is kept if an event that refers to it is stored before the deletion. To
  ensure this, the write that deletes unreferenced files first reads the events that the job of
  `references.py` has not read yet.
- Quarantined and protected files are deleted only when an administrator explicitly includes them.
- Files with the same content share their bytes and thumbnails, which are deleted with the last of
  these files.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence, Set
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from federation.protocol.errors import LimitExceeded
from storage.engine.transaction import WriteTransaction
from storage.media.content_uris import ContentURI
from storage.media.contents import MediaContents
from storage.media.removal import (
    NOTHING,
    Deletion,
    MediaRemovalStore,
    RemovableFile,
    RemovalReason,
    RemovedFiles,
)

BATCH: Final = 100
"""The files that are deleted at a time, while uploads wait."""
TRIES: Final = 40
TRY_SECONDS: Final = 0.25

FindFiles = Callable[[int], Awaitable[Sequence[RemovableFile]]]
RemoveFiles = Callable[[WriteTransaction, Sequence[RemovableFile]], RemovedFiles]


class MediaRemoval:
    """Deletes files."""

    def __init__(
        self,
        *,
        store: MediaRemovalStore,
        contents: MediaContents,
        clock: IReactorTime,
        grace_ms: int,
        local_lifetime_ms: int | None,
        remote_lifetime_ms: int | None,
        local_age_ms: int | None,
        remote_age_ms: int | None,
        record_ms: int,
    ) -> None:
        """`grace_ms`: the time without a reference; lifetimes: the time without access; ages: the
        time since the upload or download, whatever the use.

        `record_ms`: how long records of deletions are stored.
        """
        self._store = store
        self._contents = contents
        self._clock = clock
        self._grace_ms = grace_ms
        self._local_lifetime_ms = local_lifetime_ms
        self._remote_lifetime_ms = remote_lifetime_ms
        self._local_age_ms = local_age_ms
        self._remote_age_ms = remote_age_ms
        self._record_ms = record_ms

    # Jobs.

    async def do_remove_unreferenced(self, limit: int) -> int:
        """Delete at most `limit` files without references; return their number."""
        now = self._now_ms()
        before = now - self._grace_ms
        await self._store.remove_missing(before, limit)

        async def find(count: int) -> Sequence[RemovableFile]:
            return await self._store.get_unreferenced(before, count)

        def remove(txn: WriteTransaction, found: Sequence[RemovableFile]) -> RemovedFiles:
            return self._store.remove_unreferenced(txn, found, before, now)

        return await self._remove_all(find, remove, limit)

    async def do_remove_unused_uploads(self, limit: int) -> int:
        """Delete at most `limit` files of this server's users that are unused for long; return
        their number."""
        return await self._remove_unread(self._local_lifetime_ms, limit, own=True)

    async def do_remove_unused_copies(self, limit: int) -> int:
        """Delete at most `limit` copies of other servers' files that are unused for long; return
        their number."""
        return await self._remove_unread(self._remote_lifetime_ms, limit, own=False)

    async def do_remove_old_uploads(self, limit: int) -> int:
        """Delete at most `limit` files of this server's users that were uploaded long ago; return
        their number."""
        return await self._remove_old(self._local_age_ms, limit, own=True)

    async def do_remove_old_copies(self, limit: int) -> int:
        """Delete at most `limit` copies of other servers' files that were fetched long ago; return
        their number."""
        return await self._remove_old(self._remote_age_ms, limit, own=False)

    async def do_delete_records(self, limit: int) -> int:
        """Delete at most `limit` old records of deletions; return their number."""
        return await self._store.remove_deletions(self._now_ms() - self._record_ms, limit)

    # Requests.

    async def do_delete(
        self,
        addresses: Iterable[ContentURI],
        reason: RemovalReason,
        by: str,
        *,
        include_quarantined: bool = False,
        unread_since: int | None = None,
    ) -> Sequence[ContentURI]:
        """Delete these files; return those that existed and were allowed to go. Raises
        LimitExceeded if some are left.

        `include_quarantined`: also those that are quarantined or protected. `unread_since`: only
        those without access since then.
        """
        requested, deleted = list(addresses), list[ContentURI]()
        for start in range(0, len(requested), BATCH):
            found = await self._store.get_files(requested[start : start + BATCH])
            deleted += await self._delete(found, reason, by, include_quarantined, unread_since)
        return deleted

    async def _delete(
        self,
        found: Sequence[RemovableFile],
        reason: RemovalReason,
        by: str,
        held_too: bool,
        unread_since: int | None,
    ) -> Sequence[ContentURI]:
        def remove(txn: WriteTransaction, found: Sequence[RemovableFile]) -> RemovedFiles:
            files = [each.address for each in found]
            return self._store.remove(
                txn,
                files,
                reason,
                self._now_ms(),
                by=by,
                include_quarantined=held_too,
                unread_since=unread_since,
            )

        for _ in range(TRIES):
            removed = await self._remove(found, remove)
            if removed is not None:
                return removed.addresses
            await deferLater(self._clock, TRY_SECONDS, lambda: None)
        raise LimitExceeded(
            "Files are uploaded all the time, so none can be deleted; try again later",
            retry_after_ms=1000,
        )

    async def get_deletions(self, before_number: int | None, limit: int) -> Sequence[Deletion]:
        """Return deletions, the latest first."""
        return await self._store.get_deletions(before_number, limit)

    async def _remove_unread(self, lifetime_ms: int | None, limit: int, *, own: bool) -> int:
        if lifetime_ms is None:
            return 0
        now = self._now_ms()
        before = now - lifetime_ms

        async def find(count: int) -> Sequence[RemovableFile]:
            return await self._store.get_unread(before, count, own=own)

        def remove(txn: WriteTransaction, found: Sequence[RemovableFile]) -> RemovedFiles:
            files = [each.address for each in found]
            return self._store.remove(txn, files, RemovalReason.UNREAD, now, unread_since=before)

        return await self._remove_all(find, remove, limit)

    async def _remove_old(self, age_ms: int | None, limit: int, *, own: bool) -> int:
        if age_ms is None:
            return 0
        now = self._now_ms()

        async def find(count: int) -> Sequence[RemovableFile]:
            return await self._store.get_old(now - age_ms, count, own=own)

        def remove(txn: WriteTransaction, found: Sequence[RemovableFile]) -> RemovedFiles:
            return self._store.remove(txn, [each.address for each in found], RemovalReason.AGE, now)

        return await self._remove_all(find, remove, limit)

    async def _remove_all(self, find: FindFiles, remove: RemoveFiles, limit: int) -> int:
        """Delete what `find` returns, in batches, at most `limit`."""
        count = 0
        while count < limit:
            found = await find(min(limit - count, BATCH))
            removed = await self._remove(found, remove)
            if removed is None or not removed.addresses:
                break
            count += len(removed.addresses)
        return count

    async def _remove(
        self, found: Sequence[RemovableFile], remove: RemoveFiles
    ) -> RemovedFiles | None:
        """Delete files; None if nothing was done because of concurrent uploads."""
        removed = NOTHING
        if not found:
            return removed

        def forget(txn: WriteTransaction) -> Set[bytes]:
            nonlocal removed
            removed = remove(txn, found)
            return removed.unused

        done = await self._contents.remove_unused({each.hash for each in found}, forget)
        return None if done is None else removed

    def _now_ms(self) -> int:
        return int(self._clock.seconds() * 1000)
