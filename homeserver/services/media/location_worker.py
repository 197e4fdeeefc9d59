"""A worker process that finds the location in the metadata of a photo, so that the server can
remove it. It runs in a separate process because a crafted file may crash or hang the parser.

It is run as a script and imports nothing of the server; for the protocol see
`homeserver.services.subprocesses.worker_processes`. The process cannot write files or start
processes, and its memory is limited. A job names a file (`path`), or the bytes of the picture
follow the job (`size`). The response has `patches`: offsets and lengths to overwrite; the new bytes
follow.

Laws:
- Nothing outside the metadata moves: a location is overwritten by something of the same length. So
  the picture itself, its orientation, and offsets into the file (HEIC, AVIF, several pictures in a
  JPEG) stay valid.
- A file is read in pieces; memory depends on the size of the metadata, not of the picture.
- Metadata that may have a location but cannot be parsed is overwritten as a whole. If the metadata
  is too large, or the worker fails to search the file for metadata, the response says that the file
  was not understood, and the upload is refused.

Supported: Exif (CIPA DC-008), XMP (ISO 16684-1) and IPTC, in JPEG, PNG, WebP, and in HEIC and AVIF
(ISO 23008-12). The proprietary maker notes of cameras stay unchanged.
"""

import binascii
import io
import json
import os
import re
import resource
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, Final, Literal

MEMORY_BYTES: Final = 256 << 20
MAX_METADATA_BYTES: Final = 16 << 20
"""Longer metadata is unreadable."""
MAX_BOXES: Final = 10_000
MAX_PICTURES: Final = 64
MAX_DIRECTORIES: Final = 64
PIECE_BYTES: Final = 1 << 20

GPS_DIRECTORY: Final = 0x8825
EXIF_DIRECTORY: Final = 0x8769
XMP_TAG: Final = 0x02BC
IPTC_TAG: Final = 0x83BB
TYPE_SIZES: Final = {
    1: 1,
    2: 1,
    3: 2,
    4: 4,
    5: 8,
    6: 1,
    7: 1,
    8: 2,
    9: 4,
    10: 8,
    11: 4,
    12: 8,
    13: 4,
}

EXIF_HEAD: Final = b"Exif\0\0"
XMP_HEAD: Final = b"http://ns.adobe.com/xap/1.0/\0"
LONG_XMP_HEAD: Final = b"http://ns.adobe.com/xmp/extension/\0"
PHOTOSHOP_HEAD: Final = b"Photoshop 3.0\0"
PNG_HEAD: Final = b"\x89PNG\r\n\x1a\n"
RAW_PROFILES: Final = re.compile(rb"Raw profile type (?:exif|app1|xmp|iptc|8bim)", re.IGNORECASE)
PHOTO_BRANDS: Final = (
    b"heic",
    b"heix",
    b"heim",
    b"heis",
    b"hevc",
    b"hevx",
    b"mif1",
    b"msf1",
    b"avif",
    b"avis",
)
IPTC_LOCATION_TYPES: Final = (26, 27, 90, 92, 95, 100, 101)

_NAME: Final = (
    rb"(?:[A-Za-z_][\w.-]*:)?(?:gps[\w.-]*|city|state|country|countrycode|countryname"
    rb"|location|locationcreated|locationshown|sublocation|provincestate"
    rb"|lat|long|lon|alt|latitude|longitude|altitude|absolutealtitude|relativealtitude)"
)
_ATTRIBUTE: Final = re.compile(
    rb"(?<=\s)" + _NAME + rb"\s*=\s*(?:\"[^\"<]*\"|'[^'<]*')", re.IGNORECASE
)
_ELEMENT: Final = re.compile(
    rb"<(" + _NAME + rb")(?=[\s/>])(?:[^<>\"']|\"[^\"<]*\"|'[^'<]*')*+>", re.IGNORECASE
)

Patch = tuple[int, bytes]
"""An offset, and the bytes to write there."""
ByteOrder = Literal["little", "big"]
XmpParts = dict[bytes, list[tuple[int, int, int]]]
"""Parts of XMP packets that span several segments, by ID: part number, offset in the file,
length."""


class UnreadableMetadata(Exception):
    """The metadata cannot be parsed."""


class MetadataBytes:
    """One or more extents of the file, read as one block of bytes. Changes become patches of the
    file."""

    def __init__(
        self, *, file: BinaryIO, extents: Sequence[tuple[int, int]], patches: list[Patch]
    ) -> None:
        """`extents`: offsets in the file, and lengths. Raises `UnreadableMetadata` if that is too
        much."""
        if sum(max(0, size) for _, size in extents) > MAX_METADATA_BYTES:
            raise UnreadableMetadata
        pieces = [(start, read_at(file, start, max(0, size))) for start, size in extents]
        self._extents = [(start, len(piece)) for start, piece in pieces]
        self._patches = patches
        self.data = bytearray(b"".join(piece for _, piece in pieces))

    def put(self, start: int, new: bytes) -> None:
        """Overwrite bytes from an offset on; bytes beyond the end are dropped."""
        new = new[: max(0, len(self.data) - start)]
        self.data[start : start + len(new)] = new
        at = 0
        for offset, size in self._extents:
            low, high = max(start, at), min(start + len(new), at + size)
            if low < high:
                self._patches.append((offset + low - at, new[low - start : high - start]))
            at += size

    def blank(self, start: int, end: int, filling: bytes = b" ") -> None:
        """Overwrite a range."""
        self.put(start, filling * (min(end, len(self.data)) - start))


def read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    """Read bytes at an offset; fewer at the end."""
    file.seek(offset)
    return file.read(size)


def find_patches(file: BinaryIO) -> list[Patch]:
    """Return the patches for a file; none if it is not a photo."""
    head = read_at(file, 0, 32)
    patches: list[Patch] = []
    if head.startswith(b"\xff\xd8\xff"):
        patch_jpeg(file, patches)
    elif head.startswith(PNG_HEAD):
        patch_png(file, patches)
    elif head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        patch_webp(file, patches)
    elif head[4:8] == b"ftyp" and (
        head[8:12] in PHOTO_BRANDS
        or any(head[at : at + 4] in PHOTO_BRANDS for at in (16, 20, 24, 28))
    ):
        patch_boxes(file, patches)
    return patches


def patch_jpeg(file: BinaryIO, patches: list[Patch]) -> None:
    """Patch all pictures of a JPEG: more pictures, such as depth maps, may follow the first and
    have metadata of their own."""
    at: int | None = 0
    for _ in range(MAX_PICTURES):
        if at is None:
            return
        at = find(file, b"\xff\xd8\xff", patch_segments(file, at, patches))
    raise UnreadableMetadata


def patch_segments(file: BinaryIO, at: int, patches: list[Patch]) -> int:
    """Patch the picture at an offset; return where its image data begins."""
    long_xmp: XmpParts = {}
    at += 2
    for _ in range(MAX_BOXES):
        head = read_at(file, at, 4)
        if len(head) < 4 or head[0] != 0xFF or head[1] == 0xDA:
            break
        if head[1] == 0xFF or 0xD0 <= head[1] <= 0xD8 or head[1] == 0x01:
            at += 1 if head[1] == 0xFF else 2
            continue
        start, size = at + 4, int.from_bytes(head[2:]) - 2
        if size < 0 or head[1] == 0xD9:
            break
        if head[1] in (0xE1, 0xED):
            patch_segment(file, head[1], start, size, patches, long_xmp)
        at = start + size
    else:
        raise UnreadableMetadata
    for parts in long_xmp.values():
        clean_xmp(
            MetadataBytes(
                file=file,
                extents=[(start, size) for _, start, size in sorted(parts)],
                patches=patches,
            )
        )
    return at


def patch_segment(
    file: BinaryIO, marker: int, start: int, size: int, patches: list[Patch], long_xmp: XmpParts
) -> None:
    """Patch one segment."""
    head = read_at(file, start, min(size, 80))
    if marker == 0xED and head.startswith(PHOTOSHOP_HEAD):
        clean_resources(
            MetadataBytes(file=file, extents=[(start, size)], patches=patches), len(PHOTOSHOP_HEAD)
        )
    elif head.startswith(EXIF_HEAD):
        clean_exif(MetadataBytes(file=file, extents=[(start + 6, size - 6)], patches=patches), 0)
    elif head.startswith(XMP_HEAD):
        clean_xmp(
            MetadataBytes(
                file=file, extents=[(start + len(XMP_HEAD), size - len(XMP_HEAD))], patches=patches
            )
        )
    elif head.startswith(LONG_XMP_HEAD) and len(head) >= len(LONG_XMP_HEAD) + 40:
        at = len(LONG_XMP_HEAD)
        place = int.from_bytes(head[at + 36 : at + 40])
        long_xmp.setdefault(head[at : at + 32], []).append((place, start + at + 40, size - at - 40))


def patch_png(file: BinaryIO, patches: list[Patch]) -> None:
    """Patch a PNG, with a new checksum for each changed chunk."""
    at = len(PNG_HEAD)
    while len(head := read_at(file, at, 8)) == 8:
        size, kind = int.from_bytes(head[:4]), head[4:]
        if kind in (b"eXIf", b"iTXt", b"tEXt", b"zTXt"):
            found: list[Patch] = []
            chunk = MetadataBytes(file=file, extents=[(at + 4, size + 4)], patches=found)
            patch_chunk(chunk, kind)
            patches += found
            if found and len(read_at(file, at + 8 + size, 4)) == 4:
                patches.append((at + 8 + size, binascii.crc32(bytes(chunk.data)).to_bytes(4)))
        at += 12 + size


def patch_chunk(chunk: MetadataBytes, kind: bytes) -> None:
    """Patch one metadata chunk: its type, then its content. Compressed content cannot be changed in
    place and is removed as a whole."""
    if kind == b"eXIf":
        clean_exif(chunk, 10 if chunk.data.startswith(EXIF_HEAD, 4) else 4)
        return
    keyword = bytes(chunk.data[4:84]).partition(b"\0")[0]
    text_at = 4 + len(keyword) + 1
    is_packed = kind == b"zTXt"
    if is_packed:
        text_at += 1
    elif kind == b"iTXt":
        is_packed = chunk.data[text_at : text_at + 1] == b"\1"
        language_ends = chunk.data.find(b"\0", text_at + 2)
        text_at = chunk.data.find(b"\0", language_ends + 1) + 1
        if language_ends < 0 or text_at == 0:
            return
    if keyword == b"XML:com.adobe.xmp" and not is_packed:
        clean_xmp(chunk, text_at)
    elif keyword == b"XML:com.adobe.xmp" or RAW_PROFILES.fullmatch(keyword):
        text = bytes(chunk.data[text_at:])
        if has_location(
            unpack(text) if is_packed else text, is_hex=keyword != b"XML:com.adobe.xmp"
        ):
            chunk.put(0, b"tEXt" + b"Comment\0".ljust(len(chunk.data) - 4))


def unpack(data: bytes) -> bytes | None:
    """Decompress zlib data; None if it is broken or too long."""
    try:
        unpacking = zlib.decompressobj()
        text = unpacking.decompress(data, MAX_METADATA_BYTES)
    except zlib.error:
        return None
    return text if unpacking.eof else None


def has_location(text: bytes | None, *, is_hex: bool) -> bool:
    """Whether metadata has a location, or cannot be parsed. `is_hex`: hexadecimal after three lines
    with a name and a length, as ImageMagick writes it."""
    if text is not None and is_hex:
        try:
            text = binascii.unhexlify(b"".join(text.split()[2:]))
        except binascii.Error:
            return True
    if text is None:
        return True
    found: list[Patch] = []
    metadata = MetadataBytes(file=io.BytesIO(text), extents=[(0, len(text))], patches=found)
    if text.startswith(EXIF_HEAD):
        clean_exif(metadata, len(EXIF_HEAD))
    elif text[:4] in (b"II*\0", b"MM\0*"):
        clean_exif(metadata, 0)
    elif text.startswith(b"8BIM"):
        clean_resources(metadata, 0)
    else:
        clean_xmp(metadata, len(XMP_HEAD) if text.startswith(XMP_HEAD) else 0)
    return bool(found)


def patch_webp(file: BinaryIO, patches: list[Patch]) -> None:
    """Patch a WebP."""
    at = 12
    while len(head := read_at(file, at, 8)) == 8:
        kind, size = head[:4], int.from_bytes(head[4:], "little")
        if kind == b"EXIF":
            metadata = MetadataBytes(file=file, extents=[(at + 8, size)], patches=patches)
            clean_exif(metadata, len(EXIF_HEAD) if metadata.data.startswith(EXIF_HEAD) else 0)
        elif kind == b"XMP ":
            clean_xmp(MetadataBytes(file=file, extents=[(at + 8, size)], patches=patches))
        at += 8 + size + size % 2


def patch_boxes(file: BinaryIO, patches: list[Patch]) -> None:
    """Patch a HEIC or AVIF: metadata is in items, whose offsets are in the box `iloc`."""
    end = file.seek(0, os.SEEK_END)
    for kind, start, size in boxes(lambda at, count: read_at(file, at, count), 0, end):
        if kind == b"meta":
            meta = MetadataBytes(file=file, extents=[(start, size)], patches=[])
            patch_items(file, bytes(meta.data), start, end, patches)


def boxes(read: Callable[[int, int], bytes], at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Return the boxes in a range: type, offset of the content, and its size."""
    for _ in range(MAX_BOXES):
        head = read(at, 16)
        if at + 8 > end or len(head) < 8:
            return
        size, header = int.from_bytes(head[:4]), 8
        if size == 1:
            size, header = int.from_bytes(head[8:16]), 16
        elif size == 0:
            size = end - at
        if size < header or at + size > end:
            return
        yield head[4:8], at + header, size - header
        at += size
    raise UnreadableMetadata


def patch_items(
    file: BinaryIO, meta: bytes, meta_at: int, file_size: int, patches: list[Patch]
) -> None:
    """Patch the items of a box `meta` at an offset of the file."""
    inner = {
        kind: (start, size)
        for kind, start, size in boxes(lambda at, count: meta[at : at + count], 4, len(meta))
    }
    if b"iinf" not in inner or b"iloc" not in inner:
        return
    items = metadata_items(meta, *inner[b"iinf"])
    idat_at, idat_size = inner.get(b"idat", (0, 0))
    for item, is_inside, extents in item_extents(meta, *inner[b"iloc"]):
        if item not in items:
            continue
        first, space = (meta_at + idat_at, idat_size) if is_inside else (0, file_size)
        extents_in_file = [
            (first + start, min(size or space, space - start)) for start, size in extents
        ]
        metadata = MetadataBytes(file=file, extents=extents_in_file, patches=patches)
        if items[item] == b"Exif":
            clean_exif(metadata, 4 + int.from_bytes(metadata.data[:4]))
        else:
            clean_xmp(metadata)


def metadata_items(meta: bytes, at: int, size: int) -> dict[int, bytes]:
    """Return which items of a box `iinf` are metadata, by their type."""
    found = {}
    first = at + (6 if meta[at] == 0 else 8)
    for kind, start, length in boxes(lambda at, count: meta[at : at + count], first, at + size):
        version = meta[start]
        if kind != b"infe" or version not in (2, 3):
            continue
        field_size = 4 if version == 3 else 2
        item = int.from_bytes(meta[start + 4 : start + 4 + field_size])
        type_at = start + 4 + field_size + 2
        type = meta[type_at : type_at + 4]
        if type == b"Exif" or (
            type == b"mime" and b"rdf+xml" in meta[type_at : start + length].lower()
        ):
            found[item] = type
    return found


def item_extents(
    meta: bytes, at: int, size: int
) -> Iterator[tuple[int, bool, list[tuple[int, int]]]]:
    """Return each item of a box `iloc`, whether it is in the box `idat`, and its extents."""
    fields = io.BytesIO(meta[at : at + size])

    def number(length: int) -> int:
        read = fields.read(length)
        if len(read) < length:
            raise UnreadableMetadata
        return int.from_bytes(read)

    version = number(4) >> 24
    sizes = number(2)
    offset_size, length_size, base_size = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
    index_size = sizes & 15 if version in (1, 2) else 0
    field_size = 4 if version == 2 else 2
    for _ in range(number(field_size)):
        item = number(field_size)
        method = number(2) & 15 if version in (1, 2) else 0
        is_here = number(2) == 0
        base = number(base_size)
        extents = []
        for _ in range(number(2)):
            number(index_size)
            start = base + number(offset_size)
            extents.append((start, number(length_size)))
        if is_here and method in (0, 1):
            yield item, method == 1, extents


def clean_exif(metadata: MetadataBytes, base: int) -> None:
    """Patch Exif: remove the GPS directory, and the entry that refers to it. `base`: the start of
    its offsets."""
    try:
        first = bytes(metadata.data[base : base + 2])
        order: ByteOrder = {b"II": "little", b"MM": "big"}[first]  # type: ignore[assignment]
        pending = [number_at(metadata, base + 4, 4, order)]
        seen: set[int] = set()
        while pending:
            offset = pending.pop()
            if offset == 0 or offset in seen:
                continue
            if len(seen) >= MAX_DIRECTORIES:
                raise UnreadableMetadata
            seen.add(offset)
            pending += clean_directory(metadata, base, offset, order)
    except (KeyError, UnreadableMetadata):
        metadata.blank(base, len(metadata.data), b"\0")


def clean_directory(metadata: MetadataBytes, base: int, offset: int, order: ByteOrder) -> list[int]:
    """Patch an Exif directory; return the offsets of the directories that it refers to."""
    at = base + offset
    count = entries_at(metadata, at, order)
    end = at + 2 + 12 * count
    following = [number_at(metadata, end, 4, order)] if end + 4 <= len(metadata.data) else []
    kept = []
    for place in range(at + 2, end, 12):
        tag, value = number_at(metadata, place, 2, order), number_at(metadata, place + 8, 4, order)
        if tag == GPS_DIRECTORY:
            wipe_directory(metadata, base, value, order)
            continue
        if tag == EXIF_DIRECTORY:
            following.append(value)
        start, size = value_of(metadata, base, place, order)
        if tag == XMP_TAG:
            clean_xmp(metadata, start, start + size)
        elif tag == IPTC_TAG:
            clean_iptc(metadata, start, start + size)
        kept.append(bytes(metadata.data[place : place + 12]))
    if len(kept) < count:
        rest = bytes(metadata.data[end : end + 4])
        metadata.put(
            at,
            b"".join([len(kept).to_bytes(2, order), *kept, rest]).ljust(
                end + len(rest) - at, b"\0"
            ),
        )
    return following


def wipe_directory(metadata: MetadataBytes, base: int, offset: int, order: ByteOrder) -> None:
    """Overwrite a directory and the values that it refers to."""
    at = base + offset
    count = entries_at(metadata, at, order)
    for place in range(at + 2, at + 2 + 12 * count, 12):
        start, size = value_of(metadata, base, place, order)
        metadata.blank(start, start + size, b"\0")
    metadata.blank(at, at + 2 + 12 * count + 4, b"\0")


def entries_at(metadata: MetadataBytes, at: int, order: ByteOrder) -> int:
    """Return the number of entries of a directory that are within the metadata; 0 if it is
    outside."""
    room = (len(metadata.data) - at - 2) // 12
    return 0 if room <= 0 else min(number_at(metadata, at, 2, order), room)


def value_of(metadata: MetadataBytes, base: int, place: int, order: ByteOrder) -> tuple[int, int]:
    """Return the offset and length of the value of an entry."""
    size = TYPE_SIZES.get(number_at(metadata, place + 2, 2, order), 1) * number_at(
        metadata, place + 4, 4, order
    )
    return (
        (place + 8, size) if size <= 4 else (base + number_at(metadata, place + 8, 4, order), size)
    )


def number_at(metadata: MetadataBytes, at: int, size: int, order: ByteOrder) -> int:
    """Read a number. Raises `UnreadableMetadata` beyond the end."""
    if at + size > len(metadata.data):
        raise UnreadableMetadata
    return int.from_bytes(metadata.data[at : at + size], order)


def clean_xmp(metadata: MetadataBytes, start: int = 0, end: int | None = None) -> None:
    """Patch an XMP packet: replace elements and attributes with a location by spaces."""
    end = len(metadata.data) if end is None else min(end, len(metadata.data))
    packet = bytes(metadata.data[start:end])
    if b"\0" in packet.rstrip(b"\0 \r\n"):  # an unusual encoding
        metadata.blank(start, end)
        return
    at = 0
    while (element := _ELEMENT.search(packet, at)) is not None:
        at = element.end()
        if packet[at - 2 : at] != b"/>":
            closing = re.compile(rb"</" + re.escape(element[1]) + rb"\s*>").search(packet, at)
            if closing is None:
                metadata.blank(start, end)
                return
            at = closing.end()
        metadata.blank(start + element.start(), start + at)
    for attribute in _ATTRIBUTE.finditer(bytes(metadata.data[start:end])):
        metadata.blank(start + attribute.start(), start + attribute.end())
    if b"gps" in bytes(metadata.data[start:end]).lower():
        metadata.blank(start, end)


def clean_resources(metadata: MetadataBytes, at: int) -> None:
    """Patch Photoshop resources, which include IPTC."""
    while metadata.data.startswith(b"8BIM", at):
        is_iptc = metadata.data[at + 4 : at + 6] == b"\x04\x04"
        name_size = int.from_bytes(metadata.data[at + 6 : at + 7]) + 1
        at += 6 + name_size + name_size % 2
        size = int.from_bytes(metadata.data[at : at + 4])
        if is_iptc:
            clean_iptc(metadata, at + 4, at + 4 + size)
        at += 4 + size + size % 2


def clean_iptc(metadata: MetadataBytes, at: int, end: int) -> None:
    """Patch IPTC: replace names of towns, provinces and countries by spaces."""
    end = min(end, len(metadata.data))
    while at + 5 <= end and metadata.data[at] == 0x1C:
        record, kind = metadata.data[at + 1 : at + 3]
        size = int.from_bytes(metadata.data[at + 3 : at + 5])
        at += 5
        if size & 0x8000:  # the number of bytes in which the size follows
            digits = size & 0x7FFF
            if digits > 4:
                break
            size = int.from_bytes(metadata.data[at : at + digits])
            at += digits
        if record == 2 and kind in IPTC_LOCATION_TYPES:
            metadata.blank(at, min(at + size, end))
        at += size
    if any(metadata.data[at:end]):  # not only padding
        metadata.blank(at, end)


def find(file: BinaryIO, wanted: bytes, at: int) -> int | None:
    """Return the next offset of these bytes, from an offset on."""
    while len(piece := read_at(file, at, PIECE_BYTES)) >= len(wanted):
        found = piece.find(wanted)
        if found >= 0:
            return at + found
        at += len(piece) - len(wanted) + 1
    return None


def main() -> None:
    """Process jobs until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    for limit in (resource.RLIMIT_FSIZE, resource.RLIMIT_CORE, resource.RLIMIT_NPROC):
        resource.setrlimit(limit, (0, 0))
    os.nice(10)
    output = sys.stdout.buffer
    for line in sys.stdin.buffer:
        job = json.loads(line)
        sent = sys.stdin.buffer.read(job["size"])
        try:
            with open(job["path"], "rb") if job["path"] else io.BytesIO(sent) as file:
                patches = find_patches(file)
            head: dict[str, Any] = {
                "understood": True,
                "patches": [(at, len(new)) for at, new in patches],
            }
        except Exception:  # a crafted file may cause any error
            head, patches = {"understood": False, "patches": []}, []
        data = b"".join(new for _, new in patches)
        output.write(json.dumps({**head, "size": len(data)}).encode() + b"\n" + data)
        output.flush()


if __name__ == "__main__":
    main()
