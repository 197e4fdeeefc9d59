"""What storage tells about its own work: for metrics, the slow log, and tests that count queries.

All times are seconds. Everything is told on the reactor's thread.
"""

from typing import Protocol


class Observer(Protocol):
    """Hears of every piece of work. May not raise or block."""

    def read_done(self, name: str, waited: float, took: float, queries: int) -> None:
        """A read waited for a thread, then ran (or failed)."""

    def write_done(self, name: str, waited: float, took: float, queries: int) -> None:
        """A write waited for its batch, then ran (or failed); its commit is told by
        `batch_done`."""

    def batch_done(self, writes: int, still_waiting: int, took: float, committing: float) -> None:
        """A batch of writes was committed, in `took` seconds of which `committing` for the
        commit."""


class SilentObserver:
    """Does not listen."""

    def read_done(self, name: str, waited: float, took: float, queries: int) -> None:
        return

    def write_done(self, name: str, waited: float, took: float, queries: int) -> None:
        return

    def batch_done(self, writes: int, still_waiting: int, took: float, committing: float) -> None:
        return
