"""Parses pages for previews in separate processes, which run `page_worker`."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Literal

import msgspec
from twisted.logger import Logger

from homeserver.services.subprocesses.worker_processes import WorkerDied, WorkerProcesses
from storage.engine.executors import Executor

SECONDS_PER_PAGE: Final = 10.0


class _Job(msgspec.Struct, frozen=True):
    kind: Literal["page", "oembed"]
    size: int
    url: str
    charset: str


class PageMetadata(msgspec.Struct, frozen=True):
    """The metadata of a page: Open Graph properties, and the URLs of its image and its oEmbed
    document."""

    properties: Mapping[str, str] = {}
    image: str | None = None
    oembed: str | None = None
    problem: str = ""
    """The error at which parsing stopped; then the metadata is empty."""


class PageParser:
    """Parses pages and oEmbed documents."""

    log = Logger()

    def __init__(self, *, executor: Executor, clock: Callable[[], float] = time.monotonic) -> None:
        self._processes = WorkerProcesses(
            executor=executor,
            script=Path(__file__).with_name("page_worker.py"),
            seconds=SECONDS_PER_PAGE,
            clock=clock,
        )

    async def parse(self, page: bytes, url: str, charset: str) -> PageMetadata:
        """Parse a page. Return empty metadata if its process dies or takes too long. Raises
        LimitExceeded."""
        return await self._read(_Job("page", len(page), url, charset), page)

    async def parse_oembed(self, document: bytes, url: str) -> PageMetadata:
        """Parse an oEmbed document. Errors as for `parse`."""
        return await self._read(_Job("oembed", len(document), url, ""), document)

    async def _read(self, job: _Job, data: bytes) -> PageMetadata:
        try:
            line, _ = await self._processes.run(job, data)
        except WorkerDied:
            self.log.info(
                "the process that parsed a {kind} for a preview died or took too long",
                kind=job.kind,
            )
            return PageMetadata()
        result = msgspec.json.decode(line, type=PageMetadata)
        if result.problem:
            self.log.info(
                "a {kind} could not be parsed for a preview: {problem}",
                kind=job.kind,
                problem=result.problem,
            )
        return result

    def close(self) -> None:
        """Kill the processes, also those with a job."""
        self._processes.close()
