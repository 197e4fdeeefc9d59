"""Thumbnails, through the complete server and real worker processes; also of malicious pictures."""

import io
import os
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock

from federation.protocol.errors import CannotThumbnail, LimitExceeded
from homeserver.services.media import image_worker, image_workers
from homeserver.services.media.image_worker import MAX_FRAMES
from homeserver.services.media.image_workers import JOB_SECONDS, ImageJob, ImageWorkers
from homeserver.services.media.thumbnails import (
    ASPECT_STEPS,
    MAX_STORED,
    NO_IMAGE_SECONDS,
    SIZE_STEPS,
    Method,
    Thumbnails,
    ThumbnailSize,
    choose,
    round_up,
)
from homeserver.services.subprocesses.worker_processes import MAX_WAITING
from storage.engine.database import Database
from storage.engine.executors import InlineExecutor
from storage.media.contents import LocalContents
from storage.media.files import MediaFiles
from tests.helpers.executors import ManualExecutor
from tests.helpers.http import Answer
from tests.helpers.images import claimed_png, moving_picture, opened, picture, turned_photo
from tests.helpers.media_files import store_image, upload_file
from tests.helpers.media_scanning import PLUGIN, HeldVerdicts
from tests.helpers.server import TestServer, User

DOWNLOAD = "/_matrix/client/v1/media/download/"
THUMBNAIL = "/_matrix/client/v1/media/thumbnail/"
ALICE = "@alice:example.org"
RED, BLUE = (254, 0, 0), (0, 0, 254)


@pytest.fixture
def alice(server: TestServer) -> Iterator[User]:
    yield server.register("alice")
    server.app.media.close_workers()


def _thumbnail(user: User, file: str, width: int, height: int, further: str = "") -> Answer:
    return user.get(f"{THUMBNAIL}{file}?width={width}&height={height}{further}")


def _is_near(pixel: object, colour: tuple[int, int, int]) -> bool:
    assert isinstance(pixel, tuple)
    return all(abs(mine - theirs) < 30 for mine, theirs in zip(pixel[:3], colour, strict=True))


@pytest.mark.parametrize(
    ("asked", "method", "size"),
    [
        ((32, 32), "crop", (32, 32)),
        ((96, 96), "crop", (96, 96)),
        ((320, 240), "scale", (480, 240)),
        ((640, 480), "scale", (960, 480)),
        ((800, 600), "scale", (1200, 600)),
        ((100, 50), "crop", (128, 64)),
        ((1, 1000), "scale", (2048, 1024)),
    ],
)
def test_thumbnails_have_the_requested_size(
    alice: User, asked: tuple[int, int], method: str, size: tuple[int, int]
) -> None:
    file = upload_file(alice, picture(4000, 2000), "image/png")
    answer = _thumbnail(alice, file, *asked, f"&method={method}")
    assert answer.status == 200
    assert opened(answer.body).size == size
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["content-disposition"] == "inline; filename=thumbnail.png"
    assert answer.headers["content-security-policy"].startswith("sandbox")


def test_sizes_are_rounded_up_and_nearly_keep_their_proportions() -> None:
    asked = [
        (32, 32),
        (33, 33),
        (800, 600),
        (640, 480),
        (1920, 1080),
        (1, 1),
        (1, 99),
        (9000, 4500),
    ]
    assert [round_up(*size) for size in asked] == [
        (32, 32),
        (48, 48),
        (800, 600),
        (640, 480),
        (2048, 1152),
        (32, 32),
        (8, 128),
        (4096, 2048),
    ]


def test_rounded_sizes_are_few_and_no_smaller_than_requested() -> None:
    asked = [(width, height) for width in range(1, 4097, 37) for height in range(1, 4097, 41)]
    sizes = [round_up(*each) for each in asked]
    assert all(
        size[0] >= wanted[0] and size[1] >= wanted[1]
        for size, wanted in zip(sizes, asked, strict=True)
    )
    assert len(set(sizes)) <= len(SIZE_STEPS) * (2 * ASPECT_STEPS - 1)


@pytest.mark.parametrize("method", ["crop", "scale"])
def test_pictures_are_not_enlarged(alice: User, method: str) -> None:
    small = picture(40, 20)
    file = upload_file(alice, small, "image/png")
    assert _thumbnail(alice, file, 320, 240, f"&method={method}").body == small
    narrow = _thumbnail(
        alice, upload_file(alice, picture(1000, 20), "image/png"), 96, 96, f"&method={method}"
    )
    assert opened(narrow.body).size == ((96, 20) if method == "crop" else (1000, 20))


@pytest.mark.parametrize(
    ("format", "mode", "type"),
    [
        ("PNG", "RGBA", "image/png"),
        ("PNG", "P", "image/png"),
        ("PNG", "L", "image/png"),
        ("PNG", "I;16", "image/png"),
        ("PNG", "1", "image/png"),
        ("JPEG", "RGB", "image/jpeg"),
        ("JPEG", "L", "image/jpeg"),
        ("JPEG", "CMYK", "image/jpeg"),
        ("GIF", "P", "image/png"),
        ("WEBP", "RGB", "image/jpeg"),
        ("WEBP", "RGBA", "image/png"),
    ],
)
def test_common_formats_have_thumbnails(alice: User, format: str, mode: str, type: str) -> None:
    data = (
        picture(400, 200, format, mode)
        if mode in ("RGB", "L", "CMYK")
        else _converted(format, mode)
    )
    answer = _thumbnail(
        alice, upload_file(alice, data, "application/octet-stream"), 96, 96, "&method=crop"
    )
    assert (answer.status, answer.headers.get("content-type")) == (200, type)
    assert opened(answer.body).size == (96, 96)


def _converted(format: str, mode: str) -> bytes:
    target = io.BytesIO()
    image = opened(picture(400, 200)).convert("L").convert(mode)
    if mode == "RGBA":
        image.putalpha(100)
    image.save(target, format)
    return target.getvalue()


def test_a_photo_is_rotated_by_its_orientation(alice: User) -> None:
    file = upload_file(alice, turned_photo(400, 200, 6), "image/jpeg")
    answer = _thumbnail(alice, file, 96, 96)
    made = opened(answer.body)
    assert made.size == (96, 192)
    assert _is_near(made.getpixel((48, 10)), RED)
    assert _is_near(made.getpixel((48, 180)), BLUE)
    assert not made.getexif()


def test_thumbnails_are_animated_only_on_request(alice: User) -> None:
    file = upload_file(alice, moving_picture(200, 100), "image/gif")
    for further in ("", "&animated=false"):
        still = _thumbnail(alice, file, 96, 96, "&method=crop" + further)
        assert still.headers["content-type"] == "image/png"
        assert getattr(opened(still.body), "n_frames", 1) == 1
    moving = _thumbnail(alice, file, 96, 96, "&method=crop&animated=true")
    assert moving.headers["content-type"] == "image/webp"
    image = opened(moving.body)
    assert (image.size, getattr(image, "n_frames", 1)) == ((96, 96), 3)


def test_a_small_animation_gets_a_still_thumbnail(alice: User) -> None:
    data = moving_picture(20, 10)
    file = upload_file(alice, data, "image/gif")
    assert getattr(opened(_thumbnail(alice, file, 96, 96).body), "n_frames", 1) == 1
    assert _thumbnail(alice, file, 96, 96, "&animated=true").body == data


def test_a_still_picture_ignores_the_request_for_animation(alice: User) -> None:
    answer = _thumbnail(
        alice, upload_file(alice, picture(200, 100), "image/png"), 96, 96, "&animated=true"
    )
    assert answer.headers["content-type"] == "image/png"


def test_a_thumbnail_is_made_once(alice: User, tmp_path: Path) -> None:
    file = upload_file(alice, picture(400, 200), "image/png")
    first = _thumbnail(alice, file, 96, 96)
    (kept,) = [
        path for path in (tmp_path / "media_store" / "thumbnails").rglob("*") if path.is_file()
    ]
    kept.write_bytes(b"made\nimage/png\nkept")
    assert _thumbnail(alice, file, 90, 90).body == b"kept"
    etag = first.headers["etag"]
    path = f"{THUMBNAIL}{file}?width=96&height=96"
    repeated = alice.server.client.request(
        "GET", path, token=alice.token, headers={"If-None-Match": etag}
    )
    assert (repeated.status, repeated.body) == (304, b"")


def test_the_number_of_stored_thumbnails_is_limited(alice: User, tmp_path: Path) -> None:
    file = upload_file(alice, picture(64, 64), "image/png")
    sizes = [
        (step, step * part // ASPECT_STEPS)
        for step in SIZE_STEPS
        for part in range(1, ASPECT_STEPS + 1)
    ]
    for size in sizes[: MAX_STORED + 5]:
        assert _thumbnail(alice, file, *size, "&method=crop").status == 200
    assert (
        len(
            [
                path
                for path in (tmp_path / "media_store" / "thumbnails").rglob("*")
                if path.is_file()
            ]
        )
        == MAX_STORED
    )


@pytest.mark.parametrize(
    "query",
    [
        "width=0&height=10",
        "width=10&height=-1",
        "width=x&height=1",
        "width=10",
        "width=1&height=1&method=stretch",
    ],
)
def test_invalid_thumbnail_requests_are_refused(alice: User, query: str) -> None:
    answer = alice.get(f"{THUMBNAIL}{upload_file(alice, picture(10, 10), 'image/png')}?{query}")
    assert answer.status == 400


def test_without_authenticated_media_thumbnails_are_open(
    tmp_path: Path, sqlite_database: Database
) -> None:
    server = TestServer(tmp_path, sqlite_database, "enable_authenticated_media: false\n")
    file = upload_file(server.register("alice"), picture(400, 200), "image/png")
    for version in ("v3", "r0", "v1"):
        answer = server.get(
            f"/_matrix/media/{version}/thumbnail/{file}?width=96&height=96&method=crop"
        )
        assert opened(answer.body).size == (96, 96)
    server.app.media.close_workers()


# Pictures that mean harm.

HARMFUL = {
    "nothing": b"",
    "text": b"<script>alert(1)</script>",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>',
    "truncated png": picture(400, 200)[:-200],
    "truncated jpeg": picture(400, 200, "JPEG")[:200],
    "truncated small png": picture(20, 20)[:60],
    "png without data": claimed_png(100, 100),
    "png with other data": claimed_png(100, 100, b"\0" * 1000),
    "gif of nothing": b"GIF89a" + b"\0" * 50,
    "bitmap": picture(400, 200, "BMP"),
    "tiff": picture(400, 200, "TIFF"),
    "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n",
}


@pytest.mark.parametrize("name", HARMFUL)
def test_a_file_that_is_no_picture_has_no_thumbnail(alice: User, name: str) -> None:
    file = upload_file(alice, HARMFUL[name], "image/png")
    for _ in range(2):
        answer = _thumbnail(alice, file, 96, 96)
        assert (answer.status, answer.errcode) == (400, "M_UNKNOWN")
    assert alice.get(DOWNLOAD + file).body == HARMFUL[name]
    assert (
        _thumbnail(alice, upload_file(alice, picture(400, 200), "image/png"), 96, 96).status == 200
    )


@pytest.mark.parametrize("size", [(50_000, 50_000), (2**31 - 1, 2**31 - 1), (1, 2**31 - 1)])
def test_a_picture_with_too_many_pixels_has_no_thumbnail(
    alice: User, size: tuple[int, int]
) -> None:
    answer = _thumbnail(alice, upload_file(alice, claimed_png(*size), "image/png"), 96, 96)
    assert (answer.status, answer.errcode) in ((413, "M_TOO_LARGE"), (400, "M_UNKNOWN"))


def test_the_number_of_pixels_is_configured(tmp_path: Path, sqlite_database: Database) -> None:
    server = TestServer(tmp_path, sqlite_database, "max_image_pixels: 1000\n")
    alice = server.register("alice")
    answer = _thumbnail(alice, upload_file(alice, picture(100, 11), "image/png"), 32, 32)
    assert (answer.status, answer.errcode) == (413, "M_TOO_LARGE")
    assert _thumbnail(alice, upload_file(alice, picture(100, 10), "image/png"), 32, 5).status == 200
    server.app.media.close_workers()


def test_a_video_gets_no_animated_thumbnail(alice: User) -> None:
    data = moving_picture(64, 64, ["red", "green"] * (MAX_FRAMES // 2 + 1))
    answer = _thumbnail(
        alice, upload_file(alice, data, "image/gif"), 32, 32, "&animated=true&method=crop"
    )
    assert answer.headers["content-type"] == "image/png"
    assert opened(answer.body).size == (32, 32)


# Processes, and who waits for them.


def test_slow_thumbnails_do_not_delay_uploads(sqlite_database: Database, tmp_path: Path) -> None:
    images = ManualExecutor()
    server = TestServer(tmp_path, sqlite_database, "remove_photo_locations: true\n", images=images)
    alice = server.register("alice")
    file = upload_file(alice, picture(400, 200), "image/png")
    wanted = server.client.start("GET", f"{THUMBNAIL}{file}?width=96&height=96", token=alice.token)
    assert len(images.jobs) == 1
    upload_file(alice, turned_photo(400, 200, 6), "image/jpeg")
    images.run_queued()
    assert wanted.answer.status == 200
    server.app.media.close_workers()


async def test_a_thumbnail_that_takes_too_long_is_aborted(tmp_path: Path) -> None:
    files = MediaFiles(folder=tmp_path, executor=InlineExecutor(), clock=Clock())
    files.open_folder()
    content = await store_image(files, picture(400, 200))
    seconds = count(0, JOB_SECONDS)
    workers = ImageWorkers(executor=InlineExecutor(), cpu_time=lambda _: next(seconds))
    job = ImageJob(str(files.content_path(content.hash)), 96, 96, "crop", False, 1 << 20)
    assert (await workers.run(job)).kind == "unknown"
    workers.close()


async def test_a_crashed_worker_is_not_blamed_on_the_file(
    sqlite_database: Database, tmp_path: Path
) -> None:
    files = MediaFiles(folder=tmp_path, executor=InlineExecutor(), clock=Clock())
    files.open_folder()
    content = await store_image(files, picture(400, 200))
    times = iter([0.0, JOB_SECONDS])  # the first takes too long
    workers = ImageWorkers(executor=InlineExecutor(), cpu_time=lambda _: next(times, 0.0))
    thumbnails = Thumbnails(
        contents=LocalContents(database=sqlite_database, files=files),
        workers=workers,
        max_pixels=1 << 20,
        max_concurrent=2,
        clock=Clock(),
    )
    with pytest.raises(CannotThumbnail):
        await thumbnails.get(content, 96, 96, "crop", ALICE, ALICE, animated=False)
    assert (
        await thumbnails.get(content, 96, 96, "crop", ALICE, ALICE, animated=False)
    ).type == "image/png"
    workers.close()


def test_a_broken_picture_is_retried_after_a_day(alice: User, tmp_path: Path) -> None:
    file = upload_file(alice, picture(400, 200), "image/png")
    assert _thumbnail(alice, file, 96, 96).status == 200
    (kept,) = [
        path for path in (tmp_path / "media_store" / "thumbnails").rglob("*") if path.is_file()
    ]
    kept.write_bytes(b"no image\n\n")
    assert _thumbnail(alice, file, 96, 96).status == 400
    day_ago = time.time() - NO_IMAGE_SECONDS - 1
    os.utime(kept, (day_ago, day_ago))
    assert _thumbnail(alice, file, 96, 96).status == 200
    assert kept.read_bytes().startswith(b"made")


async def test_the_number_of_waiting_requests_is_bounded(tmp_path: Path) -> None:
    executor = ManualExecutor()
    workers = ImageWorkers(executor=executor)
    job = ImageJob(str(tmp_path / "nothing"), 96, 96, "crop", False, 1 << 20)
    waiting = [Deferred.fromCoroutine(workers.run(job)) for _ in range(MAX_WAITING)]
    with pytest.raises(LimitExceeded):
        await workers.run(job)
    executor.run_queued()
    assert {(await each).kind for each in waiting} == {"no image"}
    workers.close()


SIZES = [
    ThumbnailSize(96, 96, "crop"),
    ThumbnailSize(320, 240, "scale"),
    ThumbnailSize(800, 600, "scale"),
]


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ((32, 32, "crop"), SIZES[0]),
        ((200, 200, "crop"), SIZES[0]),
        ((1, 1, "scale"), SIZES[1]),
        ((320, 241, "scale"), SIZES[2]),
        ((9000, 1, "scale"), SIZES[2]),
    ],
)
def test_the_best_configured_size_is_chosen(
    asked: tuple[int, int, Method], chosen: ThumbnailSize
) -> None:
    assert choose(SIZES, *asked) == chosen
    assert choose(SIZES[1:], 50, 50, "crop") == SIZES[1], (
        "of another method where there is none of this"
    )


@pytest.mark.parametrize(
    ("further", "size"), [("", (480, 240)), ("dynamic_thumbnails: true\n", (128, 64))]
)
def test_only_configured_sizes_are_made(
    tmp_path: Path, sqlite_database: Database, further: str, size: tuple[int, int]
) -> None:
    sizes = (
        "thumbnail_sizes: [{width: 96, height: 96, method: crop}, {width: 320, height: 240,"
        " method: scale}]\n"
    )
    alice = TestServer(tmp_path, sqlite_database, sizes + further).register("alice")
    try:
        file = upload_file(alice, picture(1000, 500), "image/png")
        assert opened(_thumbnail(alice, file, 50, 50, "&method=scale").body).size == size
    finally:
        alice.server.app.media.close_workers()


@pytest.mark.parametrize(
    ("further", "names"),
    [
        ("", {"32x32-crop", "96x96-crop", "320x240-scale", "640x480-scale", "800x600-scale"}),
        ("thumbnail_sizes: [{width: 96, height: 96, method: crop}]\n", {"96x96-crop"}),
    ],
)
def test_configured_thumbnails_are_made_at_upload(
    tmp_path: Path, sqlite_database: Database, further: str, names: set[str]
) -> None:
    alice = TestServer(
        tmp_path, sqlite_database, f"thumbnails_at_upload: true\n{further}"
    ).register("alice")
    try:
        upload_file(alice, b"milk", "text/plain")
        upload_file(alice, b"milk", "image/png")  # no picture, whatever is said of it
        assert _kept(tmp_path) == set()
        file = upload_file(alice, picture(1000, 500), "image/png")
        assert _kept(tmp_path) == names
        assert opened(_thumbnail(alice, file, 96, 96, "&method=crop").body).size == (96, 96)
        address = alice.post("/_matrix/media/v1/create").json["content_uri"].removeprefix("mxc://")
        body = picture(900, 500)
        filled = alice.server.client.request(
            "PUT",
            f"/_matrix/media/v3/upload/{address}",
            token=alice.token,
            body=body,
            headers={"Content-Type": "image/png"},
        )
        assert filled.status == 200
        folder = tmp_path / "media_store" / "thumbnails"
        assert len([path for path in folder.rglob("*") if path.is_file()]) == 2 * len(names)
    finally:
        alice.server.app.media.close_workers()


def test_thumbnails_for_many_uploads_of_one_user_do_not_delay_others(
    tmp_path: Path, sqlite_database: Database
) -> None:
    images = ManualExecutor()
    config = (
        "thumbnails_at_upload: true\nthumbnail_sizes: [{width: 96, height: 96, method: crop}]\n"
    )
    server = TestServer(tmp_path, sqlite_database, config, images=images)
    alice, bob = server.register("alice"), server.register("bob")
    try:
        for width in range(200, 210):
            upload_file(alice, picture(width, 200), "image/png")
        file = upload_file(bob, picture(400, 200), "image/png")
        assert len(images.jobs) == 2  # one of each
        images.run_queued()
        assert len(list((tmp_path / "media_store" / "thumbnails").rglob("96x96-crop"))) == 2
        images.jobs.clear()
        assert _thumbnail(bob, file, 96, 96, "&method=crop").status == 200
    finally:
        server.app.media.close_workers()


def test_no_thumbnail_is_made_of_an_unscanned_file(
    tmp_path: Path, sqlite_database: Database
) -> None:
    alice = TestServer(tmp_path, sqlite_database, f"thumbnails_at_upload: true\n{PLUGIN}").register(
        "alice"
    )
    try:
        for width in (1000, 900):
            alice.server.client.start(
                "POST",
                "/_matrix/media/v3/upload",
                token=alice.token,
                body=picture(width, 500),
                headers={"Content-Type": "image/png"},
            )
        assert _kept(tmp_path) == set()
        HeldVerdicts.waiting.pop(0).callback("a worm")
        assert _kept(tmp_path) == set()
        HeldVerdicts.waiting.pop(0).callback(None)
        assert "96x96-crop" in _kept(tmp_path)
    finally:
        alice.server.app.media.close_workers()


def _kept(tmp_path: Path) -> set[str]:
    """The names of all thumbnails."""
    return {
        path.name for path in (tmp_path / "media_store" / "thumbnails").rglob("*") if path.is_file()
    }


def test_the_server_reads_as_much_as_a_worker_sends() -> None:
    assert image_workers.MAX_RESULT_BYTES == image_worker.MAX_RESULT_BYTES
