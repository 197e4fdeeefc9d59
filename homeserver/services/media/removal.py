"""Deletes files: those to which nobody refers any more, those that nobody reads, and those that
somebody wants gone.

Laws:
- A reference that comes before the file goes keeps it: what is left to look at is looked at in the
  write that removes it.
- Files that are held back (quarantined) or protected go only when an administrator deletes just
  these.
- The bytes, and all that was made of them, go with the last file that has them.
"""

from collections.abc import Awaitable, Callable, Iterable, Sequence, Set
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from federation.protocol.errors import LimitExceeded
from storage.engine.transaction import WriteTransaction
from storage.media.content_uris import MediaAddress
from storage.media.contents import Contents
from storage.media.removal import NOTHING, Deletion, MediaRemovalStore, Reason, Removable, Removed

AT_ONCE: Final = 100
"""Files that are deleted while nobody can upload."""
TRIES: Final = 40
TRY_SECONDS: Final = 0.25

Find = Callable[[int], Awaitable[Sequence[Removable]]]
Remove = Callable[[WriteTransaction, Sequence[Removable]], Removed]


class MediaRemoval:
    """What takes files away."""

    def __init__(
        self,
        store: MediaRemovalStore,
        contents: Contents,
        clock: IReactorTime,
        *,
        grace_ms: int,
        local_lifetime_ms: int | None,
        remote_lifetime_ms: int | None,
        local_age_ms: int | None,
        remote_age_ms: int | None,
        record_ms: int,
    ) -> None:
        """`grace_ms`: how long nobody must have referred to a file; lifetimes: how long nobody must
        have read it; ages: how long after it came it goes, whoever reads it.

        `record_ms`: how long it is remembered what was deleted.
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
        """Delete at most so many files to which nobody refers any more; how many."""
        now = self._now_ms()
        before = now - self._grace_ms
        await self._store.forget_unkept(before, limit)

        async def find(count: int) -> Sequence[Removable]:
            return await self._store.get_unreferenced(before, count)

        def remove(txn: WriteTransaction, found: Sequence[Removable]) -> Removed:
            return self._store.remove_unreferenced(txn, found, before, now)

        return await self._remove_all(find, remove, limit)

    async def do_remove_unread_own(self, limit: int) -> int:
        """Delete at most so many files of this server's users that nobody has read for long; how
        many."""
        return await self._remove_unread(self._local_lifetime_ms, limit, own=True)

    async def do_remove_unread_copies(self, limit: int) -> int:
        """Delete at most so many copies of other servers' files that nobody has read for long; how
        many."""
        return await self._remove_unread(self._remote_lifetime_ms, limit, own=False)

    async def do_remove_old_own(self, limit: int) -> int:
        """Delete at most so many files of this server's users that were uploaded long ago; how
        many."""
        return await self._remove_old(self._local_age_ms, limit, own=True)

    async def do_remove_old_copies(self, limit: int) -> int:
        """Delete at most so many copies of other servers' files that were fetched long ago; how
        many."""
        return await self._remove_old(self._remote_age_ms, limit, own=False)

    async def do_forget_deletions(self, limit: int) -> int:
        """Forget at most so many files that were deleted long ago; how many."""
        return await self._store.remove_deletions(self._now_ms() - self._record_ms, limit)

    # What somebody wants.

    async def do_delete(
        self,
        addresses: Iterable[MediaAddress],
        reason: Reason,
        by: str,
        *,
        held_too: bool = False,
        unread_since: int | None = None,
    ) -> Sequence[MediaAddress]:
        """Delete these files; which of them were there and could go. Raises LimitExceeded where
        some are left.

        `held_too`: also those that are quarantined or protected. `unread_since`: only those that
        nobody has read since.
        """
        wanted, deleted = list(addresses), list[MediaAddress]()
        for start in range(0, len(wanted), AT_ONCE):
            found = await self._store.get_files(wanted[start : start + AT_ONCE])
            deleted += await self._delete(found, reason, by, held_too, unread_since)
        return deleted

    async def _delete(
        self,
        found: Sequence[Removable],
        reason: Reason,
        by: str,
        held_too: bool,
        unread_since: int | None,
    ) -> Sequence[MediaAddress]:
        def remove(txn: WriteTransaction, found: Sequence[Removable]) -> Removed:
            files = [each.address for each in found]
            return self._store.remove(
                txn,
                files,
                reason,
                self._now_ms(),
                by=by,
                held_too=held_too,
                unread_since=unread_since,
            )

        for _ in range(TRIES):
            removed = await self._remove(found, remove)
            if removed is not None:
                return removed.addresses
            await deferLater(self._clock, TRY_SECONDS, lambda: None)
        raise LimitExceeded(
            "Files come in all the time, so that none can be deleted; ask again",
            retry_after_ms=1000,
        )

    async def get_deletions(self, before_number: int | None, limit: int) -> Sequence[Deletion]:
        """What was deleted, the latest first."""
        return await self._store.get_deletions(before_number, limit)

    async def _remove_unread(self, lifetime_ms: int | None, limit: int, *, own: bool) -> int:
        if lifetime_ms is None:
            return 0
        now = self._now_ms()
        before = now - lifetime_ms

        async def find(count: int) -> Sequence[Removable]:
            return await self._store.get_unread(before, count, own=own)

        def remove(txn: WriteTransaction, found: Sequence[Removable]) -> Removed:
            files = [each.address for each in found]
            return self._store.remove(txn, files, Reason.UNREAD, now, unread_since=before)

        return await self._remove_all(find, remove, limit)

    async def _remove_old(self, age_ms: int | None, limit: int, *, own: bool) -> int:
        if age_ms is None:
            return 0
        now = self._now_ms()

        async def find(count: int) -> Sequence[Removable]:
            return await self._store.get_old(now - age_ms, count, own=own)

        def remove(txn: WriteTransaction, found: Sequence[Removable]) -> Removed:
            return self._store.remove(txn, [each.address for each in found], Reason.AGE, now)

        return await self._remove_all(find, remove, limit)

    async def _remove_all(self, find: Find, remove: Remove, limit: int) -> int:
        """Remove what is found, some at a time, at most so many."""
        count = 0
        while count < limit:
            found = await find(min(limit - count, AT_ONCE))
            removed = await self._remove(found, remove)
            if removed is None or not removed.addresses:
                break
            count += len(removed.addresses)
        return count

    async def _remove(self, found: Sequence[Removable], remove: Remove) -> Removed | None:
        """None where others are writing files, so that nothing could be done."""
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
