"""The media folder: nothing incomplete, nothing stored twice, nothing left behind after a crash."""

import hashlib
import io
import os
import signal
import subprocess
import sys
from collections.abc import Set
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from storage.engine.executors import InlineExecutor
from storage.media.files import FIRST_READ_BYTES, MediaFiles

DATA = bytes(range(256)) * 3000
HASH = hashlib.sha256(DATA).digest()


@pytest.fixture
def files(tmp_path: Path) -> MediaFiles:
    return _open(tmp_path)


def _open(folder: Path) -> MediaFiles:
    files = MediaFiles(folder=folder / "media", executor=InlineExecutor(), clock=Clock())
    files.open_folder()
    return files


def _all_files(folder: Path) -> list[str]:
    media = folder / "media"
    return sorted(
        str(path.relative_to(media))
        for path in media.rglob("*")
        if path.is_file() and path.name not in ("lock", "turn")
    )


async def _none_used(_hashes: Set[bytes]) -> Set[bytes]:
    return set()


async def _all_used(hashes: Set[bytes]) -> Set[bytes]:
    return hashes


PLACE = f"content/{HASH.hex()[:2]}/{HASH.hex()[2:4]}/{HASH.hex()}"


async def test_an_added_file_can_be_read(files: MediaFiles, tmp_path: Path) -> None:
    stored = await files.add(io.BytesIO(DATA))
    await files.settle(stored)
    assert (stored.hash, stored.size) == (HASH, len(DATA))
    opened = await files.open(HASH)
    assert opened is not None
    assert opened.size == len(DATA)
    assert await opened.read(100, 50) == DATA[100:150]
    assert await opened.read(len(DATA) - 1, 50) == DATA[-1:]
    opened.close()
    assert _all_files(tmp_path) == [PLACE]
    assert (tmp_path / "media" / PLACE).stat().st_mode & 0o077 == 0


async def test_equal_contents_are_stored_once(files: MediaFiles, tmp_path: Path) -> None:
    first, second = await files.add(io.BytesIO(DATA)), await files.add(io.BytesIO(DATA))
    await files.settle(second)
    await files.settle(first)
    assert _all_files(tmp_path) == [PLACE]


async def test_an_empty_file_is_a_file(files: MediaFiles) -> None:
    stored = await files.add(io.BytesIO(b""))
    await files.settle(stored)
    opened = await files.open(stored.hash)
    assert opened is not None
    assert await opened.read(0, 10) == b""
    opened.close()


async def test_a_missing_file_is_none(files: MediaFiles) -> None:
    assert await files.open(HASH) is None
    assert await files.get_thumbnail(HASH, "x") is None


class BrokenSource(io.BytesIO):
    """Returns some bytes, then fails."""

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        if not data:
            raise OSError("the disk is full")
        return data


async def test_a_failed_copy_leaves_nothing(files: MediaFiles, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="full"):
        await files.add(BrokenSource(DATA))
    assert _all_files(tmp_path) == []
    assert await files.sweep(_none_used) == 0


async def test_a_file_without_a_row_is_swept(files: MediaFiles, tmp_path: Path) -> None:
    files.abandon(await files.add(io.BytesIO(DATA)))
    assert await _open(tmp_path).sweep(_none_used) == 1
    assert _all_files(tmp_path) == []


async def test_a_file_with_a_row_stays(files: MediaFiles, tmp_path: Path) -> None:
    files.abandon(await files.add(io.BytesIO(DATA)))
    assert await _open(tmp_path).sweep(_all_used) == 1
    assert _all_files(tmp_path) == [PLACE]


async def test_the_sweep_does_nothing_during_uploads(files: MediaFiles, tmp_path: Path) -> None:
    other = await files.add(io.BytesIO(b"other"))
    files.abandon(await files.add(io.BytesIO(DATA)))
    clock = Clock()
    swept: list[int | None] = []
    sweeper = MediaFiles(folder=tmp_path / "media", executor=InlineExecutor(), clock=clock)
    Deferred.fromCoroutine(sweeper.sweep(_none_used)).addCallback(swept.append)
    clock.advance(1)
    assert swept == []
    await files.settle(other)
    clock.advance(1)
    assert swept == [1]
    opened = await files.open(other.hash)
    assert opened is not None
    opened.close()


CRASHING = """
import io, os, signal, sys
from pathlib import Path
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from storage.media import files as media_files
from storage.engine.executors import InlineExecutor

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

files = media_files.MediaFiles(
    folder=Path(sys.argv[1]), executor=InlineExecutor(), clock=Clock()
)
files.open_folder()
setattr(*{"write": (os, "fsync", die), "rename": (Path, "rename", die), "link": (os, "link", die),
          "commit": (os, "unlink", die)}[sys.argv[2]])
stored = []
Deferred.fromCoroutine(files.add(io.BytesIO(bytes(range(256)) * 3000))).addCallback(stored.append)
assert stored
die()
"""


def _kill_at(moment: str, folder: Path, program: str) -> int:
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", program, str(folder / "media"), moment]
    return subprocess.run(
        command, check=False, env={**os.environ, "PYTHONPATH": str(root)}
    ).returncode


@pytest.mark.parametrize("moment", ["write", "rename", "link", "commit"])
async def test_a_killed_upload_leaves_nothing(tmp_path: Path, moment: str) -> None:
    assert _kill_at(moment, tmp_path, CRASHING) == -signal.SIGKILL
    assert len(_all_files(tmp_path)) == (2 if moment == "commit" else 1)
    files = _open(tmp_path)
    assert await files.open(HASH) is None or moment == "commit"
    assert await files.sweep(_none_used) == 1
    assert _all_files(tmp_path) == []


async def test_the_number_of_thumbnails_is_limited(files: MediaFiles) -> None:
    for name in ("a", "b", "c"):
        await files.set_thumbnail(HASH, name, name.encode(), 2)
    kept = [await files.get_thumbnail(HASH, name) for name in ("a", "b", "c")]
    assert [each and (each.beginning, each.file) for each in kept] == [
        (b"a", None),
        (b"b", None),
        None,
    ]


async def test_only_the_beginning_of_a_large_thumbnail_is_in_memory(files: MediaFiles) -> None:
    data = bytes(range(256)) * (FIRST_READ_BYTES // 256) + b"more"
    await files.set_thumbnail(HASH, "a", data, 2)
    kept = await files.get_thumbnail(HASH, "a")
    assert kept is not None
    assert kept.beginning == data[:-4]
    assert kept.file is not None
    assert (kept.file.size, await kept.file.read(FIRST_READ_BYTES - 1, 10)) == (
        len(data),
        b"\xffmore",
    )
    kept.file.close()


REMOVING = """
import io, os, signal, sys
from pathlib import Path
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from storage.media import files as media_files
from storage.engine.executors import InlineExecutor

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

files = media_files.MediaFiles(
    folder=Path(sys.argv[1]), executor=InlineExecutor(), clock=Clock()
)
files.open_folder()
stored = []
Deferred.fromCoroutine(files.add(io.BytesIO(bytes(range(256)) * 3000))).addCallback(stored.append)
Deferred.fromCoroutine(files.settle(stored[0]))

async def forget():
    if sys.argv[2] == "rows":
        die()
    if sys.argv[2] == "content":
        Path.unlink = die
    return {stored[0].hash}

if sys.argv[2] == "entries":
    media_files._sync_folder_if_exists = die
Deferred.fromCoroutine(files.remove_unused({stored[0].hash}, forget))
"""


@pytest.mark.parametrize(
    ("moment", "is_row_left"),
    [("rows", True), ("rows", False), ("content", False), ("entries", False)],
)
async def test_a_killed_removal_leaves_rows_and_files_together(
    tmp_path: Path, moment: str, is_row_left: bool
) -> None:
    assert _kill_at(moment, tmp_path, REMOVING) == -signal.SIGKILL
    files = _open(tmp_path)
    assert await files.sweep(_all_used if is_row_left else _none_used) == 1
    assert _all_files(tmp_path) == ([PLACE] if is_row_left else [])


async def test_only_unused_contents_are_removed(files: MediaFiles, tmp_path: Path) -> None:
    stored = [await files.add(io.BytesIO(data)) for data in (DATA, b"other")]
    for each in stored:
        await files.settle(each)
        await files.set_thumbnail(each.hash, "a", b"a", 5)

    async def forget() -> Set[bytes]:
        return {stored[1].hash}

    assert await files.remove_unused({each.hash for each in stored} | {b"x" * 32}, forget) == {
        stored[1].hash
    }
    assert _all_files(tmp_path) == [PLACE, PLACE.replace("content", "thumbnails") + "/a"]
