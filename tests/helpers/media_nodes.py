"""Nodes that store files in an object store and in folders, and object stores that fail or hang on
demand."""

import io
import threading
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any, cast

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from storage.engine.database import Database
from storage.engine.executors import Executor, InlineExecutor
from storage.engine.transaction import WriteTransaction
from storage.media.files import MediaFiles
from storage.media.media import MediaContent, MediaRow, MediaStore
from storage.media.object_store import ObjectStore, ObjectStoreFailed
from storage.media.object_store_calls import ObjectCallRunner
from storage.media.rebalancing import MediaRebalancer
from storage.media.shared_contents import Role, SharedContents
from tests.helpers.object_store import Bucket


class UnreliableStore:
    """An object store that can be unreachable; each call can also fail once."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.is_cut = False

    def __getattr__(self, name: str) -> Any:
        if self.is_cut:
            raise ObjectStoreFailed("the object store is unreachable")
        return getattr(self.store, name)


class Node:
    """One of several nodes that share a database and a bucket."""

    def __init__(
        self,
        database: Database,
        folder: Path,
        store: ObjectStore,
        role: Role = "main",
        executor: Executor | None = None,
        patience: float = 20.0,
        **further: Any,
    ) -> None:
        self.database = database
        self.rows = MediaStore(database)
        self.clock = Clock()
        self.folder = folder
        self.clock.advance(1_700_000_000)
        self.files = MediaFiles(folder=folder, executor=InlineExecutor(), clock=Clock())
        self.files.open_folder()
        self.contents = SharedContents(
            database=database,
            files=self.files,
            objects=store,
            reading=ObjectCallRunner(
                executor=executor or InlineExecutor(), clock=self.clock, max_silence=patience
            ),
            writing=ObjectCallRunner(
                executor=executor or InlineExecutor(), clock=self.clock, max_silence=patience
            ),
            clock=self.clock,
            role=role,
            prefix="mahalla/",
            **{"redirect": False, **further},
        )
        self.levelling = MediaRebalancer(
            database=database, contents=self.contents, clock=self.clock
        )

    async def upload(self, data: bytes, media_id: str = "a") -> bytes:
        """Store data; return its hash."""

        def write(txn: WriteTransaction, digest: bytes, size: int) -> bytes:
            content = MediaContent(digest, size, "text/plain", None)
            self.rows.add_media(txn, MediaRow(media_id, "@a:b", content, 0, None, 0, True))
            return digest

        return await self.contents.add(io.BytesIO(data), write)

    async def remove(self, media_id: str, digest: bytes) -> Set[bytes] | None:
        return await self.contents.remove_unused(
            {digest}, lambda txn: self.forget(txn, media_id, digest)
        )

    def forget(self, txn: WriteTransaction, media_id: str, digest: bytes) -> Set[bytes]:
        txn.execute("DELETE FROM media WHERE media_id = ?", (media_id,))
        return (
            {digest}
            if txn.query_one("SELECT 1 FROM media WHERE hash = ?", (digest,)) is None
            else set()
        )

    async def read(self, digest: bytes) -> bytes | None:
        opened = await self.contents.open(digest)
        if opened is None:
            return None
        try:
            return b"".join(
                [await opened.read(at, 1 << 20) for at in range(0, opened.size, 1 << 20)]
            )
        finally:
            opened.close()

    def lose_folder(self) -> None:
        for path in self.kept():
            path.unlink()

    def kept(self) -> list[Path]:
        return [path for path in (self.folder / "content").rglob("*") if path.is_file()]

    def incoming(self) -> list[Path]:
        return list((self.folder / "incoming").iterdir())


class HangingThreads:
    """Runs each call in a thread of its own and waits until the call ends or hangs."""

    def __init__(self) -> None:
        self._calls: list[Callable[[], None]] = []
        self._stopped = threading.Event()
        self._going_on = threading.Event()

    def submit(self, job: Callable[[], None]) -> None:
        def work() -> None:
            job()
            self._stopped.set()

        self._stopped.clear()
        threading.Thread(target=work, daemon=True).start()
        self._deliver()

    def deliver(self, call: Callable[[], None]) -> None:
        self._calls.append(call)

    def close(self) -> Deferred[None]:
        raise AssertionError

    def hang(self) -> None:
        """Block the calling thread until `go_on`."""
        self._stopped.set()
        assert self._going_on.wait(60)

    def go_on(self) -> None:
        self._stopped.clear()
        self._going_on.set()
        self._deliver()

    def _deliver(self) -> None:
        assert self._stopped.wait(60)
        while self._calls:
            self._calls.pop(0)()


class HangingStore:
    """An object store whose calls hang on demand."""

    def __init__(self, store: ObjectStore, threads: HangingThreads) -> None:
        self.is_hanging = False
        self._store = store
        self._threads = threads

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)

        def call(*args: Any, **further: Any) -> Any:
            if self.is_hanging:
                self._threads.hang()
            return found(*args, **further)

        return call


def hanging_node(
    database: Database, folder: Path, bucket: Bucket
) -> tuple[Node, HangingStore, HangingThreads]:
    threads = HangingThreads()
    store = HangingStore(bucket.open(), threads)
    return Node(database, folder, cast(ObjectStore, store), executor=threads), store, threads
