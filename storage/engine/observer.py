"""The interface to which the database reports its reads, writes and group commits (batches).

Metrics, the slow log and tests implement it. All times are in seconds. All calls are made on the
reactor thread.
"""

from typing import Protocol


class Observer(Protocol):
    """Is called for each read, write and batch. Must not raise or block."""

    def read_done(self, name: str, waited: float, took: float, queries: int) -> None:
        """A read waited for a thread, then ran or failed."""

    def write_done(self, name: str, waited: float, took: float, queries: int) -> None:
        """A write waited for its batch, then ran or failed. `batch_done` reports its commit."""

    def batch_done(self, writes: int, still_waiting: int, took: float, committing: float) -> None:
        """A batch of writes was committed in `took` seconds, of which the commit took
        `committing`."""


class NullObserver:
    """Ignores everything."""

    def read_done(self, name: str, waited: float, took: float, queries: int) -> None:
        return

    def write_done(self, name: str, waited: float, took: float, queries: int) -> None:
        return

    def batch_done(self, writes: int, still_waiting: int, took: float, committing: float) -> None:
        return
