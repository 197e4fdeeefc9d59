"""Contents in a folder: rows and bytes are added and deleted together."""

import io
from collections.abc import Set
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from storage.cluster.job_progress import select_job_progress, set_job_progress
from storage.engine.database import Database
from storage.engine.executors import InlineExecutor
from storage.engine.transaction import WriteTransaction
from storage.media.contents import LocalContents
from storage.media.files import MediaFiles


class Refused(Exception):
    """A row that cannot be written."""


@pytest.fixture
def files(tmp_path: Path) -> MediaFiles:
    files = MediaFiles(folder=tmp_path, executor=InlineExecutor(), clock=Clock())
    files.open_folder()
    return files


@pytest.fixture
def contents(database: Database, files: MediaFiles) -> LocalContents:
    return LocalContents(database=database, files=files)


def _write(txn: WriteTransaction, hash: bytes, size: int) -> bytes:
    set_job_progress(txn, "row", f"{hash.hex()} {size}")
    return hash


async def _progress(database: Database) -> str | None:
    return await database.read("note", select_job_progress, "row")


async def test_bytes_are_added_with_their_row(database: Database, contents: LocalContents) -> None:
    hash = await contents.add(io.BytesIO(b"tea"), _write)
    assert await _progress(database) == f"{hash.hex()} 3"
    opened = await contents.open(hash)
    assert opened is not None
    assert (opened.size, await opened.read(1, 10)) == (3, b"ea")
    opened.close()
    async with contents.lend(hash) as path:
        assert path is not None
        assert path.read_bytes() == b"tea"
    async with contents.lend(b"x" * 32) as path:
        assert path is None


async def test_the_next_sweep_deletes_bytes_without_a_row(
    database: Database, contents: LocalContents, files: MediaFiles
) -> None:
    seen: list[bytes] = []

    def refuse(txn: WriteTransaction, hash: bytes, size: int) -> None:
        _write(txn, hash, size)
        seen.append(hash)
        raise Refused

    with pytest.raises(Refused):
        await contents.add(io.BytesIO(b"tea"), refuse)
    assert await _progress(database) is None

    async def nothing(_hashes: Set[bytes]) -> Set[bytes]:
        return set()

    assert await files.sweep(nothing) == 1
    assert await contents.open(seen[0]) is None


async def test_bytes_are_deleted_with_their_last_row(
    database: Database, contents: LocalContents
) -> None:
    hash = await contents.add(io.BytesIO(b"tea"), _write)
    other = await contents.add(io.BytesIO(b"milk"), _write)
    await contents.set_thumbnail(hash, "small", b"t", 5)

    def forget(txn: WriteTransaction) -> Set[bytes]:
        set_job_progress(txn, "row", "forgotten")
        return {hash}

    assert await contents.remove_unused({hash, other}, forget) == {hash}
    assert await _progress(database) == "forgotten"
    assert await contents.open(hash) is None
    assert await contents.get_thumbnail(hash, "small") is None
    left = await contents.open(other)
    assert left is not None
    left.close()
