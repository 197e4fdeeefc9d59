"""A process that does one media operation and is killed at a chosen moment of it, or at its end.

    python -m tests.helpers.media_crash_process '{"database": …, "moment": "when an object is
    written", "work": "upload", …}'   # an `CrashPlan`

If the moment is never reached, the process is killed at the end. A failure ends it with exit code
1.
"""

import hashlib
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Set
from pathlib import Path
from typing import Any, Final

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from storage.engine.database import Database, SQLiteConfig
from storage.engine.executors import InlineExecutor
from storage.engine.transaction import Transaction, WriteTransaction
from storage.media.files import MediaFiles
from storage.media.media import MediaContent, MediaRow, MediaStore
from storage.media.object_store import S3Config
from storage.media.object_store_calls import ObjectCallRunner
from storage.media.object_store_journal import MediaObjectJournal
from storage.media.rebalancing import MediaRebalancer
from storage.media.s3 import S3ObjectStore
from storage.media.shared_contents import WRITING_SECONDS, Role, SharedContents
from tests.helpers.databases import open_inline

TEA, MILK = b"green tea" * 1000, b"milk" * 1000


class Opened:
    """Database, folder and object store, opened as a new process opens them."""

    def __init__(self, config: SQLiteConfig, folder: Path, store: S3Config, role: Role) -> None:
        self.database: Database = open_inline(config)
        self.clock = Clock()
        self.clock.advance(time.time())
        self.files = MediaFiles(
            folder=folder / "media_store", executor=InlineExecutor(), clock=Clock()
        )
        self.files.open_folder()
        self.store = S3ObjectStore(store)
        self.contents = SharedContents(
            database=self.database,
            files=self.files,
            objects=self.store,
            reading=ObjectCallRunner(executor=InlineExecutor(), clock=self.clock, max_silence=20.0),
            writing=ObjectCallRunner(executor=InlineExecutor(), clock=self.clock, max_silence=20.0),
            clock=self.clock,
            role=role,
            prefix="",
            redirect=False,
        )
        self.rows = MediaStore(self.database)
        self.levelling = MediaRebalancer(
            database=self.database, contents=self.contents, clock=self.clock
        )

    async def upload(self, data: bytes) -> None:
        def write(txn: WriteTransaction, digest: bytes, size: int) -> None:
            content = MediaContent(digest, size, "text/plain", None)
            self.rows.add_media(txn, MediaRow(digest.hex(), "@a:b", content, 0, None, 0, True))

        await self.contents.add(io.BytesIO(data), write)

    async def remove(self, data: bytes) -> None:
        digest = hashlib.sha256(data).digest()

        def forget(txn: WriteTransaction) -> Set[bytes]:
            txn.execute("DELETE FROM media WHERE hash = ?", (digest,))
            return {digest}

        await self.contents.remove_unused({digest}, forget)

    async def recover(self) -> Set[bytes]:
        """Run the recovery jobs of a restarted server. Return the hashes of the files that are
        still used."""
        assert await self.files.sweep(self.rows.get_used_hashes) is not None
        self.clock.advance(WRITING_SECONDS + 3600)
        while await self.contents.delete_unused_objects(100):
            pass
        return await self.database.read("used", _used)


def _used(txn: Transaction) -> Set[bytes]:
    return {bytes(row[0]) for row in txn.query("SELECT hash FROM media WHERE hash IS NOT NULL")}


def _die(*_arguments: object, **_further: object) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def _after(call: Callable[..., Any]) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **further: Any) -> Any:
        call(*arguments, **further)
        _die()

    return wrapped


Moment = Callable[[Opened], None]


def _patch(name: str, part: str, wrap: Callable[[Any], Any]) -> Moment:
    def patch(opened: Opened) -> None:
        target = getattr(opened, part)
        setattr(target, name, wrap(getattr(target, name)))

    return patch


def _die_before_the_rows_go(_opened: Opened) -> None:
    MediaObjectJournal.set_deleting = _die  # type: ignore[method-assign]


MOMENTS: Final[dict[str, Moment]] = {
    "before an object is written": _patch("put", "store", lambda _: _die),
    "when an object is written": _patch("put", "store", _after),
    "when the bytes have their place": _patch("settle", "files", lambda _: _die),
    "before an object is taken away": _patch("remove", "store", lambda _: _die),
    "when an object is taken away": _patch("remove", "store", _after),
    "before the rows go": _die_before_the_rows_go,
    "never": lambda _: None,
}


def _upload(opened: Opened) -> Coroutine[Any, Any, object]:
    return opened.upload(TEA)


def _remove(opened: Opened) -> Coroutine[Any, Any, object]:
    return opened.remove(MILK)


def _level(opened: Opened) -> Coroutine[Any, Any, object]:
    return opened.levelling.rebalance(10)


WORKS: Final[dict[str, Callable[[Opened], Coroutine[Any, Any, object]]]] = {
    "upload": _upload,
    "remove": _remove,
    "level": _level,
}


class CrashPlan(msgspec.Struct, frozen=True):
    """The operation, its database, folder and object store, and the moment (of `MOMENTS`) at which
    the process dies."""

    database: SQLiteConfig
    folder: Path
    store: S3Config
    role: Role
    work: str
    moment: str


def _say(failure: Failure) -> None:
    failure.printTraceback()
    os._exit(1)


def main() -> None:
    plan = msgspec.json.decode(sys.argv[1], type=CrashPlan, dec_hook=lambda kind, text: kind(text))
    opened = Opened(plan.database, plan.folder, plan.store, plan.role)
    MOMENTS[plan.moment](opened)
    Deferred.fromCoroutine(WORKS[plan.work](opened)).addErrback(_say)
    _die()


if __name__ == "__main__":
    main()
