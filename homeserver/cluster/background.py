"""Starts and stops the background work of a server.

When the server stops, work that can be resumed after a restart is cancelled first. Then the other
parts finish their work and write what is pending. A part that fails to stop does not keep the
others from stopping.
"""

from collections.abc import Sequence
from typing import Protocol

from twisted.logger import Logger

from storage.engine.database import DatabaseUnavailable


class Starts(Protocol):
    """A part with work that begins when the server listens."""

    def start(self) -> None:
        """Begin the work."""
        ...


class Cancels(Protocol):
    """A part whose work can be resumed after a restart."""

    def stop(self) -> None:
        """Give up the work at once."""
        ...


class Stops(Protocol):
    """A part that has work to finish or data to write."""

    async def stop(self) -> None:
        """End the work, and write what is pending."""
        ...


class Background:
    """Starts and stops the parts of a server, in the order of its lists."""

    log = Logger()

    def __init__(
        self, *, start: Sequence[Starts], cancel: Sequence[Cancels], stop: Sequence[Stops]
    ) -> None:
        """When the server stops, those in `cancel` come first."""
        self._start = start
        self._cancel = cancel
        self._stop = stop

    def start(self) -> None:
        """Start all parts."""
        for part in self._start:
            part.start()

    async def stop(self) -> None:
        """Stop all parts. A part that fails to stop does not keep the others from stopping."""
        for each in self._cancel:
            each.stop()
        for part in self._stop:
            try:
                await part.stop()
            except DatabaseUnavailable as error:
                self.log.warn("pending data could not be written: {error}", error=error)
            except Exception:  # the other parts have data to write, too
                self.log.failure("a part of the server failed to stop")
