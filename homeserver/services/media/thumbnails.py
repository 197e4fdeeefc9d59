"""Thumbnails: made when somebody asks, and kept beside the content.

They are made by turns among those whose files they are, since a picture may be made to take long,
and among those who ask, since somebody may ask for much; those of whose pictures one took long
lately share a part of the turns. Sizes are rounded up along a ladder, with one of a few
proportions, or to one of those that the configuration names, so that the many sizes that screens
ask for share a few files. A thumbnail is at least as large as what was asked for, and never larger
than the original. What is kept is read as somebody takes it, so it needs no memory.

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

from federation.peers.fair_semaphore import FairSemaphore, Waits
from federation.protocol.errors import (
    CannotThumbnail,
    InvalidParam,
    LimitExceeded,
    NotFound,
    TooLarge,
)
from homeserver.api.storage_errors import telling_of_the_store
from homeserver.http.responses import File, MemorySource, Source
from homeserver.services.media.image_workers import ImageJob, ImageResult, ImageWorkers
from storage.media.contents import Contents
from storage.media.files import KeptThumbnail
from storage.media.media import Content

LADDER: Final = (
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
PROPORTIONS: Final = 16
"""The shorter side is so many sixteenths of the longer."""
MOST_KEPT: Final = 40
"""Thumbnails of one content; further ones are made each time."""
REMEMBERED_SECONDS: Final = 86_400
"""So long it is remembered that a file is no image: another version of what reads it may find
one."""

SLOW_SECONDS: Final = 5.0
"""Whose picture takes longer is slow."""
MOST_WAITING: Final = 1000
"""Thumbnails that wait to be made."""
MOST_WAITING_OF_ONE: Final = 100
"""Of one who asks."""

Method = Literal["crop", "scale"]


class ThumbnailSize(NamedTuple):
    """A size in pixels, and how a picture is brought to it."""

    width: int
    height: int
    method: Method


class Thumbnail(msgspec.Struct, frozen=True):
    """A thumbnail; `file` is None where the content itself serves as one. Who has it closes the
    file's source."""

    type: str
    file: File | None


class _Kept(msgspec.Struct, frozen=True):
    """What came of a job, as it is kept: a source and its size for `made`."""

    result: ImageResult
    source: Source
    size: int


class _After:
    """A source without its beginning."""

    def __init__(self, source: Source, start: int) -> None:
        self._source = source
        self._start = start

    async def read(self, offset: int, size: int) -> bytes:
        return await self._source.read(self._start + offset, size)

    def close(self) -> None:
        self._source.close()


class Thumbnails:
    """Makes and finds them."""

    log = Logger()

    def __init__(
        self,
        contents: Contents,
        workers: ImageWorkers,
        max_pixels: int,
        at_once: int,
        clock: IReactorTime,
        *,
        programs: bool = False,
        sizes: Sequence[ThumbnailSize] = (),
        now: Callable[[], float] = time.time,
    ) -> None:
        """`at_once`: how many are made at the same time. `programs`: whether other programs may
        take pictures out of films and documents; `sizes`: the only ones to make, if any are named.
        `now`: the time of the folder's disk."""
        self._now = now
        self._sizes = sizes
        self._contents = contents
        self._workers = workers
        self._max_pixels = max_pixels
        self._programs = programs
        self._turns = FairSemaphore[_Party](
            at_once,
            max(1, at_once - 1),
            max_waiting=MOST_WAITING,
            max_waiting_per_key=lambda party: (
                MOST_WAITING_OF_ONE if party.kind == "asker" else None
            ),
            refusal=lambda _party: LimitExceeded(
                "Too many thumbnails are being made at this moment", retry_after_ms=2000
            ),
            waits=Waits(clock, slow_after=SLOW_SECONDS),
        )
        self._being_made: dict[tuple[bytes, str], _Making] = {}

    async def get(
        self,
        content: Content,
        width: int,
        height: int,
        method: Method,
        whose: str,
        asker: str,
        *,
        animated: bool,
    ) -> Thumbnail:
        """A thumbnail; what is not kept is made, by turns among those whose files they are, and
        those who ask.

        `whose`: so one that takes long keeps none of others' files waiting. `asker`: so who asks
        for many keeps no others waiting. Raises `InvalidParam`, `CannotThumbnail`, `TooLarge`,
        `LimitExceeded`, `NotFound`.
        """
        if width < 1 or height < 1:
            raise InvalidParam("width and height must be at least 1")
        if self._sizes:
            width, height, method = choose(self._sizes, width, height, method)
        else:
            width, height = round_up(width, height)
        name = f"{width}x{height}-{method}{'-animated' if animated else ''}"
        kept = await self._get_kept(content, name)
        if kept is None:

            def job(path: Path) -> ImageJob:
                return ImageJob(
                    str(path), width, height, method, animated, self._max_pixels, self._programs
                )

            result = await self._make(content, name, _Turn(whose, asker), job)
            if result.kind == "made":
                kept = await self._get_kept(content, name)
            kept = kept or _Kept(result, MemorySource(result.data), len(result.data))
        if kept.result.kind == "too large":
            raise TooLarge("The image has too many pixels for a thumbnail")
        if kept.result.kind not in ("made", "original"):
            raise CannotThumbnail
        etag = f"{content.hash.hex()}-{name}"
        return Thumbnail(
            kept.result.type,
            File(kept.source, kept.size, etag) if kept.result.kind == "made" else None,
        )

    async def _get_kept(self, content: Content, name: str) -> _Kept | None:
        with telling_of_the_store():
            found = await self._contents.get_thumbnail(content.hash, name)
        if found is None:
            return None
        kept = _unpack(found)
        is_over = kept.result.kind == "no image" and self._now() - found.made > REMEMBERED_SECONDS
        return None if is_over else kept

    async def measure(self, content: Content, whose: str) -> tuple[int, int]:
        """Width and height of an image, as it is shown. Raises what `get` does."""
        with telling_of_the_store():
            async with self._contents.lend(content.hash) as path:
                if path is None:
                    raise NotFound("The content of this file is missing")
                async with self._turns.hold(*_Turn(whose, whose).parties()):
                    result = await self._workers.run(
                        ImageJob(str(path), 32, 32, "scale", False, self._max_pixels)
                    )
        if result.kind not in ("made", "original"):
            raise CannotThumbnail
        return result.original_size

    async def _make(
        self, content: Content, name: str, turn: "_Turn", job: Callable[[Path], ImageJob]
    ) -> ImageResult:
        """Once, however many ask for it at the same time, when the first of them has a turn, and to
        the end, though they may go away."""
        making = self._being_made.setdefault((content.hash, name), _Making())
        waits_for_turn = not making.is_begun and turn.asker not in making.waiters
        mine: Deferred[ImageResult] = Deferred()
        making.waiters.setdefault(turn.asker, []).append(mine)
        if waits_for_turn:
            Deferred.fromCoroutine(self._make_in_turn(making, content, name, turn, job)).addErrback(
                lambda failure: self.log.failure("cannot make a thumbnail", failure)
            )
        return await mine

    async def _make_in_turn(
        self,
        making: "_Making",
        content: Content,
        name: str,
        turn: "_Turn",
        job: Callable[[Path], ImageJob],
    ) -> None:
        """Make it and tell all who wait, unless somebody else had a turn first. Who is refused a
        turn is told alone."""
        is_mine = False

        def begin() -> bool:
            nonlocal is_mine
            is_mine = not making.is_begun
            making.is_begun = True
            return is_mine

        result: ImageResult | Failure | None
        try:
            result = await self._make_and_keep(content, name, turn, job, begin)
        except Exception:  # whatever it is, those who wait get it
            result = Failure()
        if result is None:
            return
        told = list(making.waiters) if is_mine else [turn.asker]
        waiters = [each for asker in told for each in making.waiters.pop(asker, ())]
        if not making.waiters and self._being_made.get((content.hash, name)) is making:
            del self._being_made[content.hash, name]
        for waiter in waiters:
            waiter.callback(result)

    async def _make_and_keep(
        self,
        content: Content,
        name: str,
        turn: "_Turn",
        job: Callable[[Path], ImageJob],
        begin: Callable[[], bool],
    ) -> ImageResult | None:
        """None where `begin` says that somebody else makes it."""
        with telling_of_the_store():
            async with self._contents.lend(content.hash) as path:
                if path is None:
                    raise NotFound("The content of this file is missing")
                async with self._turns.hold(*turn.parties()):
                    if not begin():
                        return None
                    result = await self._workers.run(job(path))
        if result.kind in (
            "made",
            "original",
            "no image",
        ):  # what else it is may be otherwise the next time
            try:
                await self._contents.set_thumbnail(content.hash, name, _pack(result), MOST_KEPT)
            except OSError as error:
                self.log.error("a thumbnail is given out, but cannot be kept: {error}", error=error)
        return result


class _Party(NamedTuple):
    """One among whom thumbnails are shared out."""

    kind: Literal["owner", "asker"]
    name: str


class _Turn(NamedTuple):
    whose: str
    asker: str

    def parties(self) -> tuple[_Party, _Party]:
        return _Party("owner", self.whose), _Party("asker", self.asker)


class _Making:
    """A thumbnail that is to be made."""

    def __init__(self) -> None:
        self.is_begun = False
        self.waiters: dict[str, list[Deferred[ImageResult]]] = {}
        """By who asks. Until it is begun each of these waits for a turn of their own."""


def choose(
    sizes: Sequence[ThumbnailSize], width: int, height: int, method: Method
) -> ThumbnailSize:
    """The smallest of these that is as large as what was asked for, or else the largest; of the
    same method where there are such."""
    fitting = [size for size in sizes if size.method == method] or sizes
    large = [size for size in fitting if size.width >= width and size.height >= height]
    if large:
        return min(large, key=lambda size: size.width * size.height)
    return max(fitting, key=lambda size: size.width * size.height)


def round_up(width: int, height: int) -> tuple[int, int]:
    """The next size of the ladder with nearly the same proportions; the largest for what is larger
    still."""
    longest = max(width, height)
    step = next((step for step in LADDER if step >= longest), LADDER[-1])
    unit = step // PROPORTIONS
    return _up(width * step, longest * unit) * unit, _up(height * step, longest * unit) * unit


def _up(number: int, divisor: int) -> int:
    return -(-number // divisor)


def _pack(result: ImageResult) -> bytes:
    return f"{result.kind}\n{result.type}\n".encode() + result.data


def _unpack(kept: KeptThumbnail) -> _Kept:
    kind, type, data = kept.beginning.split(b"\n", 2)
    if kept.file is not None and kind == b"made":
        start = len(kept.beginning) - len(data)
        return _Kept(
            ImageResult("made", type.decode()), _After(kept.file, start), kept.file.size - start
        )
    source = MemorySource(data)
    match kind:
        case b"made":
            return _Kept(ImageResult("made", type.decode()), source, len(data))
        case b"original":
            return _Kept(ImageResult("original", type.decode()), source, 0)
    return _Kept(ImageResult("no image"), source, 0)
