"""A process that uploads and deletes files as fast as possible until it is killed.

    python -m tests.helpers.media_process DATABASE FOLDER SEED

It first sweeps leftovers of a crash. It prints a line for each deleted file.
"""

import os
import sys
from io import BytesIO
from pathlib import Path
from random import Random
from typing import cast

from twisted.internet import reactor as installed_reactor
from twisted.internet.base import ReactorBase
from twisted.internet.defer import Deferred

from homeserver.services.media.removal import MediaRemoval
from storage.engine.database import Database, SQLiteConfig, open_database
from storage.engine.executors import ThreadExecutor
from storage.engine.transaction import WriteTransaction
from storage.media.content_uris import ContentURI
from storage.media.contents import LocalContents
from storage.media.files import MediaFiles
from storage.media.media import MediaContent, MediaRow, MediaStore
from storage.media.removal import MediaRemovalStore, RemovalReason

OWN = "example.org"
CALLERS = 8
CONTENTS = 12
"""The number of different contents: so few that a file is deleted while the same content is
uploaded."""


async def work_for_ever(
    database: Database, files: MediaFiles, removal: MediaRemoval, random: Random, name: str
) -> None:
    store, contents = MediaStore(database), LocalContents(database=database, files=files)
    number = 0
    while True:
        number += 1
        media_id = f"{name}-{number}"

        def write(txn: WriteTransaction, hash: bytes, size: int, media_id: str = media_id) -> bytes:
            content = MediaContent(hash, size, "text/plain", None)
            store.add_media(txn, MediaRow(media_id, f"@a:{OWN}", content, 0, None, 0, True))
            return hash

        hash = await contents.add(BytesIO(str(random.randrange(CONTENTS)).encode()), write)
        await contents.set_thumbnail(hash, "small", b"small", 5)
        if random.random() < 0.8:
            await removal.do_delete(
                [ContentURI(OWN, media_id)], RemovalReason.UPLOADER, f"@a:{OWN}"
            )
            os.write(1, b"deleted\n")


async def begin(database: Database, files: MediaFiles, reactor: ReactorBase, seed: int) -> None:
    await files.sweep(MediaStore(database).get_used_hashes)
    removal = MediaRemoval(
        store=MediaRemovalStore(database=database, own=OWN),
        contents=LocalContents(database=database, files=files),
        clock=reactor,
        grace_ms=0,
        local_lifetime_ms=None,
        remote_lifetime_ms=None,
        local_age_ms=None,
        remote_age_ms=None,
        record_ms=0,
    )
    for caller in range(CALLERS):
        random = Random(seed * CALLERS + caller)
        Deferred.fromCoroutine(work_for_ever(database, files, removal, random, f"{seed}-{caller}"))


def main() -> None:
    path, folder, seed = sys.argv[1:]
    reactor = cast(ReactorBase, installed_reactor)
    database = open_database(SQLiteConfig(path), reactor)
    files = MediaFiles(
        folder=Path(folder),
        executor=ThreadExecutor(reactor=reactor, name="files", threads=4),
        clock=reactor,
    )
    files.open_folder()
    reactor.callWhenRunning(
        lambda: Deferred.fromCoroutine(begin(database, files, reactor, int(seed)))
    )
    reactor.run()


if __name__ == "__main__":
    main()
