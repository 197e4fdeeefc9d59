"""Endpoints for monitoring: health and metrics."""

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from homeserver.api.endpoint import Auth, endpoint
from homeserver.http.responses import Response


@endpoint("GET", "/health", auth=Auth.NONE, resource="health")
async def get_health() -> Response:
    """Return 200 while the server answers requests."""
    return Response(headers={"Content-Type": "text/plain; charset=utf-8"}, body=b"OK")


@endpoint("GET", "/metrics", "/_synapse/metrics", auth=Auth.NONE, resource="metrics")
async def get_metrics(registry: CollectorRegistry) -> Response:
    """Return all metrics in the Prometheus text format. Only listeners that name the resource
    `metrics` serve this."""
    return Response(headers={"Content-Type": CONTENT_TYPE_LATEST}, body=generate_latest(registry))
