"""Contents in an object store and in a folder: with an independent store, and one that fails on
demand."""

import hashlib
import os
import urllib.request
from pathlib import Path
from typing import Any, cast

import pytest
from twisted.internet.defer import Deferred
from twisted.logger import capturedLogs, formatEvent

from storage.engine.database import Database
from storage.media.object_store import ObjectStore, ObjectStoreFailed, UploadProgress
from storage.media.object_store_journal import MediaObjectJournal
from storage.media.rebalancing import FOLDERS, FolderTrimmer
from storage.media.s3 import PART_BYTES
from storage.media.shared_contents import MAX_FETCHED_BYTES, WRITING_SECONDS
from tests.helpers.executors import ManualExecutor
from tests.helpers.media_nodes import Node, UnreliableStore
from tests.helpers.object_store import Bucket

TEA = b"green tea"
LONG = bytes(range(256)) * (MAX_FETCHED_BYTES // 256 + 100)


async def test_another_node_serves_and_removes_an_uploaded_file(
    database: Database, bucket: Bucket, tmp_path: Path
) -> None:
    north = Node(database, tmp_path / "north", bucket.open())
    south = Node(database, tmp_path / "south", bucket.open())
    digest, long = await north.upload(TEA), await north.upload(LONG, "long")
    assert sorted(name.split("-")[0] for name in bucket.names()) == sorted(
        f"mahalla/content/{each.hex()[:2]}/{each.hex()[2:4]}/{each.hex()}"
        for each in (digest, long)
    )
    assert await south.read(digest) == TEA
    assert len(south.kept()) == 1
    assert await south.read(long) == LONG
    assert len(south.kept()) == 1  # it was read in the store
    async with south.contents.lend(long) as path:
        assert path is not None
        assert hashlib.sha256(path.read_bytes()).digest() == long
    assert await south.read(b"x" * 32) is None
    assert await south.remove("a", digest) == {digest}
    assert [name for name in bucket.names() if digest.hex() in name] == []
    # the other node deletes its copy when it walks its folder
    assert (
        await FolderTrimmer(database=database, files=north.files, max_bytes=None).trim(FOLDERS + 1)
        == FOLDERS
    )
    assert await north.read(digest) is None
    assert await south.read(digest) is None
    assert north.incoming() == south.incoming() == []


async def test_equal_contents_are_written_once(
    database: Database, bucket: Bucket, tmp_path: Path
) -> None:
    node = Node(database, tmp_path, bucket.open())
    digest = await node.upload(TEA, "a")
    await node.upload(TEA, "b")
    assert len(bucket.names()) == 1
    assert await node.remove("a", digest) == set()
    assert len(bucket.names()) == 1
    assert await node.remove("b", digest) == {digest}
    assert bucket.names() == []
    assert (await MediaObjectJournal(database).count())[1].contents == 0


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
    further = (
        {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": "k" * 32}
        if "customer_key" in encryption
        else {}
    )
    head = bucket.client.head_object(Bucket=bucket.name, Key=name, **further)
    assert head["StorageClass"] == "STANDARD_IA"
    assert head.get("ServerSideEncryption", "") == ("" if further else encryption["encryption"])
    assert head.get("SSEKMSKeyId", "").endswith(encryption.get("kms_key_id", ""))


async def test_clients_may_be_redirected_to_the_store(
    sqlite_database: Database, bucket: Bucket, tmp_path: Path
) -> None:
    digest = await Node(sqlite_database, tmp_path, bucket.open()).upload(TEA)
    node = Node(sqlite_database, tmp_path, bucket.open(), redirect=True)
    address = await node.contents.get_url(digest, "text/plain", "attachment; filename=tea.txt")
    assert address is not None
    with urllib.request.urlopen(address) as answer:  # noqa: ASYNC210 - the store is another process
        assert answer.read() == TEA
        assert answer.headers["Content-Disposition"] == "attachment; filename=tea.txt"
    assert await node.contents.get_url(b"x" * 32, "text/plain", "") is None
    assert (
        await Node(sqlite_database, tmp_path, bucket.open()).contents.get_url(
            digest, "text/plain", ""
        )
        is None
    )


async def test_an_upload_is_acknowledged_after_the_main_store_has_it(
    sqlite_database: Database, bucket: Bucket, tmp_path: Path
) -> None:
    store = UnreliableStore(bucket.open())
    node = Node(sqlite_database, tmp_path, store)
    store.is_cut = True
    with pytest.raises(ObjectStoreFailed):
        await node.upload(TEA)
    assert await node.rows.get_media(["a"]) == {}
    assert node.kept() == node.incoming() == []
    store.is_cut = False
    node.clock.advance(WRITING_SECONDS + 1)
    assert await node.contents.delete_unused_objects(10) == 1  # the unfinished object
    assert await node.contents.delete_unused_objects(10) == 0


async def test_a_second_copy_is_written_later(
    database: Database, bucket: Bucket, tmp_path: Path
) -> None:
    store = UnreliableStore(bucket.open())
    node = Node(database, tmp_path, store, "second_copy")
    store.is_cut = True
    digest = await node.upload(TEA)
    assert bucket.names() == []
    with pytest.raises(ObjectStoreFailed):
        await node.levelling.rebalance(10)
    store.is_cut = False
    assert await node.levelling.rebalance(10) == 1
    assert len(bucket.names()) == 1
    assert await node.levelling.rebalance(10) == 0
    node.lose_folder()
    assert await node.read(digest) == TEA


async def test_an_upload_does_not_wait_for_the_second_copy(
    sqlite_database: Database, bucket: Bucket, tmp_path: Path
) -> None:
    """The store hangs; acknowledged uploads reach it later, also after a restart."""
    node = Node(sqlite_database, tmp_path, bucket.open(), "second_copy", ManualExecutor())
    uploading = Deferred.fromCoroutine(node.upload(TEA))
    assert uploading.called
    levelling = Deferred.fromCoroutine(node.levelling.rebalance(10))
    assert not levelling.called  # the job waits
    assert Deferred.fromCoroutine(node.upload(b"black tea", "b")).called
    restarted = Node(sqlite_database, tmp_path, bucket.open(), "second_copy")
    assert await restarted.levelling.rebalance(10) == 2
    assert len(bucket.names()) == 2


async def test_recent_uploads_get_their_second_copy_first(
    sqlite_database: Database, bucket: Bucket, tmp_path: Path
) -> None:
    before = Node(sqlite_database, tmp_path, bucket.open(), "retired")
    for number in range(4):
        await before.upload(b"%d" % number, str(number))
    node = Node(sqlite_database, tmp_path, bucket.open(), "second_copy")
    digest, gone = await node.upload(TEA), await node.upload(b"black tea", "b")
    await node.remove("b", gone)
    with capturedLogs() as reported:
        assert await node.levelling.rebalance(2) == 2
        assert [name for name in bucket.names() if digest.hex() in name]
        assert [await node.levelling.rebalance(2) for _ in range(3)] == [2, 1, 0]
    assert len(bucket.names()) == 5
    assert not [event for event in reported if event["log_level"].name == "error"]


async def test_all_contents_move_to_the_store_and_back(
    database: Database, bucket: Bucket, tmp_path: Path
) -> None:
    before = Node(database, tmp_path, bucket.open(), "retired")
    digests = [await before.upload(b"%d" % number, str(number)) for number in range(7)]
    assert bucket.names() == []
    node = Node(database, tmp_path, bucket.open())
    assert await node.levelling.rebalance(3) == 3
    restarted = Node(database, tmp_path, bucket.open())  # after an interruption
    assert [await restarted.levelling.rebalance(3) for _ in range(3)] == [3, 1, 0]
    assert len(bucket.names()) == 7
    restarted.lose_folder()
    await restarted.remove("3", digests[3])
    after = Node(database, tmp_path, bucket.open(), "retired")
    assert await after.levelling.rebalance(4) == 4
    assert len(bucket.names()) == 2
    after = Node(database, tmp_path, bucket.open(), "retired")
    assert await after.levelling.rebalance(4) == 2
    assert bucket.names() == []
    assert (await MediaObjectJournal(database).count())[1].contents == 0
    assert [await after.read(each) for each in digests] == [
        b"0",
        b"1",
        b"2",
        None,
        b"4",
        b"5",
        b"6",
    ]


async def test_a_failed_move_does_not_block_the_others(
    sqlite_database: Database, bucket: Bucket, tmp_path: Path
) -> None:
    before = Node(sqlite_database, tmp_path, bucket.open(), "retired")
    digests = sorted([await before.upload(b"%d" % number, str(number)) for number in range(4)])

    class Particular:
        """A store that refuses one object."""

        def __init__(self, store: ObjectStore) -> None:
            self.store = store

        def put(self, name: str, path: Path, progress: UploadProgress) -> None:
            if digests[1].hex() in name:
                raise ObjectStoreFailed("not this one")
            self.store.put(name, path, progress)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.store, name)

    node = Node(sqlite_database, tmp_path, cast(ObjectStore, Particular(bucket.open())))
    for _ in range(2):
        with pytest.raises(ObjectStoreFailed):
            await node.levelling.rebalance(10)
    assert await node.levelling.rebalance(10) == 2
    assert set(await MediaObjectJournal(sqlite_database).get_objects(digests)) == set(digests) - {
        digests[1]
    }
    with pytest.raises(ObjectStoreFailed):
        await node.levelling.rebalance(10)  # the next walk


async def test_the_progress_is_logged_now_and_then(
    sqlite_database: Database, bucket: Bucket, tmp_path: Path
) -> None:
    before = Node(sqlite_database, tmp_path, bucket.open(), "retired")
    for number in range(5):
        await before.upload(b"%d" % number, str(number))
    node = Node(sqlite_database, tmp_path, bucket.open())
    with capturedLogs() as reported:
        await node.levelling.rebalance(1)
        await node.levelling.rebalance(1)
        node.clock.advance(60)
        await node.levelling.rebalance(1)
        node.clock.advance(60)
        for _ in range(4):
            await node.levelling.rebalance(10)
    assert [formatEvent(event) for event in reported] == [
        "1 of 5 files are in the object store, 1 of 5 bytes",
        "3 of 5 files are in the object store, 3 of 5 bytes",
        "5 of 5 files are in the object store, 5 of 5 bytes",
        "every file is where media_object_store.role requires it",
    ]


async def test_the_folder_keeps_the_most_recently_read_contents(
    sqlite_database: Database, bucket: Bucket, tmp_path: Path
) -> None:
    node = Node(sqlite_database, tmp_path, bucket.open())
    digests = [await node.upload(bytes([number]) * 1000, str(number)) for number in range(6)]
    for number, digest in enumerate(digests):
        when = 1_700_000_000 + number * 7200
        os.utime(node.files.content_path(digest), (when, when))
    assert await node.read(digests[0]) == bytes(1000)  # read last
    trimming = FolderTrimmer(database=sqlite_database, files=node.files, max_bytes=2500)
    for _ in range(2):
        assert await trimming.trim(FOLDERS + 1) == FOLDERS
    assert {path.name for path in node.kept()} == {digests[0].hex(), digests[5].hex()}
    assert [await node.read(each) for each in digests] == [
        bytes([number]) * 1000 for number in range(6)
    ]


async def test_a_corrupt_object_is_not_served(
    sqlite_database: Database, bucket: Bucket, tmp_path: Path
) -> None:
    node = Node(sqlite_database, tmp_path, bucket.open())
    digest = await node.upload(TEA)
    node.lose_folder()
    bucket.client.put_object(Bucket=bucket.name, Key=bucket.names()[0], Body=b"black tea")
    with pytest.raises(ObjectStoreFailed, match="not what was written"):
        await node.read(digest)
    assert node.kept() == node.incoming() == []


async def test_an_object_that_is_deleted_meanwhile_is_written_again(
    database: Database, bucket: Bucket, tmp_path: Path
) -> None:
    """A user uploads a content that another user deletes before the row of the first is written."""
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


async def test_a_slow_writer_renews_its_lease(
    database: Database, bucket: Bucket, tmp_path: Path
) -> None:
    later = ManualExecutor()
    node = Node(
        database, tmp_path / "a", bucket.open(), executor=later, patience=20 * WRITING_SECONDS
    )
    other = Node(database, tmp_path / "b", bucket.open())
    upload = Deferred.fromCoroutine(node.upload(TEA))
    for _ in range(20):
        for clock in (node.clock, other.clock):
            clock.advance(WRITING_SECONDS / 4)
        assert await other.contents.delete_unused_objects(10) == 0
    later.run()
    assert await upload == hashlib.sha256(TEA).digest()
    assert len(bucket.names()) == 1


async def test_unfinished_uploads_are_deleted_with_their_parts(
    sqlite_database: Database, bucket: Bucket, tmp_path: Path
) -> None:
    table = MediaObjectJournal(sqlite_database)
    await table.add_uploading("mahalla/part", b"h" * 32, PART_BYTES * 2, 1)
    begun = bucket.client.create_multipart_upload(Bucket=bucket.name, Key="mahalla/part")
    bucket.client.upload_part(
        Bucket=bucket.name, Key="mahalla/part", UploadId=begun["UploadId"], PartNumber=1, Body=b"x"
    )
    assert bucket.unfinished() == ["mahalla/part"]
    node = Node(sqlite_database, tmp_path, bucket.open())
    assert await node.contents.delete_unused_objects(10) == 1
    assert bucket.unfinished() == bucket.names() == []


async def test_a_long_file_is_sent_in_parts(
    sqlite_database: Database, bucket: Bucket, tmp_path: Path
) -> None:
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
