"""Removal of locations from photographs: nothing else in the file changes."""

import io
import struct
import zlib
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image
from twisted.internet.task import Clock

from federation.peers.fair_semaphore import SLOW_FOR_SECONDS
from federation.protocol.errors import InvalidParam, LimitExceeded
from homeserver.services.media.location_removal import (
    FILE_SECONDS,
    MAX_WAIT_SECONDS,
    MAX_WAITING_PER_USER,
    SLOW_SECONDS,
    LocationRemover,
)
from homeserver.services.media.location_worker import (
    MAX_METADATA_BYTES,
    UnreadableMetadata,
    find_patches,
)
from homeserver.services.subprocesses.worker_processes import ELAPSED_TIME_FACTOR
from storage.engine.database import Database
from storage.engine.executors import InlineExecutor
from tests.helpers.executors import ManualExecutor
from tests.helpers.http import Pending
from tests.helpers.images import ORIENTATION, picture, png_chunk
from tests.helpers.server import TestServer, User

PLACE = {
    1: "N",
    2: (41.0, 18.0, 41.0),
    3: "E",
    4: (69.0, 14.0, 24.0),
    27: b"ASCII\0\0\0GPS in Tashkent",
}
XMP = b"""<?xpacket begin="" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta
 xmlns:x="adobe:ns:meta/"><rdf:RDF
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""
 xmlns:exif="http://ns.adobe.com/exif/1.0/"
 xmlns:photoshop="http://ns.adobe.com/photoshop/1.0/" xmlns:dc="http://purl.org/dc/elements/1.1/"
 exif:GPSLatitude="41,18.683N"
 photoshop:City = 'Toshkent' exif:Flash="x > 1"><exif:GPSLongitude>69,14.4E</exif:GPSLongitude>
 <exif:GPSAltitude/>
 <Iptc4xmpExt:LocationShown
 xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"><rdf:Bag>
 <rdf:li>Chorsu</rdf:li></rdf:Bag>
 </Iptc4xmpExt:LocationShown><dc:title>Bozor</dc:title></rdf:Description></rdf:RDF>
 </x:xmpmeta><?xpacket end="w"?>"""
WORDS = (b"Toshkent", b"Chorsu", b"41,18", b"69,14", b"Tashkent")


def notes() -> Image.Exif:
    """Notes with a place, a camera and the way to turn."""
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    exif[ExifTags.Base.Model] = "A camera with a long name"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.DateTimeOriginal] = "2026:01:02 03:04:05"
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(PLACE)
    return exif


def photo(format: str, **more: Any) -> bytes:
    return picture(40, 20, format, exif=notes(), xmp=XMP, **more)


def apng() -> bytes:
    """A PNG, whose XMP Pillow does not write."""
    return with_chunks(
        picture(40, 20, "PNG", exif=notes()),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
    )


def with_chunks(png: bytes, *chunks: bytes) -> bytes:
    """After the first, which is the header."""
    return png[:33] + b"".join(chunks) + png[33:]


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def without_place(data: bytes) -> bytes:
    """As the server does it."""
    changed = bytearray(data)
    for at, new in find_patches(io.BytesIO(data)):
        assert at + len(new) <= len(data)
        changed[at : at + len(new)] = new
    return bytes(changed)


PHOTOS = {
    "jpeg": photo("JPEG"),
    "webp": photo("WEBP", lossless=True),
    "avif": photo("AVIF"),
    "heic": photo("AVIF").replace(b"ftypavif", b"ftypheic", 1),
    "png": apng(),
    "several": photo("MPO", save_all=True, append_images=[Image.new("RGB", (40, 20))]),
}


@pytest.mark.parametrize("kind", PHOTOS)
def test_the_location_is_removed_and_the_picture_unchanged(kind: str) -> None:
    before = PHOTOS[kind]
    assert sum(word in before for word in WORDS) >= 4
    after = without_place(before)
    assert len(after) == len(before)
    assert [word for word in WORDS if word in after] == []
    readable = after.replace(b"ftypheic", b"ftypavif", 1)
    with (
        Image.open(io.BytesIO(before.replace(b"ftypheic", b"ftypavif", 1))) as old,
        Image.open(io.BytesIO(readable)) as new,
    ):
        assert old.tobytes() == new.tobytes()
        # what AVIF says of the turning stands in the container, and Pillow takes it out of the
        # notes
        assert (new.getexif().get(ORIENTATION), new.info.get("irot")) == (
            old.getexif().get(ORIENTATION),
            old.info.get("irot"),
        )
        assert old.getexif().get_ifd(ExifTags.IFD.GPSInfo)
        assert new.getexif().get_ifd(ExifTags.IFD.GPSInfo) == {}
        assert ExifTags.IFD.GPSInfo not in new.getexif()
        assert new.getexif()[ExifTags.Base.Model] == "A camera with a long name"
        assert new.getexif().get_ifd(ExifTags.IFD.Exif) == old.getexif().get_ifd(ExifTags.IFD.Exif)
        assert b"Bozor" in after
        assert b'exif:Flash="x > 1"' in after
    assert find_patches(io.BytesIO(after)) == [], "there is nothing left to do"


def test_the_location_is_removed_from_all_pictures_of_a_file() -> None:
    whole = PHOTOS["jpeg"] + b"..." + PHOTOS["jpeg"]
    assert b"N\0" in whole
    assert not any(word in without_place(whole) for word in WORDS)


def test_an_xmp_packet_in_several_segments_is_removed() -> None:
    head, parts = (
        b"http://ns.adobe.com/xmp/extension/\0" + b"0" * 32 + struct.pack(">I", len(XMP)),
        (0, 300, 500, 512),
    )
    segments = [
        segment(0xE1, head + struct.pack(">I", at) + XMP[at:end])
        for at, end in zip(parts, (*parts[1:], len(XMP)), strict=True)
    ]
    after = without_place(with_segments(picture(4, 4, "JPEG"), *reversed(segments)))
    assert b"Bozor" in after
    # words may be cut by the ends of segments
    assert not any(word[:4] in after for word in WORDS)


def iptc_set(kind: int, text: bytes, size: bytes | None = None) -> bytes:
    return struct.pack(">BBB", 0x1C, 2, kind) + (size or struct.pack(">H", len(text))) + text


def without_iptc_places(sets: bytes) -> bytes:
    resources = b"8BIM\x04\x04\0\0" + struct.pack(">I", len(sets)) + sets + bytes(len(sets) % 2)
    return without_place(
        with_segments(picture(4, 4, "JPEG"), segment(0xED, b"Photoshop 3.0\0" + resources))
    )


def test_place_names_in_iptc_data_are_removed() -> None:
    received = [(90, b"Toshkent"), (120, b"A market"), (101, b"Uzbekistan")]
    after = without_iptc_places(b"".join(iptc_set(kind, text) for kind, text in received))
    assert b"A market" in after
    assert b"Toshkent" not in after
    assert b"Uzbekistan" not in after


def test_place_names_after_a_long_iptc_text_are_removed() -> None:
    """The size of a long text is given in a further field. source: IPTC-NAA IIM 4.2, 1.6"""
    long = iptc_set(120, b"A market", struct.pack(">HI", 0x8004, 8))
    after = without_iptc_places(long + iptc_set(90, b"Toshkent"))
    assert b"A market" in after
    assert b"Toshkent" not in after


def test_iptc_data_that_cannot_be_parsed_are_removed() -> None:
    for broken in (b"?", struct.pack(">BBBH", 0x1C, 2, 120, 0x8FFF)):
        after = without_iptc_places(iptc_set(120, b"A market") + broken + iptc_set(90, b"Toshkent"))
        assert b"A market" in after
        assert b"Toshkent" not in after


def hexadecimal(content: bytes) -> bytes:
    return b"\nexif\n%8d\n" % len(content) + content.hex().encode() + b"\n"


@pytest.mark.parametrize(
    ("further", "goes"),
    [
        (png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)), True),
        (
            png_chunk(
                b"iTXt",
                b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"<dc:title>Bozor</dc:title>"),
            ),
            False,
        ),
        (png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0broken"), True),
        (
            png_chunk(
                b"zTXt",
                b"Raw profile type exif\0\0" + zlib.compress(hexadecimal(notes().tobytes())),
            ),
            True,
        ),
        (png_chunk(b"tEXt", b"Raw profile type APP1\0" + hexadecimal(XMP)), True),
        (png_chunk(b"tEXt", b"Raw profile type xmp\0 not in digits"), True),
        (png_chunk(b"tEXt", b"Title\0GPS"), False),
    ],
)
def test_compressed_metadata_of_a_png_is_removed_completely(further: bytes, goes: bool) -> None:
    before = with_chunks(picture(4, 4), further)
    after = without_place(before)
    assert (after == before) is not goes
    assert (further in after) is not goes
    with Image.open(io.BytesIO(after)) as image:
        image.load()
        assert image.info.get("Comment", "").strip() == ""


@pytest.mark.parametrize("order", ["II", "MM"])
def test_unreadable_exif_is_removed_completely(order: str) -> None:
    good = photo("JPEG")
    at = good.index(b"Exif\0\0") + 6
    broken = good[:at] + b"??" + good[at + 2 :]
    assert not any(word in without_place(broken) for word in WORDS)
    assert order not in without_place(broken)[at : at + 2].decode()
    wide = XMP.decode().encode("utf-16")
    after = without_place(
        with_segments(
            picture(4, 4, "JPEG"), segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + wide)
        )
    )
    assert wide[2:40] not in after


def test_files_that_are_no_photographs_are_unchanged() -> None:
    for data in (
        b"",
        b"\xff\xd8\xff",
        b"GIF89a" + XMP,
        XMP,
        b"RIFF....WAVE" + XMP,
        bytes(range(256)) * 8,
    ):
        assert find_patches(io.BytesIO(data)) == []


@pytest.mark.parametrize("part", [b"\xff\xd8\xff\xda", b"\xff\xd8"])
def test_files_with_too_many_pictures_or_segments_are_refused(part: bytes) -> None:
    with pytest.raises(UnreadableMetadata):
        find_patches(io.BytesIO(b"\xff\xd8\xff" + part * 100_000))


def test_too_long_metadata_is_refused() -> None:
    endless = b"RIFF....WEBPEXIF" + struct.pack("<I", MAX_METADATA_BYTES + 1)
    with pytest.raises(UnreadableMetadata):
        find_patches(io.BytesIO(endless))


@settings(deadline=None)
@given(
    st.sampled_from(sorted(PHOTOS)),
    st.lists(st.tuples(st.integers(0, 4000), st.integers(0, 255)), max_size=8),
    st.integers(0, 4000),
)
def test_removal_keeps_the_length_of_any_file(
    kind: str, changes: list[tuple[int, int]], length: int
) -> None:
    data = bytearray(PHOTOS[kind])
    for at, value in changes:
        data[at % len(data)] = value
    data = data[:length] if length % 2 else data
    try:
        assert len(without_place(bytes(data))) == len(data)
    except (UnreadableMetadata, IndexError):
        return


def upload(alice: User, data: bytes, **options: Any) -> Any:
    path = "/_matrix/media/v3/upload"
    return alice.server.client.request(
        "POST",
        path,
        token=alice.token,
        body=data,
        headers={"Content-Type": "image/jpeg"},
        **options,
    )


def fetched(alice: User, address: str) -> bytes:
    return bytes(
        alice.get(f"/_matrix/client/v1/media/download/{address.removeprefix('mxc://')}").body
    )


@pytest.mark.parametrize("size", [0, 3 << 20])
def test_an_upload_loses_its_location_when_removal_is_on(
    tmp_path: Path, sqlite_database: Database, size: int
) -> None:
    server = TestServer(tmp_path, sqlite_database, "remove_photo_locations: true\n")
    alice = server.register("alice")
    data = PHOTOS["jpeg"] + bytes(size)
    try:
        first = upload(alice, data)
        assert first.status == 200, first.body
        assert fetched(alice, first.json["content_uri"]) == without_place(data)
        repeated = upload(alice, without_place(data))
        kept = [
            path for path in (tmp_path / "media_store" / "content").rglob("*") if path.is_file()
        ]
        assert len(kept) == 1, "the content is known by what is kept"
        encrypted = bytes(range(255, 0, -1)) + PHOTOS["jpeg"]
        assert fetched(alice, upload(alice, encrypted).json["content_uri"]) == encrypted
        assert repeated.status == 200
        refused = upload(alice, b"RIFF....WEBPEXIF" + struct.pack("<I", MAX_METADATA_BYTES + 1))
        assert (refused.status, refused.errcode) == (400, "M_INVALID_PARAM")
    finally:
        server.app.media.close_workers()


def test_an_upload_is_unchanged_when_removal_is_off(
    tmp_path: Path, sqlite_database: Database
) -> None:
    alice = TestServer(tmp_path, sqlite_database).register("alice")
    assert fetched(alice, upload(alice, PHOTOS["jpeg"]).json["content_uri"]) == PHOTOS["jpeg"]


OTHERS = {
    "mp4": b"\0\0\0\x18ftypisom\0\0\2\0isommp41",
    "film that names pictures late": b"\0\0\0\x30ftypisom\0\0\2\0isommp41isomiso2avc1mp41heic",
    "quicktime": b"\0\0\0\x08wide\0\0\0\x10mdat",
    "webm": b"\x1aE\xdf\xa3" + bytes(40),
    "avi": b"RIFF\0\0\0\0AVI LIST",
    "gif": picture(40, 20, "GIF"),
    "tiff": picture(40, 20, "TIFF"),
    "jpeg 2000": picture(40, 20, "JPEG2000"),
    "psd": b"8BPS\0\1" + bytes(20),
}


def test_unsupported_formats_that_may_have_a_location_are_refused_if_configured(
    tmp_path: Path, sqlite_database: Database
) -> None:
    on = "remove_photo_locations: true\nrefuse_unremovable_locations: true\n"
    alice = TestServer(tmp_path, sqlite_database, on).register("alice")
    try:
        for name, data in OTHERS.items():
            answer = upload(alice, data)
            assert (answer.status, answer.errcode) == (400, "M_INVALID_PARAM"), name
            assert "JPEG" in answer.json["error"]
        for data in (
            *PHOTOS.values(),
            b"Get free tea",
            b"MMORPG",
            bytes(range(255, 0, -1)),
            b"OggS" + bytes(40),
        ):
            assert upload(alice, data).status == 200, data[:40]
    finally:
        alice.server.app.media.close_workers()


def test_unsupported_formats_are_unchanged_by_default(
    tmp_path: Path, sqlite_database: Database
) -> None:
    alice = TestServer(tmp_path, sqlite_database, "remove_photo_locations: true\n").register(
        "alice"
    )
    try:
        for data in OTHERS.values():
            assert fetched(alice, upload(alice, data).json["content_uri"]) == data
    finally:
        alice.server.app.media.close_workers()


@pytest.fixture
def slow(tmp_path: Path, sqlite_database: Database) -> Iterator[tuple[TestServer, ManualExecutor]]:
    """A server where pictures take as long as a test wants."""
    executor = ManualExecutor()
    server = TestServer(
        tmp_path, sqlite_database, "remove_photo_locations: true\n", photos=executor
    )
    yield server, executor
    server.app.media.close_workers()


def begin(user: User, data: bytes = PHOTOS["jpeg"]) -> Pending:
    path = "/_matrix/media/v3/upload"
    return user.server.client.start(
        "POST", path, token=user.token, body=data, headers={"Content-Type": "image/jpeg"}
    )


def test_slow_pictures_do_not_delay_uploads_of_others(
    slow: tuple[TestServer, ManualExecutor],
) -> None:
    server, executor = slow
    alice, bob = server.register("alice"), server.register("bob")
    hers = [begin(alice) for _ in range(4)]
    assert len(executor.jobs) == 1
    his = begin(bob)
    assert len(executor.jobs) == 2
    executor.jobs.pop()()  # his is looked at
    executor.jobs.pop()()  # and changed
    assert his.answer.status == 200
    assert len(executor.jobs) == 1
    assert not any(each.done for each in hers)
    executor.run()
    assert [each.answer.status for each in hers] == [200] * 4


def test_slow_pictures_of_many_users_do_not_delay_others(
    slow: tuple[TestServer, ManualExecutor],
) -> None:
    """They share one of the two places from the second picture on."""
    server, executor = slow
    liars = [server.register(f"liar{number}") for number in range(6)]
    for liar in liars:
        begin(liar)
    while executor.jobs:
        server.clock.advance(SLOW_SECONDS + 1)
        executor.jobs.pop(0)()
    repeated = [begin(liar) for liar in liars for _ in range(3)]
    assert len(executor.jobs) == 1
    bob = server.register("bob")
    for _ in range(3):
        his = begin(bob)
        assert len(executor.jobs) == 2
        executor.jobs.pop()()  # his is looked at
        executor.jobs.pop()()  # and changed
        assert his.answer.status == 200
    assert not any(each.done for each in repeated)
    executor.run()
    assert {each.answer.status for each in repeated} == {200}
    server.clock.advance(SLOW_FOR_SECONDS + 1)
    for liar in liars:
        begin(liar)
    assert len(executor.jobs) == 2, "a while later they are as others"
    executor.run()


def test_an_upload_that_waits_too_long_for_a_turn_is_rate_limited(
    slow: tuple[TestServer, ManualExecutor], tmp_path: Path
) -> None:
    server, executor = slow
    alice = server.register("alice")
    first, second = begin(alice), begin(alice)
    server.clock.advance(MAX_WAIT_SECONDS + 1)
    assert (second.answer.status, second.answer.errcode) == (429, "M_LIMIT_EXCEEDED")
    assert second.answer.json["retry_after_ms"] > 0
    assert not first.done
    executor.run()
    assert first.answer.status == 200
    assert upload_later(alice, executor) == 200
    assert not list((tmp_path / "media_store" / "incoming").iterdir())


def test_the_number_of_waiting_uploads_of_a_user_is_bounded(
    slow: tuple[TestServer, ManualExecutor],
) -> None:
    server, executor = slow
    alice, bob = server.register("alice"), server.register("bob")
    hers = [begin(alice) for _ in range(MAX_WAITING_PER_USER + 2)]
    assert [each.answer.errcode for each in hers if each.done] == ["M_LIMIT_EXCEEDED"]
    his = begin(bob)
    executor.run()
    assert his.answer.status == 200
    assert [each.answer.status for each in hers[:-1]] == [200] * (MAX_WAITING_PER_USER + 1)


def upload_later(user: User, executor: ManualExecutor) -> int:
    """Its status."""
    pending = begin(user)
    executor.run()
    return pending.answer.status


async def test_a_picture_that_takes_too_long_is_refused() -> None:
    seconds = count(0, int(FILE_SECONDS))
    locations = LocationRemover(
        executor=InlineExecutor(), clock=Clock(), max_concurrent=2, cpu_time=lambda _: next(seconds)
    )
    with pytest.raises(InvalidParam):
        await locations.remove(io.BytesIO(PHOTOS["jpeg"]), "@alice:example.org")
    locations.close()


async def test_an_upload_to_a_busy_machine_is_rate_limited() -> None:
    times = count(0, int(FILE_SECONDS * ELAPSED_TIME_FACTOR))
    locations = LocationRemover(
        executor=InlineExecutor(),
        clock=Clock(),
        max_concurrent=2,
        now=lambda: next(times),
        cpu_time=lambda _: 0.0,
    )
    body = io.BytesIO(PHOTOS["jpeg"])
    with pytest.raises(LimitExceeded):
        await locations.remove(body, "@alice:example.org")
    locations.close()
