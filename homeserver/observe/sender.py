"""Metrics of outgoing federation. Server names are not labels: there may be thousands."""

from collections.abc import Callable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from homeserver.observe.former_names import FormerNames

SENT: Final[Mapping[str, str]] = {
    "transactions": "Transactions that other servers accepted",
    "failures": "Transactions that could not be delivered",
    "events": "Events in accepted transactions, counted for each destination",
    "refused_events": "Events that a destination reported as refused",
    "edus": "EDUs in accepted transactions",
    "dropped": "Events and EDUs that were dropped, because a destination refused them even in a "
    "transaction of their own",
}
DESTINATIONS: Final[Mapping[str, str]] = {
    "active": "Remote servers with queued data, or that cannot be reached",
    "failing": "Remote servers that could not be reached at the last attempt",
    "rate_limiting": "Remote servers that responded 429, and are not contacted for a while",
    "catching_up": "Remote servers that missed events and catch up room by room",
}
_FORMER_NAMES: Final[Mapping[str, str]] = {
    "mahalla_federation_sent_dropped": "mahalla_federation_sent_given_up",
    "mahalla_federation_destinations_rate_limiting": (
        "mahalla_federation_destinations_asked_to_wait"
    ),
    "mahalla_federation_destinations_catching_up": "mahalla_federation_destinations_behind",
}


class SenderMetrics(Collector):
    """Metrics of the federation sender."""

    def __init__(
        self, *, registry: CollectorRegistry, read: Callable[[], Mapping[str, int]]
    ) -> None:
        """`read` returns the numbers by the names above."""
        self._read = read
        registry.register(self)
        FormerNames(registry=registry, collector=self, names=_FORMER_NAMES)

    def collect(self) -> Iterator[Metric]:
        """Return the metrics for Prometheus."""
        numbers = self._read()
        for name, text in SENT.items():
            yield CounterMetricFamily(f"mahalla_federation_sent_{name}", text, value=numbers[name])
        for name, text in DESTINATIONS.items():
            yield GaugeMetricFamily(
                f"mahalla_federation_destinations_{name}", text, value=numbers[name]
            )
