"""The page of the documentation that tells every metric; made from the metrics themselves."""

from prometheus_client import CollectorRegistry

from homeserver.observe.caches import CacheMetrics
from homeserver.observe.database import DatabaseMetrics
from homeserver.observe.federation import FederationMetrics, MemberListMetrics
from homeserver.observe.metrics import (
    HttpMetrics,
    JobMetrics,
    MailMetrics,
    RetentionMetrics,
    SearchMetrics,
)
from homeserver.observe.push import PushMetrics, WaitingMetrics
from homeserver.observe.scanning import ScanMetrics
from homeserver.observe.sender import SenderMetrics

_HEAD = """# Metrics

With `enable_metrics: true`, listeners with the resource `metrics` (or of type `metrics`) show these at `/metrics`, in
Prometheus' text format. Times are seconds. Names and labels are fixed words of this program; of what clients send only the
names of push gateways are in them, of thirty that have taken a push. This page is written by `python -m homeserver metrics`.

| metric | type | what it tells |
|---|---|---|
"""


def write_metrics_page() -> str:
    """The page, in Markdown."""
    registry = CollectorRegistry()
    CacheMetrics(registry, {})
    HttpMetrics(registry)
    MailMetrics(registry)
    DatabaseMetrics(registry, slow_seconds=1.0)
    FederationMetrics(registry)
    MemberListMetrics(registry)
    JobMetrics(registry)
    RetentionMetrics(registry)
    PushMetrics(registry)
    ScanMetrics(registry)
    SearchMetrics(registry)
    SenderMetrics(registry, dict)
    WaitingMetrics(registry)
    families = sorted(registry.collect(), key=lambda family: family.name)
    return _HEAD + "".join(
        f"| `{family.name}{'_total' if family.type == 'counter' else ''}` | {family.type} | {family.documentation} |\n"
        for family in families
    )
