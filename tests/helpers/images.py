"""Generates images for tests."""

import io
import struct
import zlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from PIL import Image

ORIENTATION = 0x0112


def picture(
    width: int, height: int, format: str = "PNG", mode: str = "RGB", **options: Any
) -> bytes:
    """Return an image whose left half is red and right half is blue, so that rotation and cropping
    show."""
    return (
        _drawn(width, height, format, mode)
        if not options
        else _draw(width, height, format, mode, **options)
    )


def _draw(width: int, height: int, format: str, mode: str, **options: Any) -> bytes:
    image = Image.new(mode, (width, height), "blue" if mode != "L" else 50)
    image.paste("red" if mode != "L" else 200, (0, 0, width // 2, height))
    target = io.BytesIO()
    image.save(target, format, **options)
    return target.getvalue()


_drawn = lru_cache(32)(_draw)
"""Cached, since compressing a large image takes longer than most tests."""


def turned_photo(width: int, height: int, orientation: int) -> bytes:
    """Return a JPEG with an EXIF orientation."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return picture(width, height, "JPEG", exif=exif)


def moving_picture(
    width: int, height: int, colours: Sequence[str] = ("red", "green", "blue")
) -> bytes:
    """Return an animated GIF with a frame of each colour."""
    frames = [Image.new("RGB", (width, height), colour) for colour in colours]
    target = io.BytesIO()
    frames[0].save(target, "GIF", save_all=True, append_images=frames[1:], duration=100, loop=0)
    return target.getvalue()


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG file."""
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def claimed_png(width: int, height: int, data: bytes = b"") -> bytes:
    """Return a PNG whose header claims a size, with any image data."""

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", data)
        + png_chunk(b"IEND", b"")
    )


def opened(data: bytes) -> Image.Image:
    """Decode a received image."""
    image = Image.open(io.BytesIO(data))
    image.load()
    return image
