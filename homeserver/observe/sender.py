"""Metrics of what goes out to other servers. No server's name is a label: there may be thousands."""

from collections.abc import Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector


class Counts(Protocol):
    """What has been sent."""

    transactions: int
    failures: int
    events: int
    refused_events: int
    edus: int


class Deliveries(Protocol):
    """Who sends."""

    @property
    def counts(self) -> Counts: ...
    def count_destinations(self) -> tuple[int, int, int]:
        """How many there is something to know of, cannot be reached, and are behind."""


class SenderMetrics(Collector):
    """Tells of the sender in /metrics."""

    def __init__(self, registry: CollectorRegistry, deliveries: Deliveries) -> None:
        self._deliveries = deliveries
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """What Prometheus reads."""
        counts = self._deliveries.counts
        for name, text, value in (
            ("transactions", "Transactions that other servers have taken", counts.transactions),
            ("failures", "Transactions that could not be brought to their server", counts.failures),
            ("events", "Events in these transactions, each destination counted", counts.events),
            ("refused_events", "Events that their destination said it could not take", counts.refused_events),
            ("edus", "EDUs in these transactions", counts.edus),
        ):
            yield CounterMetricFamily(f"mahalla_federation_sent_{name}", text, value=value)
        active, failing, behind = self._deliveries.count_destinations()
        for name, text, value in (
            ("active", "Servers that there is something to send to, or that cannot be reached", active),
            ("failing", "Servers that could not be reached when last tried", failing),
            ("behind", "Servers that have missed events and catch up room by room", behind),
        ):
            yield GaugeMetricFamily(f"mahalla_federation_destinations_{name}", text, value=value)
