"""Thumbnails: made when somebody asks, and kept beside the content.

Sizes are rounded up along a ladder, so that the many sizes that screens ask for share a few files. A thumbnail is at least
as large as what was asked for, and never larger than the original. spec: client-server-api#thumbnails
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import msgspec
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from federation.protocol.errors import CannotThumbnail, InvalidParam, NotFound, TooLarge
from homeserver.services.media.image_workers import ImageJob, ImageResult, ImageWorkers
from homeserver.services.media.store_errors import telling_of_the_store
from storage.media import Content
from storage.media_contents import Contents

LADDER: Final = (32, 48, 64, 96, 128, 192, 256, 320, 480, 640, 800, 1024, 1280, 1600, 2048, 3072, 4096)
MOST_KEPT: Final = 40
"""Thumbnails of one content; further ones are made each time."""

Method = Literal["crop", "scale"]


class Thumbnail(msgspec.Struct, frozen=True):
    """A thumbnail; `data` is None where the content itself serves as one."""

    name: str
    type: str
    data: bytes | None


class Thumbnails:
    """Makes and finds them."""

    def __init__(self, contents: Contents, workers: ImageWorkers, max_pixels: int, *, programs: bool = False) -> None:
        """`programs`: whether other programs may take pictures out of films and documents."""
        self._contents = contents
        self._workers = workers
        self._max_pixels = max_pixels
        self._programs = programs
        self._being_made: dict[tuple[bytes, str], list[Deferred[ImageResult]]] = {}

    async def get(self, content: Content, width: int, height: int, method: Method, *, animated: bool) -> Thumbnail:
        """Raises `InvalidParam`, `CannotThumbnail`, `TooLarge`, `LimitExceeded`, `NotFound`."""
        if width < 1 or height < 1:
            raise InvalidParam("width and height must be at least 1")
        width, height = round_up(width, height)
        name = f"{width}x{height}-{method}{'-animated' if animated else ''}"
        kept = await self._contents.get_thumbnail(content.hash, name)
        if kept is not None:
            result = _unpack(kept)
        else:

            def job(path: Path) -> ImageJob:
                return ImageJob(str(path), width, height, method, animated, self._max_pixels, self._programs)

            result = await self._make(content, name, job)
        if result.kind == "too large":
            raise TooLarge("The image has too many pixels for a thumbnail")
        if result.kind == "no image":
            raise CannotThumbnail
        return Thumbnail(name, result.type, result.data if result.kind == "made" else None)

    async def measure(self, content: Content) -> tuple[int, int]:
        """Width and height of an image, as it is shown. Raises what `get` does."""
        with telling_of_the_store():
            async with self._contents.lend(content.hash) as path:
                if path is None:
                    raise NotFound("The content of this file is missing")
                result = await self._workers.run(ImageJob(str(path), 32, 32, "scale", False, self._max_pixels))
        if result.kind not in ("made", "original"):
            raise CannotThumbnail
        return result.original_size

    async def _make(self, content: Content, name: str, job: Callable[[Path], ImageJob]) -> ImageResult:
        """Once, however many ask for it at the same time, and to the end, though they may go away."""
        key = (content.hash, name)
        waiters = self._being_made.get(key)
        mine: Deferred[ImageResult] = Deferred()
        if waiters is not None:
            waiters.append(mine)
            return await mine
        self._being_made[key] = [mine]

        def done(result: ImageResult | Failure) -> None:
            for waiter in self._being_made.pop(key):
                waiter.callback(result)

        Deferred.fromCoroutine(self._make_and_keep(content, name, job)).addBoth(done)
        return await mine

    async def _make_and_keep(self, content: Content, name: str, job: Callable[[Path], ImageJob]) -> ImageResult:
        with telling_of_the_store():
            async with self._contents.lend(content.hash) as path:
                if path is None:
                    raise NotFound("The content of this file is missing")
                result = await self._workers.run(job(path))
        if result.kind != "too large":  # which the next configuration may allow
            await self._contents.set_thumbnail(content.hash, name, _pack(result), MOST_KEPT)
        return result


def round_up(width: int, height: int) -> tuple[int, int]:
    """The next size of the ladder with the same proportions; the largest for what is larger still."""
    longest = max(width, height)
    step = next((step for step in LADDER if step >= longest), LADDER[-1])
    return max(1, -(-width * step // longest)), max(1, -(-height * step // longest))


def _pack(result: ImageResult) -> bytes:
    return f"{result.kind}\n{result.type}\n".encode() + result.data


def _unpack(kept: bytes) -> ImageResult:
    kind, type, data = kept.split(b"\n", 2)
    match kind:
        case b"made":
            return ImageResult("made", type.decode(), data)
        case b"original":
            return ImageResult("original", type.decode())
    return ImageResult("no image")
