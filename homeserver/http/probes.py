"""What machines ask about the server itself: whether it lives, and its metrics."""

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from homeserver.api.endpoint import Auth, endpoint
from homeserver.http.responses import Response


@endpoint("GET", "/health", auth=Auth.NONE, resource="health")
async def get_health() -> Response:
    """200 while the server answers requests."""
    return Response(headers={"Content-Type": "text/plain; charset=utf-8"}, body=b"OK")


@endpoint("GET", "/metrics", "/_synapse/metrics", auth=Auth.NONE, resource="metrics")
async def get_metrics(registry: CollectorRegistry) -> Response:
    """All metrics, in Prometheus' text format. Served only on listeners that name the resource
    `metrics`."""
    return Response(headers={"Content-Type": CONTENT_TYPE_LATEST}, body=generate_latest(registry))
