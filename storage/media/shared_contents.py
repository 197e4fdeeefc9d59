"""Contents in an object store that all nodes share, and in a folder of this machine.

    role           folder                         object store
    main           a cache, trimmed to a size     has every content
    second_copy    has every content              has every content, a minute later
    retired        gets every content back        is emptied

An object's name is new for each writing: `PREFIX content/ab/cd/HASH-…`. The table `media_objects`
is the journal. What changes the role wants is done by `storage.media.levelling`, a job, in steps
that can be interrupted anywhere.

Laws:
- `main`: an upload is acknowledged when its object is whole and noted in the transaction of its
  row.
- `second_copy`: it is acknowledged when the folder has it, however the store does. The job makes
  the object, what came last first.
- What comes back from the store is checked by its hash before anybody has it, if it is brought back
  to the folder.
- Nobody waits for a store that hangs (`storage.media.object_calls`). Reading has threads of its
  own. Removing a file waits for no store at all: the journal has its object, which goes right
  after, or with a later walk of the job.
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
from storage.media.files import KeptThumbnail, MediaFiles, ReadableBytes, Received, StoredFile
from storage.media.object_calls import Call, ObjectCalls
from storage.media.object_store import ObjectStore, ObjectStoreFailed, ObjectStream
from storage.media.objects import LeavingObject, MediaObjectStore, StoredObject
from storage.media.spool import Spool

T = TypeVar("T")

Role = Literal["main", "second_copy", "retired"]

WRITING_SECONDS: Final = 600.0
"""For so long who writes an object is believed to live, unless he says so again."""
RENEW_SECONDS: Final = 120.0
WHOLE_BYTES: Final = 8 << 20
"""What is no longer is brought to the folder when it is asked for; longer ones are read where they
are, and are long to write."""
MOST_ATTEMPTS: Final = 5
MOST_LATELY: Final = 1000
MOST_FAILURES: Final = 3
"""After so many in a row the store takes nothing away at the moment."""


class _ObjectIsGone(Exception):
    """The object that was to be used is being taken away."""


class SharedContents:
    """Both of them. Implements `storage.media.contents.Contents`."""

    log = Logger()

    def __init__(
        self,
        database: Database,
        files: MediaFiles,
        objects: ObjectStore,
        reading: ObjectCalls,
        writing: ObjectCalls,
        clock: IReactorTime,
        *,
        role: Role,
        prefix: str,
        give_addresses: bool,
    ) -> None:
        """`reading`, `writing`: how the store is talked with. `give_addresses`: clients may be sent
        to the store."""
        self._database = database
        self._files = files
        self._objects = objects
        self._reading = reading
        self._writing = writing
        self._clock = clock
        self.role: Role = role
        self._prefix = prefix
        self._give_addresses = give_addresses
        self._table = MediaObjectStore(database)
        self._coming_back: dict[bytes, list[Deferred[bool]]] = {}
        self._lately: set[bytes] = set()
        self._gone: set[bytes] = set()
        """Contents that were removed just now, and whose objects are still there."""
        self._is_taking_away = False
        self._taken_to = ""

    def spool(self, memory_bytes: int) -> Spool:
        return self._files.spool(memory_bytes)

    # Taking in.

    async def add(
        self, source: ReadableBytes, write: Callable[[WriteTransaction, bytes, int], T]
    ) -> T:
        received = await self._files.receive(source)
        try:
            # Before its place, since nothing can be taken away from the folder from there until the
            # row is written
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
        if self.role == "second_copy" and len(self._lately) < MOST_LATELY:
            self._lately.add(stored.hash)
        return result

    def take_lately(self, limit: int) -> Set[bytes]:
        """Contents that came lately and wait for their second copy, at most so many, each told
        once. What is not among them, as after a restart, is found by who looks through all."""
        return {self._lately.pop() for _ in range(min(limit, len(self._lately)))}

    async def _write(
        self,
        stored: StoredFile,
        name: str | None,
        write: Callable[[WriteTransaction, bytes, int], T],
    ) -> T:
        """Write row and journal, with another object where the one that was to be used has gone
        meanwhile."""
        for _ in range(MOST_ATTEMPTS):
            try:
                return await self._database.write("keep_media", self._note, stored, name, write)
            except _ObjectIsGone:
                name = await self._put(stored.entry, stored.hash, stored.size)
        raise ObjectStoreFailed("the object went away each time")

    def _note(
        self,
        txn: WriteTransaction,
        stored: StoredFile,
        name: str | None,
        write: Callable[[WriteTransaction, bytes, int], T],
    ) -> T:
        if name is not None:
            is_here = self._table.set_here(txn, name, stored.hash)
        else:
            is_here = self.role != "main" or self._table.is_here(txn, stored.hash)
        if not is_here:
            raise _ObjectIsGone
        return write(txn, stored.hash, stored.size)

    async def _put(self, path: Path, hash: bytes, size: int) -> str | None:
        """Write the object, if it must be there first and there is none with this content; its
        name."""
        if self.role != "main" or hash in await self._table.get_objects([hash]):
            return None
        return await self.write_object(path, hash, size)

    async def write_object(self, path: Path, hash: bytes, size: int) -> str:
        """A new object with what is in a file; its name, which is not noted as `here` yet."""
        text = hash.hex()
        name = f"{self._prefix}content/{text[:2]}/{text[2:4]}/{text}-{uuid4().hex}"
        await self._table.add_coming(name, hash, size, self._until())
        renewing = LoopingCall(self._renew, name)
        renewing.clock = self._clock
        renewing.start(RENEW_SECONDS, now=False)
        try:
            await self._writing.run(
                lambda call: self._objects.put(name, path, call), is_long=size > WHOLE_BYTES
            )
        finally:
            renewing.stop()
        return name

    def _renew(self, name: str) -> Deferred[None]:
        return Deferred.fromCoroutine(self._table.renew(name, self._until())).addErrback(
            lambda failure: self.log.failure(
                "cannot note that an object is still being written", failure
            )
        )

    def _until(self) -> int:
        return int((self._clock.seconds() + WRITING_SECONDS) * 1000)

    # Giving out.

    async def open(self, hash: bytes) -> OpenedContent | None:
        opened = await self._files.open(hash)
        if opened is not None:
            return opened
        found = (await self._table.get_objects([hash])).get(hash)
        if found is None:
            return None
        if found.size > WHOLE_BYTES:
            return _OpenedObject(self._objects, self._reading, found)
        return await self._files.open(hash) if await self.bring_back(found) else None

    @asynccontextmanager
    async def lend(self, hash: bytes) -> AsyncIterator[Path | None]:
        if not await self._files.has(hash):
            found = (await self._table.get_objects([hash])).get(hash)
            if found is None or not await self.bring_back(found):
                yield None
                return
        with self._files.lend(hash) as path:
            yield path

    async def get_address(self, hash: bytes, type: str, disposition: str) -> str | None:
        if not self._give_addresses or self.role == "retired":
            return None
        found = (await self._table.get_objects([hash])).get(hash)
        if found is None:
            return None
        return await self._reading.run(
            lambda _: self._objects.address(found.name, type, disposition)
        )

    async def bring_back(self, found: StoredObject) -> bool:
        """Let the folder have a content, once for all who ask; whether it was there. Raises
        OSError."""
        waiters = self._coming_back.get(found.hash)
        mine: Deferred[bool] = Deferred()
        if waiters is not None:
            waiters.append(mine)
            return await mine
        self._coming_back[found.hash] = [mine]

        def done(result: bool | Failure) -> None:
            for waiter in self._coming_back.pop(found.hash):
                waiter.callback(result)

        Deferred.fromCoroutine(self._fetch(found)).addBoth(done)
        return await mine

    async def _fetch(self, found: StoredObject) -> bool:
        received = await self._reading.run(
            partial(self._receive, found.name), late=self._discard_late
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

    def _receive(self, name: str, call: Call) -> Received | None:
        """In a thread: an object as a file of the folder, which has no place yet; None when there
        is none."""
        stream = self._objects.open(name, 0)
        if stream is None:
            return None
        try:
            return self._files.receive_now(_Heard(stream, call))
        finally:
            stream.close()

    def _discard_late(self, received: Received | None) -> None:
        if received is not None:
            self._files.discard(received)

    async def get_thumbnail(self, hash: bytes, name: str) -> KeptThumbnail | None:
        return await self._files.get_thumbnail(hash, name)

    async def set_thumbnail(self, hash: bytes, name: str, data: bytes, at_most: int) -> None:
        await self._files.set_thumbnail(hash, name, data, at_most)

    # Taking away.

    async def remove_unused(
        self, hashes: Set[bytes], forget: Callable[[WriteTransaction], Set[bytes]]
    ) -> Set[bytes] | None:
        def forget_both(txn: WriteTransaction) -> Set[bytes]:
            unused = forget(txn)
            self._table.set_leaving(txn, unused)
            return unused

        removed = await self._files.remove_unused(
            hashes, lambda: self._database.write("forget_media", forget_both)
        )
        if removed:
            self._take_away_soon(removed)
        return removed

    def _take_away_soon(self, hashes: Set[bytes]) -> None:
        """Take away the objects of contents that nobody has any more, and let nobody wait for
        that."""
        self._gone |= hashes
        if not self._is_taking_away:
            self._is_taking_away = True
            Deferred.fromCoroutine(self._take_away_gone()).addErrback(
                lambda failure: self.log.failure(
                    "objects of files that were removed are taken away later", failure
                )
            )

    async def _take_away_gone(self) -> None:
        try:
            while self._gone:
                hashes, self._gone = self._gone, set()
                await self._take_away(await self._table.get_leaving_of(hashes))
        except ObjectStoreFailed as error:
            self.log.warn(
                "objects of files that were removed are taken away later: {error}", error=error
            )
            self._gone.clear()
        finally:
            self._is_taking_away = False

    async def do_take_away(self, limit: int) -> int:
        """Take away objects that nobody has any more, and what was never finished, in walks through
        all of them; how many. A job does it. One that cannot be taken away is left for the next
        walk. Raises ObjectStoreFailed where the store takes none."""
        leaving = await self._table.take_leaving(
            int(self._clock.seconds() * 1000), self._taken_to, limit
        )
        self._taken_to = leaving[-1].name if len(leaving) == limit else ""
        return await self._take_away(leaving)

    async def _take_away(self, leaving: Sequence[LeavingObject]) -> int:
        done = failures = 0
        for each in leaving:
            try:
                await self._remove(each)
            except ObjectStoreFailed as error:
                failures += 1
                if failures == MOST_FAILURES:
                    raise
                self.log.warn(
                    "the object {name} is taken away later: {error}", name=each.name, error=error
                )
                continue
            failures = 0
            done += 1
            await self._table.forget([each.name])
        return done

    async def _remove(self, leaving: LeavingObject) -> None:
        await self._writing.run(
            lambda _: self._objects.remove(leaving.name, is_whole=leaving.is_whole)
        )


class _Heard:
    """A stream of which the call knows how much has come."""

    def __init__(self, stream: ObjectStream, call: Call) -> None:
        self._stream = stream
        self._call = call

    def read(self, size: int = -1, /) -> bytes:
        data = self._stream.read(size)
        self._call.note(len(data))
        return data


class _OpenedObject:
    """An object as a source: pieces in a row come out of one answer of the store."""

    def __init__(self, objects: ObjectStore, calls: ObjectCalls, found: StoredObject) -> None:
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
        """Whoever reads closes the stream in the end: doing it here would wait for what they wait
        for."""
        self._is_closed = True
        self._close_unless_read()

    def _close_unless_read(self) -> None:
        if self._reading.acquire(blocking=False):
            try:
                self._close_stream()
            finally:
                self._reading.release()

    def _read(self, call: Call, offset: int, size: int) -> bytes:
        try:
            with self._reading:
                return self._read_alone(call, offset, size)
        finally:
            if self._is_closed:
                self._close_unless_read()

    def _read_alone(self, call: Call, offset: int, size: int) -> bytes:
        if self._stream is None or self._position != offset:
            self._close_stream()
            self._stream = self._objects.open(self._name, offset)
            self._position = offset
        if self._stream is None:
            raise ObjectStoreFailed(f"the object {self._name} is missing in the store")
        stream = _Heard(self._stream, call)
        data = bytearray()
        while len(data) < size and (piece := stream.read(size - len(data))):
            data += piece
        self._position += len(data)
        return bytes(data)

    def _close_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
