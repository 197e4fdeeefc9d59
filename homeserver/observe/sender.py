"""Metrics of what goes out to other servers. No server's name is a label: there may be
thousands."""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

SENT: Final[Mapping[str, str]] = {
    "transactions": "Transactions that other servers have taken",
    "failures": "Transactions that could not be brought to their server",
    "events": "Events in the transactions that were taken, each destination counted",
    "refused_events": "Events that their destination said it could not take",
    "edus": "EDUs in the transactions that were taken",
    "given_up": "Events and EDUs that their destination refused alone, and is not sent any more",
}
DESTINATIONS: Final[Mapping[str, str]] = {
    "active": "Servers that there is something to send to, or that cannot be reached",
    "failing": "Servers that could not be reached when last tried",
    "asked_to_wait": "Servers that asked to be sent nothing for a while when last tried: they are there",
    "behind": "Servers that have missed events and catch up room by room",
}


class SenderMetrics(Collector):
    """Tells of the sender in /metrics."""

    def __init__(self, registry: CollectorRegistry, read: Callable[[], Mapping[str, int]]) -> None:
        """`read` gives the figures by the names above."""
        self._read = read
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """What Prometheus reads."""
        figures = self._read()
        for name, text in SENT.items():
            yield CounterMetricFamily(
                f"mahalla_federation_sent_{name}", text, value=figures.get(name, 0)
            )
        for name, text in DESTINATIONS.items():
            yield GaugeMetricFamily(
                f"mahalla_federation_destinations_{name}", text, value=figures.get(name, 0)
            )
