"""Makes thumbnails in processes of their own. What runs in them is `image_worker`."""

from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import msgspec

from homeserver.services.media import image_worker
from homeserver.services.subprocesses.worker_processes import (
    WorkerDied,
    WorkerProcesses,
    processor_seconds,
)
from storage.engine.executors import Executor

SECONDS_A_JOB: Final = 20.0
"""On the processor."""


class ImageJob(msgspec.Struct, frozen=True):
    """What to make, of which file. Sizes in pixels."""

    path: str
    width: int
    height: int
    method: Literal["crop", "scale"]
    animated: bool
    max_pixels: int
    programs: bool = False
    """Whether ffmpeg and pdftoppm may take a picture out of films and documents."""


Kind = Literal["made", "original", "too large", "no image", "no program", "unknown"]
"""The last two say nothing of the file: the program for it is not installed or not wanted; the
process has ended."""


class _Head(msgspec.Struct, frozen=True):
    kind: Kind
    type: str = ""
    width: int = 0
    height: int = 0


class ImageResult(msgspec.Struct, frozen=True):
    """What came of a job: bytes for `made`; a type for `made` and `original`."""

    kind: Kind
    type: str = ""
    data: bytes = b""
    original_size: tuple[int, int] = (0, 0)
    """Width and height of the image, as it is shown."""


class ImageWorkers:
    """The processes."""

    def __init__(
        self, executor: Executor, spent: Callable[[int], float] = processor_seconds
    ) -> None:
        """`spent`: what a process has taken on the processor."""
        self._processes = WorkerProcesses(
            executor,
            Path(image_worker.__file__),
            SECONDS_A_JOB,
            max_result_bytes=image_worker.MAX_RESULT_BYTES,
            spent=spent,
        )

    async def run(self, job: ImageJob) -> ImageResult:
        """Do a job. Of a file that ends its process, or takes too long, nothing is known. Raises
        `LimitExceeded`."""
        try:
            line, data = await self._processes.run(job)
        except WorkerDied:
            return ImageResult("unknown")
        head = msgspec.json.decode(line, type=_Head)
        return ImageResult(head.kind, head.type, data, (head.width, head.height))

    def close(self) -> None:
        """End the processes, those that are at work too."""
        self._processes.close()
