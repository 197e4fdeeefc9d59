"""A server that is killed while files are added and deleted: after the next start no row is without
its file, and no file without a row."""

import sqlite3
from collections.abc import Set
from pathlib import Path
from random import Random

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from storage.engine.executors import InlineExecutor
from storage.media.files import MediaFiles
from tests.helpers.programs import piped_program

KILLS = 3


def _hashes(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if len(path.name) == 64}


def test_a_kill_at_any_moment_leaves_rows_and_files_consistent(tmp_path: Path) -> None:
    path, folder = tmp_path / "database", tmp_path / "media"
    for seed in range(KILLS):
        with piped_program("tests.helpers.media_process", str(path), str(folder), str(seed)) as (
            _,
            output,
        ):
            for _ in range(Random(seed).randrange(10, 60)):
                assert output.readline() == "deleted\n"
    with sqlite3.connect(path) as database:
        rows = {hash.hex() for (hash,) in database.execute("SELECT DISTINCT hash FROM media")}
        (deleted,) = database.execute("SELECT COUNT(*) FROM deleted_media").fetchone()
        (left,) = database.execute("SELECT COUNT(*) FROM media").fetchone()
    assert rows
    assert deleted
    assert left > len(rows)  # some have the same bytes

    async def get_used(_hashes: Set[bytes]) -> Set[bytes]:
        return {bytes.fromhex(each) for each in rows}

    Deferred.fromCoroutine(
        MediaFiles(folder=folder, executor=InlineExecutor(), clock=Clock()).sweep(get_used)
    )
    assert _hashes(folder / "content") == rows
    assert _hashes(folder / "thumbnails") <= rows
