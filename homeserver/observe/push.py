"""Metrics of push notifications. A gateway's name becomes a label value when the gateway has
answered a push. The number of these values is limited, because users choose the gateways."""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from homeserver.observe.histogram import PlainHistogram

MAX_GATEWAYS: Final = 30
"""The number of gateways with their own label value; the others share the value `other`."""
OTHER: Final = "other"
SENT: Final = "sent"
REJECTED: Final = "rejected"
UNREADABLE: Final = "unreadable"
_BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
QUEUES: Final[Mapping[str, str]] = {
    "waiting": "Pushes in queues, including those for unreachable gateways",
    "pushers_waiting": "Pushers with queued pushes",
    "pushers_failing": "Pushers whose last push failed",
    "gateways_failing": "Push gateways that could not be reached at the last attempt",
}


class PushMetrics(Collector):
    """Counts pushes by gateway and outcome, and their durations."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._gateways: set[str] = set()
        self._pushes: dict[tuple[str, str], int] = {}
        self._seconds = PlainHistogram(_BUCKETS)
        registry.register(self)

    def sent(self, gateway: str, outcome: str, seconds: float) -> None:
        """Count a push that a gateway answered. `outcome`: one of the constants above."""
        if len(self._gateways) < MAX_GATEWAYS:
            self._gateways.add(gateway)
        self._count(gateway, outcome)
        self._seconds.observe(seconds)

    def failed(self, gateway: str) -> None:
        """Count a push that failed: the gateway was unreachable or gave no answer."""
        self._count(gateway, "failed")

    def _count(self, gateway: str, outcome: str) -> None:
        key = (gateway if gateway in self._gateways else OTHER, outcome)
        self._pushes[key] = self._pushes.get(key, 0) + 1

    def collect(self) -> Iterator[Metric]:
        """Return the metrics for Prometheus."""
        pushes = CounterMetricFamily(
            "mahalla_pushes",
            "Requests to push gateways, by gateway and outcome: sent, rejected (the pusher is "
            "removed), unreadable (sent, but the response is not valid), failed",
            labels=("gateway", "outcome"),
        )
        for key, count in self._pushes.items():
            pushes.add_metric(key, count)
        yield pushes
        yield HistogramMetricFamily(
            "mahalla_push_seconds",
            "Response time of push gateways",
            buckets=self._seconds.buckets(),
            sum_value=self._seconds.total,
        )


class PushQueueMetrics(Collector):
    """The lengths of the push queues."""

    def __init__(
        self, *, registry: CollectorRegistry, read: Callable[[], Mapping[str, int]]
    ) -> None:
        """`read` returns the lengths by the names in `QUEUES`."""
        self._read = read
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Return the metrics for Prometheus."""
        lengths = self._read()
        for name, text in QUEUES.items():
            yield GaugeMetricFamily(f"mahalla_push_{name}", text, value=lengths.get(name, 0))


class QueueMetrics:
    """Metrics that are counted in the database at intervals: pushers, and to-device messages not
    fetched yet."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._pushers = Gauge(
            "mahalla_pushers",
            "Enabled pushers, counted every five minutes, by kind (http, email) and state "
            "(working, failing)",
            labelnames=("kind", "state"),
            registry=registry,
        )
        self._waiting = Gauge(
            "mahalla_to_device_waiting",
            "To-device messages that wait, counted every five minutes: messages that our users' "
            "devices have not fetched (local), and EDUs for other servers (remote)",
            labelnames=("where",),
            registry=registry,
        )

    def set_pushers(self, counts: Mapping[tuple[str, str], int]) -> None:
        """Set the number of pushers by kind and state."""
        for kind in ("http", "email"):
            for state in ("working", "failing"):
                self._pushers.labels(kind, state).set(counts.get((kind, state), 0))

    def set_to_device_messages(self, local: int, remote: int) -> None:
        """Set the numbers of waiting to-device messages."""
        self._waiting.labels("local").set(local)
        self._waiting.labels("remote").set(remote)
