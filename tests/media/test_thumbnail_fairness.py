"""The order in which thumbnails are made, in real processes: fair among the owners of pictures
and among the requesting users."""

from pathlib import Path

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from federation.protocol.errors import LimitExceeded
from homeserver.services.media.image_workers import ImageWorkers
from homeserver.services.media.thumbnails import (
    ASPECT_STEPS,
    MAX_WAITING_PER_REQUESTER,
    SIZE_STEPS,
    Thumbnail,
    Thumbnails,
)
from storage.engine.database import Database
from storage.engine.executors import InlineExecutor
from storage.media.contents import LocalContents
from storage.media.files import MediaFiles
from storage.media.media import MediaContent
from tests.helpers.executors import ManualExecutor
from tests.helpers.images import picture
from tests.helpers.media_files import store_image

ALICE, BOB, MALLORY = "@alice:example.org", "@bob:example.org", "@mallory:example.org"


async def test_many_pictures_of_one_user_do_not_delay_those_of_others(
    sqlite_database: Database, tmp_path: Path
) -> None:
    files = MediaFiles(folder=tmp_path, executor=InlineExecutor(), clock=Clock())
    files.open_folder()
    executor = ManualExecutor()
    workers = ImageWorkers(executor=executor)
    thumbnails = Thumbnails(
        contents=LocalContents(database=sqlite_database, files=files),
        workers=workers,
        max_pixels=1 << 20,
        max_concurrent=2,
        clock=Clock(),
    )
    asked: dict[str, list[Deferred[Thumbnail]]] = {ALICE: [], BOB: []}
    for number, whose in enumerate((ALICE, ALICE, ALICE, BOB, BOB)):
        content = await store_image(files, picture(400 + number, 200))
        making = thumbnails.get(content, 96, 96, "crop", whose, whose, animated=False)
        asked[whose].append(Deferred.fromCoroutine(making))
    assert len(executor.jobs) == 2  # one of each
    executor.run_queued()
    assert {whose: [each.called for each in made] for whose, made in asked.items()} == {
        ALICE: [True, False, False],
        BOB: [True, False],
    }
    while executor.jobs:
        executor.run_queued()
    assert all(each.called for made in asked.values() for each in made)
    workers.close()


async def test_a_user_who_requests_many_sizes_delays_no_other(
    sqlite_database: Database, tmp_path: Path
) -> None:
    files = MediaFiles(folder=tmp_path, executor=InlineExecutor(), clock=Clock())
    files.open_folder()
    executor = ManualExecutor()
    workers = ImageWorkers(executor=executor)
    thumbnails = Thumbnails(
        contents=LocalContents(database=sqlite_database, files=files),
        workers=workers,
        max_pixels=1 << 20,
        max_concurrent=2,
        clock=Clock(),
    )
    content, other = (
        await store_image(files, picture(400, 200)),
        await store_image(files, picture(300, 200)),
    )

    def ask(content: MediaContent, size: int, whose: str, asker: str) -> Deferred[Thumbnail]:
        return Deferred.fromCoroutine(
            thumbnails.get(content, size, 8, "crop", whose, asker, animated=False)
        )

    many = [ask(content, size, ALICE, MALLORY) for size in range(SIZE_STEPS[0], SIZE_STEPS[-1], 8)]
    assert len(executor.jobs) == 1
    theirs = ask(other, 96, BOB, BOB)
    same, another = (
        ask(content, SIZE_STEPS[-1], ALICE, BOB),
        ask(content, SIZE_STEPS[-2], ALICE, BOB),
    )
    assert len(executor.jobs) == 2
    for _ in range(5):  # Alice's pictures have one of two turns, and of that Bob every second
        executor.run_queued()
    assert theirs.called
    assert same.called
    assert another.called
    assert not all(each.called for each in many)
    while executor.jobs:
        executor.run_queued()
    assert [(await each).type for each in many] == ["image/png"] * len(many)
    workers.close()


async def test_only_the_user_with_too_many_waiting_requests_is_refused(
    sqlite_database: Database, tmp_path: Path
) -> None:
    files = MediaFiles(folder=tmp_path, executor=InlineExecutor(), clock=Clock())
    files.open_folder()
    executor = ManualExecutor()
    workers = ImageWorkers(executor=executor)
    thumbnails = Thumbnails(
        contents=LocalContents(database=sqlite_database, files=files),
        workers=workers,
        max_pixels=1 << 20,
        max_concurrent=2,
        clock=Clock(),
    )
    content = await store_image(files, picture(40, 20))

    def ask(size: tuple[int, int], asker: str) -> Deferred[Thumbnail]:
        return Deferred.fromCoroutine(
            thumbnails.get(content, *size, "crop", ALICE, asker, animated=False)
        )

    sizes = [
        (step, step * part // ASPECT_STEPS)
        for step in SIZE_STEPS
        for part in range(1, ASPECT_STEPS + 1)
    ]
    asked = [
        ask(size, MALLORY) for size in sizes[: MAX_WAITING_PER_REQUESTER + 1]
    ]  # of which one is being made
    last = sizes[MAX_WAITING_PER_REQUESTER + 1]
    bobs, refused = ask(last, BOB), ask(last, MALLORY)
    with pytest.raises(LimitExceeded):
        await refused
    assert not bobs.called
    while executor.jobs:
        executor.run_queued()
    await bobs
    assert all(each.called for each in asked)
    workers.close()


async def test_waiting_requests_share_one_thumbnail(
    sqlite_database: Database, tmp_path: Path
) -> None:
    files = MediaFiles(folder=tmp_path, executor=InlineExecutor(), clock=Clock())
    files.open_folder()
    content = await store_image(files, picture(400, 200))
    executor = ManualExecutor()
    workers = ImageWorkers(executor=executor)
    thumbnails = Thumbnails(
        contents=LocalContents(database=sqlite_database, files=files),
        workers=workers,
        max_pixels=1 << 20,
        max_concurrent=2,
        clock=Clock(),
    )
    asked = [
        Deferred.fromCoroutine(
            thumbnails.get(content, 96, 96, "crop", ALICE, ALICE, animated=False)
        )
        for _ in range(3)
    ]
    assert len(executor.jobs) == 1
    asked[0].addErrback(lambda failure: failure.trap(CancelledError))
    asked[0].cancel()
    executor.run_queued()
    assert [(await each).type for each in asked[1:]] == ["image/png", "image/png"]
    workers.close()
