"""A worker process that makes thumbnails, since decoding hostile images may crash, hang or use up
memory.

It is run as a script and imports nothing of the server. Each line of standard input is a job in
JSON; for each, standard output gets a line of JSON, followed by the bytes of the thumbnail if one
was made. The process cannot write files and its memory is limited; the server ends it when a job
takes too long.
"""

import io
import json
import math
import os
import resource
import shutil
import subprocess
import sys
from typing import Any, BinaryIO, Final

from PIL import AvifImagePlugin, Image, ImageOps, ImageSequence

FORMATS: Final = ("PNG", "JPEG", "GIF", "WEBP", "AVIF")
TYPES: Final = {
    "PNG": "image/png",
    "JPEG": "image/jpeg",
    "MPO": "image/jpeg",
    "GIF": "image/gif",
    "WEBP": "image/webp",
    "AVIF": "image/avif",
}
MEMORY_BYTES: Final = 1 << 30
MAX_FRAMES: Final = 300
MAX_FRAME_PIXELS: Final = 1 << 27
"""Pixels of all frames of an animation, before and after."""
MAX_PROFILE_BYTES: Final = 16384
MAX_RESULT_BYTES: Final = 16 << 20
MAX_PNG_BYTES: Final = 2 << 20
"""A larger PNG becomes a JPEG."""
MAX_ANIMATION_BYTES: Final = 4 << 20
"""An animation that is larger than this, or than the original, becomes a still picture."""
SMALL_BYTES: Final = 256 << 10
"""An animation may have this size even if the original is smaller."""
HEAD_BYTES: Final = 64
PROGRAM_SECONDS: Final = 12
"""CPU time of an external program."""
MAX_PROGRAM_SECONDS: Final = 72
"""Wall-clock time of an external program; a timeout says nothing about the file, as the machine may
be busy. It is shorter than a job's, so no program outlives this process."""
FRAME_PIXELS: Final = 1280
"""The longer side of a picture from a video or document is at most this large."""
FRAMES_TO_CHOOSE: Final = 24
VIDEO_FORMATS: Final = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,ogg"
STILL_BRANDS: Final = (b"avif", b"avis", b"mif1", b"msf1", b"heic", b"heix")
"""Brands of still pictures in the container of a video."""
_ORIENTATION: Final = 0x0112


def make(job: dict[str, Any]) -> tuple[dict[str, object], bytes]:
    """Return the result of a job: `made` with the bytes, `original` (small enough as it is), `too
    large`, or `no program`."""
    with open(job["path"], "rb") as file:
        head = file.read(HEAD_BYTES)
        if not is_video(head) and not is_document(head):
            file.seek(0)
            return make_of_image(file, job, is_frame=False)
    program = program_for(head, job) if job["programs"] else None
    if program is None:
        return {"kind": "no program"}, b""
    return make_of_image(io.BytesIO(run(program)), job, is_frame=True)


def make_of_image(
    file: BinaryIO, job: dict[str, Any], *, is_frame: bool
) -> tuple[dict[str, object], bytes]:
    """Return the result for an image. `is_frame`: the image was extracted from the file."""
    with Image.open(file, formats=FORMATS) as image:
        if image.width * image.height > job["max_pixels"]:
            return {"kind": "too large"}, b""
        frames = int(getattr(image, "n_frames", 1))
        is_animated = frames > 1 and image.format != "MPO"
        stays_animated = is_animated and job["animated"] and frames <= MAX_FRAMES
        stays_animated = stays_animated and frames * image.width * image.height <= MAX_FRAME_PIXELS
        size = (image.width, image.height)
        if image.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8):
            size = (image.height, image.width)
        covered, box = plan(size, (job["width"], job["height"]), crop=job["method"] == "crop")
        if covered == size and box is None and (stays_animated or not is_animated) and not is_frame:
            # decode it nonetheless: a broken image has no thumbnail
            image.load()
            return {"kind": "original", "type": TYPES[str(image.format)], **_dimensions(size)}, b""
        if stays_animated:
            data = make_animation(image, covered, box)
            if len(data) <= min(
                MAX_ANIMATION_BYTES, max(SMALL_BYTES, os.stat(job["path"]).st_size)
            ):
                return {"kind": "made", "type": "image/webp", **_dimensions(size)}, data
            image.seek(0)
        type, data = make_still(image, covered, box, is_photo=is_frame)
        if len(data) > MAX_RESULT_BYTES:
            return {"kind": "too large"}, b""
        return {"kind": "made", "type": type, **_dimensions(size)}, data


def is_video(head: bytes) -> bool:
    """Whether a file with these first bytes is a video."""
    return (head[4:8] == b"ftyp" and head[8:12] not in STILL_BRANDS) or head[:4] in (
        b"\x1aE\xdf\xa3",
        b"OggS",
    )


def is_document(head: bytes) -> bool:
    """Whether a file with these first bytes is a document."""
    return head.startswith(b"%PDF-")


def program_for(head: bytes, job: dict[str, Any]) -> list[str] | None:
    """Return the program that extracts a picture from a file: a frame of a video, the first page of
    a document. None if it is not installed.

    ffmpeg may read only files, and only videos: a playlist could lead it to other files.
    """
    path, pixels = job["path"], str(job["max_pixels"])
    if is_video(head) and (ffmpeg := shutil.which("ffmpeg")) is not None:
        reading = [
            "-protocol_whitelist",
            "file",
            "-format_whitelist",
            VIDEO_FORMATS,
            "-max_pixels",
            pixels,
            "-threads",
            "1",
        ]
        scaling = f"scale=w='min({FRAME_PIXELS},iw)':h=-2,thumbnail=n={FRAMES_TO_CHOOSE}"
        writing = [
            "-an",
            "-sn",
            "-dn",
            "-frames:v",
            "1",
            "-vf",
            scaling,
            "-threads",
            "1",
            "-f",
            "image2pipe",
            "-c:v",
            "png",
        ]
        return [
            ffmpeg,
            "-nostdin",
            "-v",
            "quiet",
            *reading,
            "-i",
            f"file:{path}",
            *writing,
            "pipe:1",
        ]
    if is_document(head) and (pdftoppm := shutil.which("pdftoppm")) is not None:
        return [
            pdftoppm,
            "-q",
            "-png",
            "-f",
            "1",
            "-l",
            "1",
            "-singlefile",
            "-scale-to",
            str(FRAME_PIXELS),
            path,
        ]
    return None


def run(program: list[str]) -> bytes:
    """Return the output of a program. It has the limits of this process, and less time. Raises what
    subprocess.run does: TimeoutExpired if it did not get its CPU time."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (PROGRAM_SECONDS, PROGRAM_SECONDS))

    done = subprocess.run(
        program,
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=MAX_PROGRAM_SECONDS,
        preexec_fn=limit,  # this process has one thread
        env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C.UTF-8"},
        cwd="/",
    )
    return done.stdout


def _dimensions(size: tuple[int, int]) -> dict[str, int]:
    return {"width": size[0], "height": size[1]}


def plan(
    size: tuple[int, int], wanted: tuple[int, int], *, crop: bool
) -> tuple[tuple[int, int], tuple[int, int, int, int] | None]:
    """Return the size to scale an image to, and the box to crop. Images are never enlarged."""
    factor = min(1.0, max(wanted[0] / size[0], wanted[1] / size[1]))
    covered = (max(1, math.ceil(size[0] * factor)), max(1, math.ceil(size[1] * factor)))
    if not crop:
        return covered, None
    width, height = min(wanted[0], covered[0]), min(wanted[1], covered[1])
    if (width, height) == covered or (size[0] <= wanted[0] and size[1] <= wanted[1]):
        return covered, None
    left, top = (covered[0] - width) // 2, (covered[1] - height) // 2
    return covered, (left, top, left + width, top + height)


def make_still(
    image: Image.Image,
    covered: tuple[int, int],
    box: tuple[int, int, int, int] | None,
    *,
    is_photo: bool,
) -> tuple[str, bytes]:
    """Return a still picture: a JPEG if the image was one or a PNG would be too large, otherwise a
    PNG.

    Of the metadata only the colour profile is copied, no location or camera.
    """
    is_photo = is_photo or image.format in ("JPEG", "MPO")
    longest = max(covered)
    image.draft(None, (longest, longest))
    picture: Image.Image = ImageOps.exif_transpose(image)
    profile = image.info.get("icc_profile") if picture.mode in ("RGB", "RGBA") else None
    picture = resized(convert_mode(picture), covered, box)
    if image.format in ("WEBP", "AVIF") and picture.mode == "RGB":
        is_photo = True
    target = io.BytesIO()
    options: dict[str, Any] = {}
    if isinstance(profile, bytes) and len(profile) <= MAX_PROFILE_BYTES:
        options["icc_profile"] = profile
    if not is_photo:
        picture.save(target, "PNG", **options)
        if target.tell() <= MAX_PNG_BYTES:
            return "image/png", target.getvalue()
        target = io.BytesIO()
        if picture.mode == "RGBA":
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture)
    picture.convert("RGB").save(target, "JPEG", quality=82, progressive=True, **options)
    return "image/jpeg", target.getvalue()


def make_animation(
    image: Image.Image, covered: tuple[int, int], box: tuple[int, int, int, int] | None
) -> bytes:
    """Return all frames, as WebP."""
    frames: list[Image.Image] = []
    durations: list[int] = []
    for frame in ImageSequence.Iterator(image):
        durations.append(max(10, int(frame.info.get("duration", 100) or 100)))
        frames.append(resized(frame.convert("RGBA"), covered, box))
    target = io.BytesIO()
    frames[0].save(
        target,
        "WEBP",
        save_all=True,
        append_images=frames[1:],
        duration=durations,
        loop=0,
        quality=75,
        method=2,
    )
    return target.getvalue()


def convert_mode(picture: Image.Image) -> Image.Image:
    """Convert to a mode that can be scaled and saved."""
    if picture.mode in ("RGB", "RGBA", "L"):
        return picture if "transparency" not in picture.info else picture.convert("RGBA")
    if picture.mode in ("P", "PA", "LA", "La", "RGBa"):
        return picture.convert("RGBA")
    if picture.mode.startswith("I"):
        # 16-bit grey becomes 8-bit
        return picture.point(lambda value: value / 256).convert("L")
    return picture.convert("L" if picture.mode == "1" else "RGB")


def resized(
    picture: Image.Image, covered: tuple[int, int], box: tuple[int, int, int, int] | None
) -> Image.Image:
    """Scale and crop a picture."""
    if picture.size != covered:
        picture = picture.resize(covered, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return picture if box is None else picture.crop(box)


def process(line: bytes) -> tuple[dict[str, object], bytes]:
    """Return the result of a job; `unknown` if its program had too little time."""
    try:
        return make(json.loads(line))
    except subprocess.TimeoutExpired:
        return {"kind": "unknown"}, b""
    except Exception:  # decoders raise anything for a broken file
        return {"kind": "no image"}, b""


def main() -> None:
    """Process jobs until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(10)
    # the job has its own limit, which is checked before decoding
    Image.MAX_IMAGE_PIXELS = None
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    output = sys.stdout.buffer
    for line in sys.stdin.buffer:
        head, data = process(line)
        output.write(json.dumps({**head, "size": len(data)}).encode() + b"\n" + data)
        output.flush()


if __name__ == "__main__":
    main()
