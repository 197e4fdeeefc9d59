"""Stores contents in an object store that all nodes share, and in a folder of this machine.

A content is the bytes of one or more equal files (`contents.py`). The configured role of the object
store decides where contents are:

    role           folder                         object store
    main           a cache, trimmed to a size     has every content
    second_copy    has every content              gets every content, usually after a minute
    retired        gets every content back        is emptied

Each write of an object uses a new name: `content/ab/cd/HASH-…` after the configured prefix. The
table `media_objects` is the journal of the objects (`object_store_journal.py`). Moves between
folder and store are steps of the job `storage.media.rebalancing` and can be interrupted at any
point.

Laws:
- `main`: an upload is acknowledged when its object is complete, and one transaction has added the
  file's row and recorded the object in the journal.
- `second_copy`: an upload is acknowledged when its bytes are in the folder, even if the store
  fails. The job writes the object later, recently added contents first.
- If a content is fetched from the store to the folder, its hash is checked before it is used.
- If the store hangs, each call fails after a time limit (`storage.media.object_store_calls`). Reads
  and writes use separate threads.
- The deletion of a file does not wait for the store. It marks the object for deletion in the
  journal. The object is deleted right after, or later by a job.
"""

import threading
from collections.abc import AsyncIterator, Callable, Sequence, Set
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Final, Literal, TypeVar
from uuid import uuid4

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.python.failure import Failure

from storage.engine.database import Database
from storage.engine.transaction import WriteTransaction
from storage.media.contents import OpenedContent
from storage.media.files import MediaFiles, PlacedFile, ReadableBytes, ReceivedFile, StoredThumbnail
from storage.media.object_store import ObjectStore, ObjectStoreFailed, ObjectStream
from storage.media.object_store_calls import ObjectCall, ObjectCallRunner
from storage.media.object_store_journal import DeletingObject, MediaObjectJournal, StoredObject
from storage.media.spool import Spool

T = TypeVar("T")

Role = Literal["main", "second_copy", "retired"]

WRITING_SECONDS: Final = 600.0
"""The time that a writer of an object is presumed alive without a renewal."""
RENEW_SECONDS: Final = 120.0
MAX_FETCHED_BYTES: Final = 8 << 20
"""Larger contents are read in the store and are long calls to write; others are fetched to the
folder on request."""
MAX_ATTEMPTS: Final = 5
MAX_RECENT: Final = 1000
MAX_FAILURES: Final = 3
"""After so many failures in a row the store is presumed unable to delete at the moment."""


class _ObjectDeleted(Exception):
    """The object to be used is being deleted."""


class SharedContents:
    """Implements `storage.media.contents.MediaContents` with the folder and the object store."""

    log = Logger()

    def __init__(
        self,
        *,
        database: Database,
        files: MediaFiles,
        objects: ObjectStore,
        reading: ObjectCallRunner,
        writing: ObjectCallRunner,
        clock: IReactorTime,
        role: Role,
        prefix: str,
        redirect: bool,
    ) -> None:
        """`reading`, `writing`: run the calls of the store. `redirect`: clients may be
        redirected to the store."""
        self._database = database
        self._files = files
        self._objects = objects
        self._reading = reading
        self._writing = writing
        self._clock = clock
        self.role: Role = role
        self._prefix = prefix
        self._redirects = redirect
        self._table = MediaObjectJournal(database)
        self._fetching: dict[bytes, list[Deferred[bool]]] = {}
        self._recent: set[bytes] = set()
        self._deleted: set[bytes] = set()
        """Contents that were just deleted, whose objects still exist."""
        self._is_deleting = False
        self._deleted_upto = ""

    def spool(self, memory_bytes: int) -> Spool:
        return self._files.spool(memory_bytes)

    # Adding.

    async def add(
        self, source: ReadableBytes, write: Callable[[WriteTransaction, bytes, int], T]
    ) -> T:
        received = await self._files.receive(source)
        try:
            # Before it is placed: from there until the row is written, nothing can be removed from
            # the folder
            name = await self._put(received.path, received.hash, received.size)
            stored = await self._files.place(received)
        finally:
            self._files.discard(received)
        try:
            result = await self._write(stored, name, write)
        except BaseException:
            self._files.abandon(stored)
            raise
        await self._files.settle(stored)
        if self.role == "second_copy" and len(self._recent) < MAX_RECENT:
            self._recent.add(stored.hash)
        return result

    def take_recent(self, limit: int) -> Set[bytes]:
        """Return and clear at most `limit` recent contents that wait for their second copy. After a
        restart the walk over all contents finds the others."""
        return {self._recent.pop() for _ in range(min(limit, len(self._recent)))}

    async def _write(
        self,
        stored: PlacedFile,
        name: str | None,
        write: Callable[[WriteTransaction, bytes, int], T],
    ) -> T:
        """Write row and journal; with another object if the one to be used has been deleted
        meanwhile."""
        for _ in range(MAX_ATTEMPTS):
            try:
                return await self._database.write("add_media", self._record, stored, name, write)
            except _ObjectDeleted:
                name = await self._put(stored.entry, stored.hash, stored.size)
        raise ObjectStoreFailed("the object was deleted at each attempt")

    def _record(
        self,
        txn: WriteTransaction,
        stored: PlacedFile,
        name: str | None,
        write: Callable[[WriteTransaction, bytes, int], T],
    ) -> T:
        if name is not None:
            is_stored = self._table.set_stored(txn, name, stored.hash)
        else:
            is_stored = self.role != "main" or self._table.is_stored(txn, stored.hash)
        if not is_stored:
            raise _ObjectDeleted
        return write(txn, stored.hash, stored.size)

    async def _put(self, path: Path, hash: bytes, size: int) -> str | None:
        """Write the object if the role requires it first and none has this content. Return its
        name."""
        if self.role != "main" or hash in await self._table.get_objects([hash]):
            return None
        return await self.write_object(path, hash, size)

    async def write_object(self, path: Path, hash: bytes, size: int) -> str:
        """Write the content of a file to a new object. Return its name; the journal does not list
        it as `stored` yet."""
        text = hash.hex()
        name = f"{self._prefix}content/{text[:2]}/{text[2:4]}/{text}-{uuid4().hex}"
        await self._table.add_uploading(name, hash, size, self._until())
        renewing = LoopingCall(self._renew, name)
        renewing.clock = self._clock
        renewing.start(RENEW_SECONDS, now=False)
        try:
            await self._writing.run(
                lambda call: self._objects.put(name, path, call), is_long=size > MAX_FETCHED_BYTES
            )
        finally:
            renewing.stop()
        return name

    def _renew(self, name: str) -> Deferred[None]:
        return Deferred.fromCoroutine(self._table.renew(name, self._until())).addErrback(
            lambda failure: self.log.failure(
                "cannot record that an object is still being written", failure
            )
        )

    def _until(self) -> int:
        return int((self._clock.seconds() + WRITING_SECONDS) * 1000)

    # Reading.

    async def open(self, hash: bytes) -> OpenedContent | None:
        opened = await self._files.open(hash)
        if opened is not None:
            return opened
        found = (await self._table.get_objects([hash])).get(hash)
        if found is None:
            return None
        if found.size > MAX_FETCHED_BYTES:
            return _OpenedObject(objects=self._objects, calls=self._reading, found=found)
        return await self._files.open(hash) if await self.fetch_to_folder(found) else None

    @asynccontextmanager
    async def lend(self, hash: bytes) -> AsyncIterator[Path | None]:
        if not await self._files.has(hash):
            found = (await self._table.get_objects([hash])).get(hash)
            if found is None or not await self.fetch_to_folder(found):
                yield None
                return
        with self._files.lend(hash) as path:
            yield path

    async def get_url(self, hash: bytes, type: str, disposition: str) -> str | None:
        if not self._redirects or self.role == "retired":
            return None
        found = (await self._table.get_objects([hash])).get(hash)
        if found is None:
            return None
        return await self._reading.run(
            lambda _: self._objects.get_url(found.name, type, disposition)
        )

    async def fetch_to_folder(self, found: StoredObject) -> bool:
        """Fetch a content to the folder, once for all callers. Return whether it exists. Raises
        OSError."""
        waiters = self._fetching.get(found.hash)
        waiter: Deferred[bool] = Deferred()
        if waiters is not None:
            waiters.append(waiter)
            return await waiter
        self._fetching[found.hash] = [waiter]

        def done(result: bool | Failure) -> None:
            for waiter in self._fetching.pop(found.hash):
                waiter.callback(result)

        Deferred.fromCoroutine(self._fetch(found)).addBoth(done)
        return await waiter

    async def _fetch(self, found: StoredObject) -> bool:
        received = await self._reading.run(
            partial(self._receive, found.name), on_late_result=self._discard_late
        )
        if received is None:
            self.log.error("the object {name} is missing in the store", name=found.name)
            return False
        try:
            if received.hash != found.hash:
                raise ObjectStoreFailed(f"the object {found.name} is not what was written")
            stored = await self._files.place(received)
        finally:
            self._files.discard(received)
        await self._files.settle(stored)
        return True

    def _receive(self, name: str, call: ObjectCall) -> ReceivedFile | None:
        """Fetch an object to an unplaced file of the folder; None if there is none. Runs in a
        thread."""
        stream = self._objects.open(name, 0)
        if stream is None:
            return None
        try:
            return self._files.receive_now(_CountingStream(stream=stream, call=call))
        finally:
            stream.close()

    def _discard_late(self, received: ReceivedFile | None) -> None:
        if received is not None:
            self._files.discard(received)

    async def get_thumbnail(self, hash: bytes, name: str) -> StoredThumbnail | None:
        return await self._files.get_thumbnail(hash, name)

    async def set_thumbnail(self, hash: bytes, name: str, data: bytes, max_thumbnails: int) -> None:
        await self._files.set_thumbnail(hash, name, data, max_thumbnails)

    # Deleting.

    async def remove_unused(
        self, hashes: Set[bytes], remove_rows: Callable[[WriteTransaction], Set[bytes]]
    ) -> Set[bytes] | None:
        def remove_both(txn: WriteTransaction) -> Set[bytes]:
            unused = remove_rows(txn)
            self._table.set_deleting(txn, unused)
            return unused

        removed = await self._files.remove_unused(
            hashes, lambda: self._database.write("remove_media", remove_both)
        )
        if removed:
            self._delete_soon(removed)
        return removed

    def _delete_soon(self, hashes: Set[bytes]) -> None:
        """Delete the objects of unused contents in the background."""
        self._deleted |= hashes
        if not self._is_deleting:
            self._is_deleting = True
            Deferred.fromCoroutine(self._delete_pending()).addErrback(
                lambda failure: self.log.failure(
                    "objects of deleted files will be deleted later", failure
                )
            )

    async def _delete_pending(self) -> None:
        try:
            while self._deleted:
                hashes, self._deleted = self._deleted, set()
                await self._delete(await self._table.get_deleting_of(hashes))
        except ObjectStoreFailed as error:
            self.log.warn("objects of deleted files will be deleted later: {error}", error=error)
            self._deleted.clear()
        finally:
            self._is_deleting = False

    async def delete_unused_objects(self, limit: int) -> int:
        """Delete unused and unfinished objects, in walks over all of them. Return how many. Run by
        a job. A failed deletion is retried by the next walk. Raises ObjectStoreFailed if the store
        deletes none."""
        deleting = await self._table.take_deleting(
            int(self._clock.seconds() * 1000), self._deleted_upto, limit
        )
        self._deleted_upto = deleting[-1].name if len(deleting) == limit else ""
        return await self._delete(deleting)

    async def _delete(self, deleting: Sequence[DeletingObject]) -> int:
        done = failures = 0
        for each in deleting:
            try:
                await self._remove(each)
            except ObjectStoreFailed as error:
                failures += 1
                if failures == MAX_FAILURES:
                    raise
                self.log.warn(
                    "the object {name} will be deleted later: {error}", name=each.name, error=error
                )
                continue
            failures = 0
            done += 1
            await self._table.remove([each.name])
        return done

    async def _remove(self, deleting: DeletingObject) -> None:
        await self._writing.run(
            lambda _: self._objects.remove(deleting.name, is_complete=deleting.is_complete)
        )


class _CountingStream:
    """A stream that records the received bytes with its call."""

    def __init__(self, *, stream: ObjectStream, call: ObjectCall) -> None:
        self._stream = stream
        self._call = call

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(size)
        self._call.record(len(data))
        return data


class _OpenedObject:
    """An object as a source of bytes. Consecutive reads share one response of the store."""

    def __init__(
        self, *, objects: ObjectStore, calls: ObjectCallRunner, found: StoredObject
    ) -> None:
        self.size = found.size
        self._objects = objects
        self._calls = calls
        self._name = found.name
        self._stream: ObjectStream | None = None
        self._position = 0
        self._reading = threading.Lock()
        self._is_closed = False

    async def read(self, offset: int, size: int) -> bytes:
        return await self._calls.run(lambda call: self._read(call, offset, size))

    def close(self) -> None:
        """Close the stream, or let a running read close it: waiting for that could block."""
        self._is_closed = True
        self._close_unless_read()

    def _close_unless_read(self) -> None:
        if self._reading.acquire(blocking=False):
            try:
                self._close_stream()
            finally:
                self._reading.release()

    def _read(self, call: ObjectCall, offset: int, size: int) -> bytes:
        try:
            with self._reading:
                return self._read_alone(call, offset, size)
        finally:
            if self._is_closed:
                self._close_unless_read()

    def _read_alone(self, call: ObjectCall, offset: int, size: int) -> bytes:
        if self._stream is None or self._position != offset:
            self._close_stream()
            self._stream = self._objects.open(self._name, offset)
            self._position = offset
        if self._stream is None:
            raise ObjectStoreFailed(f"the object {self._name} is missing in the store")
        stream = _CountingStream(stream=self._stream, call=call)
        data = bytearray()
        while len(data) < size and (piece := stream.read(size - len(data))):
            data += piece
        self._position += len(data)
        return bytes(data)

    def _close_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
