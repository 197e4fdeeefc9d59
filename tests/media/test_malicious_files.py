"""Malicious files: uploaded, scaled and downloaded. The server stays up, memory is bounded, and
browsers run nothing."""

import io
import random
import resource
import shutil
import struct
import subprocess
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from PIL import Image

from storage.engine.database import Database
from storage.media.files import FIRST_READ_BYTES
from tests.helpers.images import claimed_png, moving_picture, opened, picture
from tests.helpers.media_files import upload_file
from tests.helpers.server import TestServer, User

DOWNLOAD = "/_matrix/client/v1/media/download/"
THUMBNAIL = "/_matrix/client/v1/media/thumbnail/"
SCRIPT = b"<script>alert(document.domain)</script>"
MOST_MEMORY = 700 << 20
"""Of one process that was started, in bytes; without bounds the bombs take gigabytes."""

MOST_FURTHER_MEMORY: Final = 64 << 20
"""Of the server itself, beside what it had before: some files and thumbnails at a time."""


def _png_bomb() -> bytes:
    """30,000 × 30,000 pixels that are all there, in 900 KB."""
    packer = zlib.compressobj(9)
    row = bytes(30_000 * 3 + 1)
    data = b"".join(packer.compress(row) for _ in range(300)) + packer.flush()
    return claimed_png(30_000, 30_000, data)


def _text_bomb() -> bytes:
    """A small picture with a compressed text that is long: 200 times the same MiB, which is
    compressed once."""
    packer = zlib.compressobj(9)
    first, further = (
        packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2)
    )
    ending = b"\3\0" + struct.pack(
        ">HH", (200 << 20) % 65521, 1
    )  # an empty block, and Adler's sum of so many zeros
    data = first + 199 * further + ending
    chunk = b"zTXtx\0\0" + data
    text = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    plain = picture(400, 200)
    return plain[:33] + text + plain[33:]


def _zip_in_jpeg() -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("evil.html", SCRIPT)
    return picture(400, 200, "JPEG") + archive.getvalue()


def _gif_script() -> bytes:
    """A GIF that is a script too."""
    return b"GIF89a/*" + moving_picture(200, 100)[8:] + b"*/=1;alert(1)//"


def _moving_noise() -> bytes:
    """Dots in two colours, which fit well into a GIF and into nothing else."""
    dots = random.Random(1)
    frames = [
        Image.frombytes("1", (320, 240), dots.randbytes(40 * 240)).convert("P") for _ in range(12)
    ]
    target = io.BytesIO()
    frames[0].save(target, "GIF", save_all=True, append_images=frames[1:], duration=100)
    return target.getvalue()


def nasty_files() -> dict[str, tuple[bytes, str]]:
    """Each by a name, with the type that it is said to have."""
    return {
        "png bomb": (_png_bomb(), "image/png"),
        "text bomb": (_text_bomb(), "image/png"),
        "huge gif": (
            b"GIF89a"
            + struct.pack("<HH", 65535, 65535)
            + b"\xf0\0\0"
            + bytes(6)
            + b",\0\0\0\0\xff\xff\xff\xff\0\x02\0;",
            "image/gif",
        ),
        "moving noise": (_moving_noise(), "image/gif"),
        "svg with a script": (
            b"<svg xmlns='http://www.w3.org/2000/svg'>" + SCRIPT + b"</svg>",
            "image/svg+xml",
        ),
        "svg that says it is a png": (
            b"<svg xmlns='http://www.w3.org/2000/svg'>" + SCRIPT + b"</svg>",
            "image/png",
        ),
        "html": (SCRIPT, "text/html"),
        "html that says it is a jpeg": (SCRIPT, "image/jpeg"),
        "xhtml": (SCRIPT, "application/xhtml+xml"),
        "xml with a style": (b"<?xml-stylesheet href='javascript:1'?><x/>", "text/xml"),
        "zip in a jpeg": (_zip_in_jpeg(), "image/jpeg"),
        "jpeg that says it is html": (picture(400, 200, "JPEG"), "text/html"),
        "script in a gif": (_gif_script(), "text/javascript"),
        "truncated": (picture(400, 200)[:-300], "image/png"),
        "playlist": (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n", "video/mp4"),
        "list of files": (b"ffconcat version 1.0\nfile /etc/passwd\n", "video/mp4"),
        "film of nothing": (b"\0\0\0\x18ftypmp42" + bytes(5000), "video/mp4"),
        "avif of nothing": (b"\0\0\0\x18ftypavif" + bytes(5000), "image/avif"),
        "matroska of nothing": (b"\x1aE\xdf\xa3" + b"\xff" * 5000, "video/webm"),
        "document of nothing": (
            b"%PDF-1.7\n" + b"1 0 obj<</Type/Catalog/Pages 1 0 R/Kids[1 0 R]>>endobj\n" * 50,
            "application/pdf",
        ),
    }


HARMLESS_INLINE = ("image/png", "image/jpeg", "image/gif", "image/avif", "video/mp4", "video/webm")


@pytest.fixture
def alice(server: TestServer) -> Iterator[User]:
    yield server.register("alice")
    server.app.media.close_workers()


def _peak_of_children() -> int:
    """In bytes, of the largest that ended: also of those of tests before."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def _forget_peak() -> None:
    """Reset the peak that `_memory("VmHWM")` returns."""
    Path("/proc/self/clear_refs").write_text("5")


def _memory(which: str) -> int:
    """Of this process, which the server is part of, in bytes: `VmRSS` what it has, `VmHWM` the most
    that it had."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[which].removesuffix("kB")) * 1024


def test_malicious_files_are_refused_or_harmless(alice: User) -> None:
    earlier = _peak_of_children()
    _forget_peak()
    before = _memory("VmRSS")
    for name, (data, type) in nasty_files().items():
        file = upload_file(alice, data, type)
        for further in ("", "&animated=true&method=crop"):
            answer = alice.get(f"{THUMBNAIL}{file}?width=96&height=96{further}")
            assert answer.status in (200, 400, 413), (name, answer.status)
            if answer.status != 200:
                break
            assert answer.headers["content-type"] in ("image/png", "image/jpeg", "image/webp"), name
            assert SCRIPT not in answer.body
            assert min(opened(answer.body).size) <= 200, name
        got = alice.get(DOWNLOAD + file)
        assert (got.status, got.body) == (200, data), name
        assert got.headers["x-content-type-options"] == "nosniff"
        assert got.headers["content-security-policy"].startswith("sandbox;")
        shown = got.headers["content-disposition"].startswith("inline")
        assert shown is (type in HARMLESS_INLINE and "says it is" not in name), name
    # it is up, and its processes work
    file = upload_file(alice, picture(400, 200), "image/png")
    assert alice.get(f"{THUMBNAIL}{file}?width=96&height=96").status == 200
    alice.server.app.media.close_workers()
    peak = _peak_of_children()
    assert peak < MOST_MEMORY or peak == earlier
    assert _memory("VmHWM") - before < MOST_FURTHER_MEMORY


def test_an_animated_thumbnail_larger_than_the_original_is_not_animated(alice: User) -> None:
    file = upload_file(alice, _moving_noise(), "image/gif")
    answer = alice.get(f"{THUMBNAIL}{file}?width=256&height=192&animated=true")
    assert (answer.status, answer.headers["content-type"]) == (200, "image/png")
    assert opened(answer.body).size == (256, 192)


def test_a_picture_that_would_be_large_without_loss_is_a_jpeg(alice: User) -> None:
    target = io.BytesIO()
    Image.frombytes("RGBA", (1100, 600), random.Random(1).randbytes(1100 * 600 * 4)).save(
        target, "PNG", compress_level=1
    )
    file = upload_file(alice, target.getvalue(), "image/png")
    path = f"{THUMBNAIL}{file}?width=1024&height=500"
    first, repeated = alice.get(path), alice.get(path)
    assert (first.status, first.headers["content-type"]) == (200, "image/jpeg")
    assert opened(first.body).size == (1024, 559)
    assert len(first.body) > FIRST_READ_BYTES
    assert repeated.body == first.body, "also when it is read from the disk, piece by piece"


def test_avif_and_animated_png_have_thumbnails(alice: User) -> None:
    file = upload_file(alice, picture(400, 200, "AVIF"), "image/avif")
    answer = alice.get(f"{THUMBNAIL}{file}?width=96&height=96&method=crop")
    assert (answer.status, answer.headers["content-type"]) == (200, "image/jpeg")
    assert opened(answer.body).size == (96, 96)
    frames = [Image.new("RGB", (200, 100), colour) for colour in ("red", "green", "blue")]
    target = io.BytesIO()
    frames[0].save(target, "PNG", save_all=True, append_images=frames[1:], duration=100)
    file = upload_file(alice, target.getvalue(), "image/apng")
    still = alice.get(f"{THUMBNAIL}{file}?width=96&height=96&method=crop")
    assert (still.headers["content-type"], getattr(opened(still.body), "n_frames", 1)) == (
        "image/png",
        1,
    )
    moving = alice.get(f"{THUMBNAIL}{file}?width=96&height=96&method=crop&animated=true")
    assert (moving.headers["content-type"], getattr(opened(moving.body), "n_frames", 1)) == (
        "image/webp",
        3,
    )


def _film(folder: Path, name: str, *codec: str) -> bytes:
    path = folder / name
    source = ["-f", "lavfi", "-i", "color=red:size=640x360:duration=1:rate=10"]
    subprocess.run(["ffmpeg", "-v", "error", "-y", *source, *codec, str(path)], check=True)
    return path.read_bytes()


PDF = b"""%PDF-1.4
1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj
2 0 obj<</Type/Pages/Kids[3 0 R]/Count 1>>endobj
3 0 obj<</Type/Page/Parent 2 0 R/MediaBox[0 0 400 200]/Contents 4 0 R>>endobj
4 0 obj<</Length 33>>stream
1 0 0 rg 0 0 400 200 re f
endstream
endobj
trailer<</Root 1 0 R>>
"""


def test_videos_have_thumbnails(alice: User, tmp_path: Path) -> None:
    assert shutil.which("ffmpeg"), "ffmpeg is missing: scripts/test installs it"
    films = (
        (_film(tmp_path, "a.mp4", "-c:v", "mpeg4"), "video/mp4"),
        (_film(tmp_path, "a.webm", "-c:v", "libvpx", "-deadline", "realtime"), "video/webm"),
    )
    for data, type in films:
        answer = alice.get(
            f"{THUMBNAIL}{upload_file(alice, data, type)}?width=320&height=180&method=scale"
        )
        assert (answer.status, answer.headers["content-type"]) == (200, "image/jpeg"), type
        made = opened(answer.body)
        assert made.size == (320, 180)
        pixel = made.getpixel((160, 90))
        assert isinstance(pixel, tuple)
        assert pixel[0] > 200 > 60 > pixel[1]


def test_pdf_documents_have_thumbnails(alice: User) -> None:
    assert shutil.which("pdftoppm"), "pdftoppm is missing: scripts/test installs it"
    answer = alice.get(
        f"{THUMBNAIL}{upload_file(alice, PDF, 'application/pdf')}?width=320&height=160"
    )
    assert (answer.status, answer.headers["content-type"]) == (200, "image/jpeg")
    pixel = opened(answer.body).getpixel((100, 50))
    assert isinstance(pixel, tuple)
    assert pixel[0] > 200 > 60 > pixel[1]


@pytest.mark.parametrize(("further", "count"), [("", 1), ("external_thumbnailers: false\n", 0)])
def test_thumbnails_of_documents_are_made_at_upload(
    sqlite_database: Database, tmp_path: Path, further: str, count: int
) -> None:
    sizes = "thumbnail_sizes: [{width: 96, height: 96, method: crop}]\n"
    server = TestServer(tmp_path, sqlite_database, f"thumbnails_at_upload: true\n{sizes}{further}")
    upload_file(server.register("alice"), PDF, "application/pdf")
    folder = tmp_path / "media_store" / "thumbnails"
    assert len([path for path in folder.rglob("*") if path.is_file()]) == count
    server.app.media.close_workers()


def test_external_thumbnailers_can_be_disabled(sqlite_database: Database, tmp_path: Path) -> None:
    server = TestServer(tmp_path, sqlite_database, "external_thumbnailers: false\n")
    alice = server.register("alice")
    path = f"{THUMBNAIL}{upload_file(alice, PDF, 'application/pdf')}?width=320&height=160"
    assert alice.get(path).status == 400
    server.app.media.close_workers()
    # and as soon as they are wanted, there is one
    server = TestServer(tmp_path, sqlite_database)
    assert server.client.request("GET", path, token=alice.token).status == 200
    server.app.media.close_workers()
