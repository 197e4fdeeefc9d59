"""Reads pages in processes of their own. What runs in them is `page_worker`."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec
from twisted.logger import Logger

from homeserver.services.subprocesses.worker_processes import WorkerDied, WorkerProcesses
from storage.engine.executors import Executor

SECONDS_A_PAGE: Final = 10.0


class _Job(msgspec.Struct, frozen=True):
    kind: Literal["page", "oembed"]
    size: int
    url: str
    charset: str


class PageSays(msgspec.Struct, frozen=True):
    """What a page says of itself: properties of Open Graph, and the addresses of its picture and
    its oEmbed document."""

    properties: Mapping[str, str] = {}
    image: str | None = None
    oembed: str | None = None
    problem: str = ""
    """What the reading broke at; nothing was read then."""


class PageReader:
    """The processes."""

    log = Logger()

    def __init__(self, executor: Executor, clock: Callable[[], float] = time.monotonic) -> None:
        self._processes = WorkerProcesses(
            executor, Path(__file__).with_name("page_worker.py"), SECONDS_A_PAGE, clock
        )

    async def read(self, page: bytes, url: str, charset: str) -> PageSays:
        """Read a page; nothing of one that ends its process, or takes too long. Raises
        LimitExceeded."""
        return await self._read(_Job("page", len(page), url, charset), page)

    async def read_oembed(self, document: bytes, url: str) -> PageSays:
        """Read an oEmbed document, in the same way."""
        return await self._read(_Job("oembed", len(document), url, ""), document)

    async def _read(self, job: _Job, data: bytes) -> PageSays:
        try:
            line, _ = await self._processes.run(job, data)
        except WorkerDied:
            self.log.info(
                "a process that read a {kind} for a preview ended, or took too long", kind=job.kind
            )
            return PageSays()
        says = msgspec.json.decode(line, type=PageSays)
        if says.problem:
            self.log.info(
                "a {kind} could not be read for a preview: {problem}",
                kind=job.kind,
                problem=says.problem,
            )
        return says

    def close(self) -> None:
        """End the processes, those that are at work too."""
        self._processes.close()
