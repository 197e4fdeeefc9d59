"""kill -9 while files come, go and move: no row without its file, no file without a row, nothing acknowledged is lost."""

import hashlib
import http.client
import io
import os
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Set
from pathlib import Path
from random import Random
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from storage.database import Database, SQLiteConfig
from storage.executors import InlineExecutor
from storage.media import Content, MediaRow, MediaStore
from storage.media_files import MediaFiles
from storage.media_levelling import Levelling
from storage.media_objects import MediaObjectStore
from storage.object_calls import ObjectCalls
from storage.shared_contents import WRITING_SECONDS, Role, SharedContents
from storage.transaction import Transaction, WriteTransaction
from tests.helpers.databases import open_inline
from tests.helpers.object_store import Bucket, RunningObjectStore, running_object_store
from tests.helpers.running import RunningServer, ServerFiles

SEED = 1447
ROUNDS = 2
UPLOADERS = 4
DOWNLOAD = "/_matrix/client/v1/media/download/"
TEA, MILK = b"green tea" * 1000, b"milk" * 1000


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningObjectStore]:
    with running_object_store(tmp_path_factory.mktemp("moto")) as store:
        yield store


@pytest.fixture
def bucket(running: RunningObjectStore) -> Bucket:
    return running.bucket()


class Opened:
    """Database, folder and store, as a process opens them that is started."""

    def __init__(self, config: SQLiteConfig, folder: Path, bucket: Bucket, role: Role) -> None:
        self.database: Database = open_inline(config)
        self.clock = Clock()
        self.clock.advance(time.time())
        self.files = MediaFiles(folder / "media_store", InlineExecutor(), Clock())
        self.files.open_folder()
        self.store = bucket.open()
        self.contents = SharedContents(
            self.database,
            self.files,
            self.store,
            ObjectCalls(InlineExecutor(), self.clock, 20.0),
            ObjectCalls(InlineExecutor(), self.clock, 20.0),
            self.clock,
            role=role,
            prefix="",
            give_addresses=False,
        )
        self.rows = MediaStore(self.database)
        self.table = MediaObjectStore(self.database)
        self.levelling = Levelling(self.database, self.contents, self.clock)

    async def upload(self, data: bytes) -> None:
        def write(txn: WriteTransaction, digest: bytes, size: int) -> None:
            content = Content(digest, size, "text/plain", None)
            self.rows.add_media(txn, MediaRow(digest.hex(), "@a:b", content, 0, None, 0, True))

        await self.contents.add(io.BytesIO(data), write)

    async def remove(self, data: bytes) -> None:
        digest = hashlib.sha256(data).digest()

        def forget(txn: WriteTransaction) -> Set[bytes]:
            txn.execute("DELETE FROM media WHERE hash = ?", (digest,))
            return {digest}

        await self.contents.remove_unused({digest}, forget)

    async def recover(self) -> Set[bytes]:
        """What a server that is started again does in time; the hashes that files have."""
        assert await self.files.sweep(self.rows.get_used_hashes) is not None
        self.clock.advance(WRITING_SECONDS + 3600)
        while await self.contents.do_take_away(100):
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


MOMENTS: dict[str, Moment] = {
    "before an object is written": _patch("put", "store", lambda _: _die),
    "when an object is written": _patch("put", "store", _after),
    "when the bytes have their place": _patch("settle", "files", lambda _: _die),
    "before an object is taken away": _patch("remove", "store", lambda _: _die),
    "when an object is taken away": _patch("remove", "store", _after),
    "before the rows go": _patch("set_leaving", "table", lambda _: _die),
    "never": lambda _: None,
}


def _killed_at(
    moment: Moment, config: SQLiteConfig, folder: Path, bucket: Bucket, role: Role, work: Callable[[Opened], Any]
) -> None:
    """Do it in a process of its own that is killed then, or at the end."""
    child = os.fork()
    if not child:
        try:
            opened = Opened(config, folder, bucket, role)
            opened.contents._table = opened.table
            opened.levelling._table = opened.table
            moment(opened)
            Deferred.fromCoroutine(work(opened))
        finally:
            _die()
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


def _upload(opened: Opened) -> Coroutine[Any, Any, None]:
    return opened.upload(TEA)


def _remove(opened: Opened) -> Coroutine[Any, Any, None]:
    return opened.remove(MILK)


def _level(opened: Opened) -> Coroutine[Any, Any, int]:
    return opened.levelling.do_level(10)


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize(
    ("before", "role", "work"),
    [
        ("main", "main", _upload),
        ("main", "main", _remove),
        ("main", "second_copy", _remove),
        ("retired", "main", _level),
        ("main", "retired", _level),
    ],
    ids=["upload", "remove", "remove both", "to the store", "from the store"],
)
async def test_at_every_moment(
    sqlite: SQLiteConfig,
    bucket: Bucket,
    tmp_path: Path,
    before: Role,
    role: Role,
    work: Callable[[Opened], Any],
    moment: str,
) -> None:
    first = Opened(sqlite, tmp_path, bucket, before)
    for data in (MILK, b"other"):
        await first.upload(data)
    await first.database.close()
    _killed_at(MOMENTS[moment], sqlite, tmp_path, bucket, role, work)

    again = Opened(sqlite, tmp_path, bucket, role)
    used = await again.recover()
    assert hashlib.sha256(b"other").digest() in used
    if work is _level:
        assert len(used) == 2
        while await again.levelling.do_level(10):
            pass
        assert len(bucket.names()) == (0 if role == "retired" else 2)
    for digest in used:
        opened = await again.contents.open(digest)
        assert opened is not None
        assert hashlib.sha256(await opened.read(0, opened.size)).digest() == digest
        opened.close()
    if role != "retired":
        assert {name.split("/")[-1][:64] for name in bucket.names()} == {each.hex() for each in used}
        assert len(bucket.names()) == len(used)
    assert {path.name for path in (tmp_path / "media_store" / "content").rglob("*") if path.is_file()} == {
        each.hex() for each in used
    }
    assert not list((tmp_path / "media_store" / "incoming").iterdir())
    await again.database.close()


class Uploader(threading.Thread):
    """Uploads one file after the other; remembers what was acknowledged."""

    def __init__(self, number: int, server: RunningServer, token: str) -> None:
        super().__init__(daemon=True)
        self.acknowledged: dict[str, str] = {}
        self._random = Random(f"{SEED} {number}")
        self._server = server
        self._token = token

    def run(self) -> None:
        connection = self._server.connect()
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "text/plain"}
        try:
            while True:
                body = self._random.randbytes(self._random.choice((10, 5000, 100_000, 3_000_000)))
                connection.request("POST", "/_matrix/media/v3/upload", body, headers)
                answer = connection.getresponse()
                said = answer.read()
                assert answer.status == 200, said
                address = said.decode().split("mxc://")[1].rstrip('"}')
                self.acknowledged[address] = hashlib.sha256(body).hexdigest()
        except (OSError, http.client.HTTPException):
            return  # the server was killed


def test_a_server_that_is_killed_again_and_again(bucket: Bucket, tmp_path: Path) -> None:
    database = SQLiteConfig(str(tmp_path / "homeserver.db"))
    unlimited = {"per_second": 100000, "burst_count": 100000}
    files = ServerFiles(tmp_path, database, {"media_object_store": bucket.section(), "rc_media_create": unlimited})
    acknowledged: dict[str, str] = {}
    random = Random(SEED)
    try:
        server = files.start()
        token = server.register("alice")
        for number in range(ROUNDS):
            uploaders = [Uploader(10 * number + each, server, token) for each in range(UPLOADERS)]
            for each in uploaders:
                each.start()
            time.sleep(random.uniform(0.3, 1.2))
            while sum(len(each.acknowledged) for each in uploaders) < UPLOADERS and any(
                map(Uploader.is_alive, uploaders)
            ):
                time.sleep(0.01)
            server.kill()
            for each in uploaders:
                each.join(120)
                acknowledged.update(each.acknowledged)
            server = files.start()
        assert len(acknowledged) >= ROUNDS * UPLOADERS
        for address, digest in acknowledged.items():
            reply = server.request("GET", DOWNLOAD + address, token=token)
            assert (reply.status, hashlib.sha256(reply.body).hexdigest()) == (200, digest)
        server.stop()
    finally:
        files.end()
    opened = Opened(database, tmp_path, bucket, "main")
    recovered: list[Set[bytes]] = []
    Deferred.fromCoroutine(opened.recover()).addCallbacks(recovered.append, lambda failure: failure.raiseException())
    (used,) = recovered
    assert {bytes.fromhex(each) for each in acknowledged.values()} <= used
    assert {name.split("/")[-1][:64] for name in bucket.names()} == {each.hex() for each in used}
    assert bucket.unfinished() == []
    kept = {path.name for path in (tmp_path / "media_store" / "content").rglob("*") if path.is_file()}
    assert kept == {each.hex() for each in used}
    assert not list((tmp_path / "media_store" / "incoming").iterdir())
