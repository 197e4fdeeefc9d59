"""Makes thumbnails on request, and stores them with the content.

A thumbnail is made in one of a few slots. Owners of files get slots in fair turns, because crafted
pictures may take long. Requesters also get them in fair turns, because one requester may ask for
many thumbnails. If there are several slots, one owner or requester never gets all of them. All
owners whose pictures were slow recently are limited together like one owner, so a slot stays free
for other owners.

A requested size is rounded up to one of a few sizes and aspect ratios (`SIZE_STEPS`), or to one of
the configured sizes. So the many sizes that clients request share a few files. A thumbnail is at
least as large as requested, unless the original or the largest of the few sizes is smaller. It is
never larger than the original. A stored thumbnail is streamed, not read into memory as a whole.

spec: client-server-api#thumbnails
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple

import msgspec
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from federation.peers.fair_semaphore import FairSemaphore, WaitLimits
from federation.protocol.errors import (
    CannotThumbnail,
    InvalidParam,
    LimitExceeded,
    NotFound,
    TooLarge,
)
from homeserver.api.media_store_errors import convert_store_errors
from homeserver.http.responses import FileBody, FileSource, MemorySource
from homeserver.services.media.image_workers import ImageJob, ImageResult, ImageWorkers
from storage.media.contents import MediaContents
from storage.media.files import StoredThumbnail
from storage.media.media import MediaContent

SIZE_STEPS: Final = (
    32,
    48,
    64,
    96,
    128,
    192,
    256,
    320,
    480,
    640,
    800,
    1024,
    1280,
    1600,
    2048,
    3072,
    4096,
)
ASPECT_STEPS: Final = 16
"""Aspect ratios are multiples of one sixteenth."""
MAX_STORED: Final = 40
"""The stored thumbnails per content; further ones are made each time."""
NO_IMAGE_SECONDS: Final = 86_400
"""The time for which it is stored that a file is not an image: a newer decoder may read it."""

SLOW_SECONDS: Final = 5.0
"""A picture that takes longer is slow."""
MAX_WAITING: Final = 1000
"""The maximum number of thumbnails that wait to be made."""
MAX_WAITING_PER_REQUESTER: Final = 100
"""The maximum number per requester."""

Method = Literal["crop", "scale"]


class ThumbnailSize(NamedTuple):
    """A size in pixels, and the resizing method."""

    width: int
    height: int
    method: Method


class Thumbnail(msgspec.Struct, frozen=True):
    """A thumbnail; `file` is None if the content itself serves as one. The receiver closes the
    file's source."""

    type: str
    file: FileBody | None


class _StoredResult(msgspec.Struct, frozen=True):
    """The stored result of a job: a source and its size for `made`."""

    result: ImageResult
    source: FileSource
    size: int


class _Suffix:
    """A source without its first bytes."""

    def __init__(self, *, source: FileSource, start: int) -> None:
        self._source = source
        self._start = start

    async def read(self, offset: int, size: int) -> bytes:
        return await self._source.read(self._start + offset, size)

    def close(self) -> None:
        self._source.close()


class Thumbnails:
    """Makes and stores thumbnails."""

    log = Logger()

    def __init__(
        self,
        *,
        contents: MediaContents,
        workers: ImageWorkers,
        max_pixels: int,
        max_concurrent: int,
        clock: IReactorTime,
        programs: bool = False,
        sizes: Sequence[ThumbnailSize] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        """`max_concurrent`: the number of slots. `programs`: whether external programs may extract
        pictures from videos and documents; `sizes`: the only sizes to make, if any are given.
        `now`: the clock of the folder's disk."""
        self._now = now
        self._sizes = sizes
        self._contents = contents
        self._workers = workers
        self._max_pixels = max_pixels
        self._programs = programs
        self._slots = FairSemaphore[_Party](
            permits=max_concurrent,
            permits_per_key=max(1, max_concurrent - 1),
            max_waiting=MAX_WAITING,
            max_waiting_per_key=lambda party: (
                MAX_WAITING_PER_REQUESTER if party.kind == "requester" else None
            ),
            refusal=lambda _party: LimitExceeded(
                "Too many thumbnails are being made at the moment", retry_after_ms=2000
            ),
            wait_limits=WaitLimits(clock, slow_after=SLOW_SECONDS),
        )
        self._in_progress: dict[tuple[bytes, str], _Making] = {}

    async def get(
        self,
        content: MediaContent,
        width: int,
        height: int,
        method: Method,
        owner: str,
        requester: str,
        *,
        animated: bool,
    ) -> Thumbnail:
        """Return a thumbnail, which is made if it is not stored.

        Turns are fair among the owners (`owner`) and the requesters (`requester`), so neither
        delays others. Raises `InvalidParam`, `CannotThumbnail`, `TooLarge`, `LimitExceeded`,
        `NotFound`.
        """
        if width < 1 or height < 1:
            raise InvalidParam("width and height must be at least 1")
        if self._sizes:
            width, height, method = choose(self._sizes, width, height, method)
        else:
            width, height = round_up(width, height)
        name = f"{width}x{height}-{method}{'-animated' if animated else ''}"
        stored = await self._find_stored(content, name)
        if stored is None:

            def job(path: Path) -> ImageJob:
                return ImageJob(
                    str(path), width, height, method, animated, self._max_pixels, self._programs
                )

            result = await self._make(content, name, _Parties(owner, requester), job)
            if result.kind == "made":
                stored = await self._find_stored(content, name)
            stored = stored or _StoredResult(result, MemorySource(result.data), len(result.data))
        if stored.result.kind == "too large":
            raise TooLarge("The image has too many pixels for a thumbnail")
        if stored.result.kind not in ("made", "original"):
            raise CannotThumbnail
        etag = f"{content.hash.hex()}-{name}"
        return Thumbnail(
            stored.result.type,
            FileBody(stored.source, stored.size, etag) if stored.result.kind == "made" else None,
        )

    async def _find_stored(self, content: MediaContent, name: str) -> _StoredResult | None:
        with convert_store_errors():
            found = await self._contents.get_thumbnail(content.hash, name)
        if found is None:
            return None
        stored = _unpack(found)
        is_over = stored.result.kind == "no image" and self._now() - found.made > NO_IMAGE_SECONDS
        return None if is_over else stored

    async def measure(self, content: MediaContent, owner: str) -> tuple[int, int]:
        """Return width and height of an image as displayed. Raises what `get` does."""
        with convert_store_errors():
            async with self._contents.lend(content.hash) as path:
                if path is None:
                    raise NotFound("The content of this file is missing")
                async with self._slots.hold(*_Parties(owner, owner).keys()):
                    result = await self._workers.run(
                        ImageJob(str(path), 32, 32, "scale", False, self._max_pixels)
                    )
        if result.kind not in ("made", "original"):
            raise CannotThumbnail
        return result.original_size

    async def _make(
        self, content: MediaContent, name: str, parties: "_Parties", job: Callable[[Path], ImageJob]
    ) -> ImageResult:
        """Make a thumbnail once for all concurrent requests, when the first of them has a turn. It
        is finished even if the requests are cancelled."""
        making = self._in_progress.setdefault((content.hash, name), _Making())
        waits_for_slot = not making.has_started and parties.requester not in making.waiters
        own_waiter: Deferred[ImageResult] = Deferred()
        making.waiters.setdefault(parties.requester, []).append(own_waiter)
        if waits_for_slot:
            Deferred.fromCoroutine(
                self._make_when_free(making, content, name, parties, job)
            ).addErrback(lambda failure: self.log.failure("cannot make a thumbnail", failure))
        return await own_waiter

    async def _make_when_free(
        self,
        making: "_Making",
        content: MediaContent,
        name: str,
        parties: "_Parties",
        job: Callable[[Path], ImageJob],
    ) -> None:
        """Make a thumbnail and pass it to all waiting requests, unless another request had a turn
        first. A refusal goes only to the requester that was refused."""
        is_first = False

        def begin() -> bool:
            nonlocal is_first
            is_first = not making.has_started
            making.has_started = True
            return is_first

        result: ImageResult | Failure | None
        try:
            result = await self._make_and_store(content, name, parties, job, begin)
        except Exception:  # any error is passed to the waiting requests
            result = Failure()
        if result is None:
            return
        notified = list(making.waiters) if is_first else [parties.requester]
        waiters = [each for requester in notified for each in making.waiters.pop(requester, ())]
        if not making.waiters and self._in_progress.get((content.hash, name)) is making:
            del self._in_progress[content.hash, name]
        for waiter in waiters:
            waiter.callback(result)

    async def _make_and_store(
        self,
        content: MediaContent,
        name: str,
        parties: "_Parties",
        job: Callable[[Path], ImageJob],
        begin: Callable[[], bool],
    ) -> ImageResult | None:
        """Make and store a thumbnail; None if `begin` says that another request makes it."""
        with convert_store_errors():
            async with self._contents.lend(content.hash) as path:
                if path is None:
                    raise NotFound("The content of this file is missing")
                async with self._slots.hold(*parties.keys()):
                    if not begin():
                        return None
                    result = await self._workers.run(job(path))
        # other results may differ the next time
        if result.kind in ("made", "original", "no image"):
            try:
                await self._contents.set_thumbnail(content.hash, name, _pack(result), MAX_STORED)
            except OSError as error:
                self.log.error("a thumbnail is served but cannot be stored: {error}", error=error)
        return result


class _Party(NamedTuple):
    """An owner or requester with fair turns."""

    kind: Literal["owner", "requester"]
    name: str


class _Parties(NamedTuple):
    owner: str
    requester: str

    def keys(self) -> tuple[_Party, _Party]:
        return _Party("owner", self.owner), _Party("requester", self.requester)


class _Making:
    """A thumbnail that is being made."""

    def __init__(self) -> None:
        self.has_started = False
        self.waiters: dict[str, list[Deferred[ImageResult]]] = {}
        """Waiting requests, by requester. Until it is begun each requester waits for a turn of
        their own."""


def choose(
    sizes: Sequence[ThumbnailSize], width: int, height: int, method: Method
) -> ThumbnailSize:
    """Return the smallest of the sizes that is as large as requested, or else the largest; with the
    same method if there are any."""
    fitting = [size for size in sizes if size.method == method] or sizes
    large = [size for size in fitting if size.width >= width and size.height >= height]
    if large:
        return min(large, key=lambda size: size.width * size.height)
    return max(fitting, key=lambda size: size.width * size.height)


def round_up(width: int, height: int) -> tuple[int, int]:
    """Return the next of the `SIZE_STEPS` with nearly the same aspect ratio; the largest for larger
    requests."""
    longest = max(width, height)
    step = next((step for step in SIZE_STEPS if step >= longest), SIZE_STEPS[-1])
    unit = step // ASPECT_STEPS
    return _up(width * step, longest * unit) * unit, _up(height * step, longest * unit) * unit


def _up(number: int, divisor: int) -> int:
    return -(-number // divisor)


def _pack(result: ImageResult) -> bytes:
    return f"{result.kind}\n{result.type}\n".encode() + result.data


def _unpack(stored: StoredThumbnail) -> _StoredResult:
    kind, type, data = stored.beginning.split(b"\n", 2)
    if stored.file is not None and kind == b"made":
        start = len(stored.beginning) - len(data)
        return _StoredResult(
            ImageResult("made", type.decode()),
            _Suffix(source=stored.file, start=start),
            stored.file.size - start,
        )
    source = MemorySource(data)
    match kind:
        case b"made":
            return _StoredResult(ImageResult("made", type.decode()), source, len(data))
        case b"original":
            return _StoredResult(ImageResult("original", type.decode()), source, 0)
    return _StoredResult(ImageResult("no image"), source, 0)
