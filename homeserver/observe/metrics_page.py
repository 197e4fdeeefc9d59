"""Generates `docs/operators/metrics.md`, the list of all metrics, from the metrics themselves."""

from prometheus_client import CollectorRegistry

from homeserver.observe.caches import CacheMetrics
from homeserver.observe.database import DatabaseMetrics
from homeserver.observe.federation import AuditMetrics, FederationMetrics, MemberListMetrics
from homeserver.observe.metrics import (
    HttpMetrics,
    JobMetrics,
    MailMetrics,
    RetentionMetrics,
    SearchMetrics,
    TextMessageMetrics,
)
from homeserver.observe.push import PushMetrics, PushQueueMetrics, QueueMetrics
from homeserver.observe.scanning import ScanMetrics
from homeserver.observe.sender import DESTINATIONS, SENT, SenderMetrics

_HEAD = """# Metrics

With `enable_metrics: true`, listeners with the resource `metrics` (or of type `metrics`) serve
these metrics at `/metrics`, in Prometheus' text format. [monitoring.md](monitoring.md) explains the
set-up and recommends alerts. Times are in seconds. The set of labels is fixed, except for names of
push gateways. At most thirty gateways have their own label, and only if they have accepted a push.
`mahalla metrics` prints this page.

| metric | type | meaning |
|---|---|---|
"""


def write_metrics_page() -> str:
    """Return the page in Markdown."""
    registry = CollectorRegistry()
    AuditMetrics(registry)
    CacheMetrics(registry=registry, caches={})
    HttpMetrics(registry)
    MailMetrics(registry)
    DatabaseMetrics(registry=registry, slow_seconds=1.0)
    FederationMetrics(registry)
    MemberListMetrics(registry)
    JobMetrics(registry)
    RetentionMetrics(registry)
    PushMetrics(registry)
    PushQueueMetrics(registry=registry, read=dict)
    ScanMetrics(registry)
    SearchMetrics(registry)
    SenderMetrics(registry=registry, read=lambda: dict.fromkeys((*SENT, *DESTINATIONS), 0))
    TextMessageMetrics(registry)
    QueueMetrics(registry)
    families = sorted(registry.collect(), key=lambda family: family.name)
    return _HEAD + "".join(
        f"| `{family.name}{'_total' if family.type == 'counter' else ''}` | {family.type} "
        f"| {family.documentation} |\n"
        for family in families
    )
