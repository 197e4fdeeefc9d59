"""Metrics of HTTP and of jobs, in a registry of the server's own.

Names follow Prometheus' custom: seconds, `_total` for counters. Labels are declared names, never what a client sends.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class HttpMetrics:
    """Counts requests by endpoint, method and status, how long they took, and how many are being answered."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._requests = Counter(
            "mahalla_http_requests",
            "Requests answered, by endpoint, method and status; 499: the client went away first",
            ("endpoint", "method", "code"),
            registry=registry,
        )
        self._seconds = Histogram(
            "mahalla_http_request_seconds",
            "Time from the last byte of a request to its answer",
            ("endpoint",),
            registry=registry,
            buckets=_BUCKETS,
        )
        self._in_flight = Gauge("mahalla_http_requests_in_flight", "Requests being answered", registry=registry)
        self._counters: dict[tuple[str, str, int], Counter] = {}
        self._histograms: dict[str, Histogram] = {}

    def started(self) -> None:
        """A request begins."""
        self._in_flight.inc()

    def finished(self, endpoint: str, method: str, code: int, seconds: float) -> None:
        """A request ends. `method` is one that the endpoint declares, or `other`."""
        self._in_flight.dec()
        key = (endpoint, method, code)
        counter = self._counters.get(key)
        if counter is None:
            counter = self._counters[key] = self._requests.labels(endpoint, method, str(code))
        counter.inc()
        histogram = self._histograms.get(endpoint)
        if histogram is None:
            histogram = self._histograms[endpoint] = self._seconds.labels(endpoint)
        histogram.observe(seconds)


class JobMetrics:
    """Tells of the jobs in /metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ("job",)
        self.steps = Counter("mahalla_job_steps", "Steps of a job, also those that failed", labels, registry=registry)
        self.failures = Counter("mahalla_job_failures", "Steps that failed, by job", labels, registry=registry)
        self.items = Counter("mahalla_job_items", "Things a job has done", labels, registry=registry)
        self.seconds = Counter("mahalla_job_seconds", "Time that a job's steps took", labels, registry=registry)
        self.finished = Gauge(
            "mahalla_job_last_finished_timestamp_seconds",
            "When a job last had nothing left to do",
            labels,
            registry=registry,
        )
