"""A process of its own that makes thumbnails, since what decodes hostile images may crash, hang or
eat memory.

It is run as a script and imports nothing of the server. On standard input each line is a job, as
JSON; on standard output each gets a line of JSON and so many bytes. It can write no file, and has
so much memory and no more; who started it ends it when a job takes too long.
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
"""Of all frames of what moves, before and after."""
MAX_PROFILE_BYTES: Final = 16384
MAX_RESULT_BYTES: Final = 16 << 20
MAX_PNG_BYTES: Final = 2 << 20
"""What would be larger is a JPEG."""
MAX_MOVING_BYTES: Final = 4 << 20
"""What would be larger, or larger than the original, stands still."""
SMALL_BYTES: Final = 256 << 10
"""So large it may be though the original is smaller."""
HEAD_BYTES: Final = 64
PROGRAM_SECONDS: Final = 12
"""On the processor, for a program that is called."""
LONGEST_PROGRAM_SECONDS: Final = 72
"""By the clock, which says nothing of the file where the machine is busy. Less than a job has, so
that no program outlives this process."""
FRAME_PIXELS: Final = 1280
"""How large what is taken out of a film or a document is at most, in its longer direction."""
FRAMES_TO_CHOOSE: Final = 24
FILM_FORMATS: Final = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,ogg"
STILL_BRANDS: Final = (b"avif", b"avis", b"mif1", b"msf1", b"heic", b"heix")
"""What has the form of a film and is a picture."""
_ORIENTATION: Final = 0x0112


def make(job: dict[str, Any]) -> tuple[dict[str, object], bytes]:
    """What became of a job: `made` with the bytes, `original` (it is small enough as it is), `too
    large`, or `no program`."""
    with open(job["path"], "rb") as file:
        head = file.read(HEAD_BYTES)
        if not is_film(head) and not is_document(head):
            file.seek(0)
            return make_of_image(file, job, is_frame=False)
    program = program_for(head, job) if job["programs"] else None
    if program is None:
        return {"kind": "no program"}, b""
    return make_of_image(io.BytesIO(run(program)), job, is_frame=True)


def make_of_image(
    file: BinaryIO, job: dict[str, Any], *, is_frame: bool
) -> tuple[dict[str, object], bytes]:
    """The same of an image. `is_frame`: it is not the file itself, but was taken out of it."""
    with Image.open(file, formats=FORMATS) as image:
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
        if covered == size and box is None and (stays_moving or not moves) and not is_frame:
            # It is decoded nonetheless: what is broken has no thumbnail.
            image.load()
            return {"kind": "original", "type": TYPES[str(image.format)], **_sides(size)}, b""
        if stays_moving:
            data = moving(image, covered, box)
            if len(data) <= min(MAX_MOVING_BYTES, max(SMALL_BYTES, os.stat(job["path"]).st_size)):
                return {"kind": "made", "type": "image/webp", **_sides(size)}, data
            image.seek(0)
        type, data = still(image, covered, box, is_photo=is_frame)
        if len(data) > MAX_RESULT_BYTES:
            return {"kind": "too large"}, b""
        return {"kind": "made", "type": type, **_sides(size)}, data


def is_film(head: bytes) -> bool:
    """Whether a file that begins so is a film."""
    return (head[4:8] == b"ftyp" and head[8:12] not in STILL_BRANDS) or head[:4] in (
        b"\x1aE\xdf\xa3",
        b"OggS",
    )


def is_document(head: bytes) -> bool:
    """Whether a file that begins so is a document."""
    return head.startswith(b"%PDF-")


def program_for(head: bytes, job: dict[str, Any]) -> list[str] | None:
    """What takes a picture out of a file that begins so: a frame of a film, the first page of a
    document.

    ffmpeg reads files only, and films only: a playlist could lead it to other files. None where
    there is no such program.
    """
    path, pixels = job["path"], str(job["max_pixels"])
    if is_film(head) and (ffmpeg := shutil.which("ffmpeg")) is not None:
        reading = [
            "-protocol_whitelist",
            "file",
            "-format_whitelist",
            FILM_FORMATS,
            "-max_pixels",
            pixels,
            "-threads",
            "1",
        ]
        shrinking = f"scale=w='min({FRAME_PIXELS},iw)':h=-2,thumbnail=n={FRAMES_TO_CHOOSE}"
        writing = [
            "-an",
            "-sn",
            "-dn",
            "-frames:v",
            "1",
            "-vf",
            shrinking,
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
    """What a program writes. It has the limits of this process, and less time. Raises what
    subprocess.run does: TimeoutExpired where it has not had its time on the processor.
    """

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (PROGRAM_SECONDS, PROGRAM_SECONDS))

    done = subprocess.run(
        program,
        check=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=LONGEST_PROGRAM_SECONDS,
        preexec_fn=limit,  # this process has one thread
        env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C.UTF-8"},
        cwd="/",
    )
    return done.stdout


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


def still(
    image: Image.Image,
    covered: tuple[int, int],
    box: tuple[int, int, int, int] | None,
    *,
    is_photo: bool,
) -> tuple[str, bytes]:
    """One picture: a JPEG where it was one or a PNG would be too large, a PNG otherwise.

    Only colours are taken over, no place and no camera.
    """
    is_photo = is_photo or image.format in ("JPEG", "MPO")
    longest = max(covered)
    image.draft(None, (longest, longest))
    picture: Image.Image = ImageOps.exif_transpose(image)
    profile = image.info.get("icc_profile") if picture.mode in ("RGB", "RGBA") else None
    picture = resized(in_colour(picture), covered, box)
    if image.format in ("WEBP", "AVIF") and picture.mode == "RGB":
        is_photo = True
    target = io.BytesIO()
    further: dict[str, Any] = {}
    if isinstance(profile, bytes) and len(profile) <= MAX_PROFILE_BYTES:
        further["icc_profile"] = profile
    if not is_photo:
        picture.save(target, "PNG", **further)
        if target.tell() <= MAX_PNG_BYTES:
            return "image/png", target.getvalue()
        target = io.BytesIO()
        if picture.mode == "RGBA":
            white = Image.new("RGBA", picture.size, "white")
            picture = Image.alpha_composite(white, picture)
    picture.convert("RGB").save(target, "JPEG", quality=82, progressive=True, **further)
    return "image/jpeg", target.getvalue()


def moving(
    image: Image.Image, covered: tuple[int, int], box: tuple[int, int, int, int] | None
) -> bytes:
    """All frames, as WebP."""
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


def resized(
    picture: Image.Image, covered: tuple[int, int], box: tuple[int, int, int, int] | None
) -> Image.Image:
    """Brought to a size, and cut."""
    if picture.size != covered:
        picture = picture.resize(covered, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return picture if box is None else picture.crop(box)


def answer(line: bytes) -> tuple[dict[str, object], bytes]:
    """What became of a job; of what could not be looked at in time nothing is known."""
    try:
        return make(json.loads(line))
    except subprocess.TimeoutExpired:
        return {"kind": "unknown"}, b""
    except Exception:  # decoders raise whatever they like for a broken file
        return {"kind": "no image"}, b""


def main() -> None:
    """Do jobs until standard input ends."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(10)
    # The limit is the job's own, and is looked at before anything is decoded.
    Image.MAX_IMAGE_PIXELS = None
    AvifImagePlugin.DEFAULT_MAX_THREADS = 1
    output = sys.stdout.buffer
    for line in sys.stdin.buffer:
        head, data = answer(line)
        output.write(json.dumps({**head, "size": len(data)}).encode() + b"\n" + data)
        output.flush()


if __name__ == "__main__":
    main()
