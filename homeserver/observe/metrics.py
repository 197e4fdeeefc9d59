"""Metrics of HTTP, jobs, e-mails, text messages, search and retention, in the registry of one
server.

Names follow Prometheus' conventions: seconds, `_total` for counters. Label values, such as
names of endpoints and jobs, are defined in the code. They are never text from clients.
"""

from collections.abc import Iterator
from typing import Final

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from homeserver.observe.access_log import AccessRecord
from homeserver.observe.former_names import FormerNames
from homeserver.observe.histogram import PlainHistogram

_BUCKETS = (
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
    2.5,
    5.0,
    10.0,
    30.0,
    60.0,
)
BATCH_SIZE: Final = 256
"""Requests are counted in batches, when metrics are read or the batch is full, so that no response
waits for it."""


class HttpMetrics(Collector):
    """Counts requests by endpoint, method and status, their durations, and requests in progress.

    Keeps plain numbers: every request is counted, but metrics are read seldom.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.in_flight = 0
        """Requests in progress; incremented by the request itself."""
        self._finished: list[AccessRecord] = []
        """Requests that are not counted yet."""
        self._requests: dict[tuple[str, str, int], int] = {}
        self._times: dict[str, PlainHistogram] = {}
        registry.register(self)

    def finished(self, record: AccessRecord) -> None:
        """Count a finished request."""
        self.in_flight -= 1
        self._finished.append(record)
        if len(self._finished) >= BATCH_SIZE:
            self._count()

    def _count(self) -> None:
        for record in self._finished:
            endpoint = record.endpoint or "none"
            key = (endpoint, record.method if record.endpoint else "other", record.status)
            self._requests[key] = self._requests.get(key, 0) + 1
            times = self._times.get(endpoint)
            if times is None:
                times = self._times[endpoint] = PlainHistogram(_BUCKETS)
            times.observe(record.seconds)
        self._finished.clear()

    def collect(self) -> Iterator[Metric]:
        """Return the metrics for Prometheus."""
        self._count()
        requests = CounterMetricFamily(
            "mahalla_http_requests",
            "Requests, by endpoint, method and status; 499: the client disconnected first",
            labels=("endpoint", "method", "code"),
        )
        for (endpoint, method, code), count in self._requests.items():
            requests.add_metric((endpoint, method, str(code)), count)
        yield requests
        seconds = HistogramMetricFamily(
            "mahalla_http_request_seconds",
            "Time from the last byte of a request to its response",
            labels=("endpoint",),
        )
        for endpoint, times in self._times.items():
            seconds.add_metric((endpoint,), times.buckets(), times.total)
        yield seconds
        yield GaugeMetricFamily(
            "mahalla_http_requests_in_flight", "Requests in progress", value=self.in_flight
        )


class MailMetrics:
    """Metrics of e-mails."""

    def __init__(self, registry: CollectorRegistry) -> None:
        text = "Attempts to send an e-mail, by outcome: sent, failed (will be retried), dropped"
        self._emails = Counter("mahalla_emails", text, ("outcome",), registry=registry)
        FormerNames(
            registry=registry,
            collector=self._emails,
            names={"mahalla_emails": "mahalla_letters"},
            values={"dropped": "given_up"},
        )

    def count(self, outcome: str) -> None:
        """Count an attempt to send an e-mail."""
        self._emails.labels(outcome).inc()


class TextMessageMetrics:
    """Metrics of text messages."""

    def __init__(self, registry: CollectorRegistry) -> None:
        text = (
            "Text messages, by outcome: sent, failed (not accepted), refused (daily limit reached)"
        )
        self._messages = Counter("mahalla_text_messages", text, ("outcome",), registry=registry)

    def count(self, outcome: str) -> None:
        """Count an attempt to send a text message."""
        self._messages.labels(outcome).inc()


class JobCounts(msgspec.Struct):
    """The totals of one job since the start."""

    steps: int = 0
    """Includes failed steps."""
    failures: int = 0
    items: int = 0
    seconds: float = 0.0
    """The total duration of the steps."""
    finished: float = 0.0
    """When no items were pending for the last time; 0 means never."""


class JobMetrics(Collector):
    """Metrics of jobs. Keeps plain numbers: there are many jobs, and most of them sleep."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._jobs: dict[str, JobCounts] = {}
        registry.register(self)

    def counts_of(self, name: str) -> JobCounts:
        """Return the counts of a job. Names are fixed."""
        return self._jobs.setdefault(name, JobCounts())

    def collect(self) -> Iterator[Metric]:
        """Return the metrics for Prometheus."""
        labels = ("name",)  # Prometheus adds a label `job` of its own
        steps = CounterMetricFamily(
            "mahalla_job_steps", "Steps of a job, including failed ones", labels=labels
        )
        failures = CounterMetricFamily(
            "mahalla_job_failures", "Failed steps of a job", labels=labels
        )
        items = CounterMetricFamily(
            "mahalla_job_items", "Items that a job processed", labels=labels
        )
        seconds = CounterMetricFamily("mahalla_job_seconds", "Time in a job's steps", labels=labels)
        finished = GaugeMetricFamily(
            "mahalla_job_last_finished_timestamp_seconds",
            "Time when a job last finished all its work (seconds since 1970)",
            labels=labels,
        )
        for name, counts in self._jobs.items():
            steps.add_metric((name,), counts.steps)
            failures.add_metric((name,), counts.failures)
            items.add_metric((name,), counts.items)
            seconds.add_metric((name,), counts.seconds)
            finished.add_metric((name,), counts.finished)
        yield from (steps, failures, items, seconds, finished)


class SearchMetrics:
    """Metrics of the search index."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.behind = Gauge(
            "mahalla_search_events_behind",
            "Events that are not indexed for search yet",
            registry=registry,
        )


class RetentionMetrics:
    """Metrics of retention: messages that should be deleted but are not."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.paused = Gauge(
            "mahalla_retention_paused",
            "1 while deletion by age is paused because the clock jumped or the server was off "
            "for a long time",
            registry=registry,
        )
        self.unreadable = Counter(
            "mahalla_retention_unreadable",
            "Failed attempts to read a stored event in order to delete it",
            registry=registry,
        )
        self.failures = Counter(
            "mahalla_retention_failures",
            "Failed purges (deletions by age and purges on request)",
            registry=registry,
        )
