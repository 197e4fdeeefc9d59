"""Contents in an object store and in a folder: with a store that others wrote, and one that fails when it is told to."""

import hashlib
import io
import os
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs, formatEvent

from storage.database import Database
from storage.executors import Executor, InlineExecutor
from storage.media import Content, MediaRow, MediaStore
from storage.media_files import MediaFiles
from storage.media_levelling import FOLDERS, Levelling, Trimming
from storage.media_objects import MediaObjectStore
from storage.object_calls import LEAST_BYTES, Call, ObjectCalls
from storage.object_store import ObjectStore, ObjectStoreFailed
from storage.s3 import PART_BYTES
from storage.shared_contents import MOST_FAILURES, WHOLE_BYTES, WRITING_SECONDS, Role, SharedContents
from storage.transaction import WriteTransaction
from tests.helpers.later import LaterExecutor
from tests.helpers.object_store import Bucket, RunningObjectStore, hanging_object_store, running_object_store

TEA = b"green tea"
LONG = bytes(range(256)) * (WHOLE_BYTES // 256 + 100)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningObjectStore]:
    with running_object_store(tmp_path_factory.mktemp("moto")) as store:
        yield store


@pytest.fixture
def bucket(running: RunningObjectStore) -> Bucket:
    return running.bucket()


class Cut:
    """A store that can be reached, or not; each call may be refused once."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self.is_cut = False

    def __getattr__(self, name: str) -> Any:
        if self.is_cut:
            raise ObjectStoreFailed("there is no way there")
        return getattr(self.store, name)


class Node:
    """One of several that share a database and a bucket."""

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
        self.files = MediaFiles(folder, InlineExecutor())
        self.files.open_folder()
        self.contents = SharedContents(
            database,
            self.files,
            store,
            ObjectCalls(executor or InlineExecutor(), self.clock, patience),
            ObjectCalls(executor or InlineExecutor(), self.clock, patience),
            self.clock,
            role=role,
            prefix="mahalla/",
            **{"give_addresses": False, **further},
        )
        self.levelling = Levelling(database, self.contents, self.clock)

    async def upload(self, data: bytes, media_id: str = "a") -> bytes:
        """Its hash."""

        def write(txn: WriteTransaction, digest: bytes, size: int) -> bytes:
            content = Content(digest, size, "text/plain", None)
            self.rows.add_media(txn, MediaRow(media_id, "@a:b", content, 0, None, 0, True))
            return digest

        return await self.contents.add(io.BytesIO(data), write)

    async def remove(self, media_id: str, digest: bytes) -> Set[bytes] | None:
        return await self.contents.remove_unused({digest}, lambda txn: self.forget(txn, media_id, digest))

    def forget(self, txn: WriteTransaction, media_id: str, digest: bytes) -> Set[bytes]:
        txn.execute("DELETE FROM media WHERE media_id = ?", (media_id,))
        return {digest} if txn.query_one("SELECT 1 FROM media WHERE hash = ?", (digest,)) is None else set()

    async def read(self, digest: bytes) -> bytes | None:
        opened = await self.contents.open(digest)
        if opened is None:
            return None
        try:
            return b"".join([await opened.read(at, 1 << 20) for at in range(0, opened.size, 1 << 20)])
        finally:
            opened.close()

    def lose_folder(self) -> None:
        for path in self.kept():
            path.unlink()

    def kept(self) -> list[Path]:
        return [path for path in (self.folder / "content").rglob("*") if path.is_file()]

    def incoming(self) -> list[Path]:
        return list((self.folder / "incoming").iterdir())


async def test_what_one_node_takes_in_another_gives_out_and_removes(
    database: Database, bucket: Bucket, tmp_path: Path
) -> None:
    north = Node(database, tmp_path / "north", bucket.open())
    south = Node(database, tmp_path / "south", bucket.open())
    digest, long = await north.upload(TEA), await north.upload(LONG, "long")
    assert sorted(name.split("-")[0] for name in bucket.names()) == sorted(
        f"mahalla/content/{each.hex()[:2]}/{each.hex()[2:4]}/{each.hex()}" for each in (digest, long)
    )
    assert await south.read(digest) == TEA
    assert len(south.kept()) == 1
    assert await south.read(long) == LONG
    assert len(south.kept()) == 1  # it was read where it is
    async with south.contents.lend(long) as path:
        assert path is not None
        assert hashlib.sha256(path.read_bytes()).digest() == long
    assert await south.read(b"x" * 32) is None
    assert await south.remove("a", digest) == {digest}
    assert [name for name in bucket.names() if digest.hex() in name] == []
    # the other node's copy goes when it looks through its folder
    assert await Trimming(database, north.files, None).do_trim(FOLDERS + 1) == FOLDERS
    assert await north.read(digest) is None
    assert await south.read(digest) is None
    assert north.incoming() == south.incoming() == []


async def test_equal_contents_are_written_once(database: Database, bucket: Bucket, tmp_path: Path) -> None:
    node = Node(database, tmp_path, bucket.open())
    digest = await node.upload(TEA, "a")
    await node.upload(TEA, "b")
    assert len(bucket.names()) == 1
    assert await node.remove("a", digest) == set()
    assert len(bucket.names()) == 1
    assert await node.remove("b", digest) == {digest}
    assert bucket.names() == []
    assert (await MediaObjectStore(database).count())[1].contents == 0


@pytest.mark.parametrize(
    "encryption",
    [
        {"encryption": "AES256"},
        {"encryption": "customer", "customer_key": b"k" * 32},
        {"encryption": "aws:kms", "kms_key_id": "alias/files"},
    ],
)
async def test_objects_are_encrypted_by_the_store(
    sqlite_database: Database, bucket: Bucket, tmp_path: Path, encryption: dict[str, Any]
) -> None:
    node = Node(sqlite_database, tmp_path, bucket.open(storage_class="STANDARD_IA", **encryption))
    digest = await node.upload(TEA)
    node.lose_folder()
    assert await node.read(digest) == TEA
    (name,) = bucket.names()
    further = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": "k" * 32} if "customer_key" in encryption else {}
    head = bucket.client.head_object(Bucket=bucket.name, Key=name, **further)
    assert head["StorageClass"] == "STANDARD_IA"
    assert head.get("ServerSideEncryption", "") == ("" if further else encryption["encryption"])
    assert head.get("SSEKMSKeyId", "").endswith(encryption.get("kms_key_id", ""))


async def test_clients_may_be_sent_to_the_store(sqlite_database: Database, bucket: Bucket, tmp_path: Path) -> None:
    digest = await Node(sqlite_database, tmp_path, bucket.open()).upload(TEA)
    node = Node(sqlite_database, tmp_path, bucket.open(), give_addresses=True)
    address = await node.contents.get_address(digest, "text/plain", "attachment; filename=tea.txt")
    assert address is not None
    with urllib.request.urlopen(address) as answer:  # noqa: ASYNC210 - the store is another process
        assert answer.read() == TEA
        assert answer.headers["Content-Disposition"] == "attachment; filename=tea.txt"
    assert await node.contents.get_address(b"x" * 32, "text/plain", "") is None
    assert await Node(sqlite_database, tmp_path, bucket.open()).contents.get_address(digest, "text/plain", "") is None


async def test_the_main_store_must_have_it_before_it_is_acknowledged(
    sqlite_database: Database, bucket: Bucket, tmp_path: Path
) -> None:
    store = Cut(bucket.open())
    node = Node(sqlite_database, tmp_path, store)
    store.is_cut = True
    with pytest.raises(ObjectStoreFailed):
        await node.upload(TEA)
    assert await node.rows.get_media(["a"]) == {}
    assert node.kept() == node.incoming() == []
    store.is_cut = False
    node.clock.advance(WRITING_SECONDS + 1)
    assert await node.contents.do_take_away(10) == 1  # what was begun
    assert await node.contents.do_take_away(10) == 0


async def test_a_second_copy_comes_later(database: Database, bucket: Bucket, tmp_path: Path) -> None:
    store = Cut(bucket.open())
    node = Node(database, tmp_path, store, "second_copy")
    store.is_cut = True
    digest = await node.upload(TEA)
    assert bucket.names() == []
    with pytest.raises(ObjectStoreFailed):
        await node.levelling.do_level(10)
    store.is_cut = False
    assert await node.levelling.do_level(10) == 1
    assert len(bucket.names()) == 1
    assert await node.levelling.do_level(10) == 0
    node.lose_folder()
    assert await node.read(digest) == TEA


async def test_an_upload_does_not_wait_for_the_second_copy(
    sqlite_database: Database, bucket: Bucket, tmp_path: Path
) -> None:
    """The store hangs; what was acknowledged meanwhile comes there later, also after a restart."""
    node = Node(sqlite_database, tmp_path, bucket.open(), "second_copy", LaterExecutor())
    uploading = Deferred.fromCoroutine(node.upload(TEA))
    assert uploading.called
    levelling = Deferred.fromCoroutine(node.levelling.do_level(10))
    assert not levelling.called  # it is the job that waits
    assert Deferred.fromCoroutine(node.upload(b"black tea", "b")).called
    again = Node(sqlite_database, tmp_path, bucket.open(), "second_copy")
    assert await again.levelling.do_level(10) == 2
    assert len(bucket.names()) == 2


async def test_what_came_lately_gets_its_second_copy_first(
    sqlite_database: Database, bucket: Bucket, tmp_path: Path
) -> None:
    before = Node(sqlite_database, tmp_path, bucket.open(), "retired")
    for number in range(4):
        await before.upload(b"%d" % number, str(number))
    node = Node(sqlite_database, tmp_path, bucket.open(), "second_copy")
    digest, gone = await node.upload(TEA), await node.upload(b"black tea", "b")
    await node.remove("b", gone)
    with capturedLogs() as told:
        assert await node.levelling.do_level(2) == 2
        assert [name for name in bucket.names() if digest.hex() in name]
        assert [await node.levelling.do_level(2) for _ in range(3)] == [2, 1, 0]
    assert len(bucket.names()) == 5
    assert not [event for event in told if event["log_level"].name == "error"]


async def test_all_move_to_the_store_and_back(database: Database, bucket: Bucket, tmp_path: Path) -> None:
    before = Node(database, tmp_path, bucket.open(), "retired")
    digests = [await before.upload(b"%d" % number, str(number)) for number in range(7)]
    assert bucket.names() == []
    node = Node(database, tmp_path, bucket.open())
    assert await node.levelling.do_level(3) == 3
    again = Node(database, tmp_path, bucket.open())  # it was interrupted
    assert [await again.levelling.do_level(3) for _ in range(3)] == [3, 1, 0]
    assert len(bucket.names()) == 7
    again.lose_folder()
    await again.remove("3", digests[3])
    after = Node(database, tmp_path, bucket.open(), "retired")
    assert await after.levelling.do_level(4) == 4
    assert len(bucket.names()) == 2
    after = Node(database, tmp_path, bucket.open(), "retired")
    assert await after.levelling.do_level(4) == 2
    assert bucket.names() == []
    assert (await MediaObjectStore(database).count())[1].contents == 0
    assert [await after.read(each) for each in digests] == [b"0", b"1", b"2", None, b"4", b"5", b"6"]


async def test_one_file_that_cannot_be_moved_does_not_keep_the_others(
    sqlite_database: Database, bucket: Bucket, tmp_path: Path
) -> None:
    before = Node(sqlite_database, tmp_path, bucket.open(), "retired")
    digests = sorted([await before.upload(b"%d" % number, str(number)) for number in range(4)])

    class Particular:
        """A store that does not take one of them."""

        def __init__(self, store: ObjectStore) -> None:
            self.store = store

        def put(self, name: str, path: Path, note: Callable[[int], None]) -> None:
            if digests[1].hex() in name:
                raise ObjectStoreFailed("not this one")
            self.store.put(name, path, note)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.store, name)

    node = Node(sqlite_database, tmp_path, cast(ObjectStore, Particular(bucket.open())))
    for _ in range(2):
        with pytest.raises(ObjectStoreFailed):
            await node.levelling.do_level(10)
    assert await node.levelling.do_level(10) == 2
    assert set(await MediaObjectStore(sqlite_database).get_objects(digests)) == set(digests) - {digests[1]}
    with pytest.raises(ObjectStoreFailed):
        await node.levelling.do_level(10)  # the next walk


async def test_how_far_it_is_is_told_once_in_a_while(sqlite_database: Database, bucket: Bucket, tmp_path: Path) -> None:
    before = Node(sqlite_database, tmp_path, bucket.open(), "retired")
    for number in range(5):
        await before.upload(b"%d" % number, str(number))
    node = Node(sqlite_database, tmp_path, bucket.open())
    with capturedLogs() as told:
        await node.levelling.do_level(1)
        await node.levelling.do_level(1)
        node.clock.advance(60)
        await node.levelling.do_level(1)
        node.clock.advance(60)
        for _ in range(4):
            await node.levelling.do_level(10)
    assert [formatEvent(event) for event in told] == [
        "1 of 5 files are in the object store, 1 of 5 bytes",
        "3 of 5 files are in the object store, 3 of 5 bytes",
        "5 of 5 files are in the object store, 5 of 5 bytes",
        "every file is where media_object_store.role wants it",
    ]


async def test_the_folder_is_trimmed_to_what_was_read_last(
    sqlite_database: Database, bucket: Bucket, tmp_path: Path
) -> None:
    node = Node(sqlite_database, tmp_path, bucket.open())
    digests = [await node.upload(bytes([number]) * 1000, str(number)) for number in range(6)]
    for number, digest in enumerate(digests):
        when = 1_700_000_000 + number * 7200
        os.utime(node.files.content_path(digest), (when, when))
    assert await node.read(digests[0]) == bytes(1000)  # so it was read last
    trimming = Trimming(sqlite_database, node.files, 2500)
    for _ in range(2):
        assert await trimming.do_trim(FOLDERS + 1) == FOLDERS
    assert {path.name for path in node.kept()} == {digests[0].hex(), digests[5].hex()}
    assert [await node.read(each) for each in digests] == [bytes([number]) * 1000 for number in range(6)]


async def test_a_spoilt_object_is_given_to_nobody(sqlite_database: Database, bucket: Bucket, tmp_path: Path) -> None:
    node = Node(sqlite_database, tmp_path, bucket.open())
    digest = await node.upload(TEA)
    node.lose_folder()
    bucket.client.put_object(Bucket=bucket.name, Key=bucket.names()[0], Body=b"black tea")
    with pytest.raises(ObjectStoreFailed, match="not what was written"):
        await node.read(digest)
    assert node.kept() == node.incoming() == []


class Threads:
    """A thread for each call, which is waited for until it ends, or hangs."""

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
        """In a thread: until somebody says `go_on`."""
        self._stopped.set()
        assert self._going_on.wait(30)

    def go_on(self) -> None:
        self._stopped.clear()
        self._going_on.set()
        self._deliver()

    def _deliver(self) -> None:
        assert self._stopped.wait(30)
        while self._calls:
            self._calls.pop(0)()


class Hanging:
    """A store that hangs when it is told to."""

    def __init__(self, store: ObjectStore, threads: Threads) -> None:
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


def hanging_node(database: Database, folder: Path, bucket: Bucket) -> tuple[Node, Hanging, Threads]:
    threads = Threads()
    store = Hanging(bucket.open(), threads)
    return Node(database, folder, cast(ObjectStore, store), executor=threads), store, threads


async def test_who_waits_for_a_store_that_hangs_is_told(database: Database, bucket: Bucket, tmp_path: Path) -> None:
    """Others go on meanwhile, and nothing is left of what was given up, whatever comes of it."""
    node, store, threads = hanging_node(database, tmp_path, bucket)
    store.is_hanging = True
    uploading = Deferred.fromCoroutine(node.upload(TEA))
    store.is_hanging = False
    other = await node.upload(b"black tea", "b")
    node.clock.advance(19.9)
    assert not uploading.called
    node.clock.advance(0.2)
    with pytest.raises(ObjectStoreFailed, match="silent for 20 seconds"):
        await uploading
    assert set(await node.rows.get_media(["a", "b"])) == {"b"}
    assert node.incoming() == []
    threads.go_on()  # nobody waits for what comes of it
    assert [name for name in bucket.names() if other.hex() not in name] == []
    node.clock.advance(WRITING_SECONDS + 1)
    assert await node.contents.do_take_away(10) == 1
    assert await node.upload(TEA) != other


async def test_what_comes_of_a_call_that_was_given_up_is_put_away(
    sqlite_database: Database, bucket: Bucket, tmp_path: Path
) -> None:
    """A file is brought back to the folder by a store that wakes up too late."""
    node = Node(sqlite_database, tmp_path, bucket.open())
    digest = await node.upload(TEA)
    node.lose_folder()
    late = bucket.open()
    node = Node(sqlite_database, tmp_path, cast(ObjectStore, WakingLate(late, lambda: node.clock.advance(21))))
    with pytest.raises(ObjectStoreFailed, match="silent"):
        await node.read(digest)
    assert node.kept() == node.incoming() == []
    assert await Node(sqlite_database, tmp_path, late).read(digest) == TEA


class WakingLate:
    """A store that gives objects when the time is over, and then quickly."""

    def __init__(self, store: ObjectStore, wait: Callable[[], None]) -> None:
        self.store = store
        self._wait = wait

    def open(self, name: str, offset: int) -> Any:
        self._wait()
        return self.store.open(name, offset)


async def test_what_moves_is_waited_for() -> None:
    clock, later = Clock(), LaterExecutor()
    calls = ObjectCalls(later, clock, 20.0)

    def work(call: Call) -> str:
        for _ in range(100):
            call.note(LEAST_BYTES)
            clock.advance(19)
        return "done"

    waiting = Deferred.fromCoroutine(calls.run(work))
    clock.advance(10)  # for a thread
    later.work_all()
    assert await waiting == "done"

    def drip(call: Call) -> str:
        for _ in range(100):
            call.note(10)
            call.note(-10)  # it is sent again
            clock.advance(1)
        return "done"

    waiting = Deferred.fromCoroutine(calls.run(drip))
    later.work_all()
    with pytest.raises(ObjectStoreFailed, match="silent"):
        await waiting
    assert clock.getDelayedCalls() == []


async def test_who_waits_for_a_thread_waits_while_something_moves() -> None:
    clock, later = Clock(), LaterExecutor()
    calls = ObjectCalls(later, clock, 20.0)
    first, second = (Deferred.fromCoroutine(calls.run(lambda _: "done")) for _ in range(2))
    clock.advance(15)
    later.jobs.pop(0)()
    clock.advance(15)
    later.jobs.pop(0)()
    assert (await first, await second) == ("done", "done")

    def fail(_: Call) -> str:
        raise ObjectStoreFailed("no")

    first, second = (Deferred.fromCoroutine(calls.run(work)) for work in (fail, lambda _: "done"))
    clock.advance(15)
    later.jobs.pop(0)()
    with pytest.raises(ObjectStoreFailed, match="no"):
        await first
    clock.advance(5)  # of what failed nothing has moved
    with pytest.raises(ObjectStoreFailed, match="silent"):
        await second


async def test_short_calls_do_not_wait_for_long_ones() -> None:
    clock, later = Clock(), LaterExecutor()
    calls = ObjectCalls(later, clock, 20.0, long_at_once=2)
    made: list[str] = []
    long = [
        Deferred.fromCoroutine(calls.run(lambda _, name=name: made.append(name), is_long=True))  # type: ignore[misc]
        for name in "abcde"
    ]
    short = Deferred.fromCoroutine(calls.run(lambda _: made.append("short")))
    assert len(later.jobs) == 3
    later.jobs.pop()()
    assert short.called
    clock.advance(15)
    later.jobs.pop(0)()  # a; c has its turn
    assert len(later.jobs) == 2
    clock.advance(24)  # b and c were not taken by a thread, nor d and e begun, and nothing has moved for long enough
    assert [each.called for each in long] == [True] + [False] * 4
    clock.advance(20)
    assert all(each.called for each in long)
    later.work_all()
    assert made == ["short", "a"]
    for each in long[1:]:
        with pytest.raises(ObjectStoreFailed, match="silent"):
            await each
    again = Deferred.fromCoroutine(calls.run(lambda _: "done", is_long=True))
    later.work_all()
    assert await again == "done"


async def test_a_file_is_removed_though_the_store_hangs(database: Database, bucket: Bucket, tmp_path: Path) -> None:
    """Whoever removes it does not wait, others are removed wholly, and the object goes later."""
    node, store, threads = hanging_node(database, tmp_path, bucket)
    digests = {name: await node.upload(name.encode(), name) for name in ("hung", "a", "b")}
    store.is_hanging = True
    assert await node.remove("hung", digests["hung"]) == {digests["hung"]}
    assert (node.incoming(), len(node.kept()), len(bucket.names())) == ([], 2, 3)
    store.is_hanging = False
    for name in ("a", "b"):
        assert await node.remove(name, digests[name]) == {digests[name]}
    node.clock.advance(21)
    assert [digests["hung"].hex() in name for name in bucket.names()] == [True]
    assert await node.contents.do_take_away(10) == 1
    assert bucket.names() == []
    assert await node.contents.do_take_away(10) == 0
    threads.go_on()  # it is gone already


async def test_an_object_that_cannot_be_taken_away_does_not_keep_the_others(
    database: Database, bucket: Bucket, tmp_path: Path
) -> None:
    store = Cut(bucket.open())
    node = Node(database, tmp_path, store)
    digests = sorted([await node.upload(b"%d" % number, str(number)) for number in range(6)])
    store.is_cut = True
    for number in range(6):
        await node.remove(str(number), hashlib.sha256(b"%d" % number).digest())
    store.is_cut = False
    assert len(bucket.names()) == 6

    class Refusing:
        def __init__(self, hashes: Set[bytes]) -> None:
            self.hashes = hashes

        def remove(self, name: str, *, is_whole: bool) -> None:
            if any(each.hex() in name for each in self.hashes):
                raise ObjectStoreFailed("not this one")
            store.remove(name, is_whole=is_whole)

    refusing = Refusing(set(digests[:2]))
    node = Node(database, tmp_path, cast(ObjectStore, refusing))
    assert [await node.contents.do_take_away(2) for _ in range(4)] == [0, 2, 2, 0]
    assert len(bucket.names()) == 2
    refusing.hashes = set()
    assert await node.contents.do_take_away(2) + await node.contents.do_take_away(2) == 2
    assert bucket.names() == []


async def test_a_store_that_takes_nothing_away_is_left_alone_for_a_while(
    sqlite_database: Database, bucket: Bucket, tmp_path: Path
) -> None:
    store = Cut(bucket.open())
    node = Node(sqlite_database, tmp_path, store)
    for number in range(5):
        await node.upload(b"%d" % number, str(number))
    store.is_cut = True
    for number in range(5):
        await node.remove(str(number), hashlib.sha256(b"%d" % number).digest())
    with capturedLogs() as told, pytest.raises(ObjectStoreFailed):
        await node.contents.do_take_away(10)
    assert len(told) == MOST_FAILURES - 1
    store.is_cut = False
    assert await node.contents.do_take_away(10) == 5


def test_the_client_of_a_store_that_never_answers_gives_up(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(4 << 20))
    with hanging_object_store() as endpoint_url:
        store = bucket.open(endpoint_url=endpoint_url, patience=0.2)
        for call in (
            lambda: store.put("a", tmp_path / "file", lambda _: None),
            lambda: store.open("a", 0),
            lambda: store.remove("a", is_whole=True),
        ):
            began = time.monotonic()
            with pytest.raises(ObjectStoreFailed):
                call()
            assert time.monotonic() - began < 10


def test_what_nobody_waits_for_is_not_sent_on(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(PART_BYTES * 2))
    call, sent = Call(), 0

    def note(count: int) -> None:
        nonlocal sent
        sent += count
        call.is_given_up = sent > PART_BYTES
        call.note(count)

    with pytest.raises(ObjectStoreFailed):
        bucket.open().put("a", tmp_path / "file", note)
    assert bucket.names() == bucket.unfinished() == []


async def test_an_object_that_goes_away_meanwhile_is_written_anew(
    database: Database, bucket: Bucket, tmp_path: Path
) -> None:
    """Somebody uploads what somebody else has, who removes it before the row of the first is written."""
    north, south = (Node(database, tmp_path / name, bucket.open()) for name in ("north", "south"))
    digest = await north.upload(TEA, "a")
    place = south.files.place

    async def place_late(received: Any) -> Any:
        south.files.place = place  # type: ignore[method-assign]
        assert await north.remove("a", digest) == {digest}
        assert bucket.names() == []
        return await place(received)

    south.files.place = place_late  # type: ignore[method-assign]
    assert await south.upload(TEA, "b") == digest
    assert len(bucket.names()) == 1
    south.lose_folder()
    assert await south.read(digest) == TEA


async def test_who_writes_for_long_is_believed_to_live(database: Database, bucket: Bucket, tmp_path: Path) -> None:
    later = LaterExecutor()
    node = Node(database, tmp_path / "a", bucket.open(), executor=later, patience=20 * WRITING_SECONDS)
    other = Node(database, tmp_path / "b", bucket.open())
    upload = Deferred.fromCoroutine(node.upload(TEA))
    for _ in range(20):
        for clock in (node.clock, other.clock):
            clock.advance(WRITING_SECONDS / 4)
        assert await other.contents.do_take_away(10) == 0
    later.work_all()
    assert await upload == hashlib.sha256(TEA).digest()
    assert len(bucket.names()) == 1


async def test_what_was_never_finished_is_taken_away_with_its_parts(
    sqlite_database: Database, bucket: Bucket, tmp_path: Path
) -> None:
    table = MediaObjectStore(sqlite_database)
    await table.add_coming("mahalla/part", b"h" * 32, PART_BYTES * 2, 1)
    begun = bucket.client.create_multipart_upload(Bucket=bucket.name, Key="mahalla/part")
    bucket.client.upload_part(
        Bucket=bucket.name, Key="mahalla/part", UploadId=begun["UploadId"], PartNumber=1, Body=b"x"
    )
    assert bucket.unfinished() == ["mahalla/part"]
    node = Node(sqlite_database, tmp_path, bucket.open())
    assert await node.contents.do_take_away(10) == 1
    assert bucket.unfinished() == bucket.names() == []


async def test_a_long_file_goes_in_parts(sqlite_database: Database, bucket: Bucket, tmp_path: Path) -> None:
    node = Node(sqlite_database, tmp_path, bucket.open())
    data = os.urandom(PART_BYTES + 5)
    digest = await node.upload(data)
    (name,) = bucket.names()
    assert bucket.client.head_object(Bucket=bucket.name, Key=name)["ETag"].endswith('-2"')
    node.lose_folder()
    opened = await node.contents.open(digest)
    assert opened is not None
    assert await opened.read(PART_BYTES - 2, 100) == data[-7:]
    assert await opened.read(10, 3) == data[10:13]
    assert await opened.read(13, 3) == data[13:16]
    opened.close()
