"""A process of its own that makes thumbnails, since what decodes hostile images may crash, hang or eat memory.

It is run as a script and imports nothing of the server. On standard input each line is a job, as JSON; on standard output
each gets a line of JSON and so many bytes. It can write no file, and has so much memory and no more; who started it ends it
when a job takes too long.
"""

import io
import json
import math
import os
import resource
import sys
from typing import Any, Final

from PIL import Image, ImageOps, ImageSequence

FORMATS: Final = ("PNG", "JPEG", "GIF", "WEBP")
TYPES: Final = {"PNG": "image/png", "JPEG": "image/jpeg", "MPO": "image/jpeg", "GIF": "image/gif", "WEBP": "image/webp"}
MEMORY_BYTES: Final = 1 << 30
MAX_FRAMES: Final = 300
MAX_FRAME_PIXELS: Final = 1 << 27
"""Of all frames of what moves, before and after."""
MAX_PROFILE_BYTES: Final = 16384
_ORIENTATION: Final = 0x0112


def make(job: dict[str, Any]) -> tuple[dict[str, object], bytes]:
    """What became of a job: `made` with the bytes, `original` (it is small enough as it is), or `too large`."""
    with open(job["path"], "rb") as file, Image.open(file, formats=FORMATS) as image:
        if image.width * image.height > job["max_pixels"]:
            return {"kind": "too large"}, b""
        frames = int(getattr(image, "n_frames", 1))
        moves = frames > 1 and image.format != "MPO"
        stays_moving = moves and job["animated"] and frames <= MAX_FRAMES
        stays_moving = stays_moving and frames * image.width * image.height <= MAX_FRAME_PIXELS
        size = (image.width, image.height)
        if image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8):
            size = (image.height, image.width)
        covered, box = plan(size, (job["width"], job["height"]), crop=job["method"] == "crop")
        if covered == size and box is None and (stays_moving or not moves):
            # It is decoded nonetheless: what is broken has no thumbnail.
            image.load()
            return {"kind": "original", "type": TYPES[str(image.format)], **_sides(size)}, b""
        if stays_moving:
            return {"kind": "made", "type": "image/webp", **_sides(size)}, moving(image, covered, box)
        type, data = still(image, covered, box)
        return {"kind": "made", "type": type, **_sides(size)}, data


def _sides(size: tuple[int, int]) -> dict[str, int]:
    return {"width": size[0], "height": size[1]}


def plan(
    size: tuple[int, int], wanted: tuple[int, int], *, crop: bool
) -> tuple[tuple[int, int], tuple[int, int, int, int] | None]:
    """To which size to bring an image, and what to cut out of that. Nothing is ever made larger."""
    factor = min(1.0, max(wanted[0] / size[0], wanted[1] / size[1]))
    covered = (max(1, math.ceil(size[0] * factor)), max(1, math.ceil(size[1] * factor)))
    if not crop:
        return covered, None
    width, height = min(wanted[0], covered[0]), min(wanted[1], covered[1])
    if (width, height) == covered or (size[0] <= wanted[0] and size[1] <= wanted[1]):
        return covered, None
    left, top = (covered[0] - width) // 2, (covered[1] - height) // 2
    return covered, (left, top, left + width, top + height)


def still(image: Image.Image, covered: tuple[int, int], box: tuple[int, int, int, int] | None) -> tuple[str, bytes]:
    """One picture: a JPEG where it was one, a PNG otherwise. Only colours are taken over, no place and no camera."""
    is_photo = image.format in ("JPEG", "MPO")
    longest = max(covered)
    image.draft(None, (longest, longest))
    picture: Image.Image = ImageOps.exif_transpose(image)
    profile = image.info.get("icc_profile") if picture.mode in ("RGB", "RGBA") else None
    picture = resized(in_colour(picture), covered, box)
    if image.format == "WEBP" and picture.mode == "RGB":
        is_photo = True
    target = io.BytesIO()
    further: dict[str, Any] = {}
    if isinstance(profile, bytes) and len(profile) <= MAX_PROFILE_BYTES:
        further["icc_profile"] = profile
    if is_photo:
        picture.convert("RGB").save(target, "JPEG", quality=82, progressive=True, **further)
        return "image/jpeg", target.getvalue()
    picture.save(target, "PNG", **further)
    return "image/png", target.getvalue()


def moving(image: Image.Image, covered: tuple[int, int], box: tuple[int, int, int, int] | None) -> bytes:
    """All frames, as WebP."""
    frames: list[Image.Image] = []
    durations: list[int] = []
    for frame in ImageSequence.Iterator(image):
        durations.append(max(10, int(frame.info.get("duration", 100) or 100)))
        frames.append(resized(frame.convert("RGBA"), covered, box))
    target = io.BytesIO()
    frames[0].save(
        target, "WEBP", save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=75, method=2
    )
    return target.getvalue()


def in_colour(picture: Image.Image) -> Image.Image:
    """In a form that can be made smaller and saved."""
    if picture.mode in ("RGB", "RGBA", "L"):
        return picture if "transparency" not in picture.info else picture.convert("RGBA")
    if picture.mode in ("P", "PA", "LA", "La", "RGBa"):
        return picture.convert("RGBA")
    if picture.mode.startswith("I"):
        # 16 bits of grey, of which 8 are shown.
        return picture.point(lambda value: value / 256).convert("L")
    return picture.convert("L" if picture.mode == "1" else "RGB")


def resized(picture: Image.Image, covered: tuple[int, int], box: tuple[int, int, int, int] | None) -> Image.Image:
    """Brought to a size, and cut."""
    if picture.size != covered:
        picture = picture.resize(covered, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return picture if box is None else picture.crop(box)


def main() -> None:
    """Do jobs until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(10)
    # The limit is the job's own, and is looked at before anything is decoded.
    Image.MAX_IMAGE_PIXELS = None
    output = sys.stdout.buffer
    for line in sys.stdin.buffer:
        try:
            head, data = make(json.loads(line))
        except Exception:  # decoders raise whatever they like for a broken file
            head, data = {"kind": "no image"}, b""
        output.write(json.dumps({**head, "size": len(data)}).encode() + b"\n" + data)
        output.flush()


if __name__ == "__main__":
    main()
