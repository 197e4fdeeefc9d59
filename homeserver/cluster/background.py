"""Starts and stops the background work of a node.

When the node stops, some components first give up their work at once, because it can be resumed
after a restart. Then the other components finish their work and write pending data, one after the
other. If a component fails to stop, the next ones are still stopped.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from twisted.logger import Logger

from storage.engine.database import DatabaseUnavailable


class Starts(Protocol):
    """A component with work that begins when the server listens."""

    def start(self) -> None:
        """Begin the work."""
        ...


class Cancels(Protocol):
    """A component whose work can be resumed after a restart."""

    def stop(self) -> None:
        """Give up the work at once."""
        ...


class Stops(Protocol):
    """A component that has work to finish or data to write."""

    async def stop(self) -> None:
        """End the work, and write what is pending."""
        ...


class Background:
    """Starts and stops the components of a node, in the order of the given lists."""

    log = Logger()

    def __init__(
        self, *, start: Sequence[Starts], cancel: Sequence[Cancels], stop: Sequence[Stops]
    ) -> None:
        """When the node stops, the components in `cancel` are stopped before those in `stop`."""
        self._start = start
        self._cancel = cancel
        self._stop = stop

    def start(self) -> None:
        """Start all components in `start`."""
        for component in self._start:
            component.start()

    async def stop(self) -> None:
        """Stop all components. If one fails to stop, the next ones are still stopped."""
        for cancelled in self._cancel:
            with self._log_failure():
                cancelled.stop()
        for stopped in self._stop:
            with self._log_failure():
                await stopped.stop()

    @contextmanager
    def _log_failure(self) -> Iterator[None]:
        """Log a failure instead of raising it: the other components have data to write, too."""
        try:
            yield
        except DatabaseUnavailable as error:
            self.log.warn("pending data could not be written: {error}", error=error)
        except Exception:
            self.log.failure("a component of the node failed to stop")
