"""Makes thumbnails in separate processes, which run `image_worker.py`.

The server itself never imports that script, nor Pillow, which decodes untrusted images.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import msgspec

from homeserver.services.subprocesses.worker_processes import (
    WorkerDied,
    WorkerProcesses,
    get_cpu_seconds,
)
from storage.engine.executors import Executor

WORKER: Final = Path(__file__).with_name("image_worker.py")
JOB_SECONDS: Final = 20.0
"""CPU time."""
MAX_RESULT_BYTES: Final = 16 << 20
"""The same limit as in the worker, which imports nothing of the server."""


class ImageJob(msgspec.Struct, frozen=True):
    """A thumbnail to make of a file. Sizes are in pixels."""

    path: str
    width: int
    height: int
    method: Literal["crop", "scale"]
    animated: bool
    max_pixels: int
    programs: bool = False
    """Whether ffmpeg and pdftoppm may extract a picture from videos and documents."""


ImageResultKind = Literal["made", "original", "too large", "no image", "no program", "unknown"]
"""`no program`: the program for such files is missing or disabled. `unknown`: the worker died."""


class _Head(msgspec.Struct, frozen=True):
    kind: ImageResultKind
    type: str = ""
    width: int = 0
    height: int = 0


class ImageResult(msgspec.Struct, frozen=True):
    """The result of a job: `data` for `made`; `type` for `made` and `original`."""

    kind: ImageResultKind
    type: str = ""
    data: bytes = b""
    original_size: tuple[int, int] = (0, 0)
    """Width and height of the image as displayed."""


class ImageWorkers:
    """Runs image jobs in worker processes."""

    def __init__(
        self, *, executor: Executor, cpu_time: Callable[[int], float] = get_cpu_seconds
    ) -> None:
        """`cpu_time`: the CPU time of a process, by its pid."""
        self._processes = WorkerProcesses(
            executor=executor,
            script=WORKER,
            seconds=JOB_SECONDS,
            max_result_bytes=MAX_RESULT_BYTES,
            cpu_time_of=cpu_time,
        )

    async def run(self, job: ImageJob) -> ImageResult:
        """Run a job; the result is `unknown` if the worker crashes or takes too long.

        Raises `LimitExceeded`.
        """
        try:
            line, data = await self._processes.run(job)
        except WorkerDied:
            return ImageResult("unknown")
        head = msgspec.json.decode(line, type=_Head)
        return ImageResult(head.kind, head.type, data, (head.width, head.height))

    def close(self) -> None:
        """End the processes, busy ones included."""
        self._processes.close()
