"""Metrics of the database, and the log of slow transactions.

Every read, write and group commit is measured, so measuring must be cheap. The values wait in two
queues, one for reads and writes and one for group commits. They are added up when metrics are read,
or when a queue has `BATCH_SIZE` entries.
"""

from collections.abc import Iterator
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from twisted.logger import Logger

from homeserver.observe.histogram import PlainHistogram

_WRITES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0)
_SECONDS = (
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    5.0,
)
BATCH_SIZE: Final = 256
"""The largest length of each of the two queues."""
_LABELS = ("kind", "name")
_FAMILIES = (
    ("mahalla_database_transactions", "Transactions, by kind (read or write) and name"),
    ("mahalla_database_seconds", "Time in transactions, excluding waiting time and the commit"),
    (
        "mahalla_database_waiting_seconds",
        "Time that transactions waited for a thread or for their batch",
    ),
    ("mahalla_database_queries", "SQL statements, by kind and name of the transaction"),
)


class DatabaseMetrics(Collector):
    """Observes the storage (`storage.engine.observer.Observer`). Transactions longer than
    `slow_seconds` are logged."""

    def __init__(
        self, *, registry: CollectorRegistry, slow_seconds: float, log: Logger | None = None
    ) -> None:
        self._slow_seconds = slow_seconds
        self._log = log or Logger(namespace="homeserver.database")
        self._transactions: list[tuple[str, str, float, float, int]] = []
        """Transactions that are not counted yet: kind, name, waiting time, duration, statements."""
        self._batches: list[tuple[int, float]] = []
        """Commits that are not counted yet: writes, seconds."""
        self._sums: dict[tuple[str, str], list[float]] = {}
        self._still_waiting = 0
        self._batch_writes = PlainHistogram(_WRITES)
        self._commit_seconds = PlainHistogram(_SECONDS)
        registry.register(self)

    def read_done(self, name: str, waited: float, took: float, queries: int) -> None:
        """A read has ended."""
        self._transactions.append(("read", name, waited, took, queries))
        if took >= self._slow_seconds or len(self._transactions) >= BATCH_SIZE:
            self._check_last()

    def write_done(self, name: str, waited: float, took: float, queries: int) -> None:
        """A write has ended, and was committed or rolled back."""
        self._transactions.append(("write", name, waited, took, queries))
        if took >= self._slow_seconds or len(self._transactions) >= BATCH_SIZE:
            self._check_last()

    def batch_done(self, writes: int, still_waiting: int, took: float, committing: float) -> None:
        """A batch was committed."""
        self._still_waiting = still_waiting
        self._batches.append((writes, committing))
        if len(self._batches) >= BATCH_SIZE:
            self._count()
        if committing >= self._slow_seconds:
            self._log.warn(
                "slow commit of {writes} writes: {milliseconds} ms",
                writes=writes,
                milliseconds=round(committing * 1000, 1),
            )

    def collect(self) -> Iterator[Metric]:
        """Return the metrics for Prometheus."""
        self._count()
        families = [CounterMetricFamily(name, text, labels=_LABELS) for name, text in _FAMILIES]
        for labels, sums in self._sums.items():
            for family, value in zip(families, sums, strict=True):
                family.add_metric(labels, value)
        yield from families
        for name, text, histogram in (
            ("mahalla_database_batch_writes", "Writes in one commit", self._batch_writes),
            (
                "mahalla_database_commit_seconds",
                "Time of a commit, including fsync",
                self._commit_seconds,
            ),
        ):
            yield HistogramMetricFamily(
                name, text, buckets=histogram.buckets(), sum_value=histogram.total
            )
        yield GaugeMetricFamily(
            "mahalla_database_writes_waiting",
            "Writes that were still queued when the latest batch was complete",
            value=self._still_waiting,
        )

    def _check_last(self) -> None:
        """Log the last transaction if it was slow, and count the queue if it is long."""
        kind, name, waited, took, queries = self._transactions[-1]
        if len(self._transactions) >= BATCH_SIZE:
            self._count()
        if took >= self._slow_seconds:
            self._log.warn(
                "slow {kind} {name}: {milliseconds} ms, {queries} statements, "
                "after waiting for {waited} ms",
                kind=kind,
                name=name,
                milliseconds=round(took * 1000, 1),
                queries=queries,
                waited=round(waited * 1000, 1),
            )

    def _count(self) -> None:
        for kind, name, waited, took, queries in self._transactions:
            sums = self._sums.get((kind, name))
            if sums is None:
                sums = self._sums[kind, name] = [0.0, 0.0, 0.0, 0.0]
            sums[0] += 1
            sums[1] += took
            sums[2] += waited
            sums[3] += queries
        self._transactions.clear()
        for writes, seconds in self._batches:
            self._batch_writes.observe(writes)
            self._commit_seconds.observe(seconds)
        self._batches.clear()
