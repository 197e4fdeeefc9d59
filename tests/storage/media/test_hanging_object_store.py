"""An object store that hangs, or fails for some files: other calls do not wait, and nothing is
lost."""

import hashlib
import time
from collections.abc import Awaitable, Callable, Set
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.logger import capturedLogs

from storage.engine.database import Database
from storage.media.object_store import ObjectStore, ObjectStoreFailed
from storage.media.object_store_calls import MIN_BYTES, ObjectCall, ObjectCallRunner
from storage.media.s3 import JOINED_PER_SECOND, PART_BYTES
from storage.media.shared_contents import MAX_FAILURES, MAX_FETCHED_BYTES, WRITING_SECONDS
from tests.helpers.executors import ManualExecutor
from tests.helpers.media_nodes import HangingThreads, Node, UnreliableStore, hanging_node
from tests.helpers.object_store import Bucket, hanging_object_store, slowly_joining_object_store

TEA = b"green tea"


async def test_a_caller_of_a_hanging_store_gets_an_error(
    database: Database, bucket: Bucket, tmp_path: Path
) -> None:
    """Other calls go on, and nothing is left of the abandoned call, whatever its result."""
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
    threads.go_on()  # nobody waits for its result
    assert [name for name in bucket.names() if other.hex() not in name] == []
    node.clock.advance(WRITING_SECONDS + 1)
    assert await node.contents.delete_unused_objects(10) == 1
    assert await node.upload(TEA) != other


async def test_the_late_result_of_an_abandoned_call_is_discarded(
    sqlite_database: Database, bucket: Bucket, tmp_path: Path
) -> None:
    """A store that wakes up too late returns a file for the folder."""
    node = Node(sqlite_database, tmp_path, bucket.open())
    digest = await node.upload(TEA)
    node.lose_folder()
    late = bucket.open()
    node = Node(
        sqlite_database,
        tmp_path,
        cast(ObjectStore, WakingLate(late, lambda: node.clock.advance(21))),
    )
    with pytest.raises(ObjectStoreFailed, match="silent"):
        await node.read(digest)
    assert node.kept() == node.incoming() == []
    assert await Node(sqlite_database, tmp_path, late).read(digest) == TEA


class WakingLate:
    """A store that returns objects after the time limit, and then quickly."""

    def __init__(self, store: ObjectStore, wait: Callable[[], None]) -> None:
        self.store = store
        self._wait = wait

    def open(self, name: str, offset: int) -> Any:
        self._wait()
        return self.store.open(name, offset)


async def test_a_call_whose_bytes_move_is_not_abandoned() -> None:
    clock, later = Clock(), ManualExecutor()
    calls = ObjectCallRunner(executor=later, clock=clock, max_silence=20.0)

    def work(call: ObjectCall) -> str:
        for _ in range(100):
            call.record(MIN_BYTES)
            clock.advance(19)
        return "done"

    waiting = Deferred.fromCoroutine(calls.run(work))
    clock.advance(10)  # waiting for a thread
    later.run()
    assert await waiting == "done"

    def drip(call: ObjectCall) -> str:
        for _ in range(100):
            call.record(10)
            call.record(-10)  # sent again
            clock.advance(1)
        return "done"

    waiting = Deferred.fromCoroutine(calls.run(drip))
    later.run()
    with pytest.raises(ObjectStoreFailed, match="silent"):
        await waiting
    assert clock.getDelayedCalls() == []


async def test_a_store_may_be_silent_for_longer_while_it_joins_parts() -> None:
    clock, later = Clock(), ManualExecutor()
    calls = ObjectCallRunner(executor=later, clock=clock, max_silence=20.0)

    def join(seconds: int) -> Callable[[ObjectCall], str]:
        def work(call: ObjectCall) -> str:
            call.record(MIN_BYTES)
            call.expect_silence(100)
            for _ in range(seconds):
                clock.advance(1)
            return "done"

        return work

    in_time, behind_it, too_late = (
        Deferred.fromCoroutine(calls.run(work)) for work in (join(99), lambda _: "done", join(101))
    )
    for _ in range(2):
        later.jobs.pop(0)()
    assert (await in_time, await behind_it) == ("done", "done")
    later.run()
    with pytest.raises(ObjectStoreFailed, match="silent"):
        await too_late


def test_the_client_of_a_store_that_joins_slowly_waits(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(PART_BYTES + 1))
    call = ObjectCall(Clock())
    with slowly_joining_object_store(seconds=3.6) as (endpoint_url, asked):
        store = bucket.open(
            endpoint_url=endpoint_url, max_silence=6.0
        )  # three seconds for any other response
        store.put("a", tmp_path / "file", call)
    assert asked == ["begin", "part", "part", "join"]
    assert call.silent_until == 7.0 + 1 / JOINED_PER_SECOND


async def test_a_call_waits_for_a_thread_while_others_move() -> None:
    clock, later = Clock(), ManualExecutor()
    calls = ObjectCallRunner(executor=later, clock=clock, max_silence=20.0)
    first, second = (Deferred.fromCoroutine(calls.run(lambda _: "done")) for _ in range(2))
    clock.advance(15)
    later.jobs.pop(0)()
    clock.advance(15)
    later.jobs.pop(0)()
    assert (await first, await second) == ("done", "done")

    def fail(_: ObjectCall) -> str:
        raise ObjectStoreFailed("no")

    first, second = (Deferred.fromCoroutine(calls.run(work)) for work in (fail, lambda _: "done"))
    clock.advance(15)
    later.jobs.pop(0)()
    with pytest.raises(ObjectStoreFailed, match="no"):
        await first
    clock.advance(5)  # failed calls moved no bytes
    with pytest.raises(ObjectStoreFailed, match="silent"):
        await second


async def test_short_calls_do_not_wait_for_long_ones() -> None:
    clock, later = Clock(), ManualExecutor()
    calls = ObjectCallRunner(executor=later, clock=clock, max_silence=20.0, max_long=2)
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
    clock.advance(
        24
    )  # no thread took b and c, d and e did not start, and no bytes moved for too long
    assert [each.called for each in long] == [True] + [False] * 4
    clock.advance(20)
    assert all(each.called for each in long)
    later.run()
    assert made == ["short", "a"]
    for each in long[1:]:
        with pytest.raises(ObjectStoreFailed, match="silent"):
            await each
    retried = Deferred.fromCoroutine(calls.run(lambda _: "done", is_long=True))
    later.run()
    assert await retried == "done"


async def test_a_file_is_removed_though_the_store_hangs(
    database: Database, bucket: Bucket, tmp_path: Path
) -> None:
    """The removal does not wait, other files are removed completely, and the object is deleted
    later."""
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
    assert await node.contents.delete_unused_objects(10) == 1
    assert bucket.names() == []
    assert await node.contents.delete_unused_objects(10) == 0
    threads.go_on()  # it is deleted already


async def test_an_object_that_cannot_be_deleted_does_not_block_the_others(
    database: Database, bucket: Bucket, tmp_path: Path
) -> None:
    store = UnreliableStore(bucket.open())
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

        def remove(self, name: str, *, is_complete: bool) -> None:
            if any(each.hex() in name for each in self.hashes):
                raise ObjectStoreFailed("not this one")
            store.remove(name, is_complete=is_complete)

    refusing = Refusing(set(digests[:2]))
    node = Node(database, tmp_path, cast(ObjectStore, refusing))
    assert [await node.contents.delete_unused_objects(2) for _ in range(4)] == [0, 2, 2, 0]
    assert len(bucket.names()) == 2
    refusing.hashes = set()
    assert (
        await node.contents.delete_unused_objects(2) + await node.contents.delete_unused_objects(2)
        == 2
    )
    assert bucket.names() == []


async def test_a_store_that_deletes_nothing_is_retried_later(
    sqlite_database: Database, bucket: Bucket, tmp_path: Path
) -> None:
    store = UnreliableStore(bucket.open())
    node = Node(sqlite_database, tmp_path, store)
    for number in range(5):
        await node.upload(b"%d" % number, str(number))
    store.is_cut = True
    for number in range(5):
        await node.remove(str(number), hashlib.sha256(b"%d" % number).digest())
    with capturedLogs() as received, pytest.raises(ObjectStoreFailed):
        await node.contents.delete_unused_objects(10)
    assert len(received) == MAX_FAILURES - 1
    store.is_cut = False
    assert await node.contents.delete_unused_objects(10) == 5


def test_the_client_of_a_store_that_never_answers_gives_up(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(4 << 20))
    with hanging_object_store() as endpoint_url:
        store = bucket.open(endpoint_url=endpoint_url, max_silence=0.2)
        for call in (
            lambda: store.put("a", tmp_path / "file", ObjectCall(Clock())),
            lambda: store.open("a", 0),
            lambda: store.remove("a", is_complete=True),
        ):
            began = time.monotonic()
            with pytest.raises(ObjectStoreFailed):
                call()
            assert time.monotonic() - began < 10


def test_an_abandoned_upload_is_aborted(bucket: Bucket, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(PART_BYTES * 2))

    class GivenUp(ObjectCall):
        def record(self, count: int) -> None:
            self.is_abandoned = self.bytes > PART_BYTES
            super().record(count)

    with pytest.raises(ObjectStoreFailed):
        bucket.open().put("a", tmp_path / "file", GivenUp(Clock()))
    assert bucket.names() == bucket.unfinished() == []


class HangingStream:
    """An object that hangs while it is read."""

    def __init__(self, threads: HangingThreads) -> None:
        self.is_closed = False
        self.is_read = False
        self._threads = threads

    def read(self, size: int = -1, /) -> bytes:
        self.is_read = True
        self._threads.hang()
        self.is_read = False
        return bytes(size)

    def close(self) -> None:
        assert not self.is_read, "closing it would block as the reader does"
        self.is_closed = True


async def test_closing_a_read_of_a_hanging_store_does_not_block(
    sqlite_database: Database, bucket: Bucket, tmp_path: Path
) -> None:
    """As when a client aborts a download: the reactor must not block."""
    await Node(sqlite_database, tmp_path / "before", bucket.open()).upload(
        bytes(MAX_FETCHED_BYTES + 1)
    )
    threads = HangingThreads()
    stream = HangingStream(threads)
    store = SimpleNamespace(open=lambda _name, _offset: stream)
    node = Node(sqlite_database, tmp_path / "after", cast(ObjectStore, store), executor=threads)
    opened = await node.contents.open(hashlib.sha256(bytes(MAX_FETCHED_BYTES + 1)).digest())
    assert opened is not None
    reading = Deferred.fromCoroutine(as_coroutine(opened.read(0, 10)))
    opened.close()
    assert not stream.is_closed
    node.clock.advance(21)
    with pytest.raises(ObjectStoreFailed, match="silent"):
        await reading
    threads.go_on()
    assert stream.is_closed


async def as_coroutine(awaitable: Awaitable[bytes]) -> bytes:
    return await awaitable
